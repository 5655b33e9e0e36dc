"""What the numbers say, in sentences that are true whatever the numbers are, and what to beware of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from circuitdiff.report.numbers import finite, hits, interval, number, significant

FEW = 50  # prompts below which an interval is wide enough to warn of
_COUNTS = ("testing", "n_prompts", "n_test", "n_scenarios")  # what entries call theirs
TOO_FAITHFUL = 1.1
BEATS = 0.95  # share of random circuits that a real one should beat


@dataclass(frozen=True)
class Alarm:
    """Something the reader must know before the numbers."""

    level: str  # "failed" or "caution"
    text: str


def alarms(results: dict) -> list[Alarm]:
    """Failed self-checks first, then everything that limits what the numbers mean."""
    failed = [Alarm("failed", _failure(check)) for check in results.get("checks") or [] if check.get("passed") is False]
    cautions = [
        *_unfaithful(results),
        *_no_better_than_random(results),
        *_few(results),
        *(results.get("warnings") or []),
    ]
    return [*failed, *(Alarm("caution", str(text)) for text in cautions)]


def _failure(check: dict) -> str:
    measured = f"{significant(check.get('value'))} against a tolerance of {significant(check.get('tolerance'))}"
    detail = f" ({check['detail']})" if check.get("detail") else ""
    return (
        f"Self-check failed for {check.get('model')}: {check.get('name')}: {measured}{detail}. Do not trust this run."
    )


def _measured(results: dict) -> Iterator[tuple[str, str, dict]]:
    for circuit, models in (results.get("faithfulness") or {}).items():
        for model, found in models.items():
            yield circuit, model, found


def _unfaithful(results: dict) -> Iterator[str]:
    """One caution per model."""
    found: dict[str, list[tuple[str, float]]] = {}
    for circuit, model, entry in _measured(results):
        value = finite(entry.get("value"))
        if value is not None and value > TOO_FAITHFUL:
            found.setdefault(model, []).append((circuit, value))
    for model, circuits in found.items():
        listed = ", ".join(f"{circuit} {number(value)}" for circuit, value in circuits)
        yield (
            f"Faithfulness in {model} is above {TOO_FAITHFUL} ({listed}): there a circuit does something that the "
            f"whole model does not, which is unfaithful, too."
        )


def _no_better_than_random(results: dict) -> Iterator[str]:
    for circuit, model, found in _measured(results):
        compared = beaten(results, circuit, model, found)
        if compared and compared[0] < BEATS * compared[1]:
            yield (
                f"{circuit} in {model} scores higher than only {compared[0]} of {compared[1]} random circuits "
                f"of its size."
            )


def _counted_further(results: dict) -> Iterator[tuple[str, object]]:
    """The fewest prompts that stand behind the numbers of each further section."""
    patched = list((results.get("cmap") or {}).values())
    directions = [found.get(direction) or {} for found in patched for direction in ("to_base", "to_variant")]
    counted = {
        "the costs of heads": [found.get("n_prompts") for found in (results.get("minimality") or {}).values()],
        "completeness": _second_level(results, "completeness"),
        "the ways between groups and their profiles": (results.get("overlap") or {}).values(),
        "functions": [cell for by_name in _second_level(results, "functions") for cell in _leaves(by_name)],
        "patching": [entry for by_what in directions for entry in by_what.values()],
        "the controls of patching": [each for found in patched for each in (found.get("controls") or {}).values()],
        "grafts": (results.get("graft") or {}).values(),
        "knockouts": (results.get("knockout") or {}).values(),
    }
    for name, entries in counted.items():
        known = [n for entry in entries for key in _COUNTS if (n := finite((entry or {}).get(key))) is not None]
        if known:
            yield name, min(known)


def _second_level(results: dict, section: str) -> list[dict]:
    return [found for models in (results.get(section) or {}).values() for found in models.values()]


def _leaves(groups: dict) -> list[dict]:
    return [cell for by_name in groups.values() for cell in by_name.values()]


def _few(results: dict) -> Iterator[str]:
    counted = [(name, (model.get("accuracy") or {}).get("n")) for name, model in (results.get("models") or {}).items()]
    counted += [
        (f"{circuit} in {model}", (found.get("circuit_accuracy") or {}).get("n"))
        for circuit, model, found in _measured(results)
    ]
    counted += [
        (f"random circuits like {circuit} in {model}", random.get("n_prompts"))
        for circuit, models in (results.get("random") or {}).items()
        for model, random in models.items()
    ]
    counted += _counted_further(results)
    few = [f"{what} ({n:g})" for what, count in counted if (n := finite(count)) is not None and n < FEW]
    if few:
        yield f"Fewer than {FEW} prompts tell little; see the intervals of {', '.join(few)}."


def beaten(results: dict, circuit: str, model: str, found: dict) -> tuple[int, int] | None:
    """How many random circuits score strictly less than the real one on the same prompts, and of how many."""
    random = ((results.get("random") or {}).get(circuit) or {}).get(model) or {}
    scores = [a for a in map(finite, random.get("accuracies") or []) if a is not None]
    real = finite(random.get("circuit", (found.get("circuit_accuracy") or {}).get("value")))
    return None if real is None or not scores else (sum(score < real for score in scores), len(scores))


def summary(results: dict) -> list[str]:
    """One paragraph per model, and per circuit in the model where it was found; the matrix has it in the others."""
    models = [_model_sentence(name, model) for name, model in (results.get("models") or {}).items()]
    found = [each for each in _measured(results) if _home(results, each[0]) in (None, each[1])]
    return [*models, *(_circuit_sentences(results, *each) for each in found)]


def _home(results: dict, circuit: str) -> str | None:
    """The model where a circuit was found."""
    return ((results.get("circuits") or {}).get(circuit) or {}).get("model")


def _model_sentence(name: str, model: dict) -> str:
    accuracy = model.get("accuracy") or {}
    return (
        f"{name} answers {_of_prompts(accuracy)}: an accuracy of {number(accuracy.get('value'))} "
        f"(95 % interval {interval(accuracy)})."
    )


def _of_prompts(accuracy: dict) -> str:
    return f"{hits(accuracy).replace('/', 'of')} prompts correctly"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _circuit_sentences(results: dict, circuit: str, model: str, found: dict) -> str:
    parts = [_size(results, circuit, model), _kept(found), _against_random(results, circuit, model, found)]
    return " ".join(part for part in parts if part)


def _size(results: dict, circuit: str, model: str) -> str:
    groups = ((results.get("circuits") or {}).get(circuit) or {}).get("groups") or {}
    n_heads, shape = (
        sum(len(group["heads"]) for group in groups.values()),
        (results.get("models") or {}).get(model) or {},
    )
    size = f"{_count(n_heads, 'head')} in {_count(len(groups), 'group')}"
    places = {(head[0], head[1]) for group in groups.values() for head in group["heads"]}
    if not shape.get("n_layers") or not shape.get("n_heads"):
        return f"The circuit {circuit} has {size}."
    of = shape["n_layers"] * shape["n_heads"]
    return f"The circuit {circuit} has {size} ({len(places)} of the {of} heads of {model})."


def _kept(found: dict) -> str:
    alone, by = found.get("circuit_accuracy") or {}, f" ({found['mean_by']} means)" if found.get("mean_by") else ""
    start = (
        f"Alone, with every other head replaced by its mean{by}, it answers {_of_prompts(alone)}, "
        f"an accuracy of {number(alone.get('value'))}"
    )
    if finite(found.get("value")) is None:
        return f"{start}; its faithfulness is undefined here{': ' + found['note'] if found.get('note') else ''}."
    return (
        f"{start}, which is {number(found['value'])} times the whole model's "
        f"(faithfulness; 95 % interval {interval(found)})."
    )


def _against_random(results: dict, circuit: str, model: str, found: dict) -> str:
    compared = beaten(results, circuit, model, found)
    return f"It scores higher than {compared[0]} of {compared[1]} random circuits of its size." if compared else ""
