"""`python -m validation`: our methods held against what is known. Arguments in, exit code out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuitdiff.cache.files import write_whole
from circuitdiff.cache.store import json_bytes
from circuitdiff.terminal import check_folder, progress, run_command, say
from validation import Share, check_ground_truth, render_page
from validation.conformance import conformance as check_conformance

app = typer.Typer(
    help="Models whose circuit is known, and published tables, held against our methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


@app.command()
def ground_truth(
    page: Annotated[Path, typer.Option("--out", help="Where the page goes.")] = Path("docs/ground-truth.md"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the rows go, for machines.")] = None,
    plantings: Annotated[int, typer.Option(help="How many other plantings of the base.")] = 20,
    kept: Annotated[Path, typer.Option(help="Where finished parts go; a further run continues.")] = Path(
        "runs/ground-truth"
    ),
    share: Annotated[str, typer.Option(help="1/2 or 2/2: every second part only, and no page.")] = "",
) -> None:
    """Hold discovery and evaluation against planted circuits. Exit code 0 only if every claim holds."""
    if not share:
        for path in (page, json_file):
            check_folder(path)
    with progress() as monitor:
        truth = check_ground_truth(kept, plantings, monitor=monitor, share=Share.read(share or "1/1"))
    if share:
        return
    write_whole(page, render_page(truth).encode())
    if json_file:
        write_whole(json_file, json_bytes(truth.to_dict()))
    for row in truth.rows:
        if not row.passed:
            claim = f"{row.model}, {row.claim}: {row.value:.3g}, expected {row.expectation}"
            say(f"DOES NOT HOLD: {claim}; {row.detail}")
    say(f"{sum(row.passed for row in truth.rows)} of {len(truth.rows)} claims hold; page: {page}")
    if not truth.passed:
        raise typer.Exit(1)


def main() -> None:
    """Runs the command."""
    run_command(app, "python -m validation")


if __name__ == "__main__":
    main()
