"""Task files to tasks: a template's YAML read, its parts held against one another, and its options filled in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuitdiff.config.reading import read_yaml
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError, choices, naming
from circuitdiff.tasks.answers import Categories
from circuitdiff.tasks.markup import Part, Ref, parse, reference
from circuitdiff.tasks.task import check_known, check_named_roles
from circuitdiff.tasks.template import TemplateTask
from circuitdiff.tasks.template_file import (
    MOST_ITEMS,
    AnyOf,
    TemplateFile,
    WordFile,
    each_of,
    entries_of,
    first_repeated,
)
from circuitdiff.tasks.writing import Columns, Texts, Words, with_between

_CLAUSES = ("list", "changes")  # fields of a text that stand for clauses
_OF_ITEMS = ("asked", "other", "spare", "held", "to")  # what stands before the field of one item
_TAKEN = (*_CLAUSES, *_OF_ITEMS, "start", "chat", "last")  # names that no field can have


def read_template(path: Path, options: Mapping[str, Any]) -> TemplateTask:
    """The task of a template file. Options are the file's own, and `CATEGORY` or `train_CATEGORY` for other words.

    Raises: InputError naming the file and the key that is unknown, missing, or does not go with the others.
    """
    form = _parsed(path, path.stat().st_mtime_ns)
    n_items, values = _sizes(form, str(path), options)
    categories, columns = _categories(form, path, options)
    with naming(path):
        texts = _texts(form)
        words = _words(form, texts, columns)
        _Checks(form, path.parent, texts, words, n_items).run()
        task = TemplateTask(
            name=form.name,
            form=form,
            counterfactuals=tuple(form.counterfactuals),
            desiderata=tuple(name for name, each in form.desiderata.items() if each.main),
            files=(path, *_word_files(form, path.parent)),
            origin=str(path),
            n_items=n_items,
            options=values,
            texts=texts,
            words=words,
            categories=categories,
            around=_around(form, texts, words),
        )
        task.check_roles()
        check_named_roles(form, task.roles)
    return task


@lru_cache(maxsize=32)
def _parsed(path: Path, changed: int) -> TemplateFile:
    return validated(TemplateFile, read_yaml(path), str(path))


def _sizes(form: TemplateFile, origin: str, options: Mapping[str, Any]) -> tuple[int, tuple[object, ...]]:
    """How many items are listed, and the values of the file's options."""
    lists = [*form.categories, *(f"train_{name}" for name in form.categories)]
    known = [*form.options, *lists]
    if both := next((name for name in form.options if name in lists), None):
        raise InputError(f"{origin}: the option {both!r} is also that of a category's words; rename it")
    if unknown := next((name for name in options if name not in known), None):
        raise InputError(f"task {form.name!r} has no option {unknown!r}{choices(unknown, known)}")
    sizes = {name: options.get(name, default) for name, default in form.options.items()}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"task {form.name!r}, option {name}: expected a whole number; got {value!r}")
    count = form.items.count if form.items else 0
    if isinstance(count, str) and count not in sizes:
        named = f", or an option's name{choices(count, form.options)}" if form.options else ""
        raise InputError(f"{origin}: items.count is {count!r}: give a number, such as 4{named}")
    n_items = sizes[count] if isinstance(count, str) else count
    if form.items and not 2 <= n_items <= MOST_ITEMS:
        said = f"task {form.name!r}, option {count}" if isinstance(count, str) else f"{origin}: items.count"
        raise InputError(f"{said}: expected 2 to {MOST_ITEMS} items; got {n_items}")
    return n_items, tuple(sizes.values())


def _categories(form: TemplateFile, path: Path, options: Mapping[str, Any]) -> tuple[Categories, Columns]:
    """The words of each category, from the options or else the file, and the columns of those that have several."""
    categories, columns = dict[str, Any](), dict[str, Any]()
    for name, category in form.categories.items():
        own, train = (
            _entries(form, path, options, option, words)
            for option, words in ((name, category.words), (f"train_{name}", category.train))
        )
        if shared := sorted(own.keys() & train.keys()):
            raise InputError(f"{path}: words for training must not occur in {name}; both have {', '.join(shared[:9])}")
        categories[name] = (tuple(own), tuple(train) or None)
        columns[name] = {word: row for word, row in {**own, **train}.items() if "" not in row}
    return categories, columns


