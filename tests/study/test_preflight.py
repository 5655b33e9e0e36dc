"""What a study refuses before any weights are read."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import circuitdiff.study.preflight
from circuitdiff.errors import InputError
from circuitdiff.study.accuracies import accuracies
from circuitdiff.study.registry import read_study
from circuitdiff.study.runner import refuse, run_study
from circuitdiff.vocabulary import LABELS, OBJECTS
from helpers.tiny_decoders import save_decoder, save_random_adapter, tiny_decoder
from helpers.tiny_folder import save_tiny_model, settings_of, silent
from helpers.tiny_tokenizers import word_level


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def refuses(model: Path, folder: Path, monkeypatch, message: str, **changes: object) -> None:
    """The study is refused with the message, and no weights are read, which everything else begins with."""
    monkeypatch.setattr("circuitdiff.study.host.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message) as refusal:
        run_study(settings_of(folder, model, **changes), folder / "run", silent)
    assert "\n" not in str(refusal.value)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_hidden_layers": 4}, r"variant 'second' .*base '.*': it differs in layers \(4, not 3\)"),
        ({"num_key_value_heads": 4}, r"key/value heads \(4, not 2\)"),
        ({"head_dim": 8}, r"head size \(8, not 6\)"),
    ],
)
def test_a_variant_of_another_shape_is_refused_before_any_model_is_loaded(model, tmp_path, monkeypatch, shape, message):
    other = save_tiny_model(tmp_path / "other", **shape)
    refuses(model, tmp_path, monkeypatch, message, variants=f"{{second: {other}}}")


@pytest.mark.parametrize("changes", [{"hidden_size": 21}, {"num_hidden_layers": 4}])
def test_an_adapter_of_another_base_is_refused_before_any_model_is_loaded(model, tmp_path, monkeypatch, changes):
    adapter = save_random_adapter(tmp_path / "other", tiny_decoder(**changes))
    variants = f"{{second: {{source: {model}, adapters: [{adapter}]}}}}"
    refuses(model, tmp_path, monkeypatch, r"second: adapter .*other was not made for this model", variants=variants)


def test_a_base_of_a_recipe_with_another_bases_adapter_is_refused(model, tmp_path, monkeypatch):
    save_random_adapter(tmp_path / "other", tiny_decoder(num_hidden_layers=4))
    recipe = {
        "name": "more",
        "base": {"source": str(model), "adapters": ["./other"]},
        "method": "full",
        "training": {"steps": 1, "batch": 1, "learning_rate": 0.1},
        "data": {"task": "entity_tracking", "n_prompts": 4},
        "held_out": 1,
    }
    (tmp_path / "more.yaml").write_text(json.dumps(recipe))
    refuses(model, tmp_path, monkeypatch, r"second: adapter .*other", variants="{second: {recipe: more.yaml}}")


def test_an_adapter_that_fits_is_not_refused(model, tmp_path):
    decoder = AutoModelForCausalLM.from_pretrained(model)
    adapter = save_random_adapter(tmp_path / "own", decoder)
    settings = settings_of(tmp_path, model, variants=f"{{second: {{source: {model}, adapters: [{adapter}]}}}}")
    refuse(settings)


def test_too_few_scenarios_to_split_are_refused(model, tmp_path, monkeypatch):
    second = save_tiny_model(tmp_path / "second", seed=1)
    prompts = "{discovery: 8, evaluation: 12, means: 8, queries_per_scenario: 3}"
    message = r"minimality\.prompts is 9, with 3 prompts a scenario: 3 scenarios, of at least 4; set it to 10 or more"
    refuses(model, tmp_path, monkeypatch, message, prompts=prompts, minimality="{prompts: 9}")
    prompts = "{discovery: 3, evaluation: 12, means: 8, queries_per_scenario: 3}"
    message, variants = r"prompts\.discovery is 3, .* 1 scenarios, of at least 3", f"{{second: {second}}}"
    refuses(model, tmp_path, monkeypatch, message, prompts=prompts, variants=variants, overlap="{prompts: 4}")


WORDS = {"n_boxes": 2, "objects": OBJECTS[:6], "labels": LABELS[:6]}
FEW = json.dumps({"name": "entity_tracking", "options": WORDS})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": 300}, r"^prompts\.evaluation is 300, and entity_tracking has (\d+) prompts.*: set it to \1"),
        ({"means": 200}, r"^prompts\.means is 200, and entity_tracking has 100 prompts in split 'mask'"),
        ({"evaluation": 20}, r"^minimality\.prompts is 90, .*, 20 of which prompts\.evaluation takes: set it to \d+"),
    ],
)  # fmt: skip
def test_more_prompts_than_a_task_has_are_refused_by_their_setting(model, tmp_path, monkeypatch, changes, message):
    prompts = {"discovery": 6, "replication": 999, "evaluation": 9, "means": 12} | changes  # replication is not used
    refuses(model, tmp_path, monkeypatch, message, task=FEW, prompts=prompts, minimality="{prompts: 90}")


def test_a_variant_with_another_tokenizer_is_refused_before_any_model_is_loaded(model, tmp_path, monkeypatch):
    other = save_tiny_model(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    words = sorted(vocabulary := tokenizer.get_vocab(), key=vocabulary.__getitem__)
    word_level([*reversed(words[3:])]).save_pretrained(other)
    message = (
        r"second.*tokens of the prompts \(\d+ is '\w+', not '\w+'.* and \d+ more\); choose models tuned from one base"
    )
    refuses(model, tmp_path, monkeypatch, message, variants=f"{{second: {other}}}")


def test_a_token_that_no_prompt_has_does_not_matter(model, tmp_path):
    other = save_tiny_model(tmp_path / "other", vocab_size=300)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<|chat|>"])
    tokenizer.save_pretrained(other)
    settings = settings_of(tmp_path, model, variants=f"{{second: {other}}}", graft="{}", cross_model="{}")
    refuse(settings)


def test_a_recipes_variant_is_judged_by_what_the_recipe_starts_from(model, tmp_path, monkeypatch):
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=4)
    recipe = {
        "name": "longer",
        "base": str(other),
        "method": "full",
        "training": {"steps": 1, "batch": 1, "learning_rate": 0.1},
        "data": {"task": "entity_tracking", "n_prompts": 4},
        "held_out": 1,
    }
    (tmp_path / "longer.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr("circuitdiff.study.context.made_by", lambda *_: pytest.fail("trained"))
    refuses(model, tmp_path, monkeypatch, r"layers \(4, not 3\)", variants="{second: {recipe: longer.yaml}}")


def test_members_of_a_family_are_read_once(tmp_path, monkeypatch):
    read: list[str] = []
    whole = circuitdiff.study.preflight.read_outline

    def counted(source: str, tokenizer: str | None) -> object:
        read.append(source)
        return whole(source, tokenizer)

    monkeypatch.setattr(circuitdiff.study.preflight, "read_outline", counted)
    (tmp_path / "s.yaml").write_text(
        "name: s\nbase: tracker-base\ntask: {name: entity_tracking}\nvariants: {a: tracker-plus, b: smollm2}\n"
    )
    study = read_study(tmp_path / "s.yaml")
    refuse(study)
    assert read == ["tracker-base"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cross_model": "{null_donors: [nope]}"}, r"cross_model\.null_donors names 'nope', .* choose one of second"),
        ({"knockout": "{roles: [nope]}"}, r"knockout\.roles names 'nope'"),
        ({"knockout": "{curves: [[last, nope]]}"}, r"knockout\.curves names 'nope'"),
        ({"knockout": "{query_roles: [nope]}"}, r"knockout\.query_roles names 'nope'"),
        ({"graft": "{layers: [0]}"}, r"ranges of layers begin at rising layers between 1 and 2; got 0"),
        ({"graft": "{layers: [40]}"}, r"ranges of layers .*; got 40"),
        ({"graft": "{projections: [q, q]}"}, r"graft\.projections are some of q, k, v, o, each once"),
        ({"functions": "{models: [nope]}"}, r"functions\.models names 'nope'"),
        ({"functions": "{circuits: [nope]}"}, r"functions\.circuits names 'nope'"),
        ({"functions": "{further: {nope: [order]}}"}, r"functions\.further names 'nope', .* fetcher, transmitter"),
        ({"functions": "{sweep: {group: nope}}"}, r"functions\.sweep\.group names 'nope'"),
        (
            {"functions": "{desiderata: [nope]}"},
            r"the task entity_tracking has no desideratum 'nope'; choose one of .*",
        ),
        ({"functions": "{desiderata: [nope.jsonl]}"}, r"there is no file .*nope\.jsonl of triples"),
        ({"functions": "{learning_rate: 0.01}"}, r"functions\.steps must be at least 51 .*; got 40"),
        ({"functions": "{gates: hard_concrete, steps: 11}"}, r"functions\.steps must be at least 12 .*; got 11"),
        ({"graft": "{queries_per_scenario: 4}"}, r"graft: queries_per_scenario must be from 1 to 3; got 4"),
        ({"functions": "{desiderata: []}"}, r"desiderata: Tuple should have at least 1 item"),
    ],
)
def test_a_name_in_the_settings_that_nothing_has_is_refused(model, tmp_path, monkeypatch, section, message):
    second = save_tiny_model(tmp_path / "second", seed=1)
    refuses(model, tmp_path, monkeypatch, message, variants=f"{{second: {second}}}", **section)


STAGE = "{name: %s, at: last, select: {top: 1}}"


@pytest.mark.parametrize(
    ("names", "section", "message"),
    [
        (list("abcdefg"), "cross_model", r"at most 6 groups, and the main plan has 7 stages"),
        (["mlps"], "graft", r"'mlps' is the name of what the groups leave in a graft"),
    ],
)
def test_stages_that_cannot_be_patched_or_grafted_are_refused(model, tmp_path, monkeypatch, names, section, message):
    second = save_tiny_model(tmp_path / "second", seed=1)
    plans = f"{{main: {{stages: [{', '.join(STAGE % name for name in names)}]}}}}"
    refuses(model, tmp_path, monkeypatch, message, variants=f"{{second: {second}}}", plans=plans, **{section: "{}"})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{name: b, at: query_label, select: {top: 1}}", r"stage 'b': straight into the logits only the last position"),
        (
            "{name: b, at: last, via: q, receivers_from: a, receivers_at: last, select: {top: 1}}",
            r"stage 'b': receivers_at goes with via 'k' or 'v'",
        ),
        (
            "{name: b, at: last, via: k, receivers_from: a, receivers_at: query_label, select: {top: 1}}",
            r"stage 'b': receivers at 'query_label' cannot read 'last'",
        ),
    ],
)
def test_a_stage_that_reaches_nothing_is_refused(model, tmp_path, monkeypatch, stage, message):
    plans = f"{{main: {{stages: [{STAGE % 'c'}]}}, other: {{stages: [{STAGE % 'a'}, {stage}]}}}}"
    refuses(model, tmp_path, monkeypatch, message, plans=plans)


def test_a_head_in_two_groups_is_refused_where_its_contribution_would_be_patched_twice(model, tmp_path, monkeypatch):
    second = save_tiny_model(tmp_path / "second", seed=1)
    plans = f"{{main: {{shared_heads: both, stages: [{STAGE % 'a'}, {STAGE % 'b'}]}}}}"
    changes = {"variants": f"{{second: {second}}}", "plans": plans, "cross_model": "{}"}
    refuses(model, tmp_path, monkeypatch, "whose contribution would be patched twice", **changes)


def written(path: Path, n: int, role: str = "last") -> Path:
    """So many triples; the tiny tokenizer knows these words."""
    base = "The apple is in Box F, the book is in Box K, the ring is in Box S. Box F contains the"
    line = {"base": base, "source": base, "answer": " apple", "target": " book"}
    spans = {} if role == "last" else {"base_roles": {role: [0, 3]}, "source_roles": {role: [0, 3]}}
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line | spans) + "\n" for _ in range(n)))
    return path


def test_files_of_triples_that_cannot_be_used_are_refused_before_any_work(model, tmp_path, monkeypatch):
    sizes = "train: 2, validation: 2, test: 2"
    few, enough = written(tmp_path / "few.jsonl", 5), written(tmp_path / "enough.jsonl", 6)
    twice = written(tmp_path / "more" / "enough.jsonl", 6)
    strange = tmp_path / "strange.jsonl"
    strange.write_bytes(b"\xff\xfe")
    for files, message in (
        ([few], r"few\.jsonl: the parts need 2 \+ 2 \+ 2 triples"),
        ([enough, twice], r"two desiderata are called 'enough'"),
        ([strange], r"strange\.jsonl is not UTF-8"),
    ):
        named = ", ".join(map(str, files))
        refuses(model, tmp_path, monkeypatch, message, functions=f"{{desiderata: [{named}], {sizes}}}")
    stage = "{name: b, at: query_label, via: v, receivers_from: a, select: {top: 1}}"
    plans = f"{{main: {{stages: [{STAGE % 'a'}, {stage}]}}}}"
    functions = f"{{desiderata: [{enough}], {sizes}}}"
    refuses(model, tmp_path, monkeypatch, r"at role 'query_label'", functions=functions, plans=plans)
    study = settings_of(tmp_path, model, functions=functions)
    refuse(study)


def test_a_study_of_answers_of_several_tokens_is_refused_and_their_accuracy_is_told(tmp_path, monkeypatch):
    model, words = save_decoder(tmp_path / "model"), [f"w{i} w{i + 3} w0" for i in range(20)]
    rows = [
        {"prompt": a, "answer": "w1 w2", "foils": "w4", "counterfactual": b, "split": "evaluation"}
        for a, b in pairwise(words[:10])
    ]
    rows[4]["answer"] = "w1"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [of_model] = accuracies(str(path), [str(model)], n_prompts=9)
    assert of_model.answers.accuracy.n == 9
    changes = {"task": f"{{name: {path}}}"}
    refuses(
        model, tmp_path, monkeypatch, r"^a study compares the next token only, and 8 of 9 .*tokens: first", **changes
    )
