"""A wrong table is refused in one line, which names the file and says what to do."""

import json

import pytest

from circuitdiff.errors import InputError
from circuitdiff.tasks import get_task
from helpers.refused import COLOURS, THINGS, refusal, word_tokenizer


@pytest.fixture(scope="module")
def whole():
    return word_tokenizer()


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
    "number as an answer": (first(answer=3), "line 1: answer: expected text; got 3; put it in quotes"),
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
    "role word not there": (first(roles={"thing": "hat"}), "a word of the prompt"),
    "role outside": (
        first(roles={"thing": [3, 900]}),
        "line 1: role 'thing' is at characters 3 to 900 of a prompt of 54; give [start, end] with start < end, and",
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
    "column that is called otherwise": (
        "t.yaml",
        ["table: rows.jsonl", "columns: {prompt: text}"],
        "line 1: `columns` says that prompt is in 'text', which the table lacks",
    ),
    "two columns for one": (
        "t.yaml",
        ["table: rows.jsonl", "columns: {prompt: answer, answer: gold}"],
        "line 1: the table has the columns 'answer' and 'prompt', and `columns` takes the first as prompt: drop one of",
    ),
    "semicolons": (
        "t.csv",
        [HEAD.replace(",", ";")],
        "line 1: ';' stands between the columns; save the table with",
    ),
    "key twice": (
        "t.jsonl",
        ['{"answer": "a", "answer": "b"}'],
        "t.jsonl, line 1: the key 'answer' stands twice; keep one",
    ),
    "key of a template": (
        "t.yaml",
        ["table: rows.jsonl", "items: 3"],
        "t.yaml, a table by its key `table`: there",
    ),
    "ending": ("t.txt", LINES, "t.txt: a task file ends in .yaml, .yml, .jsonl, .csv; rename it after its form"),
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
