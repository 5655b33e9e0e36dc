"""Several right answers and answers of several tokens, from task files to pairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitdiff.errors import InputError
from circuitdiff.prompts import Pairs
from circuitdiff.tasks import get_task
from circuitdiff.tasks.answers import AnswerTokens
from circuitdiff.tasks.soundness import examine, guessing
from helpers.tiny_tokenizers import learned_byte_pairs

# " New" and " San" are tokens, and so is each second word; " Rome" and " Oslo" are one token.
SENTENCES = ["Ann lives in Rome", "Bob lives in Oslo", "Eve lives in New York", "Ida lives in San Juan"] * 9
ROWS = [
    ("Ann lives in", " New York", " Rome"),
    ("Bob lives in", " Rome", " Oslo"),
    ("Eve lives in", " San Juan", " New York"),
    ("Ida lives in", " Oslo", " San Juan"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return learned_byte_pairs(SENTENCES, trim_offsets=False)


def sampled(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: list[dict], **keys: object) -> Pairs:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"split": "evaluation", **row}) + "\n" for row in rows))
    (folder / "task.yaml").write_text(yaml.safe_dump({"table": "rows.jsonl", **keys}))
    return get_task(str(folder / "task.yaml")).sample(tokenizer, len(rows))


def rows_of(*wanted: tuple[str, object, object]) -> list[dict]:
    return [{"prompt": p, "answer": a, "foils": f, "counterfactual": f"{p} not"} for p, a, f in wanted]


def by_prompt(pairs: Pairs, tokenizer: PreTrainedTokenizerBase, values: list[list[int]]) -> dict[str, list[str]]:
    prompts = [tokenizer.decode(row) for row in pairs.clean_prompts.rows()]
    return {p: [tokenizer.decode([v]) for v in row if v >= 0] for p, row in zip(prompts, values, strict=True)}


def test_all_tokens_of_an_answer_are_kept_and_of_foils_the_first(tmp_path, tokenizer):
    pairs = sampled(tmp_path, tokenizer, rows_of(*ROWS))
    assert pairs.continuations is not None
    assert pairs.right is None
    firsts, rest, foils = (
        by_prompt(pairs, tokenizer, each.tolist())
        for each in (pairs.answers[:, None], pairs.continuations, pairs.foils)
    )
    assert {p: "".join([*firsts[p], *rest[p]]) for p, _, _ in ROWS} == {p: answer for p, answer, _ in ROWS}
    assert foils["Eve lives in"] == [" New"]
    at = [tokenizer.decode(row) for row in pairs.clean_prompts.rows()].index("Ann lives in")
    task = get_task(str(tmp_path / "task.yaml"))
    assert task.describe(pairs, at, tokenizer).answer == " New York"


def test_with_first_tokens_answers_are_one_token_and_foils_that_begin_alike_are_left_out(tmp_path, tokenizer):
    rows = rows_of(ROWS[0], ("Eve lives in", " New York", [" New Juan", " Oslo", " San Juan"]))
    pairs = sampled(tmp_path, tokenizer, rows, answer_tokens="first")
    assert pairs.continuations is None
    assert by_prompt(pairs, tokenizer, pairs.answers[:, None].tolist())["Eve lives in"] == [" New"]
    assert set(by_prompt(pairs, tokenizer, pairs.foils.tolist())["Eve lives in"]) == {" Oslo", " San"}


@pytest.mark.parametrize("tokens", ["all", "first"])
def test_where_no_foil_begins_otherwise_there_is_one_line(tmp_path, tokenizer, tokens):
    with pytest.raises(
        InputError, match=r"rows\.jsonl.*1: 'Ann lives in' has no foil that begins otherwise .*give one"
    ):
        sampled(tmp_path, tokenizer, rows_of(("Ann lives in", " New York", " New Juan")), answer_tokens=tokens)


def test_all_right_answers_of_a_row_are_a_set(tmp_path, tokenizer):
    rows = rows_of(("Ann lives in", [" Rome", " Oslo"], " Juan"), ("Bob lives in", " Juan", " Rome"))
    pairs = sampled(tmp_path, tokenizer, rows)
    right = by_prompt(pairs, tokenizer, pairs.right_answers.tolist())
    assert right == {"Ann lives in": [" Rome", " Oslo"], "Bob lives in": [" Juan", " Juan"]}
    at = [tokenizer.decode(row) for row in pairs.clean_prompts.rows()].index("Ann lives in")
    assert get_task(str(tmp_path / "task.yaml")).describe(pairs, at, tokenizer).answer == " Rome | Oslo"


def test_several_right_answers_that_begin_alike_count_as_one_with_first_tokens(tmp_path, tokenizer):
    rows = rows_of(("Ann lives in", [" New York", " New Juan"], " Rome"))
    assert sampled(tmp_path, tokenizer, rows, answer_tokens="first").right is None
    with pytest.raises(InputError, match=r"' New York' is 2 tokens, one of 2 right ones; set `answer_tokens: first`"):
        sampled(tmp_path, tokenizer, rows)


def test_a_foil_of_several_tokens_is_refused_where_every_right_answer_is_one(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"' New York' is 2 tokens, and every right answer is one; set `answer_tok"):
        sampled(tmp_path, tokenizer, rows_of(("Ann lives in", " Rome", " New York")))


def test_any_later_decade_is_right():
    words = get_task("greater_than").form.categories["nouns"].words.split()
    tokenizer = learned_byte_pairs([f"The {word} lasted from the year to the year" for word in words] * 2, False)
    pairs = get_task("greater_than").sample(tokenizer, 40)
    shares, often = [], Counter()
    for i, row in enumerate(pairs.clean_prompts.rows()):
        ten = int(tokenizer.decode(row).partition("year ")[2][2])
        assert {int(tokenizer.decode([t])) for t in pairs.right_answers[i].tolist()} == set(range(ten + 1, 10))
        assert {int(tokenizer.decode([t])) for t in pairs.foils[i].tolist()} == set(range(ten))
        shares.append((9 - ten) / 9)
        often.update(range(ten + 1, 10))
    assert guessing(pairs) == pytest.approx(sum(shares) / 40)
    [found] = [f for f in examine(get_task("greater_than"), tokenizer, 40) if f.what == "most frequent answer"]
    assert (found.found, found.passed) == (f"{often[9] / 40:.2f}", None)


TEMPLATE = """
name: capitals
categories:
  names: {words: Ann Bob Eve Ida, one_token: false}
  towns: {words: [Rome, Oslo, New York, San Juan Juan], one_token: false}
