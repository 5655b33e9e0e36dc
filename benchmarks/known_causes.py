"""Verdicts on variants whose cause is known, since it was trained in: the page `docs/known-causes.md`.

    python -P benchmarks/known_causes.py scale runs/known/mlps/adapter 0.5 runs/known/mlps-half   # a smaller dose
    python -P benchmarks/known_causes.py better runs/known/better.json                             # on other prompts
    python -P benchmarks/known_causes.py page runs/known-causes runs/known/better.json > docs/known-causes.md

What is true of a variant follows from which weights its recipe trained, and whether it is better at all from 500
prompts that the study does not use; never from the study. The answers on planted models stand beside (`ground-truth`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import circuitdiff as cd
from circuitdiff.ground_truth import ask, chosen
from circuitdiff.ground_truth.page import rates, table
from circuitdiff.ground_truth.statements import Answer, Claim, Statement, answer_of
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.study.registry import read_results, read_study
from circuitdiff.study.sections.verdict import Verdict

STUDY = Path(__file__).parents[1] / "studies" / "known-causes.yaml"
MARGIN = 0.05  # accuracy: a difference that surely lies within is none
PROMPTS, SEED = 500, 100  # of the split `evaluation`, of which the study takes another seed
LOWER, UPPER = "layers 0 to 16", "layers 17 to 29"


@dataclass(frozen=True)
class Truth:
    """What is known of a variant. `improved`: the parts that were trained on the task's kind; None: across parts."""

    trained: str
    improved: tuple[str, ...] | None = ()
    layers: tuple[str, ...] | None = None  # None: not known
    same_circuit: bool | None = None
    same_functions: bool | None = None


MLPS, TRANSMITTERS, FETCHERS = ("mlps",), ("position_transmitter",), ("value_fetcher",)
CHAT, SUMS = "conversations (q, k, v, o)", "arithmetic (q, k, v, o)"
TRUTHS = {
    "mlps-chat": Truth(f"MLPs; {CHAT}", MLPS),
    "mlps-sums": Truth(f"MLPs; {SUMS}", MLPS),
    "mlps-again-chat": Truth(f"MLPs, another seed; {CHAT}", MLPS),
    "mlps-half-chat": Truth(f"MLPs at half the dose; {CHAT}", MLPS),
    "mlps-quarter-chat": Truth(f"MLPs at a quarter; {CHAT}", MLPS),
    "transmitters-chat": Truth(f"q and k of the position transmitters; {CHAT}", TRANSMITTERS),
    "transmitters-sums": Truth(f"q and k of the position transmitters; {SUMS}", TRANSMITTERS),
    "transmitters-again-chat": Truth(f"the same, another seed; {CHAT}", TRANSMITTERS),
    "fetchers-chat": Truth(f"v and o of the value fetchers; {CHAT}", FETCHERS),
    "fetchers-sums": Truth(f"v and o of the value fetchers; {SUMS}", FETCHERS),
    "two-chat": Truth(f"MLPs; q and k of the position transmitters; {CHAT}", (*MLPS, *TRANSMITTERS)),
    "early-chat": Truth(f"layers 0 to 16; {CHAT}", None, (LOWER,)),
    "early-sums": Truth(f"layers 0 to 16; {SUMS}", None, (LOWER,)),
    "chat-sums": Truth(f"{CHAT}; {SUMS}", (), (), same_circuit=True, same_functions=True),
    "rerouted": Truth("all but the circuit's heads, which are taken out", None, same_circuit=False),
    "next-box": Truth("all, on the next box's object", None, same_functions=False),
}


def scale(adapter: Path, dose: float, out: Path) -> None:
    """A LoRA's second factor times the dose."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(adapter / "adapter_config.json", out)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v * dose if "lora_B" in k else v for k, v in tensors.items()}, out / "adapter_model.safetensors")


@torch.no_grad()
def better(out: Path) -> None:
    """Accuracy less the base's, paired, with its 95 % interval."""
    study, found = read_study(STUDY), dict[str, list[float]]()
    base = cd.load_model(study.base.source)
    pairs = cd.tasks.get_task("entity_tracking").sample(base.tokenizer, PROMPTS, SEED, "evaluation")
    own = cd.evaluate_model(base, pairs).hits.double()
    for name, each in study.variants.items():
        model = cd.load_model(each.source, each.adapters, like=[base])
        difference = cd.evaluate_model(model, pairs).hits.double() - own
        interval = mean_interval(difference.numpy(), pairs.scenarios.numpy())
        found[name] = [float(difference.mean()), float(interval.low), float(interval.high)]
        out.write_text(json.dumps(found))


