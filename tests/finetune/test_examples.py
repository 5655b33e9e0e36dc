"""Prompts and answers as tokens, from text and from JSONL."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.finetune.examples import Examples, encode_examples, read_examples
from circuitdiff.finetune.loop import (
    answer_logits,
    hits,
)
from helpers.tiny_decoders import tiny_decoder, tiny_tokenizer
from helpers.training import jsonl


def test_examples_are_read_from_jsonl(tmp_path):
    path = jsonl(tmp_path / "data.jsonl", [("w0 w1", " w2"), ("w3 w4 w5", " w6"), ("w7", " w8")])
    data = read_examples(path, tiny_tokenizer(), 2)
    assert data.lengths.tolist() == [2, 3]
    assert data.tokens.tolist() == [[1, 2, 0], [4, 5, 6]]
    assert data.answers.tolist() == [[3], [7]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "w0", "answer": " w1 w2"}',
            r"line 2: .*splits the answer ' w1 w2' into.*'w1', 'w2'",
        ),
        ('{"prompt": "w0", "answer": "5"}', r"line 2: .*does not keep the answer '5' apart from its prompt"),
        ('{"prompt": "w0"}', r'line 2: expected \{"prompt"'),
        ('{"prompt": "w0", "answer": 5}', r"line 2: expected"),
        ('{"prompt": [1], "answer": [2]}', r"line 2: expected"),
        (r'{"prompt": "\ud800", "answer": " w1"}', r"line 2: half a pair of surrogates"),
        ("w0 w1", r"line 2 is not JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, message):
    path = jsonl(tmp_path / "data.jsonl", [("w0", " w1")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        read_examples(path, tiny_tokenizer())


def test_a_line_separator_inside_a_text_does_not_end_its_line(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "w0\u2028w1", "answer": " w2"}\n', encoding="utf-8")
    assert read_examples(tmp_path / "data.jsonl", tiny_tokenizer()).lengths.tolist() == [2]


def test_too_few_examples_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds 1 examples; expected 3"):
        read_examples(jsonl(tmp_path / "data.jsonl", [("w0", " w1")]), tiny_tokenizer(), 3)
    with pytest.raises(InputError, match=r"there is no .*none\.jsonl"):
        read_examples(tmp_path / "none.jsonl", tiny_tokenizer())


def test_an_answer_of_several_tokens_follows_its_prompt_token_by_token(tmp_path):
    texts = [("w0 w1", " w2 w3 w4"), ("w5 w6 w7", " w8")]
    data = encode_examples(texts, tiny_tokenizer())
    assert data.tokens.tolist() == [[1, 2, 3, 4], [6, 7, 8, 0]]
    assert data.answer_tokens.tolist() == [3, 4, 5, 9]
    assert [index.tolist() for index in data.answer_places] == [[0, 0, 0, 1], [1, 2, 3, 2]]
    written = read_examples(jsonl(tmp_path / "data.jsonl", texts), tiny_tokenizer(), whole_answers=True)
    assert torch.equal(written.tokens, data.tokens)
    assert torch.equal(written.answers, data.answers)


@torch.no_grad()
def test_an_answer_of_several_tokens_is_hit_only_as_a_whole():
    model, prompts = tiny_decoder(), torch.tensor([[3, 4, 5], [6, 7, 8]])
    said = prompts
    for _ in range(3):  # what the model itself says next, greedily
        said = torch.cat([said, model(input_ids=said).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    lengths, answers = torch.tensor([5, 5]), said[:, 3:]
    assert hits(model, Examples(said[:, :5], lengths, answers)).tolist() == [1, 1]
    for wrong in range(3):
        changed = answers.clone()
        changed[1, wrong] = (changed[1, wrong] + 1) % 41
        assert hits(model, Examples(said[:, :5], lengths, changed)).tolist() == [1, 0]


@torch.no_grad()
def test_logits_of_answers_of_mixed_lengths_are_those_of_each_prompt_alone():
    model = tiny_decoder()
    texts = [("w0 w1", " w2 w3 w4"), ("w5 w6 w7 w8", " w9"), ("w10", " w11 w12")]
    together = answer_logits(model, encode_examples(texts, tiny_tokenizer()))
    alone = [answer_logits(model, encode_examples([text], tiny_tokenizer())) for text in texts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
