"""What a template file promises, read from the decoded text and not from the code's own positions."""

import re
from itertools import pairwise

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.tasks import get_task
from circuitdiff.tasks.scenarios import SPLITS
from helpers.reading import texts, word, words_at
from helpers.tiny_tokenizers import byte_pairs, word_level

THINGS = "apple book cup pen lamp door key box coin bell ring sock harp pear"
COLOURS = "red blue green white black grey pink brown gold cyan"
BOXES = "A B C D E F G H"
OTHER = (
    "The the is in . , : What Box Then Who now put goes from to there moves leaves says asks more 0 1 2 3 4 5 6 7 8 9"
)
TRAIN = "tent tile rope"
CITIES = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima", "Cuba": "Havana"}

COLOURED = f"""\
name: coloured
capital: true
options: {{n: 3}}
categories:
  things: {{words: {THINGS}, train: {TRAIN} {THINGS.upper()}}}
  colours: {{words: {COLOURS}}}
items: {{count: n, fields: {{thing: things, colour: colours}}}}
list: {{text: "the {{thing}} is {{colour}}"}}
text: "{{list}}. What is {{asked.colour}} is the"
answer: " {{asked.thing}}"
roles: {{right: asked.thing, wrong: other.thing}}
counterfactuals:
  nowhere: {{redraw: [thing, colour], ask: other, given: elsewhere}}
  asked: {{ask: other}}
  things_swapped: {{swap: thing}}
  colours_swapped: {{swap: colour, ask: other}}
  other_things: {{redraw: [thing]}}
"""
CAPITALS = f"""\
name: capitals
categories:
  countries:
    words: [{", ".join(f"{{country: {country}, capital: {city}}}" for country, city in CITIES.items())}]
draws: {{here: countries, there: countries}}
text: "The {{here}} is not {{there}}. In {{there=there.capital}} and {{here.capital}} says the"
answer: " {{here.capital}}"
foils: [" {{there.capital}}"]
counterfactuals: {{other: {{redraw: [here]}}}}
"""
CHANGES = f"""\
name: moving
categories: {{things: {{words: {THINGS}}}, boxes: {{words: {BOXES}}}}}
items: {{count: 4, fields: {{thing: things, box: boxes}}}}
list: {{text: "the {{thing}} is in Box {{box}}"}}
changes:
  count: 3
  key: box
  holds: thing
  put: " Then the {{thing}} goes in Box {{box}}."
  remove: " Then the {{thing}} leaves Box {{box}}."
  move: " Then the {{thing}} goes from Box {{box}} to Box {{to.box}}."
text: "{{list}}.{{changes}} Box {{asked.box}} is now the"
answer: " {{held.thing}}"
counterfactuals: {{asked: {{ask: other}}, others: {{redraw: [thing]}}, boxes: {{redraw: [box]}}}}
"""
DIGITS = """\
name: later
categories: {digits: {words: 0 1 2 3 4 5 6 7 8 9}, early: {words: 2 3 4 5 6 7}}
draws: {first: early, thing: digits}
text: "from {first} to {thing} there is"
answer: {any_of: digits, above: first}
foils: {any_of: digits, below: first, text: " {}"}
counterfactuals: {other: {redraw: [first]}}
"""
WORDED = f"""\
name: worded
categories: {{things: {{words: {THINGS}}}, colours: {{words: {COLOURS}}}}}
items: {{count: 2, fields: {{thing: things, colour: colours}}}}
wordings:
  - name: thing
    text: "the {{0.thing}} is {{0.colour}} the {{1.thing}} is {{1.colour}}. What is {{asked.colour}} is the"
  - name: colour
    text: "Box: the {{0.thing}} is {{0.colour}}, the {{1.thing}} is {{1.colour}}. the {{asked.thing}} is"
    answer: " {{asked.colour}}"
    foils: [" {{other.colour}}"]
answer: " {{asked.thing}}"
counterfactuals: {{reworded: {{wording: {{thing: colour, colour: thing}}}}, asked: {{ask: other}}}}
"""


@pytest.fixture(scope="module")
def whole():
    cities = [*CITIES, *CITIES.values(), "not", "and", "In"]
    lists = (OTHER, THINGS, COLOURS, BOXES, TRAIN, THINGS.upper())
    return word_level([*(each for listed in lists for each in listed.split()), *cities])


def task_of(folder, text, *changes, **options):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "task.yaml"
    path.write_text(text)
    return get_task(str(path), **options)


