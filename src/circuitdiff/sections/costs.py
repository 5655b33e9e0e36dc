"""What each section of a study will cost, before it starts.

Circuits are not known yet: a group counts as many heads as its rule takes, or ten. All senders count as live.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from circuitdiff.methods.discovery import Plan, Stage
from circuitdiff.planning import Part, Work
from circuitdiff.sections.functions_cells import main_desiderata, wanted_of
from circuitdiff.sections.functions_settings import FunctionSettings
from circuitdiff.sections.whole_study import WholeStudy, asked_circuits
from circuitdiff.stats.selection import Discoveries, TopK
from circuitdiff.stats.shapley import all_subsets, needed_subsets
from circuitdiff.tasks import Task, get_task
from circuitdiff.tasks.desiderata import DESIDERATA

_HEADS = 10  # of a group whose rule does not say
_DISTINCT = 0.25  # of the tokens of an ablated prompt: the others have the same token at the same slot
_TRAINING_STEP = 2.0  # in forward runs: the gradient goes back through activations, not to weights
_TRAINED = 0.75  # of the steps of a mask: most trainings end once the rounded mask stays the same
_NEW = 0.5  # of the checks of a mask while it trains: the others find one that has run already
_READ = 0.75  # of the layers: where few groups are tested, source prompts run up to their last one only
_CIRCUIT_RUNS = 10  # the circuit, its references and its controls, under two kinds of means
_GRAFTED = 0.65  # of the layers, on average: grafts that are alike so far share them


def study_costs(study: WholeStudy, plans: Mapping[str, Plan], work: Work) -> list[Part]:
    """The parts of a study in its order."""
    return [part for part in _Costs(study, plans, work).parts() if part.forwards]


@dataclass(frozen=True)
class _Costs:
    study: WholeStudy
    plans: Mapping[str, Plan]
    work: Work

    def parts(self) -> Iterator[Part]:
        study, prompts, n_models = self.study, self.study.prompts, len(self.study.models)
        n_plain = n_models * (prompts.evaluation + prompts.means)
        yield Part("accuracy and means", n_plain, self.work.passes(n_plain))
        yield from self._sweeps()
        yield self._faithfulness()
        yield self._minimality()
        yield self._completeness()
        yield self._ablations()
        yield self._functions()
        if study.variants:
            yield self._overlap()
            yield self._cross_model()
            yield self._graft()
        yield self._knockout()

    @property
    def _task(self) -> Task:
        return get_task(self.study.task.name, **self.study.task.options)

    @property
    def _main(self) -> Plan:
        return next(iter(self.plans.values()))

    @property
    def _n_searched(self) -> int:
        return 1 + len([name for name in self.study.searched if name in self.study.variants])

    def _sweeps(self) -> Iterator[Part]:
        """Stages that plans share run once."""
        found: dict[str, Part] = {}
        for plan in self.plans.values():
            times = self._n_searched if plan is self._main else 1
            for stage in plan.stages:
                part = self._sweep(stage, times)
                found.setdefault(part.what, part)
        yield from found.values()

    def _sweep(self, stage: Stage, times: int) -> Part:
        """A sender in layer l costs one token in the layers above, then the second run's window."""
        n = self.study.prompts.discovery
        if isinstance(stage.rule, Discoveries) and stage.rule.replicated:
            n += self.study.prompts.replication
        model = self.work.model
        runs = times * n * model.n_layers * model.n_heads
        width = 0.0 if stage.via is None else self.work.width(stage.receivers_at or stage.at)
        what = f"{stage.name} (at {stage.at}{'' if stage.via is None else f', via {stage.via}'})"
        return Part(what, runs * (1 if stage.via is None else 2), self.work.runs(runs, 1 + width, layers=0.5))

    def _faithfulness(self) -> Part:
        """Every circuit in every model: a token per role, and per segment in one row."""
        wanted, n = self.study.evaluation, self.study.prompts.evaluation
        n_models, circuits = len(self.study.models), len(self.plans) + self._n_searched - 1
        n_random = wanted.random_circuits * min(wanted.random_prompts, n) * (circuits + self._n_searched - 1)
        rows = n_models * circuits * n * _CIRCUIT_RUNS
        shared = n_models * 2 * n * self.work.length * _DISTINCT
        flop = self.work.runs(rows + n_random, self._roles) + self.work.runs(shared, 1)
        return Part("every circuit in every model", rows + n_random, flop)

    def _minimality(self) -> Part:
        wanted, sizes = self.study.minimality, self._sizes().values()
        if not wanted:
            return _nothing("minimality")
        circuits = sum(size * (size + 1) / 2 + 2 * size for size in sizes)
        runs = self._n_searched * circuits * wanted.prompts / (2 if wanted.held_out else 1)
        return Part("minimality", runs, self.work.runs(runs, self._roles))

    def _completeness(self) -> Part:
        """The model without a part changes everything from the part's first role on."""
        wanted = self.study.completeness
        if not wanted:
            return _nothing("completeness")
        searched = wanted.greedy_steps * wanted.greedy_candidates * wanted.greedy_prompts
        n = self._n_searched * (searched + wanted.prompts * (wanted.random_parts + len(self._main.stages) + 3))
        width = max(self.work.width(stage.at) for stage in self._main.stages)
        return Part("completeness", 2 * n, self.work.runs(n, self._roles + width))

    def _ablations(self) -> Part:
        """Resampled activations are each prompt's own."""
        wanted = self.study.ablations
        if not wanted:
            return _nothing("ablations")
        n = self._n_searched * min(wanted.prompts or self.study.prompts.evaluation, self.study.prompts.evaluation)
        own = (2 if "resample" in wanted.ablations else 0) + 1
        runs = 2 * n * len(wanted.ablations)
        return Part("ablations", runs, self.work.runs(runs, self._roles) + self.work.passes(own * n))

    def _overlap(self) -> Part:
        """Three plain runs, each group patched at every role, and an edge between any two groups."""
        wanted, n_groups = self.study.overlap, len(self._main.stages)
        if not wanted:
            return _nothing("overlap")
        n = wanted.prompts * (2 * self._n_searched - 1 + len(self.study.models) - self._n_searched)
        roles = [role for role in self.work.roles if "." not in role]
        widths = n_groups * sum(self.work.width(role) for role in roles)
        runs = n * n_groups * len(roles)
        return Part("overlap", runs, self.work.passes(4 * n) + self.work.runs(n, widths, layers=0.6))

    def _functions(self) -> Part:
        """Every circuit anew: base prompts and the sources of all groups are read once a model, then every group runs
        its window.
        """
        wanted, flop, runs, read = self.study.functions, 0.0, 0.0, 0.0
        if not wanted or not main_desiderata(wanted, self._task):
            return _nothing("functions")
        for circuit in asked_circuits(self.study):
            n_models = self._n_asked(wanted, circuit)
            read += self._read_for_masks(wanted, n_models)
            for stage in self._main.stages:
                n, width = self._masks(wanted, stage, n_models), self.work.width(stage.at)
                flop += self.work.runs(n, width, layers=0.5)
                runs += n
        return Part("functions", runs + read, flop + self.work.passes(read))

    def _n_asked(self, wanted: FunctionSettings, circuit: str) -> int:
        """Masks are learned in the circuit's own model, too, whichever are asked."""
        home = circuit if circuit in self.study.models else self.study.base.name
        return len({home, *(wanted.models or self.study.models)})

    def _read_for_masks(self, wanted: FunctionSettings, n_models: int) -> float:
        """Base and source prompts of one circuit's masks."""
        triples = wanted.train + wanted.validation + wanted.test
        main = _sources(main_desiderata(wanted, self._task))
        further = _sources(name for names in wanted.further.values() for name in names) - main
        read = n_models * (triples + len(main) * (triples + wanted.redraw.times * wanted.redraw.triples))
        return read + len(further) * triples * _READ

    def _masks(self, wanted: FunctionSettings, stage: Stage, n_models: int) -> float:
        """Forward runs of one group's masks in all models."""
        main = len(main_desiderata(wanted, self._task))
        masks = main * n_models + len(wanted_of(stage.name, wanted, self._task)) - main
        floors = masks / main  # learned where a group may carry what is asked for: one of the main ones
        swept = wanted.sweep and stage.name == (wanted.sweep.group or self._main.stages[0].name)
        others = main * (len(wanted.sweep.penalties) + wanted.sweep.seeds - 1) if wanted.sweep and swept else 0
        prompts = min(wanted.prompts_per_step, max(1.0, wanted.positions_per_step / self.work.width(stage.at)))
        steps = wanted.options(0, swept=False).training.most_steps * _TRAINED
        learned = (
            (masks + floors + others)
            * steps
            * (_TRAINING_STEP * prompts + wanted.validation * _NEW / wanted.check_every)
        )
        controls = masks * (2 + wanted.random_groups) * min(wanted.control_triples, wanted.test)
        redrawn = main * n_models * wanted.redraw.times * wanted.redraw.triples
        return learned + (masks + floors + others + main * n_models) * wanted.test + controls + redrawn

    def _cross_model(self) -> Part:
        wanted, variants = self.study.cross_model, len(self.study.variants)
        if not wanted:
            return _nothing("cross-model patching")
        names = [stage.name for stage in self._main.stages]
        asked = len(wanted.what) * (2 if wanted.both_directions else 1)
        subsets = asked * len(all_subsets(names))
        heads = len(needed_subsets([str(i) for i in range(max(self._sizes().values()))])) if wanted.heads else 0
        widths = [self.work.width(stage.at) for stage in self._main.stages]
        rows = wanted.prompts * (asked * sum(widths) + subsets + heads)  # subsets build on each other
        rows += wanted.control_prompts * wanted.random_groups * sum(widths)
        n, directions = variants * wanted.prompts, 2 if wanted.both_directions else 1
        passes = n * (directions + 1 + bool(heads)) + wanted.prompts  # clean runs; both models are read once
        flop = self.work.passes(passes) + self.work.runs(variants * rows, 1)
        n_controls = variants * wanted.control_prompts * wanted.random_groups * len(names)
        return Part("cross-model patching", n * (subsets + heads) + n_controls, flop)

    def _graft(self) -> Part:
        wanted = self.study.graft
        if not wanted:
            return _nothing("grafts")
        parts = [stage.name for stage in self._main.stages] + ["other heads", "mlps"]
        ranges = [str(i) for i in range(1 + len((0,) if wanted.layers is None else wanted.layers))]
        runs = len(needed_subsets(parts)) + len(needed_subsets(ranges)) - 2  # both have the donor and the recipient
        n_controls = wanted.control_prompts * (wanted.random_groups + 2 if wanted.random_groups else 0)
        n = len(self.study.variants) * (wanted.prompts * runs + n_controls)
        return Part("grafts", n, self.work.passes(n * _GRAFTED * self._share_of_a_row(wanted.queries_per_scenario)))

    def _knockout(self) -> Part:
        wanted = self.study.knockout
        if not wanted:
            return _nothing("knockouts")
        roles = list(wanted.roles or dict.fromkeys(["last", *(stage.at for stage in self._main.stages)]))
        widths = sorted((self.work.width(role) for role in roles), reverse=True)
        points = self.work.model.n_layers / wanted.layer_step / 2  # curves run, on average, half of the layers
        cells = 1.0 if wanted.single_layers or wanted.curves is not None else 0.0  # else the curves hold the matrix's
        earlier = [(i, width) for i, width in enumerate(widths)]  # a query sees the roles before it, and a random key
        rows = sum((i + 1) * width * (cells + points) for i, width in earlier if i)
        n = len(self.study.models) * wanted.prompts
        return Part("knockouts", n * (1 + 2 * points) * len(roles), self.work.passes(n) + self.work.runs(n * rows, 1))

    def _share_of_a_row(self, queries_per_scenario: int | None) -> float:
        """Of a prompt's tokens, what a question takes that shares a row with others about its scenario."""
        each, asking = queries_per_scenario or self.study.prompts.queries_per_scenario, self._task.question_roles
        own = max((self.work.width(role) for role in asking if role in self.work.roles), default=self.work.length)
        return own / self.work.length + (1 - own / self.work.length) / each

    @property
    def _roles(self) -> int:
        return len({stage.at for stage in self._main.stages})

    def _sizes(self) -> dict[str, int]:
        rules = {stage.name: stage.rule for stage in self._main.stages}
        return {name: rule.k if isinstance(rule, TopK) else _HEADS for name, rule in rules.items()}


def _sources(desiderata: Iterable[str]) -> set[object]:
    """What tells source prompts apart: desiderata that are paired and worded alike share theirs."""
    known = {name: DESIDERATA.get(name) for name in desiderata}
    return {(each.pairing, each.wording) if each else name for name, each in known.items()}


def _nothing(what: str) -> Part:
    return Part(what, 0, 0.0)
