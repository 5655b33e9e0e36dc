"""What does each group of a circuit encode? Component masks of its groups, for several desiderata, in each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdiff.circuit import Circuit, Head
from circuitdiff.methods.component_mask.fit import MaskFit, MaskOptions
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import Interval
from circuitdiff.stats.proportions import difference_interval
from circuitdiff.study.checks import FEW, executors_on_masks
from circuitdiff.study.estimates import Estimate, HeadPlace, Number, Share, estimate, number, places, share, with_heads
from circuitdiff.study.prompts import TriplesOf, is_file
from circuitdiff.study.section import Section, StudyContext
from circuitdiff.study.sections.accuracy import QueriedShare, by_queried
from circuitdiff.study.sections.discovery import circuits, discovered
from circuitdiff.study.sections.functions_options import FunctionsOptions, check, cost, title_of
from circuitdiff.study.sections.functions_units import MaskRuns, Patched, answers_of_patched, learned_mask
from circuitdiff.triples import split_by_scenario

Floor = Literal["nothing", "shuffled"]  # no head patched; a mask trained and tested on shuffled targets


@dataclass(frozen=True)
class Controls:
    """Accuracies with other heads patched; the floors on all test triples, the others on the first ones."""

    nothing: Share
    shuffled: Share | None  # None: not learned, as the mask is hardly above "nothing"
    all: Share
    ranked: Share  # the group's first heads, as many as the mask has
    random: Number  # the mean over random groups, too few for a range or a rank
    n_random: int


@dataclass(frozen=True)
class TradeOff(Estimate):
    """The accuracy of one of the masks on true targets."""

    penalty: float
    seed: int
    heads: tuple[HeadPlace, ...]
    n_heads: int


@dataclass(frozen=True)
class Transferred(Share):
    """The mask of the circuit's own model, unchanged in this one."""

    heads: tuple[HeadPlace, ...]
    floor_is: Floor
    above_floor: Estimate
    above_own_mask: Estimate
    from_model: str


@dataclass(frozen=True)
class Redrawn:
    """Accuracies of the heads of the circuit's own model, with sources drawn anew; `sd` of a sample."""

    heads: tuple[HeadPlace, ...]
    mean: float
    sd: Number
    accuracies: tuple[float, ...]
    n_triples: int
    from_model: str


@dataclass(frozen=True, repr=False)
class MaskCell(Readable):
    """The mask of a group for one desideratum: the heads that carry it, and how often its target is the answer."""

    heads: tuple[HeadPlace, ...]
    at: str
    group: tuple[HeadPlace, ...]
    accuracy: Number
    low: Number
    high: Number
    floor: Number
    floor_is: Floor
    above_floor: Estimate
    carries: bool
    controls: Controls
    pointed: dict[str, dict[str, float]]  # with the mask's or all heads patched: shares of answers by what points there
    by_queried: tuple[QueriedShare, ...]
    trade_off: tuple[TradeOff, ...]
    penalty: float
    keep: tuple[float, ...]
    validation_accuracy: float
    n_test: int
    n_scenarios: int
    transferred: Transferred | None = None  # in other models than the circuit's own
    redrawn: Redrawn | None = None  # of the main desiderata that are the task's


Cells = dict[str, dict[str, MaskCell]]  # by group and desideratum


async def run(study: StudyContext, options: FunctionsOptions) -> dict[str, dict[str, Cells]]:
    """By circuit and model, after check 3. Groups without heads are left out, as are circuits without any.

    In other models than the one where the circuit was found, the masks found there are tested unchanged, too. The heads
    found there are also patched with sources drawn anew, in every model.
    """
    if not options.main_desiderata(study.task):
        study.warn(f"no desiderata are written for the task {study.task.name}, so what groups encode was not asked")
        return {}
    discovery = await circuits(study)
    names, models = options.circuits_of(study.settings), options.models_of(study.settings)
    chosen = [
        _Masks(study, name, with_heads(discovery[name]), (await discovered(study, name)).model, options)
        for name in names
        if name in discovery
    ]
    cells = await study.each(chosen, lambda masks: study.by_item(models, masks.cells))
    return {masks.name: by_model for masks, by_model in zip(chosen, cells, strict=True)}


