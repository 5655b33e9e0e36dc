"""What `functions` may be told, and what is known of it before anything runs: what it will refuse, and its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from circuitdiff.circuit_files import read_circuit
from circuitdiff.config.settings import CountOrZero, Gigabytes, Prompts
from circuitdiff.errors import InputError
from circuitdiff.evaluation.roles import roles_everywhere
from circuitdiff.methods.component_mask.fit import MaskOptions, Sweep
from circuitdiff.methods.component_mask.patching import MEMORY_GB
from circuitdiff.methods.discovery import Stage
from circuitdiff.study.preflight import check_known
from circuitdiff.study.prompts import is_file
from circuitdiff.study.section import Outlined, Part, Sizes
from circuitdiff.study.settings import CommonSettings
from circuitdiff.tasks import Task, read_triples
from circuitdiff.triples import Triples, split_by_scenario

_FEW = 64  # triples that are drawn to see whether a desideratum goes with tokenizer and roles
_TRAINING_STEP = 2.0  # in forward runs: the gradient goes back through activations, not to weights
_TRAINED = 0.75  # of the steps of a mask: most trainings end once the rounded mask stays the same
_NEW = 0.5  # of the checks of a mask while it trains: the others repeat one that has run already
_READ = 0.75  # of the layers: where few groups are tested, source prompts run up to their last one only


@dataclass(frozen=True)
class GroupSweep(Sweep):
    """One group gets several seeds, and several penalties, in the circuit's own model."""

    group: str | None = None  # None: the circuit's first


@dataclass(frozen=True)
class Redraw:
    """Activation patching of the masks' heads with source prompts drawn anew, for test triples."""

    times: CountOrZero = 10
    triples: Prompts = 40


