"""Slots and roles are where a reader of the text would put them."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from circuitdiff.errors import InputError
from circuitdiff.tasks.tokens import Piece, Prompt, tokenise
from helpers.tiny_tokenizers import word_level


def bare(vocabulary, pre_tokenizer):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=vocabulary[0])


def boxes(*labels):
    """`Box <label>, Box <label>, ... contains`, with the role `first` at the first label."""
    pieces = []
    for i, label in enumerate(labels):
        pieces += [Piece(f"segment_{i}.box", " Box" if i else "Box"), Piece(f"segment_{i}.label", f" {label}")]
        pieces += [Piece(f"segment_{i}.comma", ",")]
    return Prompt((*pieces, Piece("last", " contains")), {"first": "segment_0.label"})


def characters_up_to(tokenizer, tokens, position):
    """How much of the text is written once the token at `position` is: by decoding, without any offsets."""
    return len(tokenizer.decode(tokens[: position + 1]))


@pytest.mark.parametrize("trimmed", ["pieces", "trimmed_pieces"])
def test_a_role_ends_where_its_text_ends_whatever_the_number_of_tokens(request, trimmed):
    tokenizer = request.getfixturevalue(trimmed)
    prompts = [boxes("F", "K"), boxes("Zyxwv", "K"), boxes("F", "grün"), boxes("Quo", "vadis")]
    found = tokenise(tokenizer, prompts)
    assert len(set(found.lengths.tolist())) > 2  # the labels do take different numbers of tokens
    for i, prompt in enumerate(prompts):
        for piece in prompt.pieces:
            end = prompt.text.index(piece.text, sum(len(p.text) for p in prompt.pieces[: prompt.pieces.index(piece)]))
            at = int(found.positions[piece.slot][i])
            assert characters_up_to(tokenizer, found.tokens[i], at) == end + len(piece.text)


def test_every_token_is_in_the_slot_whose_text_it_helps_to_write(pieces):
    prompts = [boxes("F", "K"), boxes("Zyxwv", "grün"), boxes("Quo", "vadis")]
    found = tokenise(pieces, prompts)
    for i, prompt in enumerate(prompts):
        for piece in prompt.pieces:
            own = [n for n, name in enumerate(found.slot_names) if name.partition("#")[0] == piece.slot]
            assert pieces.decode(found.tokens[i][torch.isin(found.slots[i], torch.tensor(own))]) == piece.text


def test_later_tokens_of_a_slot_are_slots_of_their_own_and_kinds_leave_the_segment_out(pieces):
    found = tokenise(pieces, [boxes("F", "Zyxw")])
    kinds = dict(zip(found.slot_names, found.slot_kinds, strict=True))
    assert len(kinds) == len(found.slot_names) == int(found.lengths[0])
    assert found.slots[0].tolist() == list(range(len(kinds)))
    assert kinds["segment_0.label"] == kinds["segment_1.label"] == "segment.label"
    assert kinds["segment_1.label#1"] == "segment.label#1"
    assert kinds["last"] == "last"
    assert "segment_0.label#1" not in kinds


def test_padding_is_on_the_right_outside_lengths_and_in_no_slot(pieces):
    found = tokenise(pieces, [boxes("F"), boxes("Zyxwv", "K")])
    alone = tokenise(pieces, [boxes("F")])
    length = int(found.lengths[0])
    assert length == int(alone.lengths[0]) < found.tokens.shape[1] == int(found.lengths[1])
    assert torch.equal(found.tokens[0, :length], alone.tokens[0])
    assert (found.tokens[0, length:] == pieces.eos_token_id).all()
    assert (found.slots[0, length:] == -1).all()
    assert (found.slots[0, :length] >= 0).all()


def test_a_role_that_a_prompt_lacks_is_at_minus_one(pieces):
    found = tokenise(pieces, [boxes("F"), boxes("F", "K")])
    assert found.positions["segment_1.label"][0] == -1
    assert found.positions["segment_1.label"][1] > found.positions["first"][1] == found.positions["first"][0]


def test_what_the_tokenizer_puts_before_the_text_is_the_start_and_what_it_puts_after_is_left_out():
    words = ["Box", "F", ",", "contains"]
    for ending in ("", "</s>"):
        found = tokenise(word_level(words, ending), [boxes("F")])
        assert found.tokens.tolist() == [[1, 3, 4, 5, 6]]  # <s> Box F , contains
        assert found.slot_names == ["start", "segment_0.box", "segment_0.label", "segment_0.comma", "last"]
        assert found.positions["last"].tolist() == [4]


def test_the_space_before_a_word_does_not_decide_its_slot(pieces):
    found = tokenise(pieces, [Prompt((Piece("box", "Box "), Piece("label", "F,")), {})])
    slots = [found.slot_names[slot] for slot in found.slots[0]]
    in_label = [pieces.decode(token) for token, slot in zip(found.tokens[0], slots, strict=True) if "label" in slot]
    assert in_label == [" F", ","]


def test_a_token_of_space_alone_belongs_to_the_piece_that_the_space_begins():
    tokenizer = bare(["?", " ", "Box", "F"], pre_tokenizers.Split(" ", "isolated"))
    found = tokenise(tokenizer, [Prompt((Piece("box", "Box"), Piece("label", " F")), {})])
    assert found.slot_names == ["box", "label", "label#1"]
    assert found.positions["label"].tolist() == [2]


def test_a_token_of_two_slots_is_refused():
    tokenizer = bare(["?", "Box", "F"], pre_tokenizers.Whitespace())
    with pytest.raises(InputError, match=r"'BoxF'.*slots box and label.*keeps apart"):
        tokenise(tokenizer, [Prompt((Piece("box", "Box"), Piece("label", "F")), {})])


def test_a_slot_without_a_token_is_refused():
    tokenizer = bare(["?", "Box", "F", "contains"], pre_tokenizers.Split(Regex("[ ,]"), "removed"))
    with pytest.raises(InputError, match=r"no token for slot 'segment_0\.comma'"):
        tokenise(tokenizer, [boxes("F")])


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(InputError, match=r"fast tokenizer.*ByT5Tokenizer does not"):
        tokenise(ByT5Tokenizer(), [boxes("F")])


def test_a_slot_named_twice_and_a_role_without_its_slot_are_refused():
    with pytest.raises(InputError, match="each slot once"):
        Prompt((Piece("box", "Box"), Piece("box", " F")), {})
    with pytest.raises(InputError, match="no 'label'"):
        Prompt((Piece("box", "Box"),), {"first": "label"})
