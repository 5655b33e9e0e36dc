"""What a user meets in Python: names, what they print, tables, figures, examples."""

from __future__ import annotations

import doctest
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import circuitdiff as cd
from circuitdiff.errors import InputError
from circuitdiff.methods import discovery
from circuitdiff.methods.component_mask.fit import MaskOptions
from circuitdiff.methods.discovery import StageResult
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.readable import Readable
from circuitdiff.report.discovery import effect_map
from circuitdiff.stats.intervals import Interval
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.evidence import Ability, Behaviour, Thresholds
from circuitdiff.study.registry import SECTIONS
from circuitdiff.study.sections.discovery import sweep_of
from circuitdiff.study.sections.verdict import Verdict
from circuitdiff.study.verdict import Sentence
from circuitdiff.tasks import texts
from helpers.fake_pairs import fake_pairs
from helpers.fake_triples import fake_triples
from helpers.invented_results import invented_results
from helpers.tiny_models import subject
from helpers.tiny_tokenizers import word_level
from helpers.two_tiny_models import donor_of

WORDS = Path(cd.__file__).parent / "words"
PAIRS = fake_pairs(own_answers=True)
CIRCUIT = cd.Circuit({"mover": cd.Group("last", (cd.Head(3, 1), cd.Head(2, 5))), "few": cd.Group("query_label", ())})
RULE = cd.MinimalityRule(held_out=False)
MOVER = cd.Circuit({"mover": CIRCUIT.groups["mover"]})


@cache
def speaker() -> cd.Model:
    """A tiny model that knows the words of the examples."""
    said = (cd.tasks.FILES / "ioi.yaml").read_text() + texts.__doc__ + str(texts.from_texts.__doc__)
    said += "".join((WORDS / f"{name}.txt").read_text() for name in ("names", "training_names", "places", "objects"))
    said += (WORDS / "gifts.txt").read_text()
    tokenizer = word_level(re.findall(r"\w+|[^\w\s]+", said))
    shape = {"hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 6}
    shape |= {"intermediate_size": 20}
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(tokenizer))).eval()
    return cd.load_model(module, tokenizer=tokenizer)


@cache
def stages() -> list[StageResult]:
    model = subject("llama").model
    plan = cd.Plan((cd.Stage("mover", "last", cd.TopK(3)), cd.Stage("q", "last", cd.TopK(2), "q", "mover")))
    return cd.discover(plan, cd.measure_with(model, {"discovery": PAIRS}, roles=plan.roles))


@cache
def shown() -> dict[str, Any]:
    """Something of every public class, and of what the public functions give."""
    model, donor = subject("llama").model, donor_of("llama").model
    means, by_kind = (cd.mean_activations(model, PAIRS, by) for by in ("slot", "kind"))
    options = MaskOptions(train=12, validation=4, test=6, random_groups=2)
    patched, grafted = (how(donor, model, MOVER, PAIRS) for how in (cd.patch_across, cd.graft))
    blocking = cd.Blocking("last", "query_label", (0, 2))
    there: list[Any] = [
        *(blocking, CIRCUIT, CIRCUIT.groups["mover"], cd.Head(3, 1), cd.Discoveries(), cd.TopK(3), cd.Limits()),
        *(options, cd.MinimalityRule(), model, PAIRS, PAIRS.clean_prompts, fake_triples(), means, *stages()),
        cd.Mlps("last", (0, 2)),
        *(stages()[0].found, stages()[0].found.intervals(), stages()[0].selection, stages()[0].stage),
        *(cd.AutoPlan(), cd.FoundPlan(cd.Plan((stages()[0].stage,)), MOVER, tuple(stages()), 0.9)),
        *(cd.Plan((stages()[0].stage,)), cd.evaluate_model(model, PAIRS), cd.model_differences(model, donor)),
        *(cd.mlp_path_effects(model, PAIRS, "last"), cd.minimality(model, MOVER, PAIRS, means, RULE)),
        cd.completeness(model, MOVER, [MOVER], PAIRS, means),
        *cd.compare_ablations(model, MOVER, PAIRS, {"slot": means, "kind": by_kind}).values(),
        cd.fit_mask(model, CIRCUIT.groups["mover"], fake_triples(), options),
        *(
            cd.attention_knockout(model, PAIRS, [blocking]),
            *cd.attention_to_roles(model, MOVER, PAIRS).values(),
            patched,
            patched.attribution(),
            grafted,
        ),
        *(cd.tasks.entity_tracking(), cd.Task.from_file("ioi"), invented_results()),
    ]
    return {type(each).__name__: each for each in there}


