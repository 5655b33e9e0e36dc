"""Indirect object identification: `When Mary and John went to the shop together, John gave a book to` -> ` Mary`.

Source: Wang et al. 2022 (arXiv:2211.00593); names, sentences and words are our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices
from circuitdiff.prompts import Pairs, PromptSet, Triples
from circuitdiff.tasks.ioi_scenarios import (
    COUNTERFACTUALS,
    NAMES,
    OBJECTS,
    PLACES,
    TEMPLATES,
    TRAIN_NAMES,
    Sentence,
    Vocabulary,
    draw_counterfactual,
    draw_sentences,
)
from circuitdiff.tasks.scenarios import check_options, generator
from circuitdiff.tasks.task import DescribedPair, describe_pair
from circuitdiff.tasks.template import Piece, Prompt, Words, check_places, one_token_words, tokenise

_FEWEST_WORDS = 14
_FIELDS = {
    "{first}": "segment_0.name",
    "{second}": "segment_1.name",
    "{place}": "place",
    "{repeated}": "s2",
    "{object}": "object",
}
_NAMED = (*_FIELDS.values(), "last")  # slots that every template has
_AFTER = {
    "segment_0.name": "segment_0.after_name",
    "segment_1.name": "segment_1.after_name",
    "s2": "after_s2",
    "io": "after_io",
    "s1": "after_s1",
}
_LISTED = {"io": "name", "after_io": "after_name", "s1": "name", "after_s1": "after_name"}
_WRONG = {"io": "s1", "s1": "io", "after_io": "after_s1", "after_s1": "after_io"}


# Wang et al. 2022 (arXiv:2211.00593), section 3. We differ in the rule (they chose by eye the heads that stand out) and
# in where receivers read. Duplicate-token heads are found with the induction heads: both write at the second subject.
_STRONG = {"minimum": 0.05}  # logits; the models' own logit difference is about 5
_PLAN = (
    {"name": "name_mover", "at": "last", "select": _STRONG},
    {"name": "s_inhibition", "at": "last", "via": "q", "receivers_from": "name_mover", "select": _STRONG},
    {
        "name": "induction",
        "at": "s2",
        "via": "v",
        "receivers_from": "s_inhibition",
        "receivers_at": "last",
        "select": _STRONG,
    },
    {
        "name": "previous_token",
        "at": "after_s1",
        "via": "k",
        "receivers_from": "induction",
        "receivers_at": "s2",
        "select": _STRONG,
    },
)


@dataclass(frozen=True)
class IndirectObjects:
    """Who was given something? The name of the two listed that does not come again.

    Roles: the places that all templates share (the two listed names `segment_0.name` and `segment_1.name`, the place,
    the name that comes again `s2`, the object, the token after each name, and `last`), and those that follow the
    answer: where the indirect object is listed (`io`), where the subject is (`s1`), and the token after each. In
    `unrelated` counterfactuals, where no name comes again, these two sit where they sit in the clean prompt.

    Slots are those of one template, `template_3.s2`, because the words around them differ. Kinds pool the two listed
    names of a template, `template_3.segment.name`, and the tokens after them. `queried` is where the indirect object
    is listed: 0 or 1.
    """

    names: tuple[str, ...]
    train_names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def name(self) -> str:
        return "ioi"

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles; every prompt has each of them."""
        return (*_NAMED, "io", "s1", *_AFTER.values())

    @property
    def question_roles(self) -> tuple[str, ...]:
        """The roles from the name that comes again on, but for the object that is given."""
        return ("s2", _AFTER["s2"], "last")

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        return {"main": {"stages": _PLAN}}

    @property
    def desiderata(self) -> tuple[str, ...]:
        """None are written."""
        return ()

    def check_desiderata(self, names: Iterable[str]) -> None:
        """Raises: InputError naming the first: the task has none."""
        for name in names:
            raise InputError(
                f"there is no desideratum {name!r}: the task {self.name} has none; give JSONL files of triples"
            )

    def triples(
        self, tokenizer: PreTrainedTokenizerBase, desiderata: Sequence[str], n_triples: int, seed: int, redraw: int = 0
    ) -> list[Triples]:
        """Raises: InputError if any are asked for."""
        self.check_desiderata(desiderata)
        return []

    def every_segment(self, role: str) -> list[str]:
        """The same kind of role at both listed names, so that nothing depends on which comes again.

        A role elsewhere, like `s2` or `last`, comes back alone.
        """
        self._check_role(role)
        slot = _LISTED.get(role) or role.partition(".")[2]
        return [f"segment_{i}.{slot}" for i in range(2)] if slot else [role]

    def wrong_segment(self, role: str) -> str:
        """The same kind of role at the other listed name: the subject's for the indirect object's, and back.

        A role that does not follow the answer comes back as it is; `s2` is one, at the same place of the template
        whichever name comes again.
        """
        self._check_role(role)
        return _WRONG.get(role, role)

    def usable_names(self, tokenizer: PreTrainedTokenizerBase, split: str = "evaluation") -> Words:
        """The names that the tokenizer keeps whole, as answers and in the sentences, and those left out."""
        names = self.train_names if split == "train" else self.names
        return one_token_words(tokenizer, names, "gave a book to", _texts_after("{first}", "{second}", "{repeated}"))

    def usable_places(self, tokenizer: PreTrainedTokenizerBase) -> Words:
        """The places that the tokenizer keeps whole in the sentences, and those left out."""
        return one_token_words(tokenizer, self.places, "met at the", _texts_after("{place}"))

    def usable_objects(self, tokenizer: PreTrainedTokenizerBase) -> Words:
        """The objects that the tokenizer keeps whole in the sentences, and those left out."""
        return one_token_words(tokenizer, self.objects, "gave a", _texts_after("{object}"))

    def sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_prompts: int = 64,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
        counterfactual: str = "unrelated",
    ) -> Pairs:
        """Prompts with counterfactuals: the same for the same arguments.

        Splits share no pair of listed names, and `train` has names of its own. Templates, and the two orders of
        names, come equally often, up to a remainder. The clean prompts do not depend on `counterfactual`, nor the
        first on how many follow. `unrelated` counterfactuals have no answer and so serve as a mean set. With two
        `queries_per_scenario` each of the two names comes again in its turn.

        Raises: InputError if an option is unknown or the tokenizer keeps too few words whole.
        """
        check_options(n_prompts, split, queries_per_scenario, 2, counterfactual, COUNTERFACTUALS)
        names, vocabulary = self._vocabulary(tokenizer, split)
        key = (self.name, split, seed)
        drawn = draw_sentences(key, split, vocabulary, len(TEMPLATES), queries_per_scenario)
        numbered = ((scenario, sentence) for scenario, sentences in enumerate(drawn) for sentence in sentences)
        scenarios, sentences = zip(*islice(numbered, n_prompts), strict=True)
        random = generator(*key, counterfactual)
        changed = [draw_counterfactual(random, counterfactual, sentence, vocabulary.names) for sentence in sentences]
        prompts = self._prompts(tokenizer, [*sentences, *changed], names.ids)
        return _pairs(prompts, scenarios, sentences, changed, names.ids)

    def describe(self, pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
        """The tokens of one pair, as text, each with its roles."""
        return describe_pair(pairs, prompt, tokenizer)

    def _vocabulary(self, tokenizer: PreTrainedTokenizerBase, split: str) -> tuple[Words, Vocabulary]:
        names = self.usable_names(tokenizer, split)
        places, objects = self.usable_places(tokenizer), self.usable_objects(tokenizer)
        for words, what in ((names, "names"), (places, "places"), (objects, "objects")):
            words.check_enough(_FEWEST_WORDS, what)
        return names, Vocabulary(tuple(names.ids), tuple(places.ids), tuple(objects.ids))

    def _prompts(
        self, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence], ids: Mapping[str, int]
    ) -> PromptSet:
        """The sentences as tokens, with the same slots in the same order whichever templates they use.

        That order is what means of one sample and prompts of another have in common, so a sentence of each template
        goes first and is taken away again.
        """
        model = sentences[0]
        ahead = [replace(model, scene=replace(model.scene, template=i)) for i in range(len(TEMPLATES))]
        everything = [*ahead, *sentences]
        prompts = tokenise(tokenizer, [prompt_for(sentence) for sentence in everything])
        positions = {role: prompts.positions[role] for role in (*_NAMED, "io", "s1")}
        positions |= {after: positions[name] + 1 for name, after in _AFTER.items()}
        check_places(
            prompts,
            {
                "io": torch.tensor([ids[s.scene.names[s.io]] for s in everything]),
                "s1": torch.tensor([ids[s.scene.names[1 - s.io]] for s in everything]),
                "s2": torch.tensor([ids[s.repeated] for s in everything]),
            },
        )
        return replace(prompts, positions=positions).select(torch.arange(len(ahead), len(everything)))

    def _check_role(self, role: str) -> None:
        if role not in self.roles:
            raise InputError(f"ioi has no role {role!r}{choices(role, self.roles)}")


