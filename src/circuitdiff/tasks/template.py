"""A task written as a template: a YAML file of word categories, texts, what is asked, and what is changed.

Roles: one per slot of the text (`segment_3.label`, `query_label`, `last`, ...), the token after each field, and the
file's own, which may follow the item asked for (`correct_object: asked.object`) or a wrong one (`other.object`). With
several wordings the roles are those that all of them have, and slots carry the wording's number, `template_3.s2`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices, naming
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.tasks.answers import AnswerTexts, Categories, PairTexts, answers_of, pairs_of
from circuitdiff.tasks.chat import OFF, chat_prefix
from circuitdiff.tasks.counterfactuals import draw_counterfactual
from circuitdiff.tasks.desiderata import TripleDrawing
from circuitdiff.tasks.scenarios import SPLITS, Pools, Question, draw_questions, generator
from circuitdiff.tasks.task import Sampling, Task
from circuitdiff.tasks.template_file import TemplateFile
from circuitdiff.tasks.tokens import Prompt, WholeWords, one_token_words, tokenise
from circuitdiff.tasks.writing import Texts, Words, Writer
from circuitdiff.triples import Triples

_EXAMPLES = 32  # in each wording: enough that no fixed item of a list is the answer's in all


@dataclass(frozen=True, repr=False, kw_only=True)
class TemplateTask(Task):
    """A task whose prompts are written by a template; see `Task.from_file`."""

    form: TemplateFile
    origin: str  # what errors name
    n_items: int
    options: tuple[object, ...]  # their values, which seed the draws
    texts: Texts
    words: Words
    categories: Categories
    around: Mapping[str, tuple[str, tuple[str, ...]]]  # of categories: the text before a word, and those after it

    @cached_property
    def roles(self) -> tuple[str, ...]:
        with naming(self.origin):
            written = [self.prompt(self._example(i)) for i in range(len(self.texts.wordings))]
        return tuple(role for role in written[0].roles if all(role in each.roles for each in written))

    @cached_property
    def answer_roles(self) -> tuple[str, ...]:
        """Those whose word is the answer in every one of many examples; of several at one slot the file's own."""
        with naming(self.origin):
            answers = [{text.strip() for text in self.answers(each).right} for each in self._examples]
            prompts = [(self.prompt(each), right) for each, right in zip(self._examples, answers, strict=True) if right]
        at_answer: dict[tuple[str, ...], str] = {}
        for role in self.roles:
            slots = tuple(prompt.roles.get(role, "") for prompt, _ in prompts)
            if slots and all(p.words.get(slot) in right for slot, (p, right) in zip(slots, prompts, strict=True)):
                at_answer[slots] = role
        return tuple(at_answer.values())

    def check_desiderata(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.form.desiderata:
                raise InputError(
                    f"the task {self.name} has no desideratum {name!r}{choices(name, self.form.desiderata)}; or give a "
                    f"JSONL file of triples"
                )

    def source_of(self, desideratum: str) -> Hashable:
        each = self.form.desiderata[desideratum]
        return each.sources, each.text, each.list, each.between, each.asked

    def _triples(
        self, tokenizer: PreTrainedTokenizerBase, desiderata: Sequence[str], sampling: Sampling
    ) -> list[Triples]:
        if sampling.n_prompts < 1 or sampling.split not in SPLITS:
            came = f"{sampling.n_prompts} of {sampling.split!r}"
            raise InputError(f"expected at least 1 triple of a split in {', '.join(SPLITS)}; got {came}")
        with naming(self.origin):
            drawing = TripleDrawing(self, tokenizer, sampling)
            return [drawing.triples(name, self.form.desiderata[name]) for name in desiderata]

    def every_segment(self, role: str) -> list[str]:
        self.check_role(role)
        where, _, slot = self.form.roles.get(role, role).partition(".")
        if slot and (where in ("asked", "other") or where.startswith("segment_")):
            segments = (f"segment_{i}.{slot}" for i in range(self.n_items))
            return [segment for segment in segments if segment in self.roles]  # not all need have the slot
        return [role]

    def wrong_segment(self, role: str) -> str:
        self.check_role(role)
        where, _, slot = self.form.roles.get(role, "").partition(".")
        wrong = {"asked": f"other.{slot}", "other": f"asked.{slot}"}.get(where)
        return next((name for name, place in self.form.roles.items() if place == wrong), role)

    def usable(self, category: str, tokenizer: PreTrainedTokenizerBase, split: str = "evaluation") -> WholeWords:
        """The words of a category that the tokenizer keeps whole where the texts use them, and those left out."""
        words, training = self.categories[category]
        words = training if split == "train" and training is not None else words
        if not self.form.categories[category].one_token:
            return WholeWords(dict.fromkeys(words, -1), ())
        columns = self.words.columns[category]
        before, after = self.around.get(category, ("", ()))
        texts = {text: word for word in words for text in columns.get(word, {"": word}).values()}
        kept = one_token_words(tokenizer, list(texts), before, after)
        split_words = {texts[text] for text in kept.left_out}
        ids = {word: kept.ids.get(word, -1) for word in words if word not in split_words}
        return WholeWords(ids, tuple(word for word in words if word in split_words))

    def _sample(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> Pairs:
        """All items are asked for equally often, up to a remainder, and so are wordings."""
        sampling.check(max(1, self.n_items))
        kind, n = sampling.counterfactual, sampling.n_prompts
        with naming(self.origin):
            pools = self.pools(tokenizer, sampling.split)
            drawn = enumerate(self._questions(pools, sampling))
            numbered = islice(((scenario, each) for scenario, questions in drawn for each in questions), n)
            scenarios, questions = zip(*numbered, strict=True)
            random, rule = generator(*self.key(sampling.split, sampling.seed), kind), self.form.counterfactuals[kind]
            names = [each.name or str(i) for i, each in enumerate(self.form.written)]
            changed = [draw_counterfactual(random, rule, each, pools, self.given_field, names) for each in questions]
            rows = [
                PairTexts(
                    clean=self.text(question),
                    counterfactual=self.text(other),
                    answers=self.answers(question),
                    new_answers=self.answers(other),
                    origin=self.origin,
                    scenario=scenario,
                    queried=question.asked if self.n_items else question.scenario.wording,
                )
                for scenario, question, other in zip(scenarios, questions, changed, strict=True)
            ]
            if same := next((row.clean for row in rows if row.clean == row.counterfactual), None):
                raise InputError(f"counterfactuals.{kind} leaves {same!r} as it is; change what the text writes")
            prompts = self.tokens(tokenizer, [*questions, *changed], chat=sampling.chat)
            return pairs_of(tokenizer, prompts, rows, self.form.answer_tokens, self.form.space)

    def n_prompts(self, split: str, queries_per_scenario: int = 1) -> None:
        """They are drawn; how many there can be depends on the words that a tokenizer knows, see `available`."""

    def _available(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> int:
        sampling.check(max(1, self.n_items))
        n = 0
        with naming(self.origin):
            drawn = self._questions(self.pools(tokenizer, sampling.split), sampling)
            while n < sampling.n_prompts:
                try:
                    n += len(next(drawn))
                except InputError:  # there are no more
                    if n == 0:
                        raise
                    return n
        return sampling.n_prompts

    def _questions(self, pools: Pools, sampling: Sampling) -> Iterator[list[Question]]:
        return draw_questions(
            self.key(sampling.split, sampling.seed), sampling.split, pools, sampling.queries_per_scenario
        )

    def key(self, *of: object) -> tuple[object, ...]:
        """What seeds the draws."""
        return (self.name, *self.options, *of)

    @property
    def given_field(self) -> str | None:
        """The field of the items by which the question names one."""
        given = self.words.given
        return given[1] if given and given[1] in self.words.item_fields else None

    def pools(self, tokenizer: PreTrainedTokenizerBase, split: str) -> Pools:
        """The words to draw from. Raises: InputError if the tokenizer keeps too few whole."""
        usable = {name: self.usable(name, tokenizer, split) for name in self.categories}
        for name, (ids, left_out) in usable.items():
            if len(ids) < (needed := self._n_needed(name)):
                raise InputError(
                    f"this task needs {needed} {name} of one token each, but the tokenizer keeps {len(ids)} of "
                    f"{len(ids) + len(left_out)} whole: give the task other {name}"
                    f"{', or fewer items' if self.n_items else ''}"
                )
        return self._pools({name: tuple(words.ids) for name, words in usable.items()})

    def _n_needed(self, category: str) -> int:
        """Those of one prompt, twice where they are drawn anew, and one that neither has where it is asked for."""
        rules, changes, needed = self.form.counterfactuals.values(), self.form.changes, 0
        anew = {name for rule in rules for name in rule.redraw}
        for name in (name for name, of in self.words.categories.items() if of == category):
            n = self.n_items if name in self.words.item_fields else 1
            if changes is not None and changes.put is not None and name == changes.holds:
                n += changes.count
            needed += n * (1 + (name in anew))
            needed += name == self.given_field and any(rule.given == "elsewhere" for rule in rules)
        return needed

    def _pools(self, words: Mapping[str, tuple[str, ...]]) -> Pools:
        category = self.words.categories
        return Pools(
            n_items=self.n_items,
            items={name: words[category[name]] for name in self.words.item_fields},
            draws={name: words[category[name]] for name in self.words.single_fields},
            categories=category,
            n_wordings=len(self.texts.wordings),
            changes=self.form.changes,
        )

    def _example(self, wording: int) -> Question:
        """Some question in one wording, of all words."""
        return replace_wording(next(self._drawn_examples)[0], wording)

    @property
    def _drawn_examples(self) -> Iterator[list[Question]]:
        pools = self._pools({name: words for name, (words, _) in self.categories.items()})
        return draw_questions(self.key("example"), "evaluation", pools, 1)

    @cached_property
    def _examples(self) -> list[Question]:
        """Questions that ask for every item, in every wording; fewer of a task that has few."""
        examples = []
        with suppress(InputError):  # there are no more
            for questions in islice(self._drawn_examples, _EXAMPLES * len(self.texts.wordings)):
                examples += questions
        return examples

    def prompt(
        self, question: Question, texts: Texts | None = None, spare: Mapping[str, Sequence[str]] | None = None
    ) -> Prompt:
        """The question as text up to where the answer goes, with its slots and roles; in other `texts`, if given."""
        writer = Writer(texts or self.texts, self.words, question, self.form.capital, spare)
        places = {role: self._place(question, place, writer.fields) for role, place in self.form.roles.items()}
        return writer.prompt(places, f"template_{question.scenario.wording}." if len(self.texts.wordings) > 1 else "")

    def text(self, question: Question) -> str:
        """The prompt as text."""
        return self.prompt(question).text

    def right_answer(self, question: Question) -> str:
        """What follows the prompt, with its space. Raises: InputError if the question has no answer."""
        if right := self.answers(question).right:
            return right[0]
        raise InputError(f"{self.origin}: {self.text(question)!r} has no right answer")

    def answers(self, question: Question) -> AnswerTexts:
        """The right answers and the foils as text; none without an answer."""
        return answers_of(self.form, self.words, self.categories, question)

    def tokens(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        prompts: Sequence[Prompt] | None = None,
        chat: str = OFF,
    ) -> PromptSet:
        """Questions as tokens, with the same slots in the same order whichever wordings they use.

        Raises: InputError if the tokenizer's offsets lead to another token than that of the word that sits there.
        """
        prompts = [self.prompt(question) for question in questions] if prompts is None else prompts
        n = len(self.texts.wordings)
        ahead = [self.prompt(replace_wording(questions[0], i)) for i in range(n)] if n > 1 else []
        tokens = tokenise(tokenizer, [*ahead, *prompts], self.roles, chat_prefix(tokenizer, chat))
        return tokens.select(torch.arange(len(ahead), len(tokens)))

    def _place(self, question: Question, place: str, fields: Mapping[str, str]) -> str:
        """The slot where a role of the file sits in this question."""
        where, _, slot = place.partition(".")
        if where == "answer":
            answer = self._mentioned(question)
            mentions = [name for name, written in fields.items() if written == answer]
            if not mentions:
                raise InputError(f"a role is at {place!r}, and a prompt does not mention {answer!r}")
            return mentions[0 if slot == "first" else -1]
        item = {"asked": question.asked, "other": question.other}.get(where)
        return place if item is None else f"segment_{item}.{slot}"

    def _mentioned(self, question: Question) -> str:
        """The answer as a word; where there is none, what the item asked for held at first."""
        if right := self.answers(replace(question, given=None)).right:
            return right[0].strip()
        changes = self.form.changes
        return self.words.of(question, ("asked", changes.holds if changes else self.words.item_fields[0]))

    def check_roles(self) -> None:
        """Raises: InputError if a role of the file has the name of another, or some wording lacks its place."""
        for role, place in self.form.roles.items():
            where, _, slot = place.partition(".")
            if where == "answer" and slot not in ("first", "last"):
                raise InputError(f"roles.{role}: expected answer.first or answer.last; got {place!r}")
            for question in map(self._example, range(len(self.texts.wordings))):
                writer = Writer(self.texts, self.words, question, self.form.capital)
                at, bare = self._place(question, place, writer.fields), writer.prompt({})
                if role in bare.roles:
                    raise InputError(
                        f"roles.{role}: a slot of the text, or what follows one, has this name already; choose another"
                    )
                if at not in (*bare.roles, *(piece.slot for piece in writer.pieces)):
                    names = [name.replace(f"segment_{question.asked}.", "asked.") for name in bare.roles]
                    raise InputError(f"roles.{role}: the text has no place {place!r}{choices(place, names)}")


def replace_wording(question: Question, wording: int) -> Question:
    return replace(question, scenario=replace(question.scenario, wording=wording))
