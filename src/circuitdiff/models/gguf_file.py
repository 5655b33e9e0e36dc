"""What a GGUF file says of itself, and its tokenizer, which must cut text as the file says.

transformers builds the tokenizer from the file's tokens and merges. How text is split before merges apply, it knows for
some names of `tokenizer.ggml.pre` only, and treats all others as GPT-2's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata

from circuitdiff.errors import InputError

_TOKENS = "tokenizer.ggml.tokens"
# values of tokenizer.ggml.pre whose splits transformers' table lacks
_WORDS = frozenset({"gpt-2", "phi-2", "mpt", "olmo"})  # GPT-2's, which is what transformers falls back to
_DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact"})  # each digit by itself, then GPT-2's
# those whose pieces are looked up whole before they are merged, and which begin with BOS unless the file denies it
_WHOLE_FIRST = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken"}
)
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"  # values of tokenizer.ggml.model
_CONTROL, _USER_DEFINED = 3, 4  # token types: both are matched whole

_USED = frozenset(
    f"tokenizer.ggml.{name}"
    for name in (
        *("model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token", "add_eos_token"),
        *("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "add_space_prefix"),
    )
)
_NEUTRAL = {"tokenizer.ggml.add_sep_token": (False,), "tokenizer.ggml.remove_extra_whitespaces": (False,)}
# token ids that only name a token's part in chats or infilling, chat templates (never rendered here), and the
# vocabulary once more as Hugging Face writes it
_HARMLESS_STARTS = ("tokenizer.chat_template", "tokenizer.huggingface.json")
_HARMLESS_ENDING = "_token_id"


@dataclass(frozen=True)
class GgufHeader:
    """The settings (metadata keys) and the names of the tensors of a GGUF file.

    `metadata` holds all settings by their full names: the vocabulary as its tokens, other arrays of strings as their
    lengths. `settings` holds those of the architecture, without its name in front.
    """

    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    settings: Mapping[str, Any]
    tensors: frozenset[str]

    def values(self, tensor: str) -> list[float]:
        """The values of a small tensor."""
        stored = next(t for t in GGUFReader(self.path).tensors if t.name == tensor)
        return dequantize(stored.data, stored.tensor_type).flatten().tolist()

    def refuse(self, what: str) -> NoReturn:
        """Raises: InputError that says `what` the file holds."""
        raise InputError(
            f"{self.path} holds {what}, so its numbers could be silently wrong: give the original folder "
            f"(config.json, safetensors) instead"
        )

    def refuse_setting(self, name: str, why: str) -> NoReturn:
        """Raises: InputError that names the setting of the architecture, its value, and `why` it cannot be used."""
        self.refuse(f"{self.architecture}.{name} = {self.settings.get(name, 'nothing')!r}, {why}")


def read_header(path: Path) -> GgufHeader:
    """Raises: what transformers' reader raises where the file is damaged."""
    metadata, tensors = read_gguf_metadata(str(path), (_TOKENS,))
    architecture = metadata["general.architecture"]
    start = f"{architecture}."
    settings = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    return GgufHeader(path, architecture, metadata, settings, frozenset(tensors))


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Makes `tokenizer`, which transformers built from the GGUF file, cut text as the file says.

    Raises: InputError that names the first setting which it would not follow.
    """
    header = read_header(path)
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.") and not _accounted_for(key, value):
            header.refuse(f"{key} = {value!r}, a setting of the tokenizer that is not supported")
    model = header.metadata.get("tokenizer.ggml.model")
    if model == _BYTE_LEVEL:
        _set_splits(header, tokenizer)
    elif model == _SENTENCEPIECE:
        _set_space_prefix(header, tokenizer)
    else:
        header.refuse(
            f"tokenizer.ggml.model = {model!r}, and only {_BYTE_LEVEL!r} and {_SENTENCEPIECE!r} are supported"
        )
    _drop_other_tokens(header, tokenizer)
    _set_ends(header, tokenizer)
    _check_tokens(header, tokenizer)


def _accounted_for(key: str, value: object) -> bool:
    harmless = key.startswith(_HARMLESS_STARTS) or key.endswith(_HARMLESS_ENDING)
    return key in _USED or harmless or value in _NEUTRAL.get(key, ())


def _set_splits(header: GgufHeader, tokenizer: Any) -> None:
    """How text is cut into pieces, within which merges apply."""
    pre = header.metadata.get("tokenizer.ggml.pre", "nothing")
    backend = tokenizer.backend_tokenizer
    if header.metadata.get("tokenizer.ggml.add_space_prefix"):
        header.refuse("tokenizer.ggml.add_space_prefix = True in a byte-level vocabulary, which is not supported")
    if pre in _DIGITS_FIRST:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif pre not in _WORDS and pre not in GGUF_PRE_TOKENIZER_SPLITS:
        header.refuse(f"tokenizer.ggml.pre = {pre!r}, a way of splitting text that is not supported")
    backend.model.ignore_merges = pre in _WHOLE_FIRST


def _set_space_prefix(header: GgufHeader, tokenizer: Any) -> None:
    """Whether a text that begins with a letter gets a space in front."""
    if (pre := header.metadata.get("tokenizer.ggml.pre", "default")) != "default":
        header.refuse(f"tokenizer.ggml.pre = {pre!r} beside a SentencePiece vocabulary, which is not supported")
    prefixed = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend = tokenizer.backend_tokenizer
    if not prefixed and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="never", split=False)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))
    if prefixed != pieces[0].startswith("\u2581"):
        header.refuse(f"tokenizer.ggml.add_space_prefix = {prefixed}, which transformers' tokenizer does not follow")


def _drop_other_tokens(header: GgufHeader, tokenizer: Any) -> None:
    """Takes away the special tokens that transformers adds, of which the model has no embedding."""
    n_tokens = len(header.metadata["tokenizer.ggml.tokens"])
    if max(tokenizer.get_vocab().values()) >= n_tokens:
        written = json.loads(tokenizer.backend_tokenizer.to_str())
        written["added_tokens"] = [token for token in written["added_tokens"] if token["id"] < n_tokens]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(written))


def _set_ends(header: GgufHeader, tokenizer: Any) -> None:
    """BOS and EOS around a text, exactly where the file wants them."""
    says = header.metadata.get
    begins = says("tokenizer.ggml.model") == _SENTENCEPIECE or says("tokenizer.ggml.pre") in _WHOLE_FIRST
    bos, eos = says("tokenizer.ggml.add_bos_token", begins), says("tokenizer.ggml.add_eos_token", False)
    tokenizer.add_bos_token, tokenizer.add_eos_token = bos, eos
    text = tokenizer.encode("a", add_special_tokens=False)
    expected = [tokenizer.bos_token_id] * bos + text + [tokenizer.eos_token_id] * eos
    if (actual := tokenizer.encode("a")) != expected:
        header.refuse(f"a tokenizer that cuts 'a' into {expected}; transformers' cuts it into {actual}")


def _check_tokens(header: GgufHeader, tokenizer: Any) -> None:
    """Every token has its id, and those that are matched whole are."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    if set(tokenizer.get_vocab().values()) != set(range(len(tokens))):
        header.refuse(f"{len(tokens)} tokens, some of which are spelled alike")
    added = tokenizer.get_added_vocab()
    types = header.metadata.get("tokenizer.ggml.token_type", [])
    for i, (token, kind) in enumerate(zip(tokens, types, strict=bool(types))):
        whole = kind not in (_CONTROL, _USER_DEFINED) or added.get(token) == i
        if not whole and tokenizer.encode(token, add_special_tokens=False) != [i]:
            header.refuse(f"the token {token!r}, which transformers' tokenizer would cut into pieces")
