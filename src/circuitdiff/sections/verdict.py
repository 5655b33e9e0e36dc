"""What may be said of a variant: the numbers behind each claim, gathered, and the sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Evaluation, moved
from circuitdiff.sections.cross_settings import VerdictSettings
from circuitdiff.sections.directions import direction_of, gain_entry
from circuitdiff.sections.entries import ratio_entry, with_heads
from circuitdiff.sections.evidence import mask_cells, same_work
from circuitdiff.stats.intervals import normalised_ratio_interval, ratio_interval
from circuitdiff.verdict import verdict
from circuitdiff.workbench import Subject, Workbench

_NOTHING = Circuit({})
_KINDS = {"slot": "mean by slot", "kind": "mean by kind with heads at every segment"}


def verdict_section(
    bench: Workbench,
    variant: str,
    circuits: Mapping[str, Circuit],
    settings: VerdictSettings,
    *,
    similarity: Mapping[str, Any] | None = None,
    functions: Mapping[str, Any] | None = None,
    unknown: Sequence[str] = (),
) -> dict[str, Any]:
    """The verdict on one variant, from the results so far; run after the other sections.

    `circuits`: each model's own main circuit, by the model's name; `similarity`, `functions` and `unknown` as
    `verdict.verdict` wants them, if they were measured.
    """
    base, other = bench.subject(bench.base), bench.subject(variant)
    patched, grafted = (bench.results.get(method, {}).get(variant) or {} for method in ("cmap", "graft"))
    between = direction_of(bench, variant)
    direction = "to_base" if between.recipient == bench.base else "to_variant"
    gain = gain_entry(other, base, base.splits.evaluation)
    evidence = {
        "base": bench.base,
        "variant": variant,
        "donor": between.donor,
        "scope": _scope(bench, variant),
        "measured": _measured(bench, variant, gain, patched.get(direction) or {}, grafted),
        "failed_checks": failed_checks(bench.results),
        "gain": gain,
        "circuits": circuit_numbers(bench, variant, circuits),
        "similarity": similarity,
        "same_work": same_work(bench.results, variant),
        "functions": functions,
        "unknown": list(unknown),
        "cmap": _patched_parts(patched, direction),
        "graft": _grafted_parts(grafted),
    }
    shown = {key: evidence[key] for key in ("gain", "circuits", "similarity", "functions")}
    return {"verdict": {variant: verdict(evidence, settings.thresholds) | {"evidence": shown}}}


def failed_checks(results: Mapping[str, Any]) -> list[str] | None:
    """Names of the failed self-checks; None if none was run."""
    checks = results.get("checks") or []
    return [check["name"] for check in checks if not check["passed"]] if checks else None


def circuit_numbers(bench: Workbench, variant: str, circuits: Mapping[str, Circuit]) -> dict[str, Any]:
    """By ablation, whether each own circuit does what its model does, and whether the base's does it in the variant.

    Means by kind take addresses out everywhere but where heads are kept, so keeping them at the queried segment alone
    would mark the answer: there the heads are kept at every segment. Nothing if one of the two models has no circuit.
    """
    found_in = {model: with_heads(circuits[model]) for model in (bench.base, variant) if model in circuits}
    if len(found_in) < 2 or not all(circuit.roles for circuit in found_in.values()):
        return {}
    base, other = bench.subject(bench.base), bench.subject(variant)
    wrong_in_base = ~base.stages.answers(base.splits.evaluation).hits.numpy()
    found = {}
    for by, words in _KINDS.items():
        own = {model: _tested(bench, circuit, by) for model, circuit in found_in.items()}
        _, in_base = _evaluated(base, {bench.base: own[bench.base]}, by)
        model, (theirs, its_own, ablated) = _evaluated(other, own, by)
        gained = wrong_in_base & model.hits.numpy()
        found[words] = {
            "base_own": _normalised(base.stages.answers(base.splits.evaluation), *in_base),
            "variant_own": _normalised(model, its_own, ablated),
            "transfer": transfer(model, theirs, its_own, ablated),
            "transfer_where_only_variant_right": transfer(model, theirs, its_own, ablated, gained),
        }
    return found


def _tested(bench: Workbench, circuit: Circuit, by: str) -> Circuit:
    return moved(circuit, bench.task.every_segment) if by == "kind" else circuit


def transfer(
    model: Evaluation,
    base_circuit: Evaluation,
    own_circuit: Evaluation,
    ablated: Evaluation,
    among: ndarray | None = None,
) -> dict[str, Any]:
    """Normalised faithfulness of the base's circuit less that of the variant's own, in the variant, on some prompts."""
    rows = np.ones(len(model.hits), dtype=bool) if among is None else among
    hits = [each.hits.numpy()[rows].astype(float) for each in (base_circuit, own_circuit, model, ablated)]
    scenarios = model.scenarios.numpy()[rows]
    n = len(np.unique(scenarios))
    if n < 2:
        return {"value": None, "low": None, "high": None, "note": f"there are {n} such scenarios", "n": n}
    return ratio_entry(ratio_interval(hits[0] - hits[1], hits[2] - hits[3], scenarios)) | {"n": n}


def _evaluated(subject: Subject, circuits: Mapping[str, Circuit], by: str) -> tuple[Evaluation, list[Evaluation]]:
    """The model, then the circuits alone and, last, nothing."""
    pairs, means = subject.splits.evaluation, subject.means[by]
    title = f"own circuits in {subject.model.name}, {by} means"
    found = subject.stages.circuits(title, [*circuits.values(), _NOTHING], pairs, means)
    return subject.stages.answers(pairs), found


def _normalised(model: Evaluation, circuit: Evaluation, ablated: Evaluation) -> dict[str, Any]:
    own, nothing, whole = (each.hits.numpy() for each in (circuit, ablated, model))
    return ratio_entry(normalised_ratio_interval(own, nothing, whole, model.scenarios.numpy()))


def _patched_parts(entry: Mapping[str, Any], direction: str) -> dict[str, Any] | None:
    """Contributions, where they were patched: z misses what the donor's output projection changed."""
    chosen = _judged_patches(entry.get(direction) or {})
    return None if chosen is None else {"parts": chosen["scores"]["accuracy"]["parts"]}


