"""A wrong task file is refused in one line, which names the file and says what to do."""

import json

import pytest

from circuitdiff.errors import InputError
from circuitdiff.tasks import get_task
from helpers.tiny_tokenizers import word_level

THINGS, COLOURS = "apple book cup pen lamp door key box", "red blue green white black grey pink brown"
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
    return word_level([*["The", "the", "is", ".", ",", "What", "At", "In"], *THINGS.split(), *COLOURS.split()])


def used(path, tokenizer):
    """All that is done with a task before a model sees it."""
    task = get_task(str(path))
    assert {*task.question_roles} <= {*task.roles}
    task.sample(tokenizer, 20)
    task.triples(tokenizer, list(task.form.desiderata), 3, 0)


def refusal(path, use):
    with pytest.raises(InputError) as caught:
        use()
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value).replace(f"{path.parent}/", "")


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
    "number of items": ([("count: 2", "count: n")], "items.count is 'n', which is unknown"),
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


def test_the_template_is_right_before_it_is_made_wrong(tmp_path, whole):
    used(written(tmp_path, []), whole)


def row(i, **changed):
    things, colours = THINGS.split(), COLOURS.split()
    one, two = things[i % 8], things[(i + 1) % 8]
    first, second = colours[i // 8 % 8], colours[(i // 8 + 1) % 8]
    start = f"the {one} is {first}, the {two} is {second}. What is"
    prompt = {"prompt": f"{start} {first} is the", "answer": one, "roles": {"thing": one}}
    return prompt | {"counterfactual": f"{start} {second} is the", "counterfactual_answer": two} | changed


ROWS = [row(i) for i in range(64)]
HEAD = "prompt,answer,counterfactual,counterfactual_answer"
LINES = [HEAD, *(",".join(f'"{each[name]}"' for name in HEAD.split(",")) for each in ROWS)]


def every(**changed):
    return [each | changed for each in ROWS]


def first(**changed):
    """The first row changed; a value of `...` is left out."""
    return [{key: value for key, value in (ROWS[0] | changed).items() if value is not ...}, *ROWS[1:]]


WRONG_ROWS = {
    "counterfactual": (first(counterfactual=ROWS[0]["prompt"]), "line 1: the counterfactual equals the prompt"),
    "counterfactual but for a space": (first(counterfactual=ROWS[0]["prompt"] + " "), "the counterfactual equals"),
    "no prompt": (first(prompt=...), "line 1: prompt: this is missing"),
    "no answer": (first(answer=...), "line 1: answer: this is missing"),
    "list of no answers": (first(answer=[]), "line 1: answer: "),
    "empty answer": (first(answer=["box", ""]), "line 1: answer.1: String should have at least 1 character"),
    "number as an answer": (first(answer=3), "line 1: answer: expected text; got 3"),
    "unknown answer": (every(answer="zebra"), "must be tokens of its own after ' the', all known; it came as '<unk>'"),
    "unknown word": (
        [each | {"prompt": each["prompt"].replace("What", "Where")} for each in ROWS],
        "the tokenizer does not know every word: use other words",
    ),
    "space at the end": (first(prompt=ROWS[0]["prompt"] + " "), "line 1: the prompt ends in a space, and the answer"),
    "no foil": ([{k: v for k, v in each.items() if k != "counterfactual_answer"} for each in ROWS], "has no foil"),
    "foil that is right": ([each | {"foils": each["answer"]} for each in ROWS], "has no foil"),
    "some answers": (first(counterfactual_answer=...), "line 2: `counterfactual_answer` is given in some rows only"),
    "key": (first(promt="x"), "line 1: there is no key 'promt' here (did you mean 'prompt'?)"),
    "prompt twice": ([*ROWS, ROWS[0]], "line 65: the prompt of t.jsonl, line 1 stands here again; keep one"),
    "role word twice": (
        first(roles={"thing": "the"}),
        "line 1: role 'thing' is at the word 'the', which stands 3 times",
    ),
    "role word not there": (first(roles={"thing": "hat"}), "which stands 0 times"),
    "role outside": (
        first(roles={"thing": [3, 900]}),
        "line 1: role 'thing' is at characters 3 to 900 of a prompt of 54",
    ),
    "role of nothing": (first(roles={"thing": [3, 3]}), "is at characters 3 to 3"),
    "roles at one place": (first(roles={"thing": [4, 9], "a": [0, 9]}), "line 1: the roles 'thing' and 'a' end at one"),
    "roles that overlap": (every(roles={"thing": [0, 9], "a": [4, 12]}), "holds characters of the slots thing and a"),
    "role in a word": (every(roles={"thing": [0, 2]}), "use words that the tokenizer keeps apart"),
    "role that one row lacks": (first(roles={}), "line 1: the role 'thing' of t.jsonl, line 2 is missing"),
    "role that the counterfactual lacks": (
        first(counterfactual_roles={"other": "red"}),
        "has no place in ",
    ),
    "role word not in the counterfactual": (
        first(counterfactual=ROWS[0]["counterfactual"].replace("apple", "door")),
        "line 1, counterfactual: role 'thing' is at the word 'apple', which stands 0 times",
    ),
    "role called last": (first(roles={"last": "apple"}), "line 1: a role cannot be called 'last'"),
    "split": (first(split="test"), "line 1: unknown split 'test'; choose one of train, discovery"),
    "small split": (
        ROWS[:3],
        "split 'evaluation' has 0 prompts, and 5 are asked for: ask for fewer, or give more rows",
    ),
    "scenario of two splits": (
        [ROWS[0] | {"scenario": 0, "split": "mask"}, ROWS[1] | {"scenario": 0, "split": "train"}],
        "line 2: its scenario is of another split in t.jsonl, line 1",
    ),
    "queried": (first(queried=-1), "line 1: queried: expected at least 0; got -1"),
    "nothing": ([], "has no rows; expected one pair a line"),
}


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_a_wrong_row_is_refused_in_one_line_that_names_the_file(tmp_path, whole, what):
    rows, message = WRONG_ROWS[what]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert message in refusal(path, lambda: get_task(str(path)).sample(whole, 5))


WRONG_TEXTS = {
    "too many cells": ("t.csv", [*LINES, "a,b,c,d,e"], "line 66: more cells than the header has columns"),
    "too few cells": ("t.csv", [*LINES, "a,b"], "line 66: counterfactual: this is missing"),
    "column twice": ("t.csv", [HEAD.replace("counterfactual_", ""), *LINES[1:]], "line 1: the column 'answer' stands"),
    "column without a name": ("t.csv", [f"{HEAD},", *LINES[1:]], "line 1: the column '' stands twice or has no name"),
    "quote": ("t.csv", [*LINES, '"abc'], "unexpected end of data; expected cells with commas"),
    "empty cell of answers": ("t.csv", [*LINES, "a b,|,a c,d"], "line 66: answer.0: String should have at least"),
    "number": ("t.csv", [f"{HEAD},queried", "a,b,c,d,x"], "line 2: queried: expected a valid integer; got 'x'"),
    "header alone": ("t.csv", [HEAD], "t.csv has no rows"),
    "no JSON": ("t.jsonl", ["{"], "line 1 is not JSON"),
    "no table": ("t.yaml", ["table: u.jsonl"], "there is no "),
    "table of another kind": ("t.yaml", ["table: t.yaml"], "table: expected a file that ends in .jsonl or .csv"),
    "key": ("t.yaml", ["table: rows.jsonl", "tabel: 3"], "there is no key 'tabel' here (did you mean 'table'?)"),
    "column": ("t.yaml", ["table: rows.jsonl", "columns: {promt: x}"], "there is no key 'promt' here (did you mean"),
    "column called twice": (
        "t.yaml",
        ["table: rows.jsonl", "columns: {foils: answer}"],
        "two of them are called 'answer'",
    ),
    "column kept": ("t.yaml", ["table: rows.jsonl", "columns: {prompt: text}"], "`columns` calls 'text'; keep one"),
    "column of a role": ("t.yaml", ["table: rows.jsonl", "roles: {a: word}"], "line 1: role 'a' is in column 'word'"),
    "role of a question": ("t.yaml", ["table: rows.jsonl", "question: [lst]"], "question has the role 'lst', which is"),
    "role of a plan": (
        "t.yaml",
        ["table: rows.jsonl", "plans: {main: {stages: [{at: lst}]}}"],
        "plans.main: at: there is no role 'lst' (did you mean 'last'?)",
    ),
}


@pytest.mark.parametrize("what", WRONG_TEXTS)
def test_a_wrong_table_is_refused_in_one_line_that_names_a_file(tmp_path, whole, what):
    name, lines, message = WRONG_TEXTS[what]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / name).write_text("\n".join(lines))
    assert message in refusal(tmp_path, lambda: get_task(str(tmp_path / name)).sample(whole, 5))


def test_the_tables_are_right_before_they_are_made_wrong(tmp_path, whole):
    (tmp_path / "t.csv").write_text("\n".join(LINES))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "t.yaml").write_text("table: t.jsonl")
    assert [len(get_task(str(tmp_path / f"t.{kind}")).sample(whole, 5)) for kind in ("csv", "jsonl", "yaml")] == [5] * 3


def test_a_table_takes_no_options_and_a_task_that_is_not_there_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(LINES))
    with pytest.raises(InputError, match=r"t\.csv: a table has no options; got n_boxes"):
        get_task(str(tmp_path / "t.csv"), n_boxes=3)
    with pytest.raises(InputError, match=r"has no 't\.cvs'; did you mean 't\.csv'\?"):
        get_task(str(tmp_path / "t.cvs"))
    with pytest.raises(InputError, match=r"has no 'colours\.yaml'; check the path"):
        get_task(str(tmp_path / "colours.yaml"))
