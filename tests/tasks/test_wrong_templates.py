"""A wrong template is refused in one line, which names the file and says what to do."""

import pytest

from circuitdiff.tasks import get_task
from helpers.refused import COLOURS, THINGS, refusal, word_tokenizer

TEMPLATE = f"""\
name: colours
categories:
  things: {{words: {THINGS}}}
  colours: {{words: {COLOURS}}}
items: {{count: 2, fields: {{thing: things, colour: colours}}}}
list: {{text: "the {{thing}} is {{colour}}"}}
text: "{{list}}. What is {{asked.colour}} is the"
answer: " {{asked.thing}}"
roles: {{right: asked.thing}}
counterfactuals: {{other: {{ask: other}}}}
"""
ITEMS, LIST = TEMPLATE.splitlines()[4:6]
ANSWER, ROLES, RULE = TEMPLATE.splitlines()[7:]
ASKED, WORDS = "What is {asked.colour}", f"{{words: {THINGS}}}"
WORDINGS = 'wordings: [{name: a, text: "{list}. %s is the"}, {name: %s, text: "{list}. At %s is the"}]'
TEXT = 'text: "{list}. What is {asked.colour} is the"'
DRAWS = (ITEMS, "draws: {thing: things, colour: colours}"), (LIST + "\n", "")


@pytest.fixture(scope="module")
def whole():
    return word_tokenizer()


def used(path, tokenizer):
    """All that is done with a task before a model sees it."""
    task = get_task(str(path))
    assert {*task.question_roles} <= {*task.roles}
    task.sample(tokenizer, 20)
    task.triples(tokenizer, list(task.form.desiderata), 3, 0)


def written(folder, changes):
    text = TEMPLATE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "colours.yaml").write_text(text)
    return folder / "colours.yaml"


def change(rule):
    return [("{ask: other}", rule)]


def answer(new):
    return [(ANSWER, f"answer: {new}")]


def changes(clause, text="{list}.{changes} What"):
    return [(ROLES, f"changes: {{{clause}}}\n{ROLES}"), ("{list}. What", text)]