def ioi(
    *,
    names: Sequence[str] = NAMES,
    train_names: Sequence[str] = TRAIN_NAMES,
    places: Sequence[str] = PLACES,
    objects: Sequence[str] = OBJECTS,
) -> IndirectObjects:
    """The task, if given with words of your own; an object is one that goes with `a`.

    Raises: InputError if a name serves both training and evaluation.
    """
    if shared := sorted(set(names) & set(train_names)):
        raise InputError(f"train_names must not occur in names; both have {', '.join(shared)}")
    return IndirectObjects(tuple(names), tuple(train_names), tuple(places), tuple(objects))


def prompt_for(sentence: Sentence) -> Prompt:
    """The sentence as text up to where the answer goes, with its slots and roles."""
    scene, start = sentence.scene, f"template_{sentence.scene.template}."
    words = {
        "first": scene.names[0],
        "second": scene.names[1],
        "place": scene.place,
        "repeated": sentence.repeated,
        "object": scene.object,
    }
    pieces = [Piece(start + piece.slot, piece.text.format(**words)) for piece in _layout(TEMPLATES[scene.template])]
    listed = {"io": f"{start}segment_{sentence.io}.name", "s1": f"{start}segment_{1 - sentence.io}.name"}
    return Prompt(tuple(pieces), {slot: start + slot for slot in _NAMED} | listed)


