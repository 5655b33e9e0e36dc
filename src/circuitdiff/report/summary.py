"""What the numbers say, in sentences that are true whatever the numbers are, and what to beware of."""

from __future__ import annotations

from collections.abc import Iterator

from circuitdiff.models.checks import Check
from circuitdiff.report.numbers import beside_draws, hits, interval, number, significant
from circuitdiff.report.parts import Part, Sentence
from circuitdiff.study.estimates import Share
from circuitdiff.study.registry import CommonResults, cells_of, part_of
from circuitdiff.study.sections import (
    accuracy,
    attention,
    completeness,
    cross_model,
    curves,
    discovery,
    faithfulness,
    functions,
    graft,
    knockout,
    locate,
    minimality,
    overlap,
)
from circuitdiff.study.sections.faithfulness import CircuitInModel

FEW = 50  # prompts below which an interval is wide enough to warn of


def alarms(results: CommonResults) -> Part:
    """Failed self-checks first, then everything that limits what the numbers mean."""
    failed = [Sentence(_failure(check), "alarm failed") for check in results.checks if not check.passed]
    cautions = [*results.warnings, *_few(results)]
    return Part("", sentences=[*failed, *(Sentence(text, "alarm caution") for text in cautions)])


def _failure(check: Check) -> str:
    measured = f"{significant(check.value)} against a tolerance of {significant(check.tolerance)}"
    detail = f" ({check.detail})" if check.detail else ""
    return f"Self-check failed for {check.model}: {check.name}: {measured}{detail}. Do not trust this run."


def _beside(cell: CircuitInModel) -> str:
    """Its accuracy beside those of random circuits."""
    if (random := cell.random) is None:
        return "none were drawn"
    own = cell.circuit_accuracy.value or 0.0
    return f"it scores {beside_draws(own, random.accuracies, random.rank_p, 'random circuits')}"


def _few(results: CommonResults) -> Iterator[str]:
    counted = [(name, each.accuracy.n) for name, each in part_of(results, accuracy.SECTION).items()]
    cells = cells_of(results, faithfulness.SECTION)
    counted += [(f"{circuit} in {model}", each.circuit_accuracy.n) for circuit, model, each in cells]
    fewest: dict[str, int] = {}
    for what, n in _further(results):
        fewest[what] = min(n, fewest.get(what, n))
    few = [f"{what} ({n})" for what, n in [*counted, *fewest.items()] if n < FEW]
    if few:
        yield f"Fewer than {FEW} prompts tell little; see the intervals of {', '.join(few)}."


def _further(results: CommonResults) -> Iterator[tuple[str, int]]:
    """The prompts, or scenarios, that stand behind the numbers of each further section."""
    for pruned in part_of(results, minimality.SECTION).values():
        yield "the costs of heads", pruned.n_prompts.testing
    for _, _, parts in cells_of(results, completeness.SECTION):
        yield "completeness", parts.n_prompts
    for compared in part_of(results, overlap.SECTION).values():
        if compared.n_scenarios is not None:
            yield "the paths between groups and their profiles", compared.n_scenarios
    for _, _, groups in cells_of(results, functions.SECTION):
        masks = [mask for of_group in groups.values() for mask in of_group.values()]
        yield from (("functions", min(mask.n_test, mask.n_scenarios)) for mask in masks)
    for patched in part_of(results, cross_model.SECTION).values():
        both = [*patched.to_base.values(), *patched.to_variant.values()]
        yield from (("patching", min(each.n_prompts, each.n_scenarios)) for each in both)
    for grafted in part_of(results, graft.SECTION).values():
        yield "grafts", min(grafted.n_prompts, grafted.n_scenarios)
    for blocked in part_of(results, knockout.SECTION).values():
        yield "knockouts", min(blocked.n_prompts, blocked.n_scenarios)
    for located in part_of(results, locate.SECTION).values():
        yield "where it happens", min(located.n_scenarios, located.ceiling.model.n)
    for found in part_of(results, curves.SECTION).values():
        yield "rankings of heads", min(found.n_prompts, found.n_scenarios)
    for _, _, attended in cells_of(results, attention.SECTION):
        yield "attention to roles", min(attended.n_prompts, attended.n_scenarios)


def summary(results: CommonResults) -> Part:
    """One paragraph per model, and per circuit in the model where it was found; the matrix has it in the others."""
    found_in = {name: circuit.model for name, circuit in part_of(results, discovery.SECTION).items()}
    models = [_model(name, each.accuracy) for name, each in part_of(results, accuracy.SECTION).items()]
    circuits = [
        _circuit(results, circuit, model, each)
        for circuit, model, each in cells_of(results, faithfulness.SECTION)
        if found_in.get(circuit, model) == model
    ]
    return Part("", sentences=[*models, *circuits])


def _model(name: str, share: Share) -> str:
    accuracy = f"an accuracy of {number(share.value)} (95 % interval {interval(share)})"
    return f"{name} answers {_of_prompts(share)}: {accuracy}."


def _of_prompts(share: Share) -> str:
    return f"{hits(share).replace('/', 'of')} prompts correctly"


def _circuit(results: CommonResults, circuit: str, model: str, cell: CircuitInModel) -> str:
    sentences = [_size(results, circuit, model), _alone(cell)]
    if cell.random is not None:
        sentences.append(f"Beside random circuits of its size {_beside(cell)}.")
    return " ".join(sentences)


def _size(results: CommonResults, circuit: str, model: str) -> str:
    known, of = part_of(results, discovery.SECTION).get(circuit), results.models.get(model)
    groups = {} if known is None else known.groups
    heads = [head for group in groups.values() for head in group.heads]
    share = "" if of is None else f" ({len({*heads})} of the {of.n_layers * of.n_heads} heads of {model})"
    return f"The circuit {circuit} has {_count(len(heads), 'head')} in {_count(len(groups), 'group')}{share}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _alone(cell: CircuitInModel) -> str:
    alone = cell.circuit_accuracy
    start = (
        f"Alone, with every other head replaced by its mean (slot means), it answers {_of_prompts(alone)}, "
        f"an accuracy of {number(alone.value)}"
    )
    if cell.value is None:
        return f"{start}; its faithfulness is undefined here{': ' + cell.note if cell.note else ''}."
    times = f"{number(cell.value)} times the whole model's (faithfulness; 95 % interval {interval(cell)})"
    return f"{start}, which is {times}."
