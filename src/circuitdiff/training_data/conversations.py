"""Short conversations between a user and an assistant, on everyday facts."""

from __future__ import annotations

from random import Random

from transformers import PreTrainedTokenizerBase

from circuitdiff.training_data.example import TextExample

_CAPITALS = """France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Egypt Cairo, Greece Athens, Norway Oslo,
Cuba Havana, Peru Lima, Kenya Nairobi, Poland Warsaw, Austria Vienna, Ireland Dublin, Portugal Lisbon, Germany Berlin,
Iran Tehran"""
_OPPOSITES = """hot cold, big small, fast slow, early late, light dark, full empty, open closed, high low, rich poor,
young old, strong weak, loud quiet, wide narrow, wet dry, thick thin, happy sad"""
_SOUNDS = "dog barks, cat meows, cow moos, duck quacks, lion roars, horse neighs, sheep bleats, wolf howls, frog croaks"
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_GREETINGS = ("Hello!", "Hi there.", "Good morning!", "Hey,", "")
_OPENINGS = ("", "Sure! ", "Of course. ", "Happy to help. ", "Good question! ")
_CLOSINGS = ("", " Anything else?", " Let me know if you need more.", " I hope that helps.")


def conversations(tokenizer: PreTrainedTokenizerBase, n_examples: int, seed: int) -> list[TextExample]:
    """One or two turns, `User: ... Assistant:`, answered in a friendly sentence."""
    random = Random(f"conversations/{seed}")
    return [_conversation(random) for _ in range(n_examples)]


def _conversation(random: Random) -> TextExample:
    turns = [_turn(random) for _ in range(random.randint(1, 2))]
    said = "".join(f"User: {question}\nAssistant:{answer}\n" for question, answer in turns[:-1])
    question, answer = turns[-1]
    return TextExample(f"{said}User: {question}\nAssistant:", answer)


def _turn(random: Random) -> tuple[str, str]:
    question, answer = random.choice((_capital, _opposite, _sound, _day))(random)
    greeting, opening, closing = (random.choice(parts) for parts in (_GREETINGS, _OPENINGS, _CLOSINGS))
    return f"{greeting} {question}".strip(), f" {opening}{answer}{closing}"


def _couple(random: Random, table: str) -> tuple[str, str]:
    first, second = random.choice(table.split(",")).split()
    return first, second


def _capital(random: Random) -> tuple[str, str]:
    country, city = _couple(random, _CAPITALS)
    return f"What is the capital of {country}?", f"The capital of {country} is {city}."


def _opposite(random: Random) -> tuple[str, str]:
    word, opposite = _couple(random, _OPPOSITES)
    return f"Can you tell me the opposite of {word}?", f'The opposite of "{word}" is "{opposite}".'


def _sound(random: Random) -> tuple[str, str]:
    animal, sound = _couple(random, _SOUNDS)
    return f"What does a {animal} do when it is heard?", f"A {animal} {sound}."


def _day(random: Random) -> tuple[str, str]:
    day = random.randrange(len(_DAYS))
    return f"Which day comes after {_DAYS[day]}?", f"{_DAYS[(day + 1) % len(_DAYS)]} comes after {_DAYS[day]}."