def test_every_public_class_is_among_what_is_shown():
    public = {name for name in cd.__all__ if isinstance(getattr(cd, name), type)}
    assert public - {*shown()} == {"CheckError", "InputError", "Task"}


def parts_of(results: Any) -> Iterator[Any]:
    """What stands in a study's results by the names of models, circuits and variants."""
    for each in results.values() if isinstance(results, dict) else (results,):
        yield from parts_of(each) if isinstance(each, dict) else (each,)


def test_everything_prints_ten_lines_of_120_characters_at_most():
    there = [*shown().values(), *(each for part in dict(invented_results()).values() for each in parts_of(part))]
    there += [part for part in dict(invented_results()).values() if isinstance(part, dict)]
    assert str(invented_results()) == repr(invented_results())  # pydantic has a string of its own
    long = {type(each).__name__ for each in there if type(each) not in (str, int, tuple) and too_long(repr(each))}
    assert not long


def leaves(kind: Any) -> Iterator[type]:
    """The dataclasses that a section's part of the results is made of."""
    inside = get_args(kind)
    yield from (leaf for each in inside for leaf in leaves(each)) if inside else [kind]


def test_what_sections_find_is_readable():
    found = {leaf for section in SECTIONS for leaf in leaves(section.result)} - {str}
    assert [each.__name__ for each in found if each.__repr__ is not Readable.__repr__] == []


def too_long(text: str) -> bool:
    return len(text.splitlines()) > 10 or max(map(len, text.splitlines())) > 120


def test_a_task_comes_from_a_file_or_by_its_name(tmp_path):
    (path := tmp_path / "mine.yaml").write_text(cd.tasks.new_task())
    assert cd.Task.from_file(str(path)).files[0] == path
    assert cd.Task.from_file("entity-tracking", n_boxes=3) == cd.tasks.entity_tracking(n_boxes=3)
    assert isinstance(cd.Task.from_file("ioi"), cd.Task)
    with pytest.raises(InputError, match="unknown task"):
        cd.Task.from_file("nothing")


def test_heads_print_as_they_are_written_and_tensors_by_their_shape():
    lines = repr(CIRCUIT).splitlines()
    assert lines[0] == "Circuit of 2"
    assert lines[2].split() == ["mover", "Group(at", "=", "last,", "heads", "=", "3.1,", "2.5)"]
    assert re.search(r"scenarios +int64 \[5\], 0 to 3, 4 different\n", repr(PAIRS))
    assert re.search(r"lengths +int64 \[5\], 9 to 13", repr(PAIRS))
    assert re.search(r"positions +last, query_label, previous_query_label, absent\n", repr(PAIRS))
    assert re.search(r"module +LlamaForCausalLM\n", repr(shown()["Model"]))


def test_a_notebook_shows_the_same_escaped():
    class Odd(Readable):
        model_fields = ("<b>",)

    setattr(odd := Odd(), "<b>", "<script>")
    assert odd._repr_html_() == (
        "<table><caption>Odd</caption><tr><th>&lt;b&gt;</th><td>&lt;script&gt;</td></tr></table>"
    )
    assert all(each._repr_html_().count("<tr>") > 1 for each in shown().values() if isinstance(each, Readable))


def test_tables_hold_the_numbers():
    effects = stages()[0].found
    table, interval = effects.to_pandas(), effects.intervals()
    assert list(table.columns) == ["layer", "head", "effect", "low", "high"]
    row = table[(table.layer == 3) & (table["head"] == 1)].iloc[0]
    assert (row.effect, row.low, row.high) == tuple(bound[3, 1] for bound in interval)
    evaluation = shown()["Evaluation"].to_pandas()
    assert evaluation.hit.tolist() == shown()["Evaluation"].hits.tolist()
    assert evaluation.logit_difference.tolist() == shown()["Evaluation"].logit_differences.tolist()
    costs = shown()["MinimalityResult"].groups["mover"].costs
    table = shown()["MinimalityResult"].to_pandas()
    assert table["head"].tolist() == [str(each.head) for each in costs]
    assert table.cost.tolist() == [each.cost.value for each in costs]
    found = shown()["Completeness"]
    assert found.to_pandas().difference.tolist() == found.differences().value.tolist()
    assert found.to_pandas().removed.tolist() == ["3.1, 2.5"]
    mask = shown()["MaskFit"]
    assert mask.to_pandas().keep.tolist() == mask.mask.keep.tolist()
    knockouts = shown()["Knockouts"].to_pandas()
    assert knockouts.layer.tolist() == [0, 2]
    assert knockouts.accuracy.tolist() == [float(each.accuracy.value) for each in shown()["Knockouts"].blocked[0]]
    parts = shown()["Attribution"].parts
    table = shown()["Attribution"].to_pandas().set_index(["part", "how"])
    assert table.value["mover", "alone"] == parts["mover"]["alone"].value


