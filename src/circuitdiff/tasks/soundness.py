"""Is a task sound in a model's tokens? What can be said of its prompts before the model runs, a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.tasks.scenarios import SPLITS
from circuitdiff.tasks.table import TableTask
from circuitdiff.tasks.task import Task
from circuitdiff.tasks.template import TemplateTask

_FEWEST_PROMPTS = 30  # of a split; below them intervals say nothing
_MOST_OF_ONE = 0.5  # share of one answer above which a model that always gives it looks able


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `passed` None: worth knowing, and neither right nor wrong."""

    what: str
    found: str
    passed: bool | None = None
    detail: str = ""


def examine(task: Task, tokenizer: PreTrainedTokenizerBase, n_prompts: int = 100, seed: int = 0) -> list[Finding]:
    """What was found in so many prompts of each split and of each kind of counterfactual; of a table in every row.

    Raises: InputError if the task cannot be written in these tokens at all.
    """
    most = len(task.rows) if isinstance(task, TableTask) else n_prompts
    splits = list(_splits(task, tokenizer, most, min(_FEWEST_PROMPTS, n_prompts), seed))
    if any(each.what == "split evaluation" for each in splits):  # it has no prompts that could be looked at
        return [*_words(task, tokenizer), *splits]
    n = task.available(tokenizer, most, seed)
    pairs = task.sample(tokenizer, n, seed)
    findings = [*_words(task, tokenizer), *_answers(pairs, tokenizer), *_roles(task, pairs, tokenizer)]
    for kind in task.counterfactuals:
        changed = task.sample(tokenizer, n, seed, counterfactual=kind)
        findings += _counterfactuals(kind, changed, kind == task.counterfactuals[0])
    return [*findings, *splits]


def guessing(pairs: Pairs) -> float:
    """The accuracy of picking any of what is listed, right answers and foils."""
    n_right, n_foils = (
        torch.tensor([len(set(row)) for row in tokens.tolist()]) for tokens in (pairs.right_answers, pairs.foils)
    )
    return float((n_right / (n_right + n_foils)).mean())


def _words(task: Task, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    if not isinstance(task, TemplateTask):
        return
    for name in task.categories:
        usable = task.usable(name, tokenizer)
        n, lost = len(usable.ids), usable.left_out
        some = f"the tokenizer splits {', '.join(lost[:8])}{' ...' if len(lost) > 8 else ''}" if lost else ""
        yield Finding(f"{name} of one token", f"{n} of {n + len(lost)}", n > 0, some)


def _answers(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    counts = Counter(token for row in pairs.right_answers.tolist() for token in set(row))
    (token, most), n = counts.most_common(1)[0], len(pairs)
    detail = f"{len(counts)} different answers; the most frequent is {tokenizer.decode([token])!r}"
    # Where several answers are right, one may be so everywhere: accuracy alone does not tell then.
    passed = most / n <= _MOST_OF_ONE or len(counts) <= 2 or (None if pairs.right is not None else False)
    yield Finding("most frequent answer", f"{most / n:.2f}", passed, detail)
    asked = Counter(pairs.queried.tolist())
    if len(asked) > 1:
        yield Finding("places asked for", ", ".join(f"{place}: {asked[place]}" for place in sorted(asked)))
    yield Finding("accuracy of guessing", f"{guessing(pairs):.2f}", detail="any of the right answers and the foils")
    lengths = pairs.lengths
    yield Finding("tokens of a prompt", f"{int(lengths.min())} to {int(lengths.max())}")


def _roles(task: Task, pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    for which, prompts in (("clean", pairs.clean_prompts), ("counterfactual", pairs.counterfactual_prompts)):
        at_special = [role for role in task.roles if _at(prompts, role, special).any()]
        missing = [role for role in task.roles if (prompts.positions[role] < 0).any()]
        yield Finding(f"roles at special tokens, {which}", str(len(at_special)), not at_special, _few(at_special))
        if missing:
            yield Finding(f"roles that some prompts lack, {which}", str(len(missing)), None, _few(missing))


def _at(prompts: PromptSet, role: str, tokens: Tensor) -> Bool[Tensor, " prompt"]:
    places = prompts.positions[role]
    return torch.isin(prompts.tokens.gather(1, places.clamp(min=0)[:, None])[:, 0], tokens) & (places >= 0)


def _counterfactuals(kind: str, pairs: Pairs, is_first: bool) -> Iterator[Finding]:
    n, clean, other = len(pairs), pairs.clean_prompts.rows(), pairs.counterfactual_prompts.rows()
    same = sum(a == b for a, b in zip(clean, other, strict=True))
    yield Finding(f"{kind}: equal to the prompt", f"{same} of {n}", same == 0)
    own, answers = pairs.counterfactual_answers, pairs.right_answers.tolist()
    if own is None:
        leaks = sum(not set(right).isdisjoint(row) for right, row in zip(answers, other, strict=True))
        yield Finding(f"{kind}: has the clean answer in it", f"{leaks} of {n}", leaks == 0, "it should have no answer")
    else:
        kept = int((own[:, None] == pairs.right_answers).any(1).sum())
        fails = kept == n and is_first
        detail = "patching it could not change the answer" if fails else ""
        yield Finding(f"{kind}: has the clean answer as its own", f"{kept} of {n}", False if fails else None, detail)
    lengths = int((pairs.lengths != pairs.counterfactual_lengths).sum())
    yield Finding(f"{kind}: of another length", f"{lengths} of {n}")


def _splits(task: Task, tokenizer: PreTrainedTokenizerBase, most: int, fewest: int, seed: int) -> Iterator[Finding]:
    """Each has prompts enough, all of them can be asked, and none is in another split."""
    seen: dict[tuple[int, ...], str] = {}
    for split in SPLITS:
        try:
            n = task.available(tokenizer, most, seed, split)
            if n < fewest:
                yield Finding(f"split {split}", f"{n} prompts", False, f"of at least {fewest}: give more words or rows")
                continue
            pairs = task.sample(tokenizer, n, seed, split)
        except InputError as error:
            yield Finding(f"split {split}", "cannot be written", False, str(error))
            continue
        rows = [tuple(row) for row in pairs.clean_prompts.rows()]
        shared = sum(seen.get(row, split) != split for row in rows)
        seen |= dict.fromkeys(rows, split)
        few = f"there are only {n} prompts" if n < most and isinstance(task, TemplateTask) else ""
        yield Finding(f"split {split}: prompts of another split", f"{shared} of {n}", shared == 0, few)
        if pairs.continuations is not None:
            # one token is all that a study can compare
            several = (pairs.continuations >= 0).any(1).nonzero()[:, 0].tolist()
            first = task.describe(pairs, several[0], tokenizer)
            prompt = "".join(first.clean.tokens)
            yield Finding(
                f"split {split}: answers of several tokens",
                f"{len(several)} of {n}",
                False,
                f"such as {first.answer!r} after {prompt!r}: a study refuses them; give answers of one token, or set "
                f"`answer_tokens: first`",
            )


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
