"""Tables: rows as pairs, read again here from the decoded text."""

import json

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.tasks import get_task
from circuitdiff.tasks.scenarios import SPLITS, split_of
from helpers.reading import texts, word, words_at
from helpers.tiny_tokenizers import byte_pairs, word_level

THINGS, COLOURS = (
    ["apple", "book", "cup", "pen", "lamp", "door", "key", "box"],
    ["red", "blue", "green", "white", "black", "grey", "pink", "brown"],
)


@pytest.fixture(scope="module", params=["whole", "pieces"])
def tokenizer(request):
    if request.param == "whole":
        return word_level(["The", "the", "is", "What", ".", ",", *THINGS, *COLOURS])
    return byte_pairs([*THINGS, *COLOURS], trim_offsets=False)


def row(i):
    one, two, first, second = THINGS[i % 8], THINGS[(i + 1) % 8], COLOURS[i // 8], COLOURS[(i // 8 + 1) % 8]
    start = f"The {one} is {first}, the {two} is {second}. What is"
    prompt = {"prompt": f"{start} {first} is the", "answer": one, "counterfactual": f"{start} {second} is the"}
    return prompt | {"counterfactual_answer": two, "roles": {"thing": one, "colour": [9 + len(one), 8 + len(one) + 3]}}


ROWS = [{**row(i), "roles": {"thing": row(i)["answer"]}} for i in range(64)]


def jsonl(folder, rows, name="t.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def csv(folder, rows, columns):
    lines = [",".join(columns), *(",".join(f'"{each[column]}"' for column in columns) for each in rows)]
    (folder / "t.csv").write_text("\n".join(lines))
    return str(folder / "t.csv")


def by_prompt(tokenizer, pairs):
    """The row of each pair."""
    listed = {each["prompt"]: each for each in ROWS}
    return [listed[text] for text in texts(tokenizer, pairs.clean_prompts)]


def test_each_pair_is_a_row_of_its_split(tmp_path, tokenizer):
    task = get_task(jsonl(tmp_path, ROWS))
    assert (task.name, task.roles, task.counterfactuals, task.desiderata) == ("t", ("thing", "last"), ("given",), ())
    seen = []
    for split in SPLITS:
        pairs = task.sample(tokenizer, task.sizes[split], seed=1, split=split)
        rows = by_prompt(tokenizer, pairs)
        assert all(split_of([each["prompt"]]) == split for each in rows)
        assert texts(tokenizer, pairs.counterfactual_prompts) == [each["counterfactual"] for each in rows]
        assert [word(tokenizer, token) for token in pairs.answers] == [each["answer"] for each in rows]
        for tokens in (pairs.counterfactual_answers, pairs.foils[:, 0]):
            assert [word(tokenizer, token) for token in tokens] == [each["counterfactual_answer"] for each in rows]
        assert words_at(tokenizer, pairs.clean_prompts, "thing") == [each["answer"] for each in rows]
        assert words_at(tokenizer, pairs.counterfactual_prompts, "thing") == [each["answer"] for each in rows]
        assert torch.equal(pairs.positions["last"], pairs.lengths - 1)
        seen += [each["prompt"] for each in rows]
    assert sorted(seen) == sorted(each["prompt"] for each in ROWS)


def test_the_seed_decides_the_order_and_the_first_prompts_do_not_depend_on_how_many_follow(tmp_path, tokenizer):
    task = get_task(jsonl(tmp_path, ROWS))
    n = task.sizes["mask"]
    whole, again, few, other = (
        texts(tokenizer, task.sample(tokenizer, m, seed, "mask").clean_prompts)
        for m, seed in ((n, 0), (n, 0), (3, 0), (n, 1))
    )
    assert whole == again
    assert few == whole[:3]
    assert other != whole
    assert sorted(other) == sorted(whole)


def test_csv_jsonl_and_a_file_that_names_the_columns_are_the_same_task(tmp_path, tokenizer):
    theirs = {"prompt": "question", "answer": "right", "counterfactual": "changed", "counterfactual_answer": "new"}
    renamed = [{theirs[key]: each[key] for key in theirs} | {"word": each["answer"]} for each in ROWS]
    columns = "columns: {" + ", ".join(f"{ours}: {name}" for ours, name in theirs.items()) + "}"
    about = "name: t\nabout: a test\nroles: {thing: word}\nquestion: [thing, last]"
    samples = []
    for path in (jsonl(tmp_path, renamed, "u.jsonl"), csv(tmp_path, renamed, ["word", *theirs.values()])):
        (tmp_path / "t.yaml").write_text(f"table: {path.rpartition('/')[2]}\n{about}\n{columns}\n")
        task = get_task(str(tmp_path / "t.yaml"))
        assert (task.name, task.about, task.question_roles) == ("t", "a test", ("thing", "last"))
        assert [str(file) for file in task.files] == [str(tmp_path / "t.yaml"), path]
        samples.append(task.sample(tokenizer, 5))
    samples.append(get_task(jsonl(tmp_path, ROWS)).sample(tokenizer, 5))
    for each in samples[:2]:
        assert torch.equal(each.clean, samples[2].clean)
        assert torch.equal(each.positions["thing"], samples[2].positions["thing"])
        assert torch.equal(each.answers, samples[2].answers)


def test_a_role_is_at_a_word_or_at_characters_of_each_prompt(tmp_path, tokenizer):
    rows = []
    for each in ROWS:
        ends = {key: len(each[key]) - len(" is the") for key in ("prompt", "counterfactual")}
        asked = {key: each[key][:end].rpartition(" ")[2] for key, end in ends.items()}
        spans = {key: {"colour": [end - len(asked[key]), end]} for key, end in ends.items()}
        rows.append(each | {"roles": spans["prompt"], "counterfactual_roles": spans["counterfactual"]})
    pairs = get_task(jsonl(tmp_path, rows)).sample(tokenizer, 5)
    for prompts in (pairs.clean_prompts, pairs.counterfactual_prompts):
        read = [text.removesuffix(" is the").rpartition(" ")[2] for text in texts(tokenizer, prompts)]
        assert words_at(tokenizer, prompts, "colour") == read


def test_a_role_by_two_columns_is_at_one_word_in_the_prompt_and_at_another_in_the_counterfactual(tmp_path, tokenizer):
    rows = [{key: each[key] for key in each if key != "roles"} for each in ROWS]
    rows = [each | {"here": each["answer"], "there": each["counterfactual_answer"]} for each in rows]
    jsonl(tmp_path, rows)
    (tmp_path / "t.yaml").write_text("table: t.jsonl\nroles: {right: [here, there]}\n")
    pairs = get_task(str(tmp_path / "t.yaml")).sample(tokenizer, 5)
    assert words_at(tokenizer, pairs.clean_prompts, "right") == [word(tokenizer, t) for t in pairs.answers]
    answers = [word(tokenizer, token) for token in pairs.counterfactual_answers]
    assert words_at(tokenizer, pairs.counterfactual_prompts, "right") == answers


def test_named_splits_and_scenarios_hold_and_so_many_rows_of_a_scenario_are_used(tmp_path, tokenizer):
    rows = [each | {"scenario": i // 4, "split": "mask", "queried": i % 4} for i, each in enumerate(ROWS)]
    task = get_task(jsonl(tmp_path, rows))
    assert task.sizes == dict.fromkeys(SPLITS, 0) | {"mask": 64}
    for most in (1, 3):
        pairs = task.sample(tokenizer, 16 * most, split="mask", queries_per_scenario=most)
        at = [ROWS.index(each) for each in by_prompt(tokenizer, pairs)]
        assert pairs.scenarios.tolist() == [i // most for i in range(16 * most)]
        assert [at[i] // 4 for i in range(0, len(at), most)] == [at[i + most - 1] // 4 for i in range(0, len(at), most)]
        assert pairs.queried.tolist() == [i % 4 for i in at]
        with pytest.raises(InputError, match=rf"split 'mask' has {16 * most} prompts, and {16 * most + 1} are asked"):
            task.sample(tokenizer, 16 * most + 1, split="mask", queries_per_scenario=most)


def test_rows_of_one_scenario_are_of_one_split_though_none_is_named(tmp_path):
    task = get_task(jsonl(tmp_path, [each | {"scenario": f"s{i // 8}"} for i, each in enumerate(ROWS)]))
    assert task.sizes == {split: 8 * sum(split_of([f"s{i}"]) == split for i in range(8)) for split in SPLITS}


def test_several_right_answers_and_foils_are_lists_or_cells_with_bars(tmp_path, tokenizer):
    listed = [each | {"answer": [each["answer"], "red"], "foils": ["blue", "red", "pink"]} for each in ROWS]
    cells = [each | {"answer": f"{each['answer']}|red", "foils": "blue | red|pink"} for each in ROWS]
    bare = [{key: each[key] for key in each if key != "roles"} for each in listed]
    columns = ["prompt", "answer", "counterfactual", "counterfactual_answer", "foils"]
    for path in (jsonl(tmp_path, bare), csv(tmp_path, cells, columns)):
        pairs = get_task(path).sample(tokenizer, 5)
        assert [word(tokenizer, token) for token in pairs.answers] == [e["answer"] for e in by_prompt(tokenizer, pairs)]
        assert [[word(tokenizer, t) for t in row] for row in pairs.foils] == [["blue", "pink"]] * 5


def test_without_space_answers_are_what_follows_as_it_stands(tmp_path):
    pieces = byte_pairs([*THINGS, *COLOURS], trim_offsets=False)
    spaced = [each | {"answer": f" {each['answer']}", "counterfactual_answer": " red"} for each in ROWS]
    jsonl(tmp_path, spaced)
    for space in ("true", "false"):
        (tmp_path / "t.yaml").write_text(f"table: t.jsonl\nspace: {space}\n")
        pairs = get_task(str(tmp_path / "t.yaml")).sample(pieces, 5)
        assert [pieces.decode([int(t)]) for t in pairs.answers] == [f" {e['answer']}" for e in by_prompt(pieces, pairs)]
    jsonl(tmp_path, [each | {"answer": "s", "counterfactual_answer": "x"} for each in ROWS])
    pairs = get_task(str(tmp_path / "t.yaml")).sample(pieces, 5)
    assert {pieces.decode([int(token)]) for token in pairs.answers} == {"s"}


def test_roles_at_the_answer_hold_it_in_every_row(tmp_path):
    assert get_task(jsonl(tmp_path, ROWS)).answer_roles == ("thing",)
    spans = [row(i) | {"answer": [f" {row(i)['answer']}", "red"]} for i in range(64)]
    for each in spans:
        each["roles"] |= {"thing": [4, 4 + len(each["roles"]["thing"])]}
    assert get_task(jsonl(tmp_path, spans)).answer_roles == ("thing",)
    assert get_task(jsonl(tmp_path, [*ROWS[:-1], ROWS[-1] | {"answer": "red"}])).answer_roles == ()


def test_a_table_has_no_other_segment_no_desiderata_and_no_other_counterfactual(tmp_path, tokenizer):
    task = get_task(jsonl(tmp_path, ROWS))
    assert (task.every_segment("thing"), task.wrong_segment("last")) == (["thing"], "last")
    assert task.triples(tokenizer, [], 3, 0) == []
    with pytest.raises(InputError, match="t has no desideratum 'a'; give JSONL files of triples"):
        task.triples(tokenizer, ["a"], 3, 0)
    with pytest.raises(InputError, match="t has no role 'thin' \\(did you mean 'thing'"):
        task.every_segment("thin")
    with pytest.raises(InputError, match="unknown counterfactual 'swap'; choose one of given"):
        task.sample(tokenizer, 5, counterfactual="swap")
