"""`python -m validation FILE`: do our selection rules come to a published circuit? Arguments in, exit code out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuitdiff.terminal import run_command, say
from validation.conformance import conformance as check_conformance

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def conformance(table: Annotated[Path, typer.Argument(help="A published table, a JSON file.")]) -> None:
    """Do our selection rules come to a published circuit? Exit code 0 only if all six claims hold."""
    found = check_conformance(table)
    say(f"published tables of {found.model}")
    for claim in found.claims:
        word = {True: "holds", False: "DOES NOT HOLD", None: "not checkable"}[claim.holds]
        say(f"{claim.claim}: {word}; {claim.detail}")
    if not found.holds:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(app, "python -m validation")
