"""Names that users give: which are accepted, what is printed of them, and that none leaves its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from circuitdiff.config.names import file_name, printable
from circuitdiff.errors import InputError
from circuitdiff.finetune.recipes import read_recipe
from circuitdiff.study.registry import read_study

EMPTY, LONG, ESCAPE = "", "x" * 101, "\x1b]0;x\a"
LEAVING = ("..", ".", "a/b", "/abs/x", "../../x", "a\\b")
STAGES = [{"name": "fetcher", "at": "last"}]


def study(folder: Path, **changes: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "base": "planted-base", "task": "ioi"} | changes))
    return path


def recipe(folder: Path, name: str) -> Path:
    path = folder / "recipe.yaml"
    training = {"steps": 1, "batch": 1, "learning_rate": 0.1}
    data = {"task": "entity_tracking", "n_prompts": 3}
    whole = {"name": name, "base": "planted-base", "method": "full", "training": training, "data": data, "held_out": 1}
    path.write_text(yaml.safe_dump(whole))
    return path


@pytest.mark.parametrize("name", [EMPTY, " ", LONG, ESCAPE, *LEAVING])
def test_a_study_or_recipe_cannot_have_a_name_that_leaves_its_folder(tmp_path, name):
    with pytest.raises(InputError, match=r"study.yaml: name: expected a name"):
        read_study(study(tmp_path, name=name))
    with pytest.raises(InputError, match=r"recipe.yaml: name: expected a name"):
        read_recipe(recipe(tmp_path, name))


def test_names_with_brackets_spaces_and_accents_are_accepted(tmp_path):
    for name in ("x[b]y", "my study", "né-2.5_b"):
        assert read_study(study(tmp_path, name=name)).name == read_recipe(recipe(tmp_path, name)).name == name


@pytest.mark.parametrize("name", [EMPTY, LONG, ESCAPE])
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("variants", "planted-sharper-fetchers"),
        ("plans", {"stages": STAGES}),
        ("series", {"planted-base": 0}),
        ("circuits", "c.json"),
    ],
)
def test_names_within_a_study_are_not_empty_endless_or_obeyed_by_a_terminal(tmp_path, where, value, name):
    with pytest.raises(InputError, match="expected a name"):
        read_study(study(tmp_path, **{where: {name: value}}))


@pytest.mark.parametrize("name", [EMPTY, LONG, ESCAPE])
def test_nor_are_those_of_stages(tmp_path, name):
    plans = {"main": {"stages": [{"name": name, "at": "last"}]}}
    with pytest.raises(InputError, match="expected a name"):
        read_study(study(tmp_path, plans=plans))


def test_within_a_study_names_may_look_like_paths_or_markup(tmp_path):
    read = read_study(study(tmp_path, variants={"org/chat[/b]": "planted-weaker"}, plans={"a/b": {"stages": STAGES}}))
    assert list(read.variants) == ["org/chat[/b]"]
    assert list(read.plans) == ["a/b"]


def test_files_are_called_like_the_name_where_that_is_safe_and_never_like_another_name():
    assert [file_name(name) for name in ("main", "Qwen2.5-0.5B_x")] == ["main", "Qwen2.5-0.5B_x"]
    names = ["a/b", "a_b", "a b", ".a", "_a", "..", "__", "", "é", "è", "n" * 80, "n" * 81, "n" * 82, "\udc80", "a\0b"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all(len(file) <= 100 and file.isascii() and file[0] not in "./" and "/" not in file for file in files)
    assert all(file_name(file) != file for file in files if "~" in file)  # a name cannot be made to look like these


def test_what_a_terminal_would_obey_is_printed_escaped_and_all_else_as_it_is():
    assert printable("\x1b]0;x\a\r\n\t\x9b\u202e\ud800") == r"\x1b]0;x\x07\r\n\t\x9b\u202e\ud800"
    assert printable("x[/b]y é 漢 \\ 'q'") == "x[/b]y é 漢 \\ 'q'"