def _entries(
    form: TemplateFile, path: Path, options: Mapping[str, Any], option: str, written: Any
) -> dict[str, dict[str, str]]:
    """The words of an option, or else of the file, as `entries_of` has them; none where neither gives any."""
    if option not in options:
        return {} if written is None else entries_of(written, path.parent, f"{path}: categories.{option}")
    origin, given = f"task {form.name!r}, option {option}", options[option]
    words = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not words or not all(isinstance(word, str) for word in words):
        raise InputError(f"{origin}: expected a list of words; got {given!r}")
    return entries_of(words, path.parent, origin)


def _word_files(form: TemplateFile, folder: Path) -> Iterator[Path]:
    for category in form.categories.values():
        for words in (category.words, category.train):
            if isinstance(words, WordFile):
                yield folder / words.file


def _texts(form: TemplateFile) -> Texts:
    changes = form.changes.texts if form.changes else {}
    texts = Texts(
        tuple(parse(each.text, "text" if form.text else f"wordings.{i}") for i, each in enumerate(form.written)),
        parse(form.list.text, "list.text") if form.list else (),
        changes={kind: parse(text, f"changes.{kind}") for kind, text in changes.items()},
        between_changes=parse(form.changes.between, "changes.between") if form.changes else (),
    )
    return with_between(texts, form.list.between if form.list else "")


def _words(form: TemplateFile, texts: Texts, columns: Columns) -> Words:
    """Raises: InputError if a field has a name that is taken, or no category."""
    items = form.items.fields if form.items else {}
    fields, twice = {**items, **form.draws}, items.keys() & form.draws
    if taken := next((name for name in fields if name in _TAKEN or name in twice), None):
        why = "is one of items and of draws" if taken in twice else "has a meaning of its own"
        raise InputError(f"the field {taken!r} {why}; give it another name")
    for name, category in fields.items():
        check_known(f"the field {name!r} draws from {category!r}", category, form.categories)
    return Words(tuple(items), tuple(form.draws), fields, columns, _given(form, texts), form.changes)


def _given(form: TemplateFile, texts: Texts) -> Ref | None:
    """The field of the question that names the item: the one of `asked` or `other` in the wordings."""
    refs = {part.ref[:2] for parts in texts.wordings for part in parts if part.ref[:1] in (("asked",), ("other",))}
    if len(refs) > 1 and any(rule.given == "elsewhere" for rule in form.counterfactuals.values()):
        named = ", ".join(sorted(".".join(ref) for ref in refs))
        raise InputError(f"`given: elsewhere` needs one field that names the item; got {named}")
    return min(refs) if len(refs) == 1 else None