def _judged_patches(by_what: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return by_what.get("contribution") or next(iter(by_what.values()), None)


def _grafted_parts(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    if not entry:
        return None
    layers = entry["layers"]["scores"]["accuracy"]["parts"] if "layers" in entry else {}
    return {
        "parts": entry["scores"]["accuracy"]["parts"],
        "controls": entry.get("controls") or {},
        "also_touched": entry["also_touched"],
        "layers": layers,
    }


def _scope(bench: Workbench, variant: str) -> str:
    task = bench.settings.task
    wording = ", ".join([task.name, *(f"{key} {value}" for key, value in task.options.items())])
    return f"{variant} against {bench.base}; {wording}"


def _measured(
    bench: Workbench,
    variant: str,
    gain: Mapping[str, Any],
    patched: Mapping[str, Any],
    grafted: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """By section, on what and how many prompts its numbers were taken; `patched` in the direction that is judged."""
    found: dict[str, dict[str, Any]] = {"models": _on(gain, "accuracy")}
    maps = bench.subject(variant).splits.discovery
    n_maps = len(maps.scenarios.unique())
    by = f"; {' and '.join(_KINDS.values())}; effects on {len(maps)} other prompts; attention heads only"
    circuits = _on(gain, "accuracy of circuits", by)
    found["ablations"] = circuits | {"n_scenarios": min(circuits["n_scenarios"], n_maps)}
    if cells := mask_cells(bench.results, bench.base, variant):
        fewest = min(cells, key=lambda cell: cell["n_scenarios"])
        n = {"n_prompts": fewest["n_test"], "n_scenarios": fewest["n_scenarios"]}
        found["masks"] = _on(n, "accuracy of the target", "; attention heads only")
    if chosen := _judged_patches(patched):
        found["cmap"] = _on(chosen, f"accuracy with patched {chosen['what']}", "; attention heads only")
    if grafted:
        found["layers"] = found["graft"] = _on(grafted, "accuracy", "; all weights")
    controls = [each for named in (grafted.get("controls") or {}).values() for each in named.values()]
    if controls:
        n_controls = min(each["n_scenarios"] for each in controls)
        scope = f"{found['graft']['scope']}; controls on {n_controls} scenarios"
        found["graft"] = {"scope": scope, "n_scenarios": min(n_controls, found["graft"]["n_scenarios"])}
    return found


def _on(numbers: Mapping[str, Any], what: str, more: str = "") -> dict[str, Any]:
    n, scenarios = numbers["n_prompts"], numbers["n_scenarios"]
    return {"scope": f"{what} on {n} held-out prompts of {scenarios} scenarios{more}", "n_scenarios": scenarios}