def both(tokenizer, pairs):
    return zip(texts(tokenizer, pairs.clean_prompts), texts(tokenizer, pairs.counterfactual_prompts), strict=True)


def read(text):
    """Things, colours and the colour asked for."""
    things, colours = zip(*re.findall(r"[Tt]he (\w+) is (\w+)(?=[,.])", text), strict=True)
    return things, colours, re.search(r"What is (\w+) is the$", text)[1]


def test_capital_letters_begin_a_prompt_where_they_are_asked_for(tmp_path, whole):
    for capital, letter in ((True, "T"), (False, "t")):
        task = task_of(tmp_path, COLOURED, ("capital: true", f"capital: {str(capital).lower()}"))
        prompts = task.sample(whole, 10)
        assert {text[0] for pair in both(whole, prompts) for text in pair} == {letter}


def test_words_with_columns_are_written_by_the_column_that_a_field_names(tmp_path, whole):
    task = task_of(tmp_path, CAPITALS)
    found = set()
    for split in SPLITS:
        pairs = task.sample(whole, 2, split=split)
        for i, text in enumerate(texts(whole, pairs.clean_prompts)):
            here, there, *capitals = re.fullmatch(r"The (\w+) is not (\w+). In (\w+) and (\w+) says the", text).groups()
            assert here != there
            assert capitals == [CITIES[there], CITIES[here]]
            assert (word(whole, pairs.answers[i]), word(whole, pairs.foils[i, 0])) == (
                CITIES[here],
                CITIES[there],
            )
            found.add((here, there))
        assert words_at(whole, pairs.clean_prompts, "there_2") == [
            CITIES[text.split()[4].strip(".")] for text in texts(whole, pairs.clean_prompts)
        ]
    assert len(found) == 10


@pytest.mark.parametrize(
    ("kind", "same"),
    [
        ("nowhere", (False, False, None)),
        ("asked", (True, True, False)),
        ("things_swapped", (False, True, True)),
        ("colours_swapped", (True, False, True)),
        ("other_things", (False, True, True)),
    ],
)
def test_counterfactuals_change_what_their_rule_says_and_no_more(tmp_path, whole, kind, same):
    task = task_of(tmp_path, COLOURED)
    pairs = task.sample(whole, 40, counterfactual=kind)
    right = words_at(whole, pairs.counterfactual_prompts, "right")
    for i, (clean, changed) in enumerate(both(whole, pairs)):
        (things, colours, asked), (new_things, new_colours, new_asked) = read(clean), read(changed)
        assert (things == new_things, colours == new_colours) == same[:2]
        assert word(whole, pairs.answers[i]) == things[colours.index(asked)]
        if kind == "nowhere":
            assert not {*things, *colours} & {*new_things, *new_colours}
            assert new_asked not in {*colours, *new_colours}
            assert right[i] in new_things
            continue
        assert (asked == new_asked) == same[2]
        answer = new_things[new_colours.index(new_asked)]
        assert word(whole, pairs.counterfactual_answers[i]) == right[i] == answer != things[colours.index(asked)]
        if kind.endswith("swapped"):
            assert sum(a != b for a, b in zip(things + colours, new_things + new_colours, strict=True)) == 2
            assert {*things, *colours} == {*new_things, *new_colours}
        if kind == "other_things":
            assert not {*things} & {*new_things}
    assert (pairs.counterfactual_answers is None) == (kind == "nowhere")


def test_a_field_of_a_wrong_item_is_never_that_of_the_right_one(tmp_path, whole):
    pairs = task_of(tmp_path, COLOURED).sample(whole, 40)
    wrong = words_at(whole, pairs.clean_prompts, "wrong")
    for i, text in enumerate(texts(whole, pairs.clean_prompts)):
        assert wrong[i] in {*read(text)[0]} - {word(whole, pairs.answers[i])}
        assert {word(whole, token) for token in pairs.foils[i]} == {*read(text)[0]} - {word(whole, pairs.answers[i])}


def test_only_the_split_train_uses_words_for_training_and_splits_share_no_combination(tmp_path, whole):
    task, seen = task_of(tmp_path, COLOURED), {}
    for split in SPLITS:
        for seed in (0, 1):
            pairs = task.sample(whole, 25, seed, split)
            for text in (text for pair in both(whole, pairs) for text in pair):
                things, colours, _ = read(text)
                trained = {*things} <= {*TRAIN.split(), *THINGS.upper().split()}
                assert trained if split == "train" else {*things} <= {*THINGS.split()}
                assert seen.setdefault((frozenset(things), frozenset(colours)), split) == split