@dataclass(frozen=True)
class _Masks:
    """The masks of one circuit in all models; `home`: where the circuit was found."""

    study: StudyContext
    name: str
    circuit: Circuit
    home: str
    options: FunctionsOptions

    @property
    def _main(self) -> tuple[str, ...]:
        return self.options.main_desiderata(self.study.task)

    async def cells(self, model: str) -> Cells:
        await self.study.each(self.circuit.groups, lambda group: self._check(model, group))
        cells = await self.study.by_item(self._asked(model), lambda cell: self._cell(model, *cell))
        by_group: Cells = {group: {} for group in self.circuit.groups}
        for (group, desideratum), cell in cells.items():
            by_group[group][title_of(desideratum)] = cell
        for (group, desideratum), redrawn in (await self._redrawn(model)).items():
            by_group[group][desideratum] = replace(by_group[group][desideratum], redrawn=redrawn)
        return by_group

    async def _check(self, model: str, name: str) -> None:
        group, triples = self.circuit.groups[name], self._triples(model, self._main[0])
        title = f"masks of {name} of {self.name}"
        detail = f"{title}, {FEW} prompts, half patched, logit of the target"
        await self.study.check_executors(title, detail, executors_on_masks, model, group=group, triples=triples)

    async def _cell(self, model: str, group: str, desideratum: str) -> MaskCell:
        """With the mask of the circuit's own model, held against this model's own mask and floors."""
        fit = await self._fit(model, group, desideratum)
        if model == self.home:
            return cell_of(fit)
        heads = (await self._fit(self.home, group, desideratum)).heads
        title = f"mask of {group} of {self.name} from {self.home} in {model}: {title_of(desideratum)}"
        patched = (Patched(group, self._triples(model, desideratum), heads),)
        (answers,) = await self._answers(title, model, desideratum, patched)
        return replace(cell_of(fit), transferred=transferred_of(heads, answers, fit, self.home))

    async def _fit(self, model: str, group: str, desideratum: str) -> MaskFit:
        own = {each.name: getattr(self.options, each.name) for each in fields(MaskOptions)}
        sweep = self.options.sweeps(group, next(iter(self.circuit.groups))) if model == self.home else None
        given = {"group": group, "options": MaskOptions(**own), "sweep": sweep} | self._prompts(model, desideratum)
        title = f"what {group} of {self.name} encodes in {model}: {title_of(desideratum)}"
        fit, triples = await self.study.value(title, learned_mask, model, **given), given["triples"]
        test = await self.study.triples(model, triples)
        rows = split_by_scenario(test.scenarios, triples.sizes)[2]
        return MaskFit(**fit | {"desideratum": title_of(desideratum), "test": test.select(rows)})

    async def _redrawn(self, model: str) -> dict[tuple[str, str], Redrawn]:
        """The heads of the circuit's own model, patched here with sources drawn anew."""
        main, times = self._main, self.options.redraw.times
        cells = [cell for cell in self._asked(model) if cell[1] in main and not is_file(cell[1])]
        if not times or not cells:
            return {}
        fits = await self.study.by_item(cells, lambda cell: self._fit(self.home, *cell))
        heads = {cell: fit.heads for cell, fit in fits.items()}
        hits = await self.study.each(range(1, times + 1), lambda redraw: self._one_redraw(model, heads, redraw))
        return {cell: redrawn_of([each[cell] for each in hits], heads[cell], self.home) for cell in cells}

    async def _one_redraw(
        self, model: str, heads: Mapping[tuple[str, str], tuple[Head, ...]], redraw: int
    ) -> dict[tuple[str, str], Bool[Tensor, " triple"]]:
        names = tuple(dict.fromkeys(desideratum for _, desideratum in heads))
        n, sizes = self.options.redraw.triples, self.options.n_triples
        patched = tuple(
            Patched(group, TriplesOf(desideratum, sizes, names, redraw, n), chosen)
            for (group, desideratum), chosen in heads.items()
        )
        title = f"activation patching of {self.name} in {model}, draw {redraw} of {self.options.redraw.times}"
        answers = await self._answers(title, model, names[0], patched)
        targets = [(await self.study.triples(model, each.triples)).targets for each in patched]
        return {cell: given == wanted for cell, given, wanted in zip(heads, answers, targets, strict=True)}

    async def _answers(
        self, title: str, model: str, desideratum: str, patched: tuple[Patched, ...]
    ) -> list[Int[Tensor, " triple"]]:
        """To test triples; `desideratum`: whose base prompts they share."""
        prompts = self._prompts(model, desideratum)
        return await self.study.value(title, answers_of_patched, model, **prompts, patched=patched)

    def _asked(self, model: str) -> list[tuple[str, str]]:
        """Group and desideratum, those with the same source prompts one after another.

        Further desiderata are tested in the circuit's own model alone.
        """
        by_group = {
            group: self.options.desiderata_of(group, self.study.task) if model == self.home else self._main
            for group in self.circuit.groups
        }
        names = dict.fromkeys(name for names in by_group.values() for name in names)
        return [(group, name) for name in names for group in by_group if name in by_group[group]]

    def _triples(self, model: str, desideratum: str) -> TriplesOf:
        if is_file(desideratum):
            return TriplesOf(desideratum, self.options.n_triples)
        names = dict.fromkeys(name for _, name in self._asked(model) if not is_file(name))
        return TriplesOf(desideratum, self.options.n_triples, tuple(names))

    def _prompts(self, model: str, desideratum: str) -> dict[str, Any]:
        """A desideratum's triples, the groups tested with them, and the runs that the task's, or a file's, share."""
        tested = tuple(group for group, name in self._asked(model) if name == desideratum)
        names = tested if is_file(desideratum) else self.circuit.groups
        groups = tuple((name, self.circuit.groups[name]) for name in names)
        shared = MaskRuns(groups, self.options.random_groups, self.study.settings.seed, self.options.memory_gb)
        return {"triples": self._triples(model, desideratum), "tested": tested, "shared": shared}


