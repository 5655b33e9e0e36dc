"""What a study's settings name must exist: models, roles, layers, groups. Known before anything is read or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from circuitdiff.circuit import Circuit
from circuitdiff.errors import InputError, choices
from circuitdiff.methods.cross_model import MOST_GROUPS
from circuitdiff.methods.discovery import Plan
from circuitdiff.methods.graft import KINDS, layer_ranges
from circuitdiff.sections.whole_study import WholeStudy, asked_circuits, main_circuits
from circuitdiff.tasks import Task


def check_names(study: WholeStudy, plan: Plan, task: Task, n_layers: int) -> None:
    """Holds the settings against the study's models, its main plan, its task and the base's layers.

    Raises: InputError naming the setting, what it names, and what there is to choose from.
    """
    _check_models(study)
    _check_scenarios(study)
    _check_roles(study, task)
    _check_groups(study, plan)
    _check_parts(study, plan)
    if study.graft:
        layer_ranges(n_layers, study.graft.layers)


def _check_models(study: WholeStudy) -> None:
    if study.functions:
        _known("functions.circuits", study.functions.circuits, [*main_circuits(study), *study.circuits])
        _known("functions.models", study.functions.models, list(study.models))
    if study.cross_model:
        _known("cross_model.null_donors", study.cross_model.null_donors, list(study.variants))


def _check_scenarios(study: WholeStudy) -> None:
    """Prompts are split by scenario."""
    each = study.prompts.queries_per_scenario
    split: dict[str, tuple[int, int]] = {}
    if study.minimality and study.minimality.held_out:
        split["minimality.prompts"] = study.minimality.prompts, 4
    if study.overlap and study.variants:
        split["prompts.discovery"] = study.prompts.discovery, 2
    for where, (n, least) in split.items():
        if ceil(n / each) < least:
            raise InputError(
                f"{where} is {n}, with {each} prompts a scenario: {ceil(n / each)} scenarios, of at least {least}; "
                f"set it to {(least - 1) * each + 1} or more"
            )


def _check_roles(study: WholeStudy, task: Task) -> None:
    if not study.knockout:
        return
    wanted = study.knockout
    curves = [role for curve in wanted.curves or () for role in curve]
    for where, roles in (("roles", wanted.roles), ("curves", curves), ("query_roles", wanted.query_roles)):
        _known(f"knockout.{where}", roles, task.roles)


def _check_groups(study: WholeStudy, plan: Plan) -> None:
    """Groups whose functions are asked for are stages of the main plan or in a circuit file that is asked about."""
    if not study.functions:
        return
    wanted, groups = study.functions, list(groups_asked(study, plan))
    _known("functions.further", wanted.further, groups)
    _known("functions.sweep.group", [wanted.sweep.group] if wanted.sweep and wanted.sweep.group else [], groups)


def groups_asked(study: WholeStudy, plan: Plan) -> Mapping[str, str]:
    """The groups of the circuits whose functions are asked for, with their roles."""
    found: dict[str, str] = {}
    for name in asked_circuits(study):
        if name in study.circuits:
            found |= {group: each.at for group, each in Circuit.from_json(study.circuits[name]).groups.items()}
        else:
            found |= {stage.name: stage.at for stage in plan.stages}
    return found


def _check_parts(study: WholeStudy, plan: Plan) -> None:
    """The main plan's stages are the parts that are patched and grafted."""
    names = [stage.name for stage in plan.stages]
    if study.cross_model and study.variants:
        if len(names) > MOST_GROUPS:
            raise InputError(
                f"cross_model patches every subset of at most {MOST_GROUPS} groups, and the main plan has "
                f"{len(names)} stages: join some, or set cross_model: false"
            )
        if plan.shared == "both" and "contribution" in study.cross_model.what:
            raise InputError(
                "shared_heads: both leaves a head in two groups, whose contribution would be patched twice; choose "
                "later or earlier, or set cross_model.what to [z]"
            )
    if study.graft and study.variants:
        if clash := sorted(set(names) & set(KINDS)):
            raise InputError(f"{clash[0]!r} is the name of what the groups leave in a graft; call the stage otherwise")
        if len(set(study.graft.projections)) < len(study.graft.projections):
            raise InputError(f"graft.projections are some of q, k, v, o, each once; got {study.graft.projections}")


def _known(where: str, names: Sequence[str] | Mapping[str, object] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            raise InputError(f"{where} names {name!r}, which this study lacks{choices(name, known)}")
