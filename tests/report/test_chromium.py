"""The page in a real browser: every figure is drawn, and the console stays silent."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.invented_results import OURS

BROWSER = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
]

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; CI has it"),
]


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM after its scripts have run, and what it wrote to the console."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def drawings(dom: str) -> dict[str, str]:
    """The inside of each figure's place, by its id."""
    parts = re.split(r'<div class="drawing[^"]*" id="(figure-\d+)"', dom)[1:]
    return {name: inside.partition("</svg>")[0] for name, inside in zip(parts[::2], parts[1::2], strict=True)}


def n_marks(drawing: str, kind: str) -> int:
    """How many shapes of one kind of mark the drawing has."""
    groups = re.findall(rf'<g class="mark-{kind} role-mark[^>]*>(.*?)</g>', drawing)
    return sum(len(re.findall(r"<(?:path|line|text)\b", group)) for group in groups)


def test_every_figure_is_drawn_and_the_console_is_silent(page, drawn, tmp_path):
    dom, console = opened(page, tmp_path / "profile")
    assert console == []
    places = drawings(dom)
    assert list(places) == [f"figure-{i + 1}" for i in range(len(drawn))]
    assert dom.count('data-drawn="yes"') == len(drawn)
    for name, drawing in places.items():
        assert "<svg" in drawing, name
        assert "role-mark" in drawing, name
    by_key = dict(zip(drawn, places.values(), strict=True))
    assert n_marks(by_key["accuracy_by_queried"], "symbol") == 2  # the third item was not measured
    # 13 measured cells, 2 grey ones, 2 outlines of heads that help and 1 of a head that hurts
    assert n_marks(by_key[f"effects/{OURS}/1 value_fetcher"], "rect") == 13 + 2 + 2 + 1
    assert n_marks(by_key[f"circuit/{OURS}"], "symbol") == 6 + 4  # heads, and arrows of 4 links
    assert "&lt;the&gt;" in dom


def test_the_console_check_notices_a_broken_figure(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace('"mark":{"type":"', '"mark":{"type":"no', 1))
    _, console = opened(broken, tmp_path / "profile")
    assert console
