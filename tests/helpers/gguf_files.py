"""Tiny GGUF files, written from transformers models as llama.cpp's converter writes them."""

from __future__ import annotations

import gguf
import torch
import transformers as tf

N_LAYERS, D_VOCAB = 2, 44
SIZES = {
    "vocab_size": D_VOCAB,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
D_HEAD = 8
CONTROLS = ["<pad>", "<s>", "</s>"]
BYTE_LEVEL = [
    *CONTROLS,
    *"abcdefghijklmnopqrstuvwxyz",
    *"0123",
    "\u0120",
    "!",
    "\u010a",
    "ab",
    "\u0120a",
    "\u0120\u0120",
]
BYTE_LEVEL += ["abc", "\u01201", "bc", "12", "ba"]
MERGES = ["a b", "\u0120 a", "\u0120 \u0120", "b c", "\u0120 1", "1 2", "b a"]  # "abc" is reached by no merge
SENTENCEPIECE = [*CONTROLS, *"abcdefghijklmnopqrstuvwxyz", *"0123456789", "\u2581", "ab", "\u2581a", "!", "?"]
CONTROL, NORMAL = 3, 1


@torch.no_grad()
def random_model(kind: str, seed: int = 0, **changes):
    """A decoder in float64 whose weights float32 holds exactly, also with 1 added or taken away."""
    architecture = getattr(tf, f"{kind}ForCausalLM")
    model = architecture._from_config(architecture.config_class(**SIZES | changes), dtype=torch.float64).eval()
    g = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randint(-24, 25, parameter.shape, generator=g) / 64)
    return model


def settings_of(model, epsilon: str = "layer_norm_rms_epsilon", eps: float = 2**-10) -> dict[str, object]:
    """What every file says, under the architecture's name."""
    config = model.config
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        f"attention.{epsilon}": eps,
    }


def byte_level(pre: str = "gpt-2", **more: object) -> dict[str, object]:
    return {"model": "gpt2", "pre": pre, "tokens": BYTE_LEVEL, "merges": MERGES} | more


def sentencepiece(**more: object) -> dict[str, object]:
    scores = [-float(i) for i in range(D_VOCAB)]
    return {"model": "llama", "tokens": SENTENCEPIECE, "scores": scores} | more


def write_gguf(
    path, model, architecture, settings, *, tokenizer=None, metadata=None, tensors=None, permute=False, shift=0
):
    """`permute`: heads' halves are interleaved; `shift`: what is added to the norms' weights."""
    writer = gguf.GGUFWriter(path, architecture)
    tokenizer = {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 0} | (tokenizer or byte_level())
    types = [CONTROL if token in CONTROLS else NORMAL for token in tokenizer["tokens"]]
    texts = {f"{architecture}.{key}": value for key, value in settings.items()} | (metadata or {})
    texts |= {f"tokenizer.ggml.{key}": value for key, value in ({"token_type": types} | tokenizer).items()}
    for key, value in texts.items():
        _add(writer, key, value)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, N_LAYERS)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), weight.float().chunk(2, dim=1), strict=True):
                writer.add_tensor(f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight", half.contiguous().numpy())
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        stored += ".weight" * ("." not in stored.removeprefix("blk.").lstrip("0123456789").lstrip("."))
        heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
        if permute and (n := heads.get(stored.split(".")[2] if stored.startswith("blk") else "")):
            weight = weight.reshape(n, 2, D_HEAD // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        weight = weight + shift if stored.endswith("norm.weight") else weight
        writer.add_tensor(stored, weight.float().contiguous().numpy())
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, torch.as_tensor(values, dtype=torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        kinds[type(value)](key, value)
