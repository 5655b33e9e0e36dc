"""Models of one study, each asked in its own way: with a chat template, or without."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_model
from circuitdiff.models import load_model
from circuitdiff.report import report_page
from circuitdiff.study.registry import read_results
from circuitdiff.study.runner import refuse, run_study
from circuitdiff.study.settings import task_of
from helpers.tiny_folder import save_tiny_model, settings_of, silent
from helpers.tiny_tokenizers import word_level

TEMPLATE = "{% for m in messages %}A Box contains the apple . {% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def settings(folder: Path, model: Path, **changes: object):
    (folder / "chat.jinja").write_text(TEMPLATE)
    variants = f"{{again: {model}, asked: {{source: {model}, chat: chat.jinja}}}}"
    return settings_of(folder, model, variants=variants, **changes)


def test_each_model_is_asked_with_its_own_chat_template(model, tmp_path):
    study = settings(tmp_path, model, verdict="false", overlap="{prompts: 4}", discover_in="[asked]")
    assert [study.chat_of(name) for name in study.models] == ["off", "off", str(tmp_path / "chat.jinja")]
    run_study(study, tmp_path / "run", silent)
    results, loaded = read_results(tmp_path / "run"), load_model(model)
    plain, chat = (
        evaluate_model(loaded, task_of(study).sample(loaded.tokenizer, 9, 0, chat=each))
        for each in ("off", str(tmp_path / "chat.jinja"))
    )
    assert plain.logit_differences.tolist() != chat.logit_differences.tolist()
    for name, expected in (("again", plain), ("asked", chat)):
        assert results.accuracy[name].logit_difference.value == expected.logit_differences.double().mean().item()
    assert results.overlap["again"].groups is None
    assert results.overlap["asked"].stages  # two maps of heads, each of its own prompts
    assert ">chat template<" in report_page(results)


def test_models_that_are_asked_alike_need_no_word_on_it(model, tmp_path):
    study = settings_of(tmp_path, model, variants=f"{{again: {model}}}", verdict="false", overlap="false")
    run_study(study, tmp_path / "run", silent)
    assert ">chat template<" not in report_page(read_results(tmp_path / "run"))


@pytest.mark.parametrize("section", ["cross_model", "graft"])
def test_nothing_is_exchanged_between_models_that_are_asked_differently(model, tmp_path, section):
    message = rf"variant 'asked' is asked with chat '.*chat\.jinja', base .* with 'off': .* or set {section}: false"
    with pytest.raises(InputError, match=message):
        refuse(settings(tmp_path, model, **{section: "{}"}))


def test_models_that_are_asked_differently_still_need_the_same_tokens(model, tmp_path):
    other = save_tiny_model(tmp_path / "other")
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    vocabulary = AutoTokenizer.from_pretrained(other).get_vocab()
    word_level([*reversed(sorted(vocabulary, key=vocabulary.get)[3:])]).save_pretrained(other)
    variants = f"{{second: {{source: {other}, chat: chat.jinja}}}}"
    with pytest.raises(InputError, match=r"second.*tokens of the prompts"):
        refuse(settings_of(tmp_path, model, variants=variants))