WRONG = {
    "unknown key": ([("answer:", "anwser:")], "there is no key 'anwser' here (did you mean 'answer'?)"),
    "key twice": ([("answer:", "name: x\nanswer:")], "line 8: the key 'name' stands twice; keep one"),
    "unknown field": (
        [("asked.colour", "asked.color")],
        "{asked.color}, which is unknown (did you mean 'asked.colour'?)",
    ),
    "field of no item": ([("What is", "What {thing} is")], "text has the field {thing}, which is unknown"),
    "brace": ([("{list}.", "{list.")], "text: a brace has no match in '{list. What"),
    "category": ([("thing: things", "thing: thngs")], "draws from 'thngs', which is unknown (did you mean 'things'?)"),
    "category without words": ([(WORDS, "{train: a}")], "categories.things.words: this is missing"),
    "list without items": ([(ITEMS, "draws: {thing: things}")], "`list` writes `items`; give both"),
    "list not given": ([(LIST + "\n", "")], "{list} is written, and `list` is not given"),
    "place": (
        [("asked.thing}\ncounter", "asked.thng}\ncounter")],
        "roles.right: the text has no place 'asked.thng' (did",
    ),
    "place without slot": (
        [("asked.thing}\ncounter", "asked}\ncounter")],
        "roles.right: the text has no place 'asked'",
    ),
    "role called last": ([("{right:", "{last:")], "roles.last: a slot of the text, or what follows one, has this name"),
    "role called like a slot": ([("{right:", "{query_colour:")], "has this name already; choose another"),
    "answer.third": ([("right: asked.thing", "right: answer.third")], "expected answer.first or answer.last"),
    "answer not there": (
        [("right: asked.thing", "right: answer.last"), *answer('" door"\nfoils: [" key"]')],
        "a role is at 'answer.last', and a prompt does not mention 'door'",
    ),
    "no change": (change("{}"), "counterfactuals.other changes nothing; give redraw, swap, ask or wording"),
    "same asked": (change("{ask: same}"), "counterfactuals.other changes nothing"),
    "change not written": (
        [("items:", "draws: {place: colours}\nitems:"), *change("{redraw: [place]}")],
        "counterfactuals.other leaves 'the ",
    ),
    "elsewhere": (
        [(ASKED, "What is"), *answer('" {0.thing}"\nfoils: [" {1.thing}"]'), *change("{given: elsewhere}")],
        "`given: elsewhere` needs {asked.FIELD} in the text",
    ),
    "elsewhere by two fields": (
        [(TEXT, WORDINGS % ("{asked.colour}", "b", "{asked.thing}")), *change("{given: elsewhere}")],
        "needs one field that names the item; got asked.colour, asked.thing",
    ),
    "wording": (
        [(TEXT, WORDINGS % ("{asked.colour}", "two", "{asked.colour}")), *change("{wording: {a: too}}")],
        "has the wording 'too', which is unknown (did you mean 'two'?)",
    ),
    "two wordings of one name": (
        [(TEXT, WORDINGS % ("{asked.colour}", "a", "{asked.colour}"))],
        "two wordings are called 'a'",
    ),
    "text and wordings": ([("answer:", "wordings: [a]\nanswer:")], "give either `text` or `wordings`"),
    "neither": ([(TEXT + "\n", "")], "give either `text` or `wordings`"),
    "any_of another category": (
        answer("{any_of: things, above: asked.colour}"),
        "any_of is compared with 'asked.colour', and things lacks its 'red'",
    ),
    "any_of a field of no item": (answer("{any_of: things, above: thing}"), "compared with the field 'thing'"),
    "any_of no category": (answer("{any_of: thins}"), "any_of is 'thins', which is unknown (did you mean 'things'?)"),
    "any_of no column": (answer("{any_of: things.size}"), "any_of has the column 'size', which is unknown"),
    "no foils": (answer('" {asked.thing}"\nfoils: [" {asked.thing}"]'), "has no foil (`foils`, or other items)"),
    "too few words": ([(WORDS, "{words: apple}")], "1 things are too few for 2 items: give more words"),
    "too few to redraw": (
        [(WORDS, "{words: apple book cup}"), *change("{redraw: [thing]}")],
        "needs 4 things of one token each, but the tokenizer keeps 3 of 3 whole: give the task other things",
    ),
    "too few for elsewhere": (
        [(f"words: {COLOURS}", "words: red blue"), *change("{given: elsewhere}")],
        "needs 3 colours of one token each",
    ),
    "words twice": ([("apple book", "apple apple")], "categories.things: 'apple' stands twice; keep one"),
    "words to train on": ([("key box}", "key box, train: [box, pan]}")], "must not occur in things; both have box"),
    "no words": ([(WORDS, "{words: ' '}")], "categories.things: give at least one word"),
    "no file of words": ([(WORDS, "{words: {file: thing.txt}}")], "categories.things: there is no thing.txt"),
    "word with a space": ([(WORDS, "{words: ['apple ', book]}")], "'apple ' has white space around it; write words"),
    "no columns": ([(WORDS, "{words: [{}, {}]}")], "categories.things.words"),
    "columns that differ": (
        [(WORDS, "{words: [{a: x}, {b: y}]}")],
        "expected the columns a of every word; got {'b': 'y'}",
    ),
    "column of a plain word": (
        answer('" {asked.thing.size}"'),
        "answer has the column 'size' of 'thing', which is unknown",
    ),
    "answer missing": ([(ANSWER + "\n", "")], "`answer` is missing: give it for the task or for wording 0"),
    "answer empty": (answer('""'), "answer: String should have at least 1 character"),
    "answer without its space": (answer('"{asked.thing}"'), "is the space before it missing?"),
    "answer of no field": (
        answer('" {asked.thin}"'),
        "answer has the field {asked.thin}, which is unknown (did you mean",
    ),
    "answer to no question": (
        [(ASKED, "What is")],
        "the text does not say which: write {asked.FIELD} or {other.FIELD}",
    ),
    "spare word in an answer": (answer('" {spare.thing}"'), "{spare.thing}, which only texts of desiderata can have"),
    "spare word in a text": ([("What is", "What {spare.thing} is")], "which only texts of desiderata can have"),
    "to": ([("What is", "What {to.thing} is")], "text has {to.thing}, which only changes.move can have"),
    "held": (answer('" {held.thing}"'), "{held.thing} is what `changes` leave; give them"),
    "held place": (
        [
            *changes("count: 1, key: colour, holds: thing, put: ' The {thing} is {colour}.'"),
            *answer('" {held.colour}"'),
        ],
        "write {held.FIELD} with the field that they say an item `holds`",
    ),
    "changes of no field": (changes("count: 1, key: clour, holds: thing, put: x"), "(did you mean 'colour'?)"),
    "changes of one field": (changes("count: 1, key: thing, holds: thing, put: x"), "`key` is the place and `holds`"),
    "no change written": (changes("count: 1, key: colour, holds: thing"), "write at least one of put, remove, move"),
    "changes of nothing": (
        changes("count: 1, key: colour, holds: thing, move: ' The {thing} moves.'"),
        "changes.move does not say what moves where: write {to.colour} in it",
    ),
    "changes nowhere": (
        changes("count: 1, key: colour, holds: thing, put: ' The {thing} is {colour}.'", "{list}. What"),
        "`changes` are given, and a text does not write {changes}",
    ),
    "changes not given": ([("{list}.", "{list}.{changes}")], "{changes} is written, and `changes` is not given"),
    "changes that leave nothing": (
        changes("count: 9, key: colour, holds: thing, remove: ' The {thing} goes.'"),
        "no 9 changes leave one thing in each item asked for: ask for fewer changes",
    ),
    "field between items": (
        [('{colour}"}', '{colour}", between: ", {thing} "}')],
        "list.between has the field {thing}",
    ),
    "item that is not listed": (
        [("What is", "What {5.thing} is")],
        "{5.thing}: there are 2 items, from 0 on",
    ),
    "number of items": ([("count: 2", "count: n")], "items.count is 'n': give a number, such as 4"),
    "number of items by another option's name": (
        [("count: 2", "count: m_items"), ("name: colours", "name: colours\noptions: {n_items: 2}")],
        "give a number, such as 4, or an option's name (did you mean 'n_items'?)",
    ),
    "one item": ([("count: 2", "count: 1")], "items.count: expected 2 to 100 items; got 1"),
    "option called like a category": (
        [("items: {count: 2", "options: {things: 2}\nitems: {count: things")],
        "rename it",
    ),
    "field of items and draws": (
        [("items:", "draws: {thing: things}\nitems:")],
        "'thing' is one of items and of draws",
    ),
    "field called asked": ([("items:", "draws: {held: things}\nitems:")], "the field 'held' has a meaning of its own"),
    "slot named twice": ([("What is {asked", "{a:What} is {a=asked")], "text names the slot 'a' twice"),
    "slot called start": (
        [("What is {asked", "{start:What} is {asked")],
        "text has the slot 'start', which is another",
    ),
    "redraw": (change("{redraw: [thng]}"), "counterfactuals.other redraws 'thng', which is unknown (did you mean"),
    "swap": (change("{swap: thng}"), "counterfactuals.other swaps 'thng', which is unknown (did you mean 'thing'?)"),
    "ask": (change("{ask: othr}"), "counterfactuals.other.ask: unknown 'othr' (did you mean 'other'?)"),
    "no counterfactual": ([("{other: {ask: other}}", "{}")], "counterfactuals: "),
    "role of a question": ([(ROLES, "question: [lst]")], "question has the role 'lst', which is unknown (did you mean"),
    "role of a plan": (
        [(ROLES, "plans: {main: {stages: [{name: a, at: lst, select: {top: 1}}]}}")],
        "plans.main: at: there is no role 'lst' (did you mean 'last'?)",
    ),
    "desiderata of no item": (
        [
            *DRAWS,
            ("{list}. What is {asked.colour}", "What is {colour}"),
            *answer('" {thing}"\nfoils: [" door"]'),
            (ROLES, "desiderata: {a: {wants: answer}}"),
            *change("{redraw: [thing, colour]}"),
        ],
        "desiderata.a needs `items`, one of which the text asks for",
    ),
    "desideratum's brace": ([(ROLES, "desiderata: {a: {wants: answer, text: '{lis'}}")], "desiderata.a.text: a brace"),
    "desideratum's field": (
        [(ROLES, "desiderata: {a: {wants: answer, list: '{thng}'}}")],
        "desiderata.a.list has the field {thng}, which is unknown (did you mean 'thing'?)",
    ),
    "desideratum of two items": ([(ROLES, "desiderata: {a: {wants: answer}}")], "2 items are too few for answers that"),
    "asked without items": ([*DRAWS, ('"{list}. What', '"What')], "{asked.colour}, which is unknown"),
    "list alone": ([(TEXT, 'text: "{list}"')], "the text does not say which"),
    "name with a slash": ([("name: colours", "name: a/b")], "expected a name that a folder can have"),
    "text that ends in a space": ([('is the"', 'is the "')], "text: it ends in white space"),
    "unknown word": ([("What", "Where")], "the tokenizer does not know every word of 'the"),
    "empty": ([(TEMPLATE, "")], "is empty; expected a mapping of keys to values"),
    "list of files": ([(TEMPLATE, "- a")], "expected a mapping of keys to values; got a list"),
    "tab": ([("  things:", "\tthings:")], "line 3: found character"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_template_is_refused_in_one_line_that_names_the_file(tmp_path, whole, what):
    changed, message = WRONG[what]
    path = written(tmp_path, changed)
    assert message in refusal(path, lambda: used(path, whole))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"apple " * 2**20, "thing.txt is larger than 4 MiB"),
        (b"caf\xe9 book", "thing.txt is not UTF-8: byte 3 cannot be read"),
    ],
)
def test_a_file_of_words_is_read_whole_or_refused(tmp_path, whole, content, message):
    (tmp_path / "thing.txt").write_bytes(content)
    path = written(tmp_path, [(WORDS, "{words: {file: thing.txt}}")])
    assert message in refusal(path, lambda: used(path, whole))


def test_a_file_of_words_may_begin_with_a_byte_order_mark(tmp_path, whole):
    (tmp_path / "thing.txt").write_bytes(b"\xef\xbb\xbf" + THINGS.encode())
    task = get_task(str(written(tmp_path, [(WORDS, "{words: {file: thing.txt}}")])))
    assert task.categories["things"][0] == tuple(THINGS.split())


def test_the_template_is_right_before_it_is_made_wrong(tmp_path, whole):
    used(written(tmp_path, []), whole)