items: {count: 2, fields: {name: names, town: towns}}
list: {text: "{name} lives in {town}"}
text: "{list}, {asked.name} lives in"
answer: " {asked.town}"
answer_tokens: first
counterfactuals: {other: {ask: other}}
"""


def test_a_template_keeps_the_first_token_too_or_all(tmp_path, tokenizer):
    (tmp_path / "task.yaml").write_text(TEMPLATE)
    first = get_task(str(tmp_path / "task.yaml")).sample(tokenizer, 6)
    (tmp_path / "all.yaml").write_text(TEMPLATE.replace("tokens: first", "tokens: all"))
    whole = get_task(str(tmp_path / "all.yaml")).sample(tokenizer, 6)
    assert first.continuations is None
    assert whole.continuations is not None
    assert len(set(whole.lengths.tolist())) > 1, "prompts of unequal length"
    for row, answer, more in zip(
        whole.clean_prompts.rows(), whole.answers.tolist(), whole.continuations.tolist(), strict=True
    ):
        listed, _, asked = tokenizer.decode(row).rpartition(", ")
        told = dict(each.split(" lives in ") for each in listed.split(", "))
        written = tokenizer.decode([answer, *(token for token in more if token >= 0)])
        assert written == " " + told[asked.partition(" ")[0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("roles: {mention: answer.first}", r"roles\.mention needs one right answer, and there are several"),
        ("desiderata: {d: {wants: answer}}", r"desiderata\.d needs one right answer, and there are several"),
    ],
)
def test_what_needs_one_right_answer_is_refused_beside_a_set(tmp_path, change, message):
    text = TEMPLATE.replace(
        'answer: " {asked.town}"', "answer: {any_of: towns, but: asked.town}\nfoils: {any_of: towns}"
    )
    (tmp_path / "task.yaml").write_text(text + change + "\n")
    with pytest.raises(InputError, match=rf"task\.yaml: {message}"):
        get_task(str(tmp_path / "task.yaml"))


def test_a_token_that_begins_with_the_space_of_the_prompts_last_word_may_reach_into_the_answer():
    """` 14` and `3` would be written as ` 143`; without its space, `14` and `3` are apart."""
    vocabulary = {letter: i for i, letter in enumerate([*"Ġ143to", "Ġ1", "Ġ14", "Ġ143"])}
    whole = Tokenizer(models.BPE(vocabulary, [("Ġ", "1"), ("Ġ1", "4"), ("Ġ14", "3")]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole)
    assert tokenizer.tokenize("14") + tokenizer.tokenize("3") == tokenizer.tokenize("143")
    with pytest.raises(InputError, match=r"the answer '3' must be tokens of its own after ' 14'"):
        AnswerTokens(tokenizer, "all").of("to 14", "3", "here")
    with pytest.raises(
        InputError, match=r"^here: the answer '14' has no space before it.*write ' 14', or set `space: f"
    ):
        AnswerTokens(tokenizer, "all").of("to", "14", "here")
    with pytest.raises(InputError, match=r"^here: the foil '14' has no space before it"):
        AnswerTokens(tokenizer, "all").of("to", "14", "here", "foil")
    assert AnswerTokens(tokenizer, "all", space=False).of("to", "14", "here") == (vocabulary["1"], vocabulary["4"])
    assert AnswerTokens(tokenizer, "all").of("to", " 14", "here") == (vocabulary["Ġ14"],)