@dataclass(frozen=True)
class _Checks:
    """What the parts of a file must have in common; each raises an InputError naming the first that has not."""

    form: TemplateFile
    folder: Path
    texts: Texts
    words: Words
    n_items: int

    def run(self) -> None:
        self._check_changes()
        for where, parts in self._all_parts():
            self._check_parts(where, parts)
        for i in range(len(self.form.written)):
            self._check_answers(i)
        self._check_rules()
        self._check_one_answer()

    def _all_parts(self) -> Iterator[tuple[str, Sequence[Part]]]:
        """Every text with what it is: `...text`, `...list` where `{FIELD}` is of one item, or what stands between."""
        yield from (("text", parts) for parts in self.texts.wordings)
        yield "list", self.texts.list
        yield "list.between", self.texts.between
        yield from ((f"changes.{kind}", parts) for kind, parts in self.texts.changes.items())
        yield "between_changes", self.texts.between_changes
        for name, each in self.form.desiderata.items():
            for key, kind in (("text", "text"), ("list", "list"), ("asked", "list"), ("between", "between")):
                if text := getattr(each, key):
                    parts = parse(text.rstrip() if key == "between" else text, f"desiderata.{name}.{key}")
                    yield f"desiderata.{name}.{kind}", parts

    def _check_parts(self, where: str, parts: Sequence[Part]) -> None:
        named = [part.slot for part in parts if part.slot]
        if taken := next((slot for slot in named if slot in ("start", "chat")), None):
            raise InputError(f"{where} has the slot {taken!r}, which is another; rename it")
        if twice := first_repeated(named):
            raise InputError(f"{where} names the slot {twice!r} twice; give each its own name")
        for part in parts:
            if part.ref:
                self._check_ref(where, part.ref)

    def _check_ref(self, where: str, ref: Ref) -> None:
        form, words, (first, *rest), written = self.form, self.words, ref, f"{{{'.'.join(ref)}}}"
        kind = where.rpartition(".")[2]
        if (first == "spare" and not where.startswith("desiderata.")) or (first == "to" and where != "changes.move"):
            only = "texts of desiderata" if first == "spare" else "changes.move"
            raise InputError(f"{where} has {written}, which only {only} can have")
        if kind == "text" and first in _CLAUSES and not rest:
            if getattr(form, first) is None:
                raise InputError(f"{written} is written, and `{first}` is not given")
            return
        if first.isdecimal() and int(first) >= self.n_items:
            raise InputError(f"{written}: there are {self.n_items} items, from 0 on")
        if first == "held" and (form.changes is None or rest[:1] != [form.changes.holds]):
            raise InputError(
                f"{written} is what `changes` leave; give them, and write {{held.FIELD}} with the field that they say "
                f"an item `holds`"
            )
        of_item = first in _OF_ITEMS or first.isdecimal()
        name, *column = rest if of_item and rest else ref
        own: Sequence[str] = words.item_fields if kind == "list" else ()  # of the one item, or change, that is written
        if form.changes and where.startswith("changes."):
            own = (form.changes.key, form.changes.holds)
        if name not in (words.item_fields if of_item else (*own, *words.single_fields)):
            items = [f"{which}.{field}" for field in words.item_fields for which in ("asked", "other", "0")]
            known = choices(".".join(ref), [*own, *items, *words.single_fields])
            raise InputError(f"{where} has the field {written}, which is unknown{known}")
        columns = next(iter(words.columns[words.categories[name]].values()), {})
        if len(column) > 1 or (column and column[0] not in columns):
            raise InputError(
                f"{where} has the column {column[0]!r} of {name!r}, which is unknown{choices(column[0], columns)}"
            )

    def _check_answers(self, wording: int) -> None:
        answer, foils = self.form.written[wording].answer, self.form.written[wording].foils
        if answer is None:
            raise InputError(f"`answer` is missing: give it for the task or for wording {wording}")
        for each in each_of(answer):
            self._check_asked(wording, each)
        for each in (*each_of(answer), *each_of(foils)):
            if isinstance(each, AnyOf):
                self._check_any_of(each)
            else:
                for part in parse(each, "answer"):
                    if part.ref:
                        self._check_ref("answer", part.ref)

    def _check_asked(self, wording: int, answer: str | AnyOf) -> None:
        """If the answer depends on which item is asked for, the wording says it."""
        written = answer if isinstance(answer, str) else "".join(f"{{{each}}}" for each in _compared(answer))
        firsts = {part.ref[0] for part in (*self.texts.wordings[wording], *self.texts.list) if part.ref}
        of_asked = any(part.ref[:1] in (("asked",), ("held",)) for part in parse(written, "answer"))
        if of_asked and not firsts & {"asked", "other"}:
            raise InputError(
                "the answer is of the item asked for, and the text does not say which: write {asked.FIELD} or "
                "{other.FIELD} in it"
            )
        if self.form.changes and "changes" not in firsts:
            raise InputError("`changes` are given, and a text does not write {changes}")

    def _check_any_of(self, answer: AnyOf) -> None:
        words, categories = self.words, self.form.categories
        name, _, column = answer.any_of.partition(".")
        check_known(f"any_of is {name!r}", name, categories)
        if column:
            columns = next(iter(words.columns[name].values()), {})
            check_known(f"any_of has the column {column!r}", column, columns)
        of_items = [f"{which}.{field}" for field in words.item_fields for which in ("asked", "other")]
        for written in _compared(answer):
            check_known(f"any_of is compared with the field {written!r}", written, [*of_items, *words.single_fields])
            listed, drawn = (
                entries_of(categories[each].words, self.folder, f"categories.{each}")
                for each in (name, words.categories[reference(written)[-1]])
            )
            if alone := next((word for word in drawn if word not in listed), None):
                raise InputError(f"any_of is compared with {written!r}, and {name} lacks its {alone!r}")

    def _check_rules(self) -> None:
        fields, names = self.words.item_fields, [each.name for each in self.form.written if each.name]
        if twice := first_repeated(names):
            raise InputError(f"two wordings are called {twice!r}; give each its own name")
        for kind, rule in self.form.counterfactuals.items():
            where = f"counterfactuals.{kind}"
            for name in rule.redraw:
                check_known(f"{where} redraws {name!r}", name, (*fields, *self.words.single_fields))
            if rule.swap is not None:
                check_known(f"{where} swaps {rule.swap!r}", rule.swap, fields)
            for name in (*rule.wording, *rule.wording.values()):
                check_known(f"{where} has the wording {name!r}", name, names)
            if rule.given == "elsewhere" and self.words.given is None:
                raise InputError(f"{where}: `given: elsewhere` needs {{asked.FIELD}} in the text")
            if not (rule.redraw or rule.swap or rule.wording or rule.ask == "other" or rule.given == "elsewhere"):
                raise InputError(f"{where} changes nothing; give redraw, swap, ask or wording")

    def _check_one_answer(self) -> None:
        """Desiderata, and roles at the answer, are of one answer; and desiderata of one item among several."""
        desiderata = [f"desiderata.{name}" for name in self.form.desiderata]
        at_answer = [f"roles.{name}" for name, place in self.form.roles.items() if place.partition(".")[0] == "answer"]
        of_one = [*desiderata, *at_answer]
        if of_one and not all(isinstance(each.answer, str) for each in self.form.written):
            raise InputError(f"{of_one[0]} needs one right answer, and there are several; drop either")
        if desiderata and (self.words.given is None or not self.words.item_fields):
            raise InputError(f"{desiderata[0]} needs `items`, one of which the text asks for")

    def _check_changes(self) -> None:
        form = self.form.changes
        if form is None:
            return
        for name in (form.key, form.holds):
            check_known(f"changes are of {name!r}", name, self.words.item_fields)
        if not form.texts:
            raise InputError("changes: write at least one of put, remove, move")
        if form.key == form.holds:
            raise InputError("changes: `key` is the place and `holds` the thing in it; got one field")
        needed = {"put": (form.holds, form.key), "remove": (form.holds,), "move": (form.holds, "to")}
        for kind, parts in self.texts.changes.items():
            refs = {part.ref[0] for part in parts if part.ref}
            if lacking := next((name for name in needed[kind] if name not in refs), None):
                field = f"to.{form.key}" if lacking == "to" else lacking
                raise InputError(f"changes.{kind} does not say what moves where: write {{{field}}} in it")


