"""Invented results of patching, grafting, knockout and a verdict, with gaps."""

from __future__ import annotations

VARIANT = "tuned <b>&co</b>"


def _estimate(value: float | None, spread: float = 0.05) -> dict:
    return {
        "value": value,
        "low": None if value is None else value - spread,
        "high": None if value is None else value + spread,
    }


def credit(value: float, share: float | None, why: str | None = None) -> dict:
    shares = {"share": share, "share_low": None, "share_high": None}
    if share is not None:
        shares |= {"share_low": share - 0.125, "share_high": share + 0.125}
    return _estimate(value) | shares | {"undefined": why}


def _parts(how: tuple[str, ...]) -> dict:
    far = credit(-0.125, None, "the run with reader lies far from clean activations <so>")
    return {
        "reader": dict.fromkeys(how, far),
        "fetcher": {each: credit(0.25 + i / 64, 0.75 + i / 16) for i, each in enumerate(how)},
    }


def _entry(how: tuple[str, ...], **more: object) -> dict:
    found = {
        "gain": _estimate(0.3125),
        "parts": _parts(how),
        "together": credit(0.28125, 0.875),
        "unexplained": credit(0.03125, 0.125),
    }
    return {
        "donor": VARIANT,
        "recipient": "base",
        "n_prompts": 96,
        "n_scenarios": 80,
        "scores": {"accuracy": found | {"runs": [{"parts": ["reader", "fetcher"]} | credit(0.25, 0.8125)]}},
        "runs": [
            {"parts": [], "accuracy": _estimate(0.5), "probability": _estimate(0.25), "log_prob": _estimate(-1.5)},
            {
                "parts": ["reader", "fetcher"],
                "accuracy": _estimate(0.75),
                "distance": 1.25,
                "incompatible": "far <away>",
            },
        ],
    } | more


def gains() -> dict:
    controls = {
        "group": credit(0.25, 0.75) | {"accuracy": _estimate(0.75)},
        "any_layer": credit(0.03125, 0.0625),
        "elsewhere": credit(-0.0625, -0.1875) | {"incompatible": True},
        "noise": None,
        "same_layers": credit(0.0078125, 0.0625)
        | {"n": 4, "percentile": 100.0, "accuracies": [0.5, 0.53125, 0.5, None]},
        "n_prompts": 48,
    }
    patched = _entry(("alone", "left_out", "in_order", "shapley"))
    nothing = {"scores": {"accuracy": {"gain": _estimate(0.0), "parts": {}, "together": credit(0, None, "covers 0")}}}
    grafted = _entry(("alone", "left_out", "in_order"), unchanged=["norms"])
    grafted["scores"]["accuracy"]["parts"]["norms"] = {"alone": credit(0.0, 0.0)}
    grafted["layers"] = _entry(("alone", "left_out", "in_order"))
    grafted["controls"] = {"fetcher": {"random heads of any layer": credit(0.0, 0.0)}}
    return {
        "cmap": {
            VARIANT: {
                "recipient": "base",
                "to_base": {"z": patched},
                "to_variant": {"z": nothing},
                "heads": {"group": "fetcher", "what": "z"} | _entry(("alone", "left_out", "in_order")),
                "null_donors": {"untuned": {"what": "z", "donor": "untuned"} | nothing},
                "controls": {"fetcher": controls},
            }
        },
        "graft": {VARIANT: grafted},
        "knockout": {"base": _knockout(), "empty": {}},
        "verdict": {VARIANT: _verdict()},
    }


def _knockout() -> dict:
    point = _estimate(0.25) | {"hits": 12, "n": 48}
    return {
        "n_prompts": 48,
        "curves": [
            {
                "query": "last",
                "key": key,
                "single_layers": False,
                "clean": _estimate(0.75),
                "points": [{"layer": 0} | point, {"layer": 3} | point | {"value": None}],
            }
            for key in ("query_label", "a random position")
        ],
        "matrix": {
            "roles": ["last", "query_label", "object"],
            "margin": 0.05,
            "clean": _estimate(0.75),
            "control": {"last": _estimate(0.71875), "query_label": _estimate(0.6875)},
            "cells": [
                _cell("last", "query_label", "yes", 0.5),
                _cell("last", "object", "no", 0.0),
                _cell("query_label", "object", "not established", 0.0625),
                {"query": "query_label", "key": "last", "answer": None},
            ],
        },
    }


def _cell(query: str, key: str, answer: str, loss: float) -> dict:
    both = {"loss": _estimate(loss), "loss_beyond_random": _estimate(loss - 0.03125)}
    return {"query": query, "key": key, "answer": answer, "accuracy": _estimate(0.75 - loss)} | both


def _verdict() -> dict:
    scope = "tuned against base; <boxes>"
    return {
        "sentences": [
            {
                "claim": "better",
                "answer": "yes",
                "text": "Yes: it is.",
                "reasons": [],
                "table": "models",
                "scope": scope,
            },
            {
                "claim": "improved_part",
                "answer": "not established",
                "text": "Not established: improved part: fetcher, because no controls of fetcher were grafted.",
                "reasons": ["no controls of fetcher were grafted"],
                "table": "graft",
                "scope": scope,
            },
        ],
        "thresholds": {"scenarios": 50, "faithful": 0.8, "too_faithful": 1.1, "margin": 0.05, "share": 0.5},
    }