def test_tables_of_pairs_differences_and_results_have_every_row():
    pairs = PAIRS.to_pandas()
    assert pairs.clean.tolist() == PAIRS.clean_prompts.rows()
    assert pairs.answer.tolist() == PAIRS.answers.tolist()
    changes = shown()["ModelDifferences"]
    assert changes.to_pandas().n_changed.tolist() == [each.n_changed for each in changes.weights]
    results = invented_results()
    table = results.to_pandas().set_index("where")
    for model, each in results.accuracy.items():
        assert tuple(table.loc[f"accuracy.{model}.accuracy"]) == (
            each.accuracy.value,
            each.accuracy.low,
            each.accuracy.high,
        )


def test_what_matters_most_is_printed_first():
    assert repr(shown()["Evaluation"]).splitlines()[1].split()[:2] == ["accuracy", "Interval(value"]
    effects = stages()[0].found
    assert [*replace(effects, per_prompt=-effects.per_prompt).strongest] == [*effects.strongest]
    [strongest] = effects.effects.abs().flatten().topk(1).indices.tolist()
    layer, index = divmod(strongest, effects.effects.shape[1])
    assert repr(effects).splitlines()[1].split()[:2] == ["strongest", f"{layer}.{index}"]


@pytest.mark.parametrize(("n", "indent"), [(6, "    "), (9, "  ")])  # nine are all that a verdict has
def test_every_sentence_of_a_verdict_has_a_line(n, indent):
    claims = {f"claim {i}": f"{i}: the variant's circuit is the base's, as far as was asked for here" for i in range(n)}
    sentences = tuple(Sentence(claim, "yes", text, (), "accuracy", "") for claim, text in claims.items())
    nothing = Estimate(None, None, None)
    behaviour = Behaviour(*[Ability(nothing, nothing, 0.5)] * 2, nothing, nothing)
    lines = repr(Verdict(sentences, Thresholds(), behaviour, (), (), (), (), {})).splitlines()
    assert lines[-n:] == [f"{indent}{claim}  {text}" for claim, text in claims.items()]
    assert len(lines) <= 10


def test_every_circuit_has_a_line_among_the_results_of_a_section():
    results = invented_results()
    lines = repr(results.faithfulness).splitlines()[1:]
    assert [line.strip() for line in lines if line[2] != " "] == [*results.faithfulness]


def test_without_pandas_a_table_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install pandas$"):
        shown()["Evaluation"].to_pandas()


def test_a_plot_is_the_reports_own_figure():
    for result in stages():
        assert result.plot().to_dict() == effect_map(sweep_of(result)).to_dict()
    effects: PathEffects = stages()[0].found
    assert [row["value"] for row in rows_of(effects)] == effects.effects.flatten().tolist()
    curve = [(row["path"], row["layer"], row["hits"]) for row in rows_of(shown()["Knockouts"], "path")]
    hits = [int(each.hits.sum()) for each in shown()["Knockouts"].blocked[0]]
    assert curve == [("last to query_label", layer, f"{n} / 5") for layer, n in zip((0, 2), hits, strict=True)]


def rows_of(result: Any, column: str = "value") -> list[dict]:
    """What a figure draws that has such a column."""
    return next(rows for rows in result.plot().to_dict()["datasets"].values() if column in rows[0])


@pytest.mark.parametrize("documented", [discovery.discover, texts.from_texts])
def test_the_examples_of_the_docstrings_run(documented):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    [example] = doctest.DocTestFinder(recurse=False).find(documented, globs={"cd": cd, "model": speaker()})
    assert example.examples
    assert runner.run(example).failed == 0


def test_an_interval_of_many_rows_prints_in_one_line():
    assert repr(Interval(0.5, 0.25, 0.75)) == "Interval(value = 0.5, low = 0.25, high = 0.75)"
    assert "\n" not in repr(stages()[0].found.intervals())
