"""The invented results, fresh for each test, and what is made of them, once for all tests that only look."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitdiff.report import figures, write_report
from circuitdiff.report.charts import Figure
from circuitdiff.study.results import CommonResults
from helpers.invented_results import invented_results


@pytest.fixture
def results() -> CommonResults:
    return invented_results()


@pytest.fixture(scope="session")
def drawn() -> dict[str, Figure]:
    return figures(invented_results())


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(invented_results(), tmp_path_factory.mktemp("report") / "report.html")
