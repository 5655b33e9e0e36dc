"""Units of discovery: the sweeps of a family of stages, what is chosen from them, and the checks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuitdiff.circuit import Circuit, Head
from circuitdiff.evaluation.roles import roles_everywhere
from circuitdiff.evaluation.shapes import all_heads
from circuitdiff.methods.auto_plan import (
    AutoPlan,
    Search,
    as_circuit,
    attended_roles,
    roles_before,
    share_reached,
    windows_of,
)
from circuitdiff.methods.discovery import (
    Split,
    Stage,
    StageResult,
    candidates,
    measured_of,
    receivers_of,
    stage_result,
)
from circuitdiff.methods.path_patching import Path, PathEffects, path_effects
from circuitdiff.methods.screening import Screen, Screened, screened_effects
from circuitdiff.study.checks import FEW, executors_on_path
from circuitdiff.study.common_units import DISCOVERY, EVALUATION, attended, circuit_answers
from circuitdiff.study.context import checked
from circuitdiff.study.section import LoadedModel, PromptsOf, StudyContext


async def searched(study: StudyContext, model: str, rule: AutoPlan) -> tuple[Search, float, tuple[str, ...]]:
    """`find_circuit` in a study: what the plan found, the share that it reached, and at which roles it could look."""
    facts = await study.facts(model)
    used = (DISCOVERY, PromptsOf("replication"), EVALUATION) if rule.select.replicated else (DISCOVERY, EVALUATION)
    splits = [await study.pairs(model, each) for each in used]
    roles, search = roles_everywhere(*splits), Search(rule, windows_of(splits[0]))
    ceiling = all_heads(facts.n_layers, facts.n_heads, roles)
    receivers: StageResult | None = None
    to: tuple[str, ...] = ()
    while True:
        stages = search.look_into(receivers, to)
        known = {each.stage.name: each for each in search.results}
        search.add(await family_results(study, model, stages, known, rule.metric, roles))
        title = f"circuit of {len(search.circuit.groups)} groups in {model}"
        answers = await circuit_answers(study, model, title, [Circuit({}), search.circuit, ceiling], "kind", DISCOVERY)
        reached = share_reached(answers)
        receivers = None if reached >= rule.enough else search.receivers()
        if receivers is None:
            return search, reached, tuple(roles)
        title = f"roles that {receivers.stage.name} attends to in {model}"
        before = tuple(roles_before(receivers.stage.at, roles, splits))
        more = {"prompts": DISCOVERY, "circuit": as_circuit(receivers), "roles": before}
        looking = await study.value(title, attended, model, **more)
        to = attended_roles(looking["receivers"], rule.attended)


async def family_results(
    study: StudyContext,
    model: str,
    family: Sequence[Stage],
    results: Mapping[str, StageResult],
    metric: str,
    roles: Sequence[str],
) -> list[StageResult]:
    """`discover_family` in a study. Checks each stage's sweep. Raises: CheckError."""
    into = {stage: receivers_of(stage, results) for stage in family}
    run = [stage for stage, receivers in into.items() if receivers is None or receivers]
    paths = {stage: path_of(stage, into[stage]) for stage in run}
    given = {"metric": metric, "shared_roles": tuple(roles)}

    async def on(stage: Stage, split: Split, senders: tuple[Head, ...] | None = None) -> PathEffects:
        title, prompts = f"{stage.name} ({split}) in {model}", PromptsOf(split)
        return await study.value(title, sweep, model, prompts=prompts, path=paths[stage], senders=senders, **given)

    async def first_of(stage: Stage) -> PathEffects | Screened:
        if stage.screened_by is None:
            return await on(stage, "discovery")
        by = {"screen": stage.screened_by, "minimum": stage.minimum(metric), "seed": study.settings.seed}
        title = f"{stage.name} (screened) in {model}"
        return await study.value(title, screened_sweep, model, prompts=DISCOVERY, path=paths[stage], **given, **by)

    first = dict(zip(run, await study.each(run, first_of), strict=True))

    async def result_of(stage: Stage) -> StageResult:
        beside = [measured_of(effects) for other, effects in first.items() if other is not stage]
        again = None
        if "replication" in stage.splits:
            chosen = candidates(stage, first[stage], beside)
            again = await on(stage, "replication", None if chosen is None else tuple(chosen))
        result = stage_result(stage, into[stage], first[stage], again, beside)
        await _check(study, model, metric, result)
        return result

    return await study.each(run, result_of)


def path_of(stage: Stage, receivers: Sequence[Head] | None) -> Path:
    return Path(stage.at, None if receivers is None else tuple(sorted(receivers)), stage.via, stage.receivers_at)


def sweep(
    subject: LoadedModel,
    *,
    prompts: PromptsOf,
    path: Path,
    senders: tuple[Head, ...] | None,
    metric: str,
    shared_roles: tuple[str, ...],
) -> PathEffects:
    """Path patching of these heads, or of every one."""
    along = (path.at, path.receivers, path.via, path.receivers_at)
    runs = subject.pair_runs(prompts, shared_roles)
    return path_effects(
        subject.model, subject.pairs(prompts), *along, senders, metric=metric, shared=runs, **subject.how
    )


def screened_sweep(
    subject: LoadedModel,
    *,
    prompts: PromptsOf,
    path: Path,
    metric: str,
    shared_roles: tuple[str, ...],
    screen: Screen,
    minimum: float,
    seed: int,
) -> Screened:
    given = {"metric": metric, "seed": seed, "shared": subject.pair_runs(prompts, shared_roles)}
    return screened_effects(subject.model, subject.pairs(prompts), path, screen, minimum, **given, **subject.how)


async def _check(study: StudyContext, model: str, metric: str, result: StageResult) -> None:
    """Checks 3 and 9 on a finished sweep. Raises: CheckError."""
    stage, effects, selection = result.stage, result.found.effects, result.selection
    await study.check_executors(
        f"{stage.name} in {model}",
        f"stage {stage.name}, heads spread over its depth x {FEW} prompts, in units of the largest effect",
        executors_on_path,
        model,
        prompts=PromptsOf("discovery", first=FEW),
        stage=stage,
        receivers=result.receivers,
        strongest=tuple(selection.helping[:1]),
        largest=float(effects.nan_to_num().abs().max()),
        noise_floor=result.found.noise_floor,
        metric=metric,
    )
    chosen = [*selection.helping, *selection.hurting]
    smallest = min((float(effects[h.layer, h.index].abs()) for h in chosen), default=float("inf"))
    floor = result.found.noise_floor
    detail = f"stage {stage.name}: noise floor {floor:.2g}, in units of the smallest choice"
    name = "chosen effects are above the noise floor"
    study.add_checks([checked(name, model, floor / smallest if chosen else 0.0, 1.0, detail)])