def test_prompts_are_the_same_for_the_same_seed_and_do_not_depend_on_how_many_follow(tmp_path, whole):
    for text in (COLOURED, CHANGES, WORDED):
        task = task_of(tmp_path, text)
        few, many, other = (task.sample(whole, n, seed) for n, seed in ((6, 0), (9, 0), (6, 1)))
        for prompts, more in (
            (few.clean_prompts, many.clean_prompts),
            (few.counterfactual_prompts, many.counterfactual_prompts),
        ):
            assert texts(whole, prompts) == texts(whole, more)[:6]
        assert torch.equal(few.answers, many.answers[:6])
        assert texts(whole, few.clean_prompts) != texts(whole, other.clean_prompts)
        last = task.sample(whole, 6, counterfactual=task.counterfactuals[-1])
        assert texts(whole, last.clean_prompts) == texts(whole, few.clean_prompts)


def test_options_change_sizes_and_words_and_seed_other_draws(tmp_path, whole):
    task = task_of(tmp_path, COLOURED, n=2, things=[*["apple", "book", "cup", "pen"]], train_things=["tent"])
    used = {thing for pair in both(whole, task.sample(whole, 20)) for text in pair for thing in read(text)[0]}
    assert used == {"apple", "book", "cup", "pen"}
    assert all(len(read(clean)[0]) == 2 for clean, _ in both(whole, task.sample(whole, 5)))
    for options, message in (
        ({"m": 3}, "task 'coloured' has no option 'm'; choose one of n, things, colours, train_things, train_colours"),
        ({"n": 1}, "task 'coloured', option n: expected 2 to 100 items; got 1"),
        ({"n": 2.5}, "option n: expected a whole number; got 2.5"),
        ({"things": "apple"}, "option things: expected a list of words; got 'apple'"),
        ({"things": 3}, "option things: expected a list of words; got 3"),
        ({"things": [3]}, "option things: expected a list of words"),
        ({"things": ["tent", "cup"]}, "must not occur in things; both have tent"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            task_of(tmp_path, COLOURED, **options)


def test_words_of_several_tokens_are_left_out_unless_the_file_allows_them(tmp_path):
    pieces = byte_pairs([*THINGS.split()[:8], *COLOURS.split()], trim_offsets=False)
    words = ("words: apple", "words: wheelbarrow porcupine apple")
    task = task_of(tmp_path, COLOURED, words, ("n: 3", "n: 2"))
    left = task.usable("things", pieces).left_out
    assert {"wheelbarrow", "porcupine"} <= {*left}
    used = {thing for pair in both(pieces, task.sample(pieces, 60)) for text in pair for thing in read(text)[0]}
    assert not used & {*left}
    whole_too = (words, ("n: 3", "n: 2"), ('answer: " {asked.thing}"', 'answer: " {asked.colour}"'))
    split = task_of(
        tmp_path,
        COLOURED,
        *whole_too,
        (f"train: {TRAIN} {THINGS.upper()}", "one_token: false"),
        ("{asked.colour} is the", "{asked.thing} is"),
        ("nowhere: {redraw: [thing, colour], ask: other, given: elsewhere}", "x: {ask: other}"),
    )
    assert split.usable("things", pieces).left_out == ()
    pairs = split.sample(pieces, 60)
    used = {
        thing for text in texts(pieces, pairs.clean_prompts) for thing in re.findall(r"[Tt]he (\w+) is \w+[,.]", text)
    }
    assert {"wheelbarrow", "porcupine"} <= used
    ends = [
        pieces.decode(row[: at + 1])
        for row, at in zip(pairs.clean_prompts.tokens, pairs.clean_prompts.positions["right"], strict=True)
    ]
    for text, end in zip(texts(pieces, pairs.clean_prompts), ends, strict=True):
        asked = re.search(r"What is (\w+) is$", text)[1]
        assert end.endswith(f"he {asked}")  # the role is at the last token of the word, where it stands first


def test_foils_are_the_whole_answer_as_it_is_for_each_other_item(tmp_path):
    text = COLOURED.replace('{asked.thing}"', '{asked.thing}, {asked.colour}, {sort}"')
    text = text.replace("items:", "draws: {sort: colours}\nitems:").replace("What is", "What {sort} is")
    (tmp_path / "task.yaml").write_text(text)
    task = get_task(str(tmp_path / "task.yaml"))
    for question in task._examples[:9]:
        items, sort = question.scenario.items, question.scenario.draws["sort"]
        each = [f" {thing}, {colour}, {sort}" for thing, colour in zip(items["thing"], items["colour"], strict=True)]
        answers = task.answers(question)
        assert answers.right == (each.pop(question.asked),)
        assert answers.foils == tuple(each)


def test_an_answer_of_any_word_above_counts_each_once_and_its_foils_are_those_below(tmp_path, whole):
    pairs = task_of(tmp_path, DIGITS).sample(whole, 5)
    for i, text in enumerate(texts(whole, pairs.clean_prompts)):
        first = int(re.match(r"from (\d) to", text)[1])
        assert word(whole, pairs.answers[i]) == str(first + 1)
        assert {word(whole, token) for token in pairs.foils[i]} == {str(digit) for digit in range(first)}
    task = task_of(tmp_path, DIGITS, ("above: first", "but: first"), ("below: first", "above: first, below: thing"))
    question = task._example(0)
    first, _ = question.scenario.draws.values()
    assert task.answers(question).right == tuple(f" {digit}" for digit in range(10) if str(digit) != first)


def test_wordings_alternate_and_may_have_answers_of_their_own(tmp_path, whole):
    pairs = task_of(tmp_path, WORDED).sample(whole, 20, counterfactual="reworded")
    kinds = []
    for i, (clean, changed) in enumerate(both(whole, pairs)):
        facts = {text: dict(re.findall(r"the (\w+) is (\w+)(?= the|[,.])", text)) for text in (clean, changed)}
        assert facts[clean] == facts[changed]
        answers = []
        for text in (clean, changed):
            by_colour = {colour: thing for thing, colour in facts[text].items()}
            thing = re.search(r"What is (\w+) is the$", text)
            colour = re.search(r"\. the (\w+) is$", text)
            answers.append(by_colour[thing[1]] if thing else facts[text][colour[1]])
            kinds.append(bool(thing))
        assert [word(whole, pairs.answers[i]), word(whole, pairs.counterfactual_answers[i])] == answers
    assert [one != two for one, two in zip(kinds[::2], kinds[1::2], strict=True)] == [True] * 20
    assert all({*pair} == {True, False} for pair in zip(kinds[::4], kinds[2::4], strict=True))  # balanced, two by two


def test_roles_with_several_wordings_are_those_that_all_have(tmp_path, whole):
    task = task_of(tmp_path, WORDED)
    assert {"segment_0.thing", "segment_1.colour", "segment_0.after_thing", "last"} <= set(task.roles)
    assert not {"query_thing", "query_colour", "box"} & set(task.roles)
    prompts = task.sample(whole, 8).clean_prompts
    for i, text in enumerate(texts(whole, prompts)):
        things = re.findall(r"the (\w+) is \w+(?= the|[,.])", text)
        assert [words_at(whole, prompts, f"segment_{j}.thing")[i] for j in range(2)] == things
    assert {name.partition(".")[0] for name in prompts.slot_names if name != "start"} == {"template_0", "template_1"}


def held(text):
    """What each box holds at the end, by carrying out what the text says, sentence by sentence."""
    listed, *changes, question = text.split(". ")
    boxes = {box: [thing] for thing, box in re.findall(r"the (\w+) is in Box (\w)", listed)}
    for change in changes:
        thing = re.match(r"Then the (\w+) ", change)[1]
        for things in boxes.values():
            if thing in things:
                things.remove(thing)
        if into := re.search(r"(?:goes in|to) Box (\w)$", change):
            boxes[into[1]].append(thing)
    return boxes, re.fullmatch(r"Box (\w) is now the", question)[1], changes


@pytest.mark.parametrize("kind", ["asked", "others", "boxes"])
def test_answers_are_what_the_text_leaves_in_the_box_when_it_is_carried_out(tmp_path, whole, kind):
    pairs = task_of(tmp_path, CHANGES).sample(whole, 60, counterfactual=kind)
    new = pairs.counterfactual_answers
    seen = set()
    for i, (clean, changed) in enumerate(both(whole, pairs)):
        for text, answer in ((clean, pairs.answers[i]), (changed, new[i])):
            boxes, asked, changes = held(text)
            assert boxes[asked] == [word(whole, answer)]
            assert len(changes) == 3
            seen |= {re.sub(r"the \w+|Box \w", "", change) for change in changes}
        boxes, asked, changes = held(clean)
        put = {re.match(r"Then the (\w+) goes in", change)[1] for change in changes if " goes in " in change}
        everything = {*re.findall(r"the (\w+) is in", clean)} | put
        assert {word(whole, token) for token in pairs.foils[i]} == everything - {*boxes[asked]}
    assert len(seen) == 3


def test_each_single_kind_of_change_is_enough(tmp_path, whole):
    for kind in ("put", "remove", "move"):
        others = [other for other in ("put", "remove", "move") if other != kind]
        lines = [line for line in CHANGES.splitlines() if not line.startswith(tuple(f"  {other}:" for other in others))]
        text = "\n".join(lines).replace("count: 3", "count: 2")
        for clean, _ in both(whole, task_of(tmp_path, text).sample(whole, 12)):
            boxes, asked, changes = held(clean)
            assert len(boxes[asked]) == 1
            assert len({re.sub(r"the \w+|Box \w", "", change) for change in changes}) == 1
            assert sum(map(len, boxes.values())) == 4 + {"put": 2, "remove": -2, "move": 0}[kind]


def test_the_item_that_is_asked_for_is_each_equally_often(tmp_path, whole):
    for text, n in ((COLOURED, 3), (CHANGES, 4)):
        queried = task_of(tmp_path, text).sample(whole, 8 * n).queried
        assert torch.bincount(queried).tolist() == [8] * n
    several = task_of(tmp_path, COLOURED).sample(whole, 30, queries_per_scenario=3)
    assert several.scenarios.tolist() == [i // 3 for i in range(30)]
    clean = texts(whole, several.clean_prompts)
    for i, (one, two) in enumerate(pairwise(clean)):
        assert (read(one)[:2] == read(two)[:2]) == (i % 3 != 2)


def test_words_called_start_last_and_chat_may_stand_in_a_text(tmp_path):
    extra = ["start", "last", "chat", "The", "the", "is", "What", ".", ",", "at"]
    tokenizer = word_level([*extra, *THINGS.split(), *COLOURS.split(), *TRAIN.split()])
    task = task_of(tmp_path, COLOURED, ("What is", "start at the last chat, What is"))
    prompts = task.sample(tokenizer, 5).clean_prompts
    assert {"start_", "last_", "chat_"} <= set(prompts.slot_names)
    assert words_at(tokenizer, prompts, "last") == ["the"] * 5
    assert torch.equal(prompts.positions["last"], prompts.lengths - 1)


def test_every_segment_and_a_wrong_one_follow_from_the_files_roles(tmp_path):
    task = task_of(tmp_path, COLOURED)
    assert task.every_segment("right") == [f"segment_{i}.thing" for i in range(3)]
    assert (task.wrong_segment("right"), task.wrong_segment("last")) == ("wrong", "last")
    assert task.question_roles == ("query_colour", "after_query_colour", "last")


def test_roles_at_the_answer_hold_it_whatever_is_asked_for(tmp_path):
    def roles(form: str, *changes: tuple[str, str]) -> tuple[str, ...]:
        return task_of(tmp_path, form, *changes).answer_roles

    assert roles(COLOURED) == ("right",)
    assert roles(COLOURED, ("right: asked.thing, ", "")) == (), "no item is asked for in every prompt"
    assert roles(COLOURED, ("right: asked.thing", "right: segment_1.thing")) == ()
    assert roles(COLOURED, ("right: asked.thing", "right: asked.thing, same: asked.thing")) == ("same",)
    assert roles(COLOURED, ('answer: " {asked.thing}"', 'answer: " {asked.colour}"')) == ("query_colour",)
    assert roles(CAPITALS) == ("here_2",), "the country's own name is not the answer"
    assert roles(WORDED) == ()
    assert roles(CHANGES) == ()
    assert roles(CHANGES, ("counterfactuals:", "roles: {there: answer.last}\ncounterfactuals:")) == ("there",)


def test_a_file_that_changes_is_read_again(tmp_path, whole):
    before = task_of(tmp_path, COLOURED)
    after = task_of(tmp_path, COLOURED, ("name: coloured", "name: renamed"))
    assert (before.name, after.name) == ("coloured", "renamed")
    assert after.files == (tmp_path / "task.yaml",)
