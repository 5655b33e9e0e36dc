"""Runs the studies of planted models, and holds what they say against the wiring."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from circuitdiff.ground_truth.plantings import Planting, study_of
from circuitdiff.ground_truth.rivals import WEIGHTS, Z_PATCHING, FoundHeads, by_weights, by_z_patching, found_heads
from circuitdiff.ground_truth.statements import Statement, statements
from circuitdiff.models import load_model
from circuitdiff.models.checks import CheckError
from circuitdiff.planted import build_planted
from circuitdiff.study.registry import read_results
from circuitdiff.study.runner import run_study
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.workers import Monitor
from circuitdiff.tasks import get_task


@dataclass(frozen=True)
class GroundTruth:
    """Everything that was asked, of one planting or of all."""

    heads: tuple[FoundHeads, ...]
    statements: tuple[Statement, ...]
    failed: tuple[str, ...] = ()  # studies that a self-check ended, and which

    def __add__(self, other: GroundTruth) -> GroundTruth:
        return GroundTruth(self.heads + other.heads, self.statements + other.statements, self.failed + other.failed)


def ask(
    plantings: Sequence[Planting], folder: Path, workers: int = 1, monitor: Monitor = lambda *_: None
) -> GroundTruth:
    """What a study of each says, in the order given. What the folder has already is not computed again."""
    settings = [study_of(planting) for planting in plantings]
    places = [folder / each.name for each in settings]
    if workers == 1:
        found = []
        for done, job in enumerate(zip(plantings, settings, places, strict=True)):
            monitor("planted models", done, len(plantings))
            found.append(asked(*job))
        monitor("planted models", len(plantings), len(plantings))
    else:
        spawn = multiprocessing.get_context("spawn")  # a forked torch hangs
        with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
            jobs = [pool.submit(asked, *job) for job in zip(plantings, settings, places, strict=True)]
            for done, _ in enumerate(as_completed(jobs), start=1):
                monitor("planted models", done, len(plantings))
            found = [job.result() for job in jobs]
    return sum(found, GroundTruth((), ()))


def asked(planting: Planting, settings: CommonSettings, folder: Path) -> GroundTruth:
    """The study of one planting."""
    try:
        run_study(settings, folder)
    except CheckError as error:
        return GroundTruth((), (), (f"`{planting.title}`: {error}",))
    results = read_results(folder)
    truth = {name: build_planted(planted, seed=planting.seed) for name, planted in planting.models.items()}
    models = {name: load_model(name, dtype=settings.dtype) for name in truth}
    found = results.discovery or {}  # pyright: ignore[reportAttributeAccessIssue]
    heads: list[FoundHeads] = []
    for name in models if planting.held_out else [*models][-1:]:  # the base that many share stands once
        tokenizer = models[name].tokenizer
        n, seed = settings.prompts.discovery, settings.seed
        pairs = get_task(settings.task.name).sample(tokenizer, n, seed, "discovery")
        heads += found_heads(planting, models[name], truth[name], found[name], pairs)
    if len(models) == 1:
        return GroundTruth(tuple(heads), ())
    base, variant = models
    circuit = truth[base].circuit
    rivals = {
        Z_PATCHING: by_z_patching((results.cross_model or {}).get(variant)),  # pyright: ignore[reportAttributeAccessIssue]
        WEIGHTS: by_weights(models[base], models[variant], circuit),
    }
    return GroundTruth(tuple(heads), tuple(statements(planting, truth[variant], results, rivals)))
