"""A chat template as a setting of prompts: what stands before each, so that an instruct model continues its own turn.

The user asks for a continuation, and the prompt is how the assistant's answer begins. So answers, roles and their
tokens are those of the plain prompt, further right, and with and without can be compared.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from circuitdiff.config.reading import read_text
from circuitdiff.errors import InputError, first_line

OFF, AUTO = "off", "auto"
_SYSTEM = "You are a helpful assistant."
_REQUEST = "Continue the text."
_DATE = "26 Jul 2024"  # some templates write the day, which would change the prompts from one day to the next


def chat_prefix(tokenizer: PreTrainedTokenizerBase, chat: str) -> str:
    """What stands before each prompt: nothing (`off`), by the tokenizer's own template (`auto`), or by that of a file.

    The system text is always the same; a template that takes none goes without.

    Raises: InputError if there is no template, or it cannot be used.
    """
    if chat == OFF:
        return ""
    template = None if chat == AUTO else read_text(Path(chat).expanduser(), "Jinja")
    if template is None and not tokenizer.chat_template:
        raise InputError("chat: auto, and the tokenizer has no chat template: give the path of one, or set chat: off")
    system, request = {"role": "system", "content": _SYSTEM}, {"role": "user", "content": _REQUEST}
    try:
        with suppress(TemplateError, TypeError, ValueError):  # such as Gemma's, which refuses a system text
            return _written(tokenizer, [system, request], template)
        return _written(tokenizer, [request], template)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template of {chat} cannot be used: {first_line(error)}") from error


def _written(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], template: str | None) -> str:
    written = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=template, date_string=_DATE
    )
    return str(written)
