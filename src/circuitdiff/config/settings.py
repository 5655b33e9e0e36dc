"""The types of settings: numbers within bounds, names, and where a model comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from circuitdiff.config.names import check_folder_name, check_name
from circuitdiff.config.reading import looks_like_path, no_such_path, split_adapters
from circuitdiff.config.validation import Strict
from circuitdiff.errors import InputError

COUNTS_PROMPTS, COUNTS_DRAWS = "counts prompts", "counts random draws"  # what a budget makes smaller

# What a machine could run; beyond it a number is a slip of the pen.
Prompts = Annotated[int, Field(ge=2, le=100_000), COUNTS_PROMPTS]
Draws = Annotated[int, Field(ge=0, le=1_000_000), COUNTS_DRAWS]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(gt=0, lt=1)]
Gigabytes = Annotated[float, Field(ge=0.001, le=100_000)]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]

Name = Annotated[str, AfterValidator(check_name)]
FolderName = Annotated[str, AfterValidator(check_folder_name)]  # a folder is called by it


class Settings(Strict):
    """What a section of a study, or of a recipe, may say."""


class ModelSettings(Settings):
    """Where a model comes from: a source and adapters, merged in order; or a recipe, which makes it when needed.

    `tokenizer` is the source whose tokenizer is used, for a checkpoint that lacks its own.

    A lone text is a source, or SOURCE+ADAPTER+ADAPTER. Paths are relative to the YAML file that names them; a folder
    without a slash is written ./folder.
    """

    source: str = ""
    adapters: tuple[str, ...] = Field(default=(), strict=False)  # a list will do
    tokenizer: str | None = None
    recipe: Path | None = Field(default=None, strict=False)  # a text will do

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        if bool(self.source) == (self.recipe is not None) or (self.recipe and (self.adapters or self.tokenizer)):
            raise ValueError("give a model either a source (with adapters, and another's tokenizer) or a recipe")
        return self

    @property
    def name(self) -> str:
        """What it is called unless the study says so."""
        return Path(self.source).name if self.recipe is None else self.recipe.stem

    def seen_from(self, folder: Path) -> ModelSettings:
        """The same with its paths, which are relative to the file in `folder` that names them, as seen from here."""
        if self.recipe is not None:
            return self.model_copy(update={"recipe": folder / self.recipe})
        adapters = tuple(_place(folder, adapter) for adapter in self.adapters)
        tokenizer = None if self.tokenizer is None else _place(folder, self.tokenizer)
        changed = {"source": _place(folder, self.source), "adapters": adapters, "tokenizer": tokenizer}
        return self.model_copy(update=changed)

    @model_validator(mode="before")
    @classmethod
    def _a_lone_text_is_a_source_with_adapters(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, str):
            return value
        source, *adapters = split_adapters(value, (info.context or {}).get("folder", Path()))
        return {"source": source, "adapters": tuple(adapters)}


def _place(folder: Path, named: str) -> str:
    """A path as seen from here; a hub id or a lone name, which may be a family member's, stays what it is.

    A path begins with a dot, ends with .gguf, or holds a slash and is there beside the file.

    Raises: InputError if it can only be a path, and is not there: a library would take it for a hub id.
    """
    is_path = named.startswith(".") or named.endswith(".gguf") or ("/" in named and os.path.exists(folder / named))
    place = str(folder / named) if is_path and not named.startswith("~") else named
    if looks_like_path(named) and not os.path.exists(os.path.expanduser(place)):
        raise InputError(no_such_path(place))
    return place
