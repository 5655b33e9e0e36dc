"""Pairs from texts that are at hand, without a task file; `Pairs.from_texts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices
from circuitdiff.prompts import Pairs
from circuitdiff.tasks.answers import AnswerTexts, PairTexts, pairs_of
from circuitdiff.tasks.tokens import Prompt, Span, check_names, check_words_known, cut_at_roles, tokenise

Roles = Mapping[str, Sequence[str | Span]]  # for each role a word, or a span of characters, of each prompt


def from_texts(
    tokenizer: PreTrainedTokenizerBase,
    *,
    clean: Sequence[str],
    counterfactual: Sequence[str],
    answers: Sequence[str],
    foils: Sequence[str | Sequence[str]],
    counterfactual_answers: Sequence[str] | None = None,
    roles: Roles | None = None,
    counterfactual_roles: Roles | None = None,
    scenarios: Sequence[int] | None = None,
    queried: Sequence[int] | None = None,
    space: bool = True,
) -> Pairs:
    """Checked pairs of prompts, one of each argument for each prompt.

    Answers and foils (one, or several) stand as they follow the prompt, with the space before them, and are one token.
    `space`: refuse those that lack it after a word.
    `roles`: where methods may look and patch: `{"subject": ["France", "Japan"]}`, or characters, `[(0, 6), (0, 5)]`; a
    role is at the last token of its word. `last` is always there. `counterfactual_roles`: the same in the
    counterfactuals; None: the same words or characters.
    `scenarios`: None: each prompt one of its own. `queried`: None: there is one item to ask for.

    >>> pairs = cd.Pairs.from_texts(
    ...     model.tokenizer,
    ...     clean=["The capital of France is", "The capital of Japan is"],
    ...     counterfactual=["The capital of Italy is", "The capital of Spain is"],
    ...     answers=[" Paris", " Tokyo"], foils=[" Rome", " Madrid"], counterfactual_answers=[" Rome", " Madrid"],
    ...     roles={"subject": ["France", "Japan"]}, counterfactual_roles={"subject": ["Italy", "Spain"]},
    ... )
    >>> len(pairs), list(pairs.positions)
    (2, ['subject', 'last'])

    Raises: InputError if these are not as many, a role has no place, or an answer is not one token or lacks its space.
    """
    n, own = len(clean), roles or {}
    changed = own if counterfactual_roles is None else counterfactual_roles
    both = {"roles": own, "counterfactual_roles": changed}
    if odd := next((role for role in {*own} ^ {*changed}), None):
        raise InputError(f"the role {odd!r} is in one of roles and counterfactual_roles only{choices(odd, [*own])}")
    given = {"counterfactual": counterfactual, "answers": answers, "foils": foils, "scenarios": scenarios}
    given |= {"counterfactual_answers": counterfactual_answers, "queried": queried}
    given |= {f"{which}[{role!r}]": each[role] for which, each in both.items() for role in each}
    for name, values in given.items():
        if not n or (values is not None and (isinstance(values, str) or len(values) != n)):
            raise InputError(f"{name}: expected one for each clean prompt, of which there are {n}; give a list of them")
    check_names([*own], "roles")
    origins = [f"prompt {i}" for i in range(n)]
    if same := [origin for origin, *texts in zip(origins, clean, counterfactual, strict=True) if len({*texts}) == 1]:
        raise InputError(f"{same[0]}: the counterfactual equals the prompt; change what the answer depends on")
    cut = [*_cut(clean, own, origins), *_cut(counterfactual, changed, [f"{each}, counterfactual" for each in origins])]
    prompts = tokenise(tokenizer, cut, [*own, "last"])
    check_words_known(tokenizer, prompts, [*origins, *origins])
    new = [() if each is None else (each,) for each in counterfactual_answers or [None] * n]
    rows = [
        PairTexts(
            clean=clean[i],
            counterfactual=counterfactual[i],
            answers=AnswerTexts((answers[i],), _foils_of(foils[i])),
            new_answers=AnswerTexts(new[i]),
            origin=origins[i],
            scenario=i if scenarios is None else scenarios[i],
            queried=0 if queried is None else queried[i],
        )
        for i in range(n)
    ]
    return pairs_of(tokenizer, prompts, rows, space=space)


def _foils_of(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _cut(texts: Sequence[str], roles: Roles, origins: Sequence[str]) -> list[Prompt]:
    places = [{role: each[i] for role, each in roles.items()} for i in range(len(texts))]
    return [cut_at_roles(*each) for each in zip(texts, places, origins, strict=True)]


Pairs.from_texts = staticmethod(from_texts)