def main_function(cells: Mapping[str, MaskCell]) -> str | None:
    """The desideratum that a group carries best, by accuracy above the floor; None if it carries none of these."""
    carried = [name for name, cell in cells.items() if cell.carries]
    return max(carried, key=lambda name: cells[name].above_floor.value or 0.0, default=None)


async def main_masks(study: StudyContext, circuit: str) -> dict[str, tuple[str, MaskCell]]:
    """By group of a model's own circuit its main function, of the main desiderata, and the mask for it.

    Without groups that have none; empty if the section, the circuit or the model is left out.
    """
    options: FunctionsOptions | Literal[False] = getattr(study.settings, SECTION.name)
    results = await study.part(SECTION)
    if not (options and results):
        return {}
    asked = {title_of(name) for name in options.main_desiderata(study.task)}
    masks = {}
    for group, cells in results.get(circuit, {}).get(circuit, {}).items():
        best = main_function({name: cell for name, cell in cells.items() if name in asked})
        if best is not None:
            masks[group] = best, cells[best]
    return masks


def cell_of(fit: MaskFit) -> MaskCell:
    accuracy = estimate(fit.accuracy())
    hits = {name: fit.hits(name) for name in ("nothing", "shuffled", "all", "ranked") if name in fit.answers}
    shares = {name: share(each, fit.test.scenarios[: len(each)]) for name, each in hits.items()}
    return MaskCell(
        heads=places(fit.heads),
        at=fit.group.at,
        group=places(fit.group.heads),
        accuracy=accuracy.value,
        low=accuracy.low,
        high=accuracy.high,
        floor=number(fit.accuracy(fit.floor).value),
        floor_is=fit.floor,  # pyright: ignore[reportArgumentType]
        above_floor=estimate(fit.above_floor),
        carries=fit.carries,
        controls=Controls(**{"shuffled": None} | shares, random=number(fit.random_accuracy), n_random=fit.n_random),  # pyright: ignore
        pointed={patched: fit.pointed(patched) for patched in ("mask", "all")},
        by_queried=by_queried(fit.hits(), fit.test.scenarios, fit.test.source_queried),
        trade_off=tuple(
            TradeOff(**vars(estimate(interval)), penalty=mask.penalty, seed=mask.seed, heads=heads, n_heads=len(heads))
            for mask, interval in fit.trade_off()
            for heads in [places(mask.patched)]
        ),
        penalty=fit.mask.penalty,
        keep=tuple(fit.mask.keep.tolist()),
        validation_accuracy=fit.mask.validation_accuracy,
        n_test=len(fit.test),
        n_scenarios=len(fit.test.scenarios.unique()),
    )


def transferred_of(
    heads: tuple[Head, ...], answers: Int[Tensor, " test"], own: MaskFit, from_model: str
) -> Transferred:
    hits, scenarios = answers == own.test.targets, own.test.scenarios

    def above(name: str) -> Interval:
        return difference_interval(hits.numpy(), own.hits(name).numpy(), scenarios.numpy())

    return Transferred(
        **vars(share(hits, scenarios)),
        heads=places(heads),
        floor_is=own.floor,  # pyright: ignore[reportArgumentType]
        above_floor=estimate(above(own.floor)),
        above_own_mask=estimate(above("mask")),
        from_model=from_model,
    )


def redrawn_of(hits: list[Bool[Tensor, " triple"]], heads: tuple[Head, ...], from_model: str) -> Redrawn:
    accuracies = torch.stack(hits).double().mean(1)
    return Redrawn(
        heads=places(heads),
        mean=float(accuracies.mean()),
        sd=float(accuracies.std()) if len(accuracies) > 1 else None,
        accuracies=tuple(accuracies.tolist()),
        n_triples=len(hits[0]),
        from_model=from_model,
    )


SECTION = Section("functions", FunctionsOptions, dict[str, dict[str, Cells]], run, cost, check)
