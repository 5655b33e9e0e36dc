"""Task files to tasks: a template's YAML read, its parts held against one another, and its options filled in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuitdiff.config.reading import read_yaml
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError, choices
from circuitdiff.tasks.changes import ChangeRule
from circuitdiff.tasks.markup import Part, Ref, parse, reference
from circuitdiff.tasks.task import check_plan_roles
from circuitdiff.tasks.template import TemplateTask
from circuitdiff.tasks.template_file import MOST_ITEMS, AnyOf, TemplateFile, WordFile, each_of, entries_of
from circuitdiff.tasks.writing import Columns, Texts, Words, with_between

_OWN = ("list", "changes")  # fields of a text that stand for clauses
_TAKEN = (*_OWN, "asked", "other", "spare", "held", "to", "start", "chat", "last")  # names that no field can have


def read_template(path: Path, options: Mapping[str, Any]) -> TemplateTask:
    """The task of a template file. Options are the file's own, and `CATEGORY` or `train_CATEGORY` for other words.

    Raises: InputError naming the file and the key that is unknown, missing, or does not go with the others.
    """
    return _Reader(str(path), *_read(path)).task(options)


@lru_cache(maxsize=32)
def _parsed(path: Path, changed: int) -> TemplateFile:
    return validated(TemplateFile, read_yaml(path), str(path))


def _read(path: Path) -> tuple[TemplateFile, Path]:
    return _parsed(path, path.stat().st_mtime_ns if path.is_file() else 0), path.parent


class _Reader:
    """One file, whose errors name it."""

    def __init__(self, origin: str, form: TemplateFile, folder: Path) -> None:
        self.origin, self.form, self.folder = origin, form, folder

    def task(self, options: Mapping[str, Any]) -> TemplateTask:
        form = self.form
        n_items, values = self._sizes(options)
        words, training, columns = self._categories(options)
        texts = self._texts()
        item_fields = tuple(form.items.fields) if form.items else ()
        fields = {**(form.items.fields if form.items else {}), **form.draws}
        twice = {*item_fields} & {*form.draws}
        if taken := next((name for name in fields if name in _TAKEN or name in twice), None):
            why = "is one of items and of draws" if taken in twice else "has a meaning of its own"
            raise InputError(f"{self.origin}: the field {taken!r} {why}; give it another name")
        for name, category in fields.items():
            if category not in form.categories:
                raise self._wrong(f"the field {name!r} draws from {category!r}", category, form.categories)
        holds = (form.changes.key, form.changes.holds) if form.changes else None
        known = Words(item_fields, tuple(form.draws), fields, columns, self._given(texts), holds)
        self._check_refs(texts, known, n_items)
        self._check_rules(known)
        task = TemplateTask(
            form=form,
            origin=self.origin,
            n_items=n_items,
            options=values,
            texts=texts,
            paths=(Path(self.origin), *self._word_files()),
            words=known,
            categories={name: (words[name], training[name]) for name in form.categories},
            around=_around(texts, known, self._answered(known)),
            change_rule=self._change_rule(known),
        )
        self._check_roles(task)
        return task

    def _wrong(self, what: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> InputError:
        return InputError(f"{self.origin}: {what}, which is unknown{choices(name, known)}")

    def _sizes(self, options: Mapping[str, Any]) -> tuple[int, tuple[object, ...]]:
        form = self.form
        lists = [*form.categories, *(f"train_{name}" for name in form.categories)]
        known = [*form.options, *lists]
        if both := next((name for name in form.options if name in lists), None):
            raise InputError(f"{self.origin}: the option {both!r} is also that of a category's words; rename it")
        for name in options:
            if name not in known:
                raise InputError(f"task {form.name!r} has no option {name!r}{choices(name, known)}")
        sizes = {name: options.get(name, default) for name, default in form.options.items()}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"task {form.name!r}, option {name}: expected a whole number; got {value!r}")
        count = form.items.count if form.items else 0
        if isinstance(count, str) and count not in sizes:
            named = f", or an option's name{choices(count, form.options)}" if form.options else ""
            raise InputError(f"{self.origin}: items.count is {count!r}: give a number, such as 4{named}")
        n_items = sizes[count] if isinstance(count, str) else count
        if form.items and not 2 <= n_items <= MOST_ITEMS:
            said = f"task {form.name!r}, option {count}" if isinstance(count, str) else f"{self.origin}: items.count"
            raise InputError(f"{said}: expected 2 to {MOST_ITEMS} items; got {n_items}")
        return n_items, tuple(sizes.values())

    def _categories(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Columns]:
        words, training, columns = {}, {}, {}
        for name, category in self.form.categories.items():
            own = self._entries(options, name, category.words)
            train = self._entries(options, f"train_{name}", category.train)
            if shared := sorted(set(own or {}) & set(train or {})):
                raise InputError(
                    f"{self.origin}: words for training must not occur in {name}; both have {', '.join(shared[:9])}"
                )
            words[name], training[name] = tuple(own or {}), None if train is None else tuple(train)
            columns[name] = {word: row for word, row in {**(own or {}), **(train or {})}.items() if "" not in row}
        return words, training, columns

    def _entries(self, options: Mapping[str, Any], name: str, written: Any) -> dict[str, dict[str, str]] | None:
        if name in options:
            given = options[name]
            words = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
            if not words or not all(isinstance(word, str) for word in words):
                raise InputError(f"task {self.form.name!r}, option {name}: expected a list of words; got {given!r}")
            return entries_of(words, self.folder, f"task {self.form.name!r}, option {name}")
        return None if written is None else entries_of(written, self.folder, f"{self.origin}: categories.{name}")

    def _word_files(self) -> Iterator[Path]:
        for category in self.form.categories.values():
            for words in (category.words, category.train):
                if isinstance(words, WordFile):
                    yield self.folder / words.file

    def _texts(self) -> Texts:
        form = self.form
        wordings = [
            parse(each.text, f"{self.origin}: {'text' if form.text else f'wordings.{i}'}")
            for i, each in enumerate(form.written)
        ]
        listed = parse(form.list.text, f"{self.origin}: list.text") if form.list else ()
        changes = form.changes.texts if form.changes else {}
        return with_between(
            Texts(
                tuple(wordings),
                listed,
                changes={kind: parse(text, f"{self.origin}: changes.{kind}") for kind, text in changes.items()},
                between_changes=parse(form.changes.between, f"{self.origin}: changes.between") if form.changes else (),
            ),
            form.list.between if form.list else "",
            self.origin,
        )

    def _given(self, texts: Texts) -> Ref | None:
        """The field of the question that names the item: the one of `asked` or `other` in the wordings."""
        refs = {part.ref[:2] for parts in texts.wordings for part in parts if part.ref[:1] in (("asked",), ("other",))}
        if len(refs) > 1 and any(rule.given == "elsewhere" for rule in self.form.counterfactuals.values()):
            named = ", ".join(sorted(".".join(ref) for ref in refs))
            raise InputError(f"{self.origin}: `given: elsewhere` needs one field that names the item; got {named}")
        return min(refs) if len(refs) == 1 else None

    def _check_refs(self, texts: Texts, words: Words, n_items: int) -> None:
        """Raises: InputError naming the first field of a text that does not exist there."""
        for where, parts in _all_parts(texts, self.form, self.origin):
            named = [part.slot for part in parts if part.slot]
            if taken := next((slot for slot in named if slot in ("start", "chat")), None):
                raise InputError(f"{self.origin}: {where} has the slot {taken!r}, which is another; rename it")
            if twice := next((slot for slot in named if named.count(slot) > 1), None):
                raise InputError(f"{self.origin}: {where} names the slot {twice!r} twice; give each its own name")
            for ref in (part.ref for part in parts if part.ref):
                self._check_ref(where, ref, words, n_items)
        for i, wording in enumerate(self.form.written):
            answer, foils = wording.answer or self.form.answer, wording.foils or self.form.foils
            if answer is None:
                raise InputError(f"{self.origin}: `answer` is missing: give it for the task or for wording {i}")
            for each in each_of(answer):
                self._check_asked(i, each, texts)
            for each in (*each_of(answer), *each_of(foils)):
                if isinstance(each, AnyOf):
                    self._check_any_of(each, words)
                else:
                    for part in parse(each, f"{self.origin}: answer"):
                        if part.ref:
                            self._check_ref("answer", part.ref, words, n_items)

    def _check_asked(self, wording: int, answer: str | AnyOf, texts: Texts) -> None:
        """Raises: InputError if the answer depends on which item is asked for, and the wording does not say it."""
        written = answer if isinstance(answer, str) else "".join(f"{{{each}}}" for each in _compared(answer))
        firsts = {part.ref[0] for part in (*texts.wordings[wording], *texts.list) if part.ref}
        of_asked = any(part.ref[:1] in (("asked",), ("held",)) for part in parse(written, f"{self.origin}: answer"))
        if of_asked and not firsts & {"asked", "other"}:
            raise InputError(
                f"{self.origin}: the answer is of the item asked for, and the text does not say which: write "
                f"{{asked.FIELD}} or {{other.FIELD}} in it"
            )
        if self.form.changes and "changes" not in firsts:
            raise InputError(f"{self.origin}: `changes` are given, and a text does not write {{changes}}")

    def _check_ref(self, where: str, ref: Ref, words: Words, n_items: int) -> None:
        first, *rest = ref
        kind, of_change = where.rpartition(".")[2], where.startswith("changes.")
        if (first == "spare" and not where.startswith("desiderata.")) or (first == "to" and where != "changes.move"):
            only = "texts of desiderata" if first == "spare" else "changes.move"
            raise InputError(f"{self.origin}: {where} has {{{'.'.join(ref)}}}, which only {only} can have")
        if kind == "text" and ref in [(name,) for name in _OWN]:
            if (self.form.list if first == "list" else self.form.changes) is None:
                raise InputError(f"{self.origin}: {{{first}}} is written, and `{first}` is not given")
            return
        item_ref = first in ("asked", "other", "spare", "held", "to") or first.isdecimal()
        if first.isdecimal() and int(first) >= n_items:
            raise InputError(f"{self.origin}: {{{'.'.join(ref)}}}: there are {n_items} items, from 0 on")
        if first == "held" and (self.form.changes is None or rest[:1] != [self.form.changes.holds]):
            raise InputError(
                f"{self.origin}: {{{'.'.join(ref)}}} is what `changes` leave; give them, and write {{held.FIELD}} with "
                f"the field that they say an item `holds`"
            )
        name = rest[0] if item_ref and rest else first
        own = (words.holds or ()) if of_change else words.item_fields if kind == "list" else ()
        known = words.item_fields if item_ref else (*own, *words.single_fields)
        if name not in known:
            written = ".".join(ref)
            raise self._wrong(f"{where} has the field {{{written}}}", written, self._fields(words, where))
        column = rest[1:] if item_ref else rest
        columns = next(iter(words.columns[words.categories[name]].values()), {})
        if len(column) > 1 or (column and column[0] not in columns):
            raise self._wrong(f"{where} has the column {column[0]!r} of {name!r}", column[0], columns)

    def _fields(self, words: Words, where: str) -> list[str]:
        items = [f"{which}.{name}" for name in words.item_fields for which in ("asked", "other", "0")]
        own = (words.holds or ()) if where.startswith("changes.") else words.item_fields
        return [*(own if where.startswith("changes.") or where.endswith("list") else ()), *items, *words.single_fields]

    def _check_any_of(self, each: AnyOf, words: Words) -> None:
        name, _, column = each.any_of.partition(".")
        if name not in self.form.categories:
            raise self._wrong(f"any_of is {name!r}", name, self.form.categories)
        columns = next(iter(words.columns[name].values()), {})
        if column and column not in columns:
            raise self._wrong(f"any_of has the column {column!r}", column, columns)
        for written in _compared(each):
            fields = [
                known
                for field in words.categories
                for known in ((f"asked.{field}", f"other.{field}") if field in words.item_fields else (field,))
            ]
            if written not in fields:
                raise self._wrong(f"any_of is compared with the field {written!r}", written, fields)
            field = reference(written)[-1]
            listed = entries_of(self.form.categories[name].words, self.folder, self.origin)
            drawn = entries_of(self.form.categories[words.categories[field]].words, self.folder, self.origin)
            if alone := next((word for word in drawn if word not in listed), None):
                raise InputError(f"{self.origin}: any_of is compared with {written!r}, and {name} lacks its {alone!r}")

    def _check_rules(self, words: Words) -> None:
        known = (*words.item_fields, *words.single_fields)
        names = [each.name for each in self.form.written if each.name]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"{self.origin}: two wordings are called {twice!r}; give each its own name")
        for kind, rule in self.form.counterfactuals.items():
            for name in rule.redraw:
                if name not in known:
                    raise self._wrong(f"counterfactuals.{kind} redraws {name!r}", name, known)
            if rule.swap is not None and rule.swap not in words.item_fields:
                raise self._wrong(f"counterfactuals.{kind} swaps {rule.swap!r}", rule.swap, words.item_fields)
            for name in (*rule.wording, *rule.wording.values()):
                if name not in names:
                    raise self._wrong(f"counterfactuals.{kind} has the wording {name!r}", name, names)
            if rule.given == "elsewhere" and words.given is None:
                raise InputError(
                    f"{self.origin}: counterfactuals.{kind}: `given: elsewhere` needs {{asked.FIELD}} in the text"
                )
            if not (rule.redraw or rule.swap or rule.wording or rule.ask == "other" or rule.given == "elsewhere"):
                raise InputError(
                    f"{self.origin}: counterfactuals.{kind} changes nothing; give redraw, swap, ask or wording"
                )
        of_one = [
            *(f"desiderata.{name}" for name in self.form.desiderata),
            *(f"roles.{name}" for name, place in self.form.roles.items() if place.partition(".")[0] == "answer"),
        ]
        if of_one and not all(isinstance(each.answer or self.form.answer, str) for each in self.form.written):
            raise InputError(f"{self.origin}: {of_one[0]} needs one right answer, and there are several; drop either")
        wanting = [name for name, each in self.form.desiderata.items() if words.given is None or not words.item_fields]
        if wanting:
            raise InputError(f"{self.origin}: desiderata.{wanting[0]} needs `items`, one of which the text asks for")

    def _check_roles(self, task: TemplateTask) -> None:
        for role, place in self.form.roles.items():
            problem = task.problem_of(role, place)
            if problem:
                raise InputError(f"{self.origin}: roles.{role}: {problem}")
        check_plan_roles(self.origin, self.form.plans, task.roles)
        for role in self.form.question or ():
            if role not in task.roles:
                raise self._wrong(f"question has the role {role!r}", role, task.roles)

    def _answered(self, words: Words) -> set[str]:
        """The categories of which the answers are."""
        named: set[str] = set()
        for wording in self.form.written:
            for answer in each_of(wording.answer or self.form.answer):
                if isinstance(answer, AnyOf):
                    named.add(answer.any_of.partition(".")[0])
                    continue
                for part in parse(answer, "answer"):
                    names = [name for name in part.ref[:2] if name in words.categories]
                    named |= {words.categories[name] for name in names[-1:]}
        return named

    def _change_rule(self, words: Words) -> ChangeRule | None:
        form = self.form.changes
        if form is None:
            return None
        for name in (form.key, form.holds):
            if name not in words.item_fields:
                raise self._wrong(f"changes are of {name!r}", name, words.item_fields)
        if not form.texts:
            raise InputError(f"{self.origin}: changes: write at least one of put, remove, move")
        if form.key == form.holds:
            raise InputError(f"{self.origin}: changes: `key` is the place and `holds` the thing in it; got one field")
        for kind, text in form.texts.items():
            refs = {part.ref[0] for part in parse(text, f"{self.origin}: changes.{kind}") if part.ref}
            needed = {"put": (form.holds, form.key), "remove": (form.holds,), "move": (form.holds, "to")}[kind]
            if lacking := next((name for name in needed if name not in refs), None):
                field = f"to.{form.key}" if lacking == "to" else lacking
                raise InputError(
                    f"{self.origin}: changes.{kind} does not say what moves where: write {{{field}}} in it"
                )
        fields = words.item_fields
        return ChangeRule(form.count, tuple(form.texts), fields.index(form.key), fields.index(form.holds))


def _compared(each: AnyOf) -> list[str]:
    """The fields with which words are compared."""
    return [written for written in (each.above, each.below, each.but) if written is not None]


def _all_parts(texts: Texts, form: TemplateFile, origin: str) -> Iterator[tuple[str, Sequence[Part]]]:
    """Every text with what it is: `...text`, `...list` where `{FIELD}` is of one item, or what stands between."""
    yield from (("text", parts) for parts in texts.wordings)
    yield "list", texts.list
    yield "list.between", texts.between
    yield from ((f"changes.{kind}", parts) for kind, parts in texts.changes.items())
    yield "between_changes", texts.between_changes
    for name, each in form.desiderata.items():
        for key, kind in (("text", "text"), ("list", "list"), ("asked", "list"), ("between", "between")):
            if text := getattr(each, key):
                parts = parse(text.rstrip() if key == "between" else text, f"{origin}: desiderata.{name}.{key}")
                yield f"desiderata.{name}.{kind}", parts


def _around(texts: Texts, words: Words, answered: set[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each category the text before a word of it, and all that may follow."""
    before, after = dict[str, str](), dict[str, dict[str, None]]()
    for parts in _sequences(texts):
        for i, part in enumerate(parts):
            for name in [name for name in part.ref[:2] if name in words.categories][-1:]:
                category = words.categories[name]
                if i and parts[i - 1].text:
                    before.setdefault(category, parts[i - 1].text)
                if i + 1 < len(parts) and parts[i + 1].text:
                    after.setdefault(category, {})[parts[i + 1].space + parts[i + 1].text] = None
    for category in answered:
        before[category] = texts.wordings[0][-1].text or before.get(category, "")
    return {name: (before.get(name, ""), tuple(after.get(name, ()))) for name in {**before, **after}}


def _sequences(texts: Texts) -> Iterator[Sequence[Part]]:
    """The texts with their clauses in place, as far as neighbours go."""
    yield from texts.changes.values()
    yield (*texts.list, *texts.between)
    for parts in texts.wordings:
        i = next((i for i, part in enumerate(parts) if part.ref == ("list",)), None)
        yield parts if i is None else (*parts[:i], *texts.list, *parts[i + 1 :])
