"""The built-in tasks yield the tokens that they yielded when they were code, before they became files.

`golden.json` has hashes that the code of that time made, of 60 pairs each, or of 30 triples of a desideratum.
"""

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from circuitdiff.models.sources import read_outline
from circuitdiff.tasks import get_task
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS, WORDS
from helpers.tiny_tokenizers import FRAME, byte_pairs, word_level

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
INSERTED = [
    "There",
    "are",
    "a",
    "bunch",
    "of",
    "boxes",
    "containing",
    "objects",
    "these",
    "three",
    "additional",
    "and",
    "contained",
    "not",
    "there",
]
ROLES = ("last", "query_label", "previous_query_label", "after_previous_query_label", "correct_object", "other_label")
IOI_ROLES = ("segment_0.name", "segment_1.name", "place", "s2", "object", "last", "io", "s1", "segment_0.after_name")
IOI_ROLES += ("segment_1.after_name", "after_s2", "after_io", "after_s1")


def tokenizer(name):
    if name == "smollm2":
        return read_outline("smollm2").tokenizer
    if name == "pieces":
        return byte_pairs([*OBJECTS[::2], *TRAIN_OBJECTS[::2]], trim_offsets=False)
    sentences = [re.sub(r"\{[^}]*\}", "", wording.text) for wording in get_task("ioi").form.written]
    sentences = [word for text in sentences for word in re.findall(r"\w+|[.,]", text)]
    lists = [(WORDS / f"{of}.txt").read_text().split() for of in ("names", "training_names", "places", "gifts")]
    words = [*FRAME, *INSERTED, *LABELS, *OBJECTS, *TRAIN_OBJECTS, *sentences]
    return word_level([*words, *(word for listed in lists for word in listed)])


def digest(*parts):
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"none" if part is None else repr(part.tolist()).encode())
    return whole.hexdigest()[:16]


def of_prompts(prompts, roles):
    inside = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    tokens = prompts.tokens.clone().masked_fill(~inside, -1)
    return [tokens, prompts.lengths, *(prompts.positions[role] for role in roles)]


def of_pairs(pairs, roles):
    sides = [*of_prompts(pairs.clean_prompts, roles), *of_prompts(pairs.counterfactual_prompts, roles)]
    return digest(*sides, pairs.answers, pairs.foils, pairs.counterfactual_answers, pairs.scenarios, pairs.queried)


def of_triples(triples):
    sides = [*of_prompts(triples.base, ROLES), *of_prompts(triples.source, ROLES)]
    pointers = [triples.pointers[name] for name in sorted(triples.pointers)]
    asked = [triples.scenarios, triples.queried, triples.source_queried]
    return digest(*sides, triples.answers, triples.targets, *pointers, *asked)


@pytest.mark.parametrize("name", ["words", "pieces", pytest.param("smollm2", marks=pytest.mark.smollm2)])
def test_built_in_tasks_yield_the_tokens_that_they_yielded_as_code(name):
    written, made = {key: value for key, value in GOLDEN.items() if key.startswith(name)}, {}
    desiderata, in_tokens = defaultdict(list), tokenizer(name)
    for key in written:
        _, task, *rest = key.split()
        if task == "triples":
            n_boxes, desideratum, redraw = rest
            desiderata[int(n_boxes), int(redraw)].append(desideratum)
            continue
        n_boxes, split, kind, queries = rest
        built = get_task(task, **({"n_boxes": int(n_boxes)} if task == "entity_tracking" else {}))
        pairs = built.sample(in_tokens, 60, 3, split, int(queries), kind)
        made[key] = of_pairs(pairs, IOI_ROLES if task == "ioi" else built.roles)
    for (n_boxes, redraw), names in desiderata.items():
        built = get_task("entity_tracking", n_boxes=n_boxes)
        for triples in built.triples(in_tokens, names, 30, 4, redraw):
            made[f"{name} triples {n_boxes} {triples.name} {redraw}"] = of_triples(triples)
    assert made == written
    assert len(made) > 20
