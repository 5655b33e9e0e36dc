"""What a group of the base's circuit encodes above all, which other sections ask for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from circuitdiff.study.sections.functions import main_function, main_masks
from circuitdiff.study.sections.functions_options import FunctionsOptions
from circuitdiff.tasks import get_task
from helpers.invented_sections import mask

CELLS = {
    "object": mask(0.9375, 0.5),
    "position": mask(0.875, 0.25),
    "label": mask(0.9375, 0.0, low=1.0),
    "no_comma": mask(1.0, 0.0),
}


class Context:
    """A study of the model `mine` whose masks are these."""

    task = get_task("entity_tracking", n_boxes=3)

    def __init__(self, options: FunctionsOptions | bool) -> None:
        self.settings = SimpleNamespace(functions=options)

    async def part(self, _: object) -> Any:
        return {"mine": {"mine": {"fetcher": CELLS, "reader": {"label": CELLS["label"]}}}}


def masks(options: FunctionsOptions | bool, circuit: str = "mine") -> dict[str, Any]:
    context: Any = Context(options)
    return asyncio.run(main_masks(context, circuit))


def test_a_groups_main_function_is_the_main_desideratum_that_it_carries_best():
    asked = FunctionsOptions(desiderata=("object", "position", "label"))
    assert main_function(CELLS) == "no_comma"
    assert masks(asked) == {"fetcher": ("position", CELLS["position"])}


def test_of_another_circuit_or_a_section_that_is_left_out_nothing_is_known():
    assert masks(FunctionsOptions(), "one") == {}
    assert masks(options=False) == {}
