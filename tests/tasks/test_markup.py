"""The text of a template becomes words, signs and fields, each of which has a slot."""

import pytest

from circuitdiff.errors import InputError
from circuitdiff.tasks import get_task
from circuitdiff.tasks.markup import Part, after, distinct, parse, slot_of, slot_of_text

FILE = """\
name: markup
categories: {things: {words: apple book cup pen}, places: {words: shelf floor desk bed}}
items: {count: 2, fields: {thing: things, place: places}}
list: {text: "{article:the} {thing}, on the {place}"}
text: "Now: {list}. Isn't {here=asked.place} the place, the {other.place}"
answer: " {asked.thing}"
counterfactuals: {other: {ask: other}}
"""


def test_words_signs_and_fields_are_parts_with_the_space_before_them():
    assert parse("Don't, the {a=asked.label} of\n{x:Box}-{0.b.c}", "f") == (
        Part("", "Don't"),
        Part("", ","),
        Part(" ", "the"),
        Part(" ", ref=("asked", "label"), slot="a"),
        Part(" ", "of"),
        Part("\n", "Box", slot="x"),
        Part("", "-"),
        Part("", ref=("0", "b", "c")),
    )


@pytest.mark.parametrize("text", ["{a", "a}", "{a{b}}", "{a} }", "x {", "{}"])
def test_braces_that_do_not_match_or_hold_nothing_are_refused(text):
    with pytest.raises(InputError, match=r"^file: (a brace has no match in|\{\} is no field)"):
        parse(text, "file")


@pytest.mark.parametrize("text", ["{a b}", "{a.}", "{.a}", "{a=b c}", "{a-b}", "{a=}"])
def test_a_field_that_is_no_path_is_refused(text):
    with pytest.raises(InputError, match=r"is no field; write \{object\}, \{asked\.object\}"):
        parse(text, "file")


def test_slots_are_called_after_their_fields_and_words():
    assert [slot_of(tuple(ref.split("."))) for ref in ("a", "a.b", "asked.a", "other.a.b", "3.a")] == [
        *("a", "a", "query_a", "other_a", "segment_3.a"),
    ]
    assert (after("segment_0.name"), after("s2")) == ("segment_0.after_name", "after_s2")
    assert [slot_of_text(text) for text in ("Box", "...", "it's", "Start")] == ["box", "sign", "it's", "start_"]
    assert [distinct("the", taken) for taken in ([], ["the"], ["the", "the_2"])] == ["the", "the_2", "the_3"]


def test_the_slots_of_a_prompt_are_those_written_down_here(tmp_path):
    (tmp_path / "markup.yaml").write_text(FILE)
    task = get_task(str(tmp_path / "markup.yaml"))
    prompt = task.prompt(task._example(0))
    assert [piece.slot for piece in prompt.pieces] == [
        *("now", "sign"),
        *("segment_0.article", "segment_0.thing", "segment_0.after_thing", "segment_0.on", "segment_0.the"),
        *("segment_0.place", "segment_0.after_place"),
        *("segment_1.article", "segment_1.thing", "segment_1.after_thing", "segment_1.on", "segment_1.the"),
        *("segment_1.place", "segment_1.after_place", "isn't", "here", "after_here", "place", "sign_2", "the"),
        "other_place",  # a field that ends the text keeps its name, and is `last`, too
    ]
    assert (prompt.roles["last"], prompt.roles["after_here"]) == ("other_place", "after_here")
    assert "sign" not in task.roles
    assert "segment_1.the" in task.roles


def test_a_word_at_the_end_is_last_unless_it_has_a_name(tmp_path):
    for end, slots in (("is", ["after_query_place", "last"]), ("{end:is}", ["after_query_place", "end"])):
        (tmp_path / "markup.yaml").write_text(
            FILE.replace("{here=asked.place} the place, the {other.place}", f"{{asked.place}} it {end}")
        )
        task = get_task(str(tmp_path / "markup.yaml"))
        prompt = task.prompt(task._example(0))
        assert [piece.slot for piece in prompt.pieces][-2:] == slots
        assert prompt.roles["last"] == slots[-1]
        assert {"last", "query_place", *slots} <= set(task.roles)
