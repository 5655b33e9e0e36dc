"""The verdict's sentences, each with its scope and the table that it rests on."""

from __future__ import annotations

CLAIMS = {
    "better": "Is it better?",
    "same_circuit": "Is the same circuit at work?",
    "same_function": "Does each group have the same function?",
    "improved_part": "Which part improved?",
    "cause_layers": "In which layers is its cause?",
    "visible_part": "Where is the gain visible?",
}
_THRESHOLDS = {
    "scenarios": "at least {} held-out scenarios",
    "faithful": "normalised faithfulness of at least {}",
    "too_faithful": "and at most {}",
    "margin": "a margin of {} for what counts as equal",
    "share": "{} of the gain for a part that improved",
}


def anchor(table: str, variant: str = "") -> str:
    """The id of a table on the page, which sentences link to; `table` is a section of the results."""
    kept = "".join(c if c.isalnum() else "-" for c in f"{table} {variant}".strip())
    return f"table-{kept}"


def verdict_rows(results: dict) -> list[dict]:
    """One row per variant and claim: question, answer, sentence, all reasons, scope and where the numbers are."""
    return [
        {
            "variant": variant,
            "question": CLAIMS.get(sentence["claim"], sentence["claim"]),
            "answer": sentence["answer"],
            "text": sentence["text"],
            "reasons": list(sentence.get("reasons") or []),
            "scope": sentence["scope"],
            "anchor": anchor(sentence["table"], "" if sentence["table"] == "models" else variant),
        }
        for variant, entry in (results.get("verdict") or {}).items()
        for sentence in entry.get("sentences") or []
    ]


def threshold_sentence(entry: dict) -> str:
    """What the answers were held against."""
    given = entry.get("thresholds") or {}
    named = [words.format(f"{given[key]:g}") for key, words in _THRESHOLDS.items() if key in given]
    return f"Held against {', '.join(named)}." if named else ""