def surely_better(value: float, low: float, high: float) -> bool | None:
    return True if low > 0 else False if low > -MARGIN and high < MARGIN else None


def stated(name: str, truth: Truth, verdict: Verdict, is_better: bool | None) -> Iterator[Statement]:
    said = {each.claim: each for each in verdict.sentences}

    def one(claim: Claim, about: str, true: bool, ours: Answer, text: str) -> Statement:
        return Statement(name, False, claim, about, true, ours, text, {})

    if is_better is not None:
        yield one("does better", "", is_better, answer_of(said["behaviour"].answer), said["behaviour"].text)
    of_circuits: list[tuple[Claim, str, bool | None]] = [
        ("same circuit", "same_circuit", truth.same_circuit),
        ("same functions", "same_function", truth.same_functions),
    ]
    for claim, sentence, true in of_circuits:
        if true is not None and said[sentence].answer != "not asked":
            yield one(claim, "", true, answer_of(said[sentence].answer), said[sentence].text)
    if not is_better:  # there is no gain to share out, or perhaps none
        return
    divisions = [("graft", "improved_part", truth.improved), ("layers", "cause_layers", truth.layers)]
    for division, sentence, causes in divisions:
        if causes is None:
            continue
        for part in verdict.parts.get(division, ()):
            ours = answer_of(part.improved) if said[sentence].answer in ("yes", "no") else "open"
            yield one("improved", part.part, part.part in causes, ours, part.numbers)


def page(run: Path, known: Path, planted: Path) -> str:
    results, better_by = read_results(run), json.loads(known.read_text())
    said: list[Statement] = []
    rows: list[tuple[str, ...]] = []
    for name, truth in TRUTHS.items():
        verdict = results.verdict[name]  # pyright: ignore[reportAttributeAccessIssue]
        value, low, high = better_by[name]
        own = list(stated(name, truth, verdict, surely_better(value, low, high)))
        said += own
        sentences = {each.claim: each.answer for each in verdict.sentences}
        asked = ("behaviour", "same_circuit", "same_function", "improved_part", "cause_layers", "visible_part")
        parts = [f"{each.part}: {each.improved}" for each in verdict.parts.get("graft", ()) if each.improved == "yes"]
        answers = [sentences[claim] for claim in asked]
        answers[3] += f" ({', '.join(parts)})" if parts else ""
        marks = [sum(each.right is value for each in own) for value in (True, False, None)]
        rows.append((f"`{name}`", truth.trained, f"{value:.2f} [{low:.2f}, {high:.2f}]", *answers, *map(str, marks)))
    head = ("variant", "trained", "accuracy less the base's, 500 other prompts", "behaviour", "same circuit")
    head += ("same function", "part that improved", "layers", "visible at", "right", "wrong", "open")
    wrong = [(f"`{s.planting}`", f"{s.claim} {s.about}", str(s.true), s.ours, s.text) for s in said if s.right is False]
    truth_of_planted = ask(chosen(), planted)
    parts = [
        "# Known causes\n\nMade by `make known-causes`; what each column holds, and what is known of which variant, "
        "stands in `benchmarks/known_causes.py`.\n\n",
        table(head, rows),
        "\n## Wrong\n\n",
        table(("variant", "claim", "truth", "ours", "what was said"), wrong),
        "\n## How often is an answer right?\n\nTuned variants:\n\n",
        rates(said),
        "\nTuned variants and planted models ([ground-truth.md](ground-truth.md)):\n\n",
        rates([*said, *truth_of_planted.statements]),
    ]
    return "".join(parts)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = arguments.add_subparsers(dest="command", required=True)
    of_scale = commands.add_parser("scale")
    of_scale.add_argument("adapter", type=Path)
    of_scale.add_argument("dose", type=float)
    of_scale.add_argument("out", type=Path)
    commands.add_parser("better").add_argument("out", type=Path)
    of_page = commands.add_parser("page")
    of_page.add_argument("run", type=Path)
    of_page.add_argument("better", type=Path)
    of_page.add_argument("--planted", type=Path, default=Path("runs/ground-truth"))
    given = arguments.parse_args()
    if given.command == "scale":
        scale(given.adapter, given.dose, given.out)
    elif given.command == "better":
        better(given.out)
    else:
        print(page(given.run, given.better, given.planted), end="")


if __name__ == "__main__":
    main()