@dataclass(frozen=True)
class FunctionsOptions(MaskOptions):
    """How masks are learned, and of what. A desideratum is a name, or the path of a JSONL file of triples."""

    desiderata: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # None: the task's main ones
    circuits: tuple[str, ...] | None = None  # discovered ones go by their model's name; None: every model's own
    models: tuple[str, ...] | None = None  # of the study; None: all
    further: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by group: more, in the circuit's own model
    sweep: GroupSweep | Literal[False] | None = field(default_factory=GroupSweep)  # false or null: none
    redraw: Redraw = field(default_factory=Redraw)
    memory_gb: Gigabytes = MEMORY_GB  # for the base prompts' clean runs; what does not fit runs anew

    def main_desiderata(self, task: Task) -> tuple[str, ...]:
        """Those that every group is tested with."""
        return tuple(dict.fromkeys(task.desiderata if self.desiderata is None else self.desiderata))

    def desiderata_of(self, group: str, task: Task) -> tuple[str, ...]:
        """Those of one group in the circuit's own model."""
        return tuple(dict.fromkeys([*self.main_desiderata(task), *self.further.get(group, ())]))

    def circuits_of(self, settings: CommonSettings) -> list[str]:
        """The circuits whose groups are tested, by name: those that are named, or each model's own main circuit."""
        return list(dict.fromkeys(settings.searched if self.circuits is None else self.circuits))

    def models_of(self, settings: CommonSettings) -> list[str]:
        return list(dict.fromkeys(self.models or settings.models))

    def seen_from(self, folder: Path) -> FunctionsOptions:
        def seen(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(str(folder / name) if is_file(name) else name for name in names)

        desiderata = None if self.desiderata is None else seen(self.desiderata)
        return replace(self, desiderata=desiderata, further={g: seen(names) for g, names in self.further.items()})

    @property
    def files(self) -> list[str]:
        """Those of triples."""
        return [name for names in (self.desiderata or (), *self.further.values()) for name in names if is_file(name)]

    def sweeps(self, group: str, first: str) -> GroupSweep | None:
        """The sweep, if it is of this group; `first`: the circuit's first group."""
        return self.sweep if self.sweep and group == (self.sweep.group or first) else None


def title_of(desideratum: str) -> str:
    """A desideratum's name in the results: a file goes by its stem."""
    return Path(desideratum).stem if is_file(desideratum) else desideratum


def check(outlined: Outlined, options: FunctionsOptions) -> None:
    """Raises: InputError naming the circuit, model or group that the study lacks; or the desideratum that is unknown,
    belongs to another task, shares its name, has too few triples, or cannot be written in the base's tokenizer or
    tested at a group's role; or too few steps.
    """
    settings, task = outlined.settings, outlined.task
    check_known("functions.circuits", options.circuits, outlined.circuits)
    check_known("functions.models", options.models, settings.models)
    roles = _roles_of_groups(outlined, options)
    check_known("functions.further", options.further, roles)
    check_known("functions.sweep.group", [options.sweep.group] if options.sweep and options.sweep.group else [], roles)
    if options.main_desiderata(task):  # else `run` says that none are written for this task
        by_group = {group: options.desiderata_of(group, task) for group in roles}
        names = list(dict.fromkeys(name for names in by_group.values() for name in names))
        _check_desiderata(task, names)
        if options.most_steps < options.first_move:
            raise InputError(
                f"functions.steps must be at least {options.first_move} with a learning rate of "
                f"{options.learning_rate:g}, or no head could ever be patched; got {options.most_steps}"
            )
        triples = _triples(names, options, task, outlined.base.outline.tokenizer, settings.seed)
        for group, names in by_group.items():
            for name in names:
                triples[name].check_role(roles[group])


def _roles_of_groups(outlined: Outlined, options: FunctionsOptions) -> dict[str, str]:
    """The groups of the chosen circuits, with their roles: stages of the main plan, or those in a circuit file."""
    roles: dict[str, str] = {}
    for name in options.circuits_of(outlined.settings):
        path = outlined.settings.circuits.get(name)
        given = None if path is None else read_circuit(path, roles_everywhere(outlined.base.pairs))
        groups = {stage.name: stage for stage in outlined.main.stages} if given is None else given.groups
        roles |= {group: each.at for group, each in groups.items()}
    return roles


def _check_desiderata(task: Task, names: list[str]) -> None:
    for name in names:
        if is_file(name) and not Path(name).is_file():
            raise InputError(f"there is no file {name} of triples; give the path of a JSONL file")
    task.check_desiderata(name for name in names if not is_file(name))
    if twice := [title for title, n in Counter(map(title_of, names)).items() if n > 1]:
        raise InputError(f"two desiderata are called {twice[0]!r}, by which results know them; rename a file")


def _triples(
    names: list[str], options: FunctionsOptions, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int
) -> dict[str, Triples]:
    """A few of each desideratum of the task, and all of each file."""
    of_task = [name for name in names if not is_file(name)]
    drawn = task.triples(tokenizer, of_task, _FEW, seed) if of_task else []
    triples = dict(zip(of_task, drawn, strict=True))
    for file in filter(is_file, names):
        triples[file] = read_triples(file, tokenizer)
        try:
            split_by_scenario(triples[file].scenarios, options.n_triples)
        except InputError as error:
            raise InputError(f"{file}: {error}, or set functions.train, validation and test") from error
    return triples


def cost(sizes: Sizes, options: FunctionsOptions) -> Iterator[Part]:
    """Every circuit anew: base prompts and the sources of all groups are read once a model, then every group runs its
    window.
    """
    if not options.main_desiderata(sizes.task):
        return
    flop = runs = read = 0.0
    for circuit in options.circuits_of(sizes.settings):
        # masks are learned in the circuit's own model, too, whichever are chosen
        home = circuit if circuit in sizes.settings.models else sizes.settings.base.name
        n_models = len({home, *options.models_of(sizes.settings)})
        read += _n_read(sizes, options, n_models)
        for stage in sizes.main.stages:
            n = _n_runs(sizes, options, stage, n_models)
            flop += sizes.runs(n, sizes.width(stage.at), layers=0.5)
            runs += n
    yield Part("functions", runs + read, flop + sizes.passes(read), kept_gb=options.memory_gb)


def _n_read(sizes: Sizes, options: FunctionsOptions, n_models: int) -> float:
    """Base and source prompts of one circuit's masks."""
    n_triples = sum(options.n_triples)
    main = _sources(options.main_desiderata(sizes.task), sizes.task)
    further = _sources((name for names in options.further.values() for name in names), sizes.task) - main
    read = n_models * (n_triples + len(main) * (n_triples + options.redraw.times * options.redraw.triples))
    return read + len(further) * n_triples * _READ


def _n_runs(sizes: Sizes, options: FunctionsOptions, stage: Stage, n_models: int) -> float:
    """Forward runs of one group's masks in all models."""
    main = len(options.main_desiderata(sizes.task))
    masks = main * n_models + len(options.desiderata_of(stage.name, sizes.task)) - main
    floors = masks / main  # learned where a group may carry what is asked for: one of the main ones
    sweep = options.sweeps(stage.name, sizes.main.stages[0].name)
    others = 0 if sweep is None else main * (len(sweep.penalties) + sweep.seeds - 1)
    prompts = min(options.prompts_per_step, max(1.0, options.positions_per_step / sizes.width(stage.at)))
    per_step = _TRAINING_STEP * prompts + options.validation * _NEW / options.check_every
    learned = (masks + floors + others) * options.most_steps * _TRAINED * per_step
    controls = masks * (2 + options.random_groups) * min(options.control_triples, options.test)
    redrawn = main * n_models * options.redraw.times * options.redraw.triples
    return learned + (masks + floors + others + main * n_models) * options.test + controls + redrawn


def _sources(desiderata: Iterable[str], task: Task) -> set[Hashable]:
    """What tells source prompts apart; each file has its own."""
    return {name if is_file(name) else task.source_of(name) for name in desiderata}
