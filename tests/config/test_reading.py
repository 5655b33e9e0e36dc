"""Text files to data: what cannot be meant is refused in one line, and nothing changes its meaning."""

from __future__ import annotations

import json
import os

import pytest

from circuitdiff.config.reading import parse_json, parse_yaml, read_json, read_jsonl, read_yaml, split_adapters
from circuitdiff.errors import InputError, choices


def bomb(*, merged: bool = False) -> str:
    """Ten aliases of ten, nine times."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 10):
        aliases = ",".join([f"*a{i - 1}"] * 10)
        lines.append(f"a{i}: &a{i} {{<<: [{aliases}]}}" if merged else f"a{i}: &a{i} [{aliases}]")
    return "\n".join(lines)


def test_plain_scalars_mean_what_yaml_1_2_says():
    text = """
    answers: [no, on, y, NO, 1_000, 12:30:00, 2001-01-01, 2001-13-45, =]
    numbers: [1e-3, 0o17, 0x1F, 012, -7, .5, 1., 9223372036854775807]
    others: [true, False, ~, null, '1', "true", !!str 1]
    """
    assert parse_yaml(text, "f") == {
        "answers": ["no", "on", "y", "NO", "1_000", "12:30:00", "2001-01-01", "2001-13-45", "="],
        "numbers": [0.001, 15, 31, 12, -7, 0.5, 1.0, 2**63 - 1],
        "others": [True, False, None, None, "1", "true", "1"],
    }


def test_anchors_and_merge_keys_work():
    data = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: {<<: [*a, {x: 5, z: 6}]}", "f")
    assert data["b"] == {"x": 1, "y": 3}
    assert data["c"] == [data["a"], data["a"]]
    assert data["d"] == {"x": 1, "y": 2, "z": 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f is empty"),
        ("# nothing", "f is empty"),
        ("[1]", "f: expected a mapping of keys to values; got a list"),
        ("word", "expected a mapping of keys to values; got text"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("a:\n  b: 1\n  'b': 2", "line 3: the key 'b' stands twice"),
        ("[" * 100_000, "line 1: nested deeper than 50"),
        ("- " * 5000, "nested deeper than 50"),
        (bomb(), "aliases make it larger than 100,000"),
        (bomb(merged=True), "aliases make it larger than 100,000"),
        ("a: &a [*a]", "nest it in itself"),
        ("a: !!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd is not known"),
        ("a: !mine 1", "line 1: the tag !mine is not known"),
        ("a: !!int a", "line 1: 'a' is no int"),
        ("a: !!timestamp x", "the tag !!timestamp is not known"),
        ("a: 1\nb: .inf", "line 2: .inf is not a finite number"),
        ("a: .nan", "line 1: .nan is not a finite number"),
        ("a: 1e999", "line 1: 1e999 is not a finite number"),
        ("a: 9223372036854775808", "line 1: the number 9223372036854775808 does not fit 64 bits"),
        ("a: " + "9" * 5000, "is not a finite number"),
        ('a: "\\ud800"', "line 1: .*half a pair of surrogates"),
        ('a: "x\\0y"', "line 1: .*NUL"),
        ('a: "\\U00110000"', "f is not YAML"),
        ("1: a", "line 1: a key is text; write '1' in quotes"),
        ("? [a]\n: 1", "a key is text; got a list or a mapping"),
        ("a: 1\n--- \nb: 2", "line 2: "),
        ("a: [1\nb: }", "line 2: expected"),
        ("<<: 1", "<< merges mappings"),
        ("a: \x01", "f is not YAML"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_yaml(text, "f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f is not JSON: it is empty"),
        ("null", "expected a mapping of keys to values; got nothing"),
        ('{"a": 1', "f is not JSON: column 8"),
        ('{"a": 1,\n "b": {"c": 1,\n "\\u0063": 2}, "c": 3}', "line 3: the key 'c' stands twice"),
        ("[" * 100_000, "nested 100000 levels deep; expected at most 50"),
        ('{"a": ' * 1000, "nested 1000 levels deep"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": -1e999}', "-1e999 is not a finite number"),
        ('{"a": 9223372036854775808}', "9223372036854775808 does not fit 64 bits"),
        ('{"a": ' + "9" * 10_000 + "}", "does not fit 64 bits"),
        ('{"a": "\\uD800"}', "half a pair of surrogates"),
    ],
)
def test_json_that_cannot_be_meant_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_json(text, "f")
    assert "\n" not in str(caught.value)


def test_brackets_and_pairs_of_surrogates_in_strings_are_text():
    for data in ({"a": "[" * 1000 + '\\"{'}, {"a": "\U0001f600", "b": [1.5, -(2**63) + 1, None, True]}):
        assert parse_json(json.dumps(data), "f") == data


def test_the_depth_of_a_string_that_nothing_closes_is_found_in_no_time():
    """Were each of its escaped quotes taken for a beginning, this would take minutes."""
    with pytest.raises(InputError, match="Unterminated string"):
        parse_json('"' + '\\"' * 1_000_000, "f")


def test_only_regular_files_of_text_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nul").write_bytes(b'{"a": "\0"}')
    (tmp_path / "latin").write_bytes('{"a": "\xe9"}'.encode("latin-1"))
    (tmp_path / "large").write_bytes(b" " * (2**19 + 1))
    for path, message in {
        "/dev/zero": "it is a device or a pipe",
        tmp_path / "pipe": "it is a device or a pipe",
        tmp_path: "it is a folder",
        tmp_path / "large": "is larger than 0.5 MiB",
        tmp_path / "nul": "holds a NUL byte at 7",
        tmp_path / "latin": "is not UTF-8: byte 7",
        tmp_path / "lrage": r"has no 'lrage'; did you mean 'large'",
        "x" * 5000: "there is no xxx",
        "a\0b": r"there is no a\\x00b",
        "a\nb\x1b]0;c\x07": "there is no ",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_yaml(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 600


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "f").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "f") == read_yaml(tmp_path / "f") == {"a": 1}


def test_lines_are_named_as_an_editor_counts_them(tmp_path):
    (tmp_path / "f").write_text('\n{"a": "\u2028"}\r\n\n{"b": 2}\n[3]\n', encoding="utf-8")
    path = tmp_path / "f"
    assert read_jsonl(path, 2) == [(f"{path}, line 2", {"a": "\u2028"}), (f"{path}, line 4", {"b": 2})]
    with pytest.raises(InputError, match="line 5: expected a mapping"):
        read_jsonl(path)


def test_a_path_with_a_plus_that_is_there_stays_whole(tmp_path):
    (tmp_path / "a+b").mkdir()
    (tmp_path / "c+d+e").mkdir()
    assert split_adapters("a+b", tmp_path) == ["a+b"]
    assert split_adapters("a+b+c+d+e+f", tmp_path) == ["a+b", "c+d+e", "f"]
    assert split_adapters("a+b", tmp_path / "c+d+e") == ["a", "b"]
    for text in ("", "+a", "a+", "a++b"):
        with pytest.raises(InputError, match=r"expected SOURCE or SOURCE\+ADAPTER"):
            split_adapters(text, tmp_path)


def test_an_error_names_the_nearest_of_at_most_thirty_choices():
    assert choices("sede", ["name", "seed"]) == " (did you mean 'seed'?); choose one of name, seed"
    assert choices("x", [f"role_{i}" for i in range(40)]).endswith("role_29 and 10 more")
    assert choices("x", []) == "; choose one of none"


def test_an_error_is_one_line_that_can_be_printed_and_keeps_its_end():
    message = str(InputError("first\nsecond \x1b]0;x\x07 \ud800 " + "x" * 5000 + " do this"))
    assert message.isprintable()
    assert message.startswith(r"first second \x1b]0;x\x07 \ud800 xxx")
    assert message.endswith("x do this")
    assert len(message) == 600