def _layout(template: str) -> list[Piece]:
    """The template's words and signs in order, each with its slot."""
    pieces: list[Piece] = []
    for i, text in enumerate(_texts(template)):
        after = _AFTER.get(pieces[-1].slot) if pieces else None
        pieces.append(Piece(_FIELDS.get(text.strip()) or after or f"word_{i}", text))
    return [*pieces[:-1], Piece("last", pieces[-1].text)]


def _texts(template: str) -> list[str]:
    """Words and signs; the space before a word belongs to the word."""
    return re.findall(r" ?(?:\{\w+\}|\w+)|[^\w\s]", template)


def _texts_after(*fields: str) -> list[str]:
    """What follows any of the fields in any template, each once."""
    found = [re.findall(rf"{re.escape(field)}( ?\w+|[^\w\s])", template) for template in TEMPLATES for field in fields]
    return list(dict.fromkeys(text for texts in found for text in texts))


def _pairs(
    prompts: PromptSet,
    scenarios: Sequence[int],
    sentences: Sequence[Sentence],
    changed: Sequence[Sentence],
    ids: Mapping[str, int],
) -> Pairs:
    """The clean sentences, then their counterfactuals, taken apart."""
    rows = torch.arange(len(prompts))
    new_answers = torch.tensor([-1 if s.answer is None else ids[s.answer] for s in changed])
    return Pairs(
        clean_prompts=prompts.select(rows[: len(sentences)]),
        counterfactual_prompts=prompts.select(rows[len(sentences) :]),
        answers=torch.tensor([ids[s.scene.names[s.io]] for s in sentences]),
        alternatives=torch.tensor([[ids[s.repeated]] for s in sentences]),
        counterfactual_answers=None if (new_answers < 0).all() else new_answers,
        scenarios=torch.tensor(scenarios),
        queried=torch.tensor([s.io for s in sentences]),
    )