def _compared(each: AnyOf) -> list[str]:
    """The fields with which words are compared."""
    return [written for written in (each.above, each.below, each.but) if written is not None]


def _around(form: TemplateFile, texts: Texts, words: Words) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each category the text before a word of it, and all that may follow."""
    before, after = dict[str, str](), dict[str, dict[str, None]]()
    for parts in _sequences(texts):
        for i, part in enumerate(parts):
            if (field := words.field_of(part.ref)) is None:
                continue
            category = words.categories[field]
            if i and parts[i - 1].text:
                before.setdefault(category, parts[i - 1].text)
            if i + 1 < len(parts) and parts[i + 1].text:
                after.setdefault(category, {})[parts[i + 1].space + parts[i + 1].text] = None
    for category in _answered(form, words):
        before[category] = texts.wordings[0][-1].text or before.get(category, "")
    return {name: (before.get(name, ""), tuple(after.get(name, ()))) for name in {**before, **after}}


def _answered(form: TemplateFile, words: Words) -> Iterator[str]:
    """The categories of which the answers are."""
    for answer in (each for wording in form.written for each in each_of(wording.answer)):
        if isinstance(answer, AnyOf):
            yield answer.any_of.partition(".")[0]
        else:
            fields = [words.field_of(part.ref) for part in parse(answer, "answer")]
            yield from (words.categories[field] for field in fields if field is not None)


def _sequences(texts: Texts) -> Iterator[Sequence[Part]]:
    """The texts with their clauses in place, as far as neighbours go."""
    yield from texts.changes.values()
    yield (*texts.list, *texts.between)
    for parts in texts.wordings:
        i = next((i for i, part in enumerate(parts) if part.ref == ("list",)), None)
        yield parts if i is None else (*parts[:i], *texts.list, *parts[i + 1 :])
