"""A task written as a template: a YAML file of word categories, texts, what is asked, and what is changed.

Roles: one per slot of the text (`segment_3.label`, `query_label`, `last`, ...), the token after each field, and the
file's own, which may follow the item asked for (`correct_object: asked.object`) or a wrong one (`other.object`). With
several wordings the roles are those that all of them have, and slots carry the wording's number, `template_3.s2`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices, naming
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.readable import Readable
from circuitdiff.tasks.answers import AnswerTexts, answers_of, pairs_of
from circuitdiff.tasks.changes import ChangeRule
from circuitdiff.tasks.chat import OFF, chat_prefix
from circuitdiff.tasks.counterfactuals import draw_counterfactual
from circuitdiff.tasks.desiderata import sample_desiderata
from circuitdiff.tasks.scenarios import Pools, Question, check_options, draw_questions, generator
from circuitdiff.tasks.task import DEFAULT_PLANS, Task
from circuitdiff.tasks.template_file import TemplateFile
from circuitdiff.tasks.tokens import Prompt, WholeWords, one_token_words, tokenise
from circuitdiff.tasks.writing import Texts, Words, prompt_of, write
from circuitdiff.triples import Triples


@dataclass(frozen=True, repr=False)
class TemplateTask(Readable, Task):
    """A task whose prompts are written by a template; see `Task.from_file`."""

    _shown = ("name", "about", "roles", "counterfactuals", "desiderata", "files")

    form: TemplateFile
    origin: str  # what errors name
    n_items: int
    options: tuple[object, ...]  # their values, which seed the draws
    texts: Texts
    words: Words
    categories: Mapping[str, tuple[tuple[str, ...], tuple[str, ...] | None]]  # words, and those of the split `train`
    paths: tuple[Path, ...]
    around: Mapping[str, tuple[str, tuple[str, ...]]]  # of categories: the text before a word, and those after it
    change_rule: ChangeRule | None = None

    @property
    def name(self) -> str:
        return self.form.name

    @property
    def about(self) -> str:
        return self.form.about

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles that every prompt has."""
        return self._roles

    @cached_property
    def _roles(self) -> tuple[str, ...]:
        pools = self._pools({name: words for name, (words, _) in self.categories.items()})
        with naming(self.origin):
            written = [self.prompt(self._example(pools, i)) for i in range(len(self.texts.wordings))]
        return tuple(role for role in written[0].roles if all(role in each.roles for each in written))

    @property
    def question_roles(self) -> tuple[str, ...]:
        """The roles at the words that ask, whatever is asked for."""
        if self.form.question is not None:
            return self.form.question
        return (*(role for role in self.roles if role.startswith(("query_", "after_query_"))), "last")

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        return self.form.plans or DEFAULT_PLANS

    @property
    def counterfactuals(self) -> tuple[str, ...]:
        """The kinds there are; the first is the one of a study that names none, and of means."""
        return tuple(self.form.counterfactuals)

    @property
    def desiderata(self) -> tuple[str, ...]:
        """What every group is asked for unless a study says otherwise."""
        return tuple(name for name, each in self.form.desiderata.items() if each.main)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are read."""
        return self.paths

    def check_desiderata(self, names: Iterable[str]) -> None:
        """Raises: InputError naming the first that is unknown."""
        for name in names:
            if name not in self.form.desiderata:
                raise InputError(
                    f"the task {self.name} has no desideratum {name!r}{choices(name, self.form.desiderata)}; or give a "
                    f"JSONL file of triples"
                )

    def source_of(self, desideratum: str) -> Hashable:
        """What tells source prompts apart: desiderata of which it is the same share theirs."""
        each = self.form.desiderata[desideratum]
        return each.sources, each.text, each.list, each.between, each.asked

    def triples(
        self,
        tokenizer: PreTrainedTokenizerBase,
        desiderata: Sequence[str],
        n_triples: int,
        seed: int,
        redraw: int = 0,
        chat: str = OFF,
    ) -> list[Triples]:
        """Triples of each desideratum; see `circuitdiff.tasks.sample_triples`."""
        return sample_desiderata(self, tokenizer, desiderata, n_triples, seed, redraw=redraw, chat=chat)

    def every_segment(self, role: str) -> list[str]:
        """The same kind of role at every item, so that nothing depends on the question.

        A role that belongs to no item, like `last`, comes back alone.
        """
        self._check_role(role)
        where, _, slot = self.form.roles.get(role, role).partition(".")
        if slot and (where in ("asked", "other") or where.startswith("segment_")):
            segments = (f"segment_{i}.{slot}" for i in range(self.n_items))
            return [segment for segment in segments if segment in self.roles]  # not all need have the slot
        return [role]

    def wrong_segment(self, role: str) -> str:
        """The same kind of role at an item that was not asked for, where the file has one.

        A role that does not follow the question comes back as it is.
        """
        self._check_role(role)
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

    def sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_prompts: int = 64,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
        counterfactual: str | None = None,
        chat: str = OFF,
    ) -> Pairs:
        """Prompts with counterfactuals (None: of the file's first kind): the same for the same arguments.

        Splits share no combination of words, and `train` may have words of its own. All items are asked for equally
        often, up to a remainder, and so are wordings. The clean prompts do not depend on `counterfactual`, nor the
        first on how many follow.

        Raises: InputError if an option is unknown or the tokenizer keeps too few words whole.
        """
        kind = self.counterfactuals[0] if counterfactual is None else counterfactual
        if kind not in self.form.counterfactuals:
            raise InputError(f"unknown counterfactual {kind!r}{choices(kind, self.form.counterfactuals)}")
        check_options(n_prompts, split, queries_per_scenario, max(1, self.n_items))
        with naming(self.origin):
            return self._sample(tokenizer, n_prompts, seed, split, queries_per_scenario, kind, chat)

    def _sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_prompts: int,
        seed: int,
        split: str,
        n_queries: int,
        kind: str,
        chat: str,
    ) -> Pairs:
        pools, key = self.pools(tokenizer, split), self.key(split, seed)
        drawn = draw_questions(key, split, pools, n_queries)
        numbered = ((scenario, question) for scenario, questions in enumerate(drawn) for question in questions)
        scenarios, questions = zip(*islice(numbered, n_prompts), strict=True)
        random, rule = generator(*key, kind), self.form.counterfactuals[kind]
        names = [each.name or str(i) for i, each in enumerate(self.form.written)]
        changed = [draw_counterfactual(random, rule, each, pools, self.given_field, names) for each in questions]
        texts = [self.text(each) for each in questions], [self.text(each) for each in changed]
        if same := next((clean for clean, other in zip(*texts, strict=True) if clean == other), None):
            raise InputError(f"counterfactuals.{kind} leaves {same!r} as it is; change what the text writes")
        prompts = self.tokens(tokenizer, [*questions, *changed], chat=chat)
        rows = torch.arange(len(prompts))
        return pairs_of(
            tokenizer,
            (prompts.select(rows[:n_prompts]), prompts.select(rows[n_prompts:])),
            texts,
            ([self.answers(each) for each in questions], [self.answers(each) for each in changed]),
            scenarios=scenarios,
            queried=[each.asked if self.n_items else each.scenario.wording for each in questions],
            origins=[self.origin] * n_prompts,
            answer_tokens=self.form.answer_tokens,
            space=self.form.space,
        )

    def n_prompts(self, split: str, queries_per_scenario: int = 1) -> None:
        """They are drawn; how many there can be depends on the words that a tokenizer knows, see `available`."""

    def available(
        self,
        tokenizer: PreTrainedTokenizerBase,
        most: int,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
    ) -> int:
        """How many prompts `sample` can draw with these arguments, `most` at most.

        Raises: InputError if the tokenizer keeps too few words whole for any.
        """
        check_options(most, split, queries_per_scenario, max(1, self.n_items))
        n = 0
        with naming(self.origin):
            pools, key = self.pools(tokenizer, split), self.key(split, seed)
            drawn = draw_questions(key, split, pools, queries_per_scenario)
            while n < most:
                try:
                    n += len(next(drawn))
                except InputError:  # there are no more
                    if n == 0:
                        raise
                    return n
        return most

    def key(self, *of: object) -> tuple[object, ...]:
        """What seeds the draws."""
        return (self.name, *self.options, *of)

    @cached_property
    def given_field(self) -> int | None:
        """The field of the items by which the question names one."""
        given = self.words.given
        return self.words.item_fields.index(given[1]) if given and given[1] in self.words.item_fields else None

    def pools(self, tokenizer: PreTrainedTokenizerBase, split: str) -> Pools:
        """The words to draw from. Raises: InputError if the tokenizer keeps too few whole."""
        usable = {name: self.usable(name, tokenizer, split) for name in self.categories}
        for name, words in usable.items():
            fewer = ", or fewer items" if self.n_items else ""
            words.check_enough(self._n_needed(name), name, fewer)
        return self._pools({name: tuple(words.ids) for name, words in usable.items()})

    def _n_needed(self, category: str) -> int:
        """Two disjoint sets of items, and a word that neither has where one is asked for."""
        fields = [name for name in self.words.item_fields if self.words.categories[name] == category]
        anew = {name for rule in self.form.counterfactuals.values() for name in rule.redraw}
        elsewhere = any(rule.given == "elsewhere" for rule in self.form.counterfactuals.values())
        needed = sum(self._n_of(name) * (1 + (name in anew)) for name in fields)
        if self.given_field is not None and elsewhere and self.words.item_fields[self.given_field] in fields:
            needed += 1
        singles = [name for name in self.words.single_fields if self.words.categories[name] == category]
        return needed + sum(1 + (name in anew) for name in singles)

    def _n_of(self, field: str) -> int:
        """How many words of an items' field one prompt may have."""
        rule = self.change_rule
        puts = rule is not None and "put" in rule.kinds and self.words.item_fields[rule.holds] == field
        return self.n_items + (rule.count if rule is not None and puts else 0)

    def _pools(self, words: Mapping[str, tuple[str, ...]]) -> Pools:
        items = self.words.item_fields
        singles = self.words.single_fields
        names = [self.words.categories[name] for name in (*items, *singles)]
        pools = [words[name] for name in names]
        return Pools(
            n_items=self.n_items,
            item_fields=items,
            single_fields=singles,
            categories=tuple(names),
            items=tuple(pools[: len(items)]),
            draws=tuple(pools[len(items) :]),
            n_wordings=len(self.texts.wordings),
            changes=self.change_rule,
        )

    def _example(self, pools: Pools, wording: int) -> Question:
        """Some question in one wording."""
        drawn = draw_questions(self.key("example"), "evaluation", pools, 1)
        return replace_wording(next(drawn)[0], wording)

    def prompt(
        self, question: Question, texts: Texts | None = None, spare: Mapping[str, Sequence[str]] | None = None
    ) -> Prompt:
        """The question as text up to where the answer goes, with its slots and roles; in other `texts`, if given."""
        pieces, fields, slots = write(
            self.texts if texts is None else texts, self.words, question, spare=spare, capital=self.form.capital
        )
        prefix = f"template_{question.scenario.wording}." if len(self.texts.wordings) > 1 else ""
        return prompt_of(pieces, fields, slots, self._places(question, fields), prefix)

    def text(self, question: Question) -> str:
        """The prompt as text."""
        return self.prompt(question).text

    def right_answer(self, question: Question) -> str:
        """What follows the prompt, with its space. Raises: InputError if the question has no answer."""
        answers = self.answers(question)
        if answers is None:
            raise InputError(f"{self.origin}: {self.text(question)!r} has no right answer")
        return answers.right[0]

    def answers(self, question: Question) -> AnswerTexts | None:
        """The right answers and the foils as text; None without an answer."""
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
        ahead = [self.prompt(replace_wording(questions[0], i)) for i in range(len(self.texts.wordings))]
        ahead = ahead if len(ahead) > 1 else []
        tokens = tokenise(tokenizer, [*ahead, *prompts], self.roles, chat_prefix(tokenizer, chat))
        return tokens.select(torch.arange(len(ahead), len(tokens)))

    def _places(self, question: Question, fields: Mapping[str, str]) -> dict[str, str]:
        """The slot of each of the file's roles in this question."""
        return {role: self._place(question, place, fields) for role, place in self.form.roles.items()}

    def _place(self, question: Question, place: str, fields: Mapping[str, str]) -> str:
        where, _, slot = place.partition(".")
        item = {"asked": question.asked, "other": question.other}.get(where)
        if where == "answer":
            mentions = [name for name, written in fields.items() if written == self._mentioned(question)]
            if not mentions:
                raise InputError(f"a role is at {place!r}, and a prompt does not mention {self._mentioned(question)!r}")
            return mentions[0 if slot == "first" else -1]
        return place if item is None else f"segment_{item}.{slot}"

    def _mentioned(self, question: Question) -> str:
        """The answer as a word; where there is none, what the item asked for held at first."""
        answers = self.answers(replace(question, given=None))
        if answers is not None:
            return answers.right[0].strip()
        holds = self.words.holds
        return self.words.of(question, ("asked", holds[1] if holds else self.words.item_fields[0]))

    def problem_of(self, role: str, place: str) -> str | None:
        """What is wrong with a role of the file: it has the name of another, or some wording lacks its place."""
        where, _, slot = place.partition(".")
        if where == "answer" and slot not in ("first", "last"):
            return f"expected answer.first or answer.last; got {place!r}"
        pools = self._pools({name: words for name, (words, _) in self.categories.items()})
        for i in range(len(self.texts.wordings)):
            with naming(self.origin):
                question = self._example(pools, i)
                pieces, fields, slots = write(self.texts, self.words, question, capital=self.form.capital)
                at = self._place(question, place, fields)
            bare = prompt_of(pieces, fields, slots, {})
            if role in bare.roles:
                return "a slot of the text, or what follows one, has this name already; choose another"
            if at not in (*bare.roles, *(piece.slot for piece in pieces)):
                names = [name.replace(f"segment_{question.asked}.", "asked.") for name in bare.roles]
                return f"the text has no place {place!r}{choices(place, names)}"
        return None

    def _check_role(self, role: str) -> None:
        if role not in self.roles:
            raise InputError(f"{self.name} has no role {role!r}{choices(role, self.roles)}")


def replace_wording(question: Question, wording: int) -> Question:
    return replace(question, scenario=replace(question.scenario, wording=wording))
