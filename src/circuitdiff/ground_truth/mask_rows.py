"""Claims about what planted groups encode: fetchers the object, those who write or move an address the position."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from circuitdiff.ground_truth.rows import Row
from circuitdiff.ground_truth.subjects import Subject, task
from circuitdiff.methods.component_mask import MaskFit, MaskOptions, SharedRuns, fit_shared

# What each part carries by its wiring. A lexical route's transmitters carry the label itself, its binders the name.
WIRED: Mapping[str, str] = {
    "value_fetcher": "object",
    "label_fetcher": "object",
    "position_transmitter": "position",
    "position_detector": "position",
    "structure_reader": "position",
    "label_transmitter": "label",
    "name_binder": "object",
}
_ROUTES = ("value_fetcher", "label_fetcher")  # each ends one: with both, what feeds one of them competes with the other
_MINIMUM = 0.05  # accuracy above the floor; less is no function
_OPTIONS = MaskOptions(n_triples=(120, 60, 200), minimum=_MINIMUM, n_seeds=1, n_random=0)


def mask_rows(subject: Subject, options: MaskOptions | None = None) -> list[Row]:
    """Each planted group against object, position and label: it carries what was wired, and nothing else.

    In a model of two routes only the fetchers, which end both, are asked.
    """
    options, planted = options or _OPTIONS, subject.truth.circuit.groups
    two_routes = all(subject.truth.parts.get(part) for part in _ROUTES)
    groups = {name: group for name, group in planted.items() if name == "value_fetcher" or not two_routes}
    names, tokenizer = task().desiderata, subject.model.tokenizer
    drawn = task().triples(tokenizer, names, sum(options.n_triples), options.seed)
    shared = SharedRuns(subject.model, groups, drawn[0].base, n_random=options.n_random, seed=options.seed)
    fits = (fit_shared(shared, group, triples, options) for triples, group in product(drawn, groups))
    return [_row(subject, group, fit) for (_, group), fit in zip(product(drawn, groups), fits, strict=True)]


def _carried(subject: Subject, group: str) -> set[str]:
    """What the parts that make up a planted group carry."""
    heads = set(subject.truth.circuit.groups[group].heads)
    return {WIRED[part] for part, members in subject.truth.parts.items() if part in WIRED and heads & set(members)}


def _row(subject: Subject, group: str, fit: MaskFit) -> Row:
    above, accuracy = fit.above_floor, fit.accuracy()
    expected = fit.desideratum in _carried(subject, group)
    floor, heads = fit.accuracy(fit.floor), f"{len(fit.heads)} of {len(fit.group.heads)} heads"
    detail = f"{above.low:.3f} to {above.high:.3f}; accuracy {accuracy.value:.3f}, floor {floor.value:.3f}; {heads}"
    wanted = f"≥ {_MINIMUM:g}, interval above 0" if expected else f"not so: < {_MINIMUM:g} or interval holds 0"
    claim = f"{group} encodes {fit.desideratum}: accuracy above the floor"
    return Row(subject.model.name, claim, float(above.value), wanted, fit.carries == expected, detail)
