"""Tiny random models of every supported architecture, in float64, with every size different."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from circuitdiff.engine import Batch, Edit, Model
from circuitdiff.engine.edits import What
from circuitdiff.models.structure import find_structure
from helpers.reference import NAME, Reference

N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD, D_MODEL, D_MLP, D_VOCAB = 4, 6, 2, 10, 42, 44, 61
N_PROMPTS, LENGTH, N_VARIANTS = 3, 13, 5
LAST = LENGTH - 1
D_QUERY = 15  # of queries and keys where they are wider than values
TOLERANCE = 1e-10

_WIDE = N_HEADS * D_HEAD  # for families in which d_model must be n_heads * d_head
_COMMON = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_KV_HEADS,
    "head_dim": D_HEAD,
    "intermediate_size": D_MLP,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 71,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_HEAD_DIM = {k: v for k, v in _COMMON.items() if k != "head_dim"} | {"hidden_size": _WIDE}
_NO_GROUPS = {k: v for k, v in _NO_HEAD_DIM.items() if k != "num_key_value_heads"}
_GPT2 = {"n_embd": _WIDE, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_inner": D_MLP, "vocab_size": D_VOCAB}
_SLIDING = {"sliding_window": 5}
_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]


def _config(architecture: str) -> tf.PreTrainedConfig:
    match architecture:
        case "llama":
            return tf.LlamaConfig(**_COMMON, attention_bias=True)
        case "mistral":
            return tf.MistralConfig(**_COMMON, **_SLIDING)
        case "qwen2":
            return tf.Qwen2Config(**_NO_HEAD_DIM)
        case "qwen3":
            return tf.Qwen3Config(**_COMMON)
        case "gemma2":
            return tf.Gemma2Config(**_COMMON, **_SLIDING, query_pre_attn_scalar=7, attn_logit_softcapping=3.0)
        case "gemma3":
            return tf.Gemma3TextConfig(**_COMMON, **_SLIDING, query_pre_attn_scalar=7, layer_types=_LAYER_TYPES)
        case "gpt2":
            return tf.GPT2Config(**_GPT2, n_positions=71, bos_token_id=1, eos_token_id=2)
        case "gpt_neox":
            return tf.GPTNeoXConfig(**_NO_GROUPS)
        case "phi3":
            return tf.Phi3Config(**_NO_HEAD_DIM)
        case "olmo2":
            return tf.Olmo2Config(**_NO_HEAD_DIM)
        case "opt":
            wide = {"hidden_size": _WIDE, "word_embed_proj_dim": 28, "ffn_dim": D_MLP, "vocab_size": D_VOCAB}
            sizes = {"num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "max_position_embeddings": 71}
            return tf.OPTConfig(**wide, **sizes, pad_token_id=0)
        case "granite":
            return tf.GraniteConfig(
                **_NO_HEAD_DIM, attention_multiplier=0.3, residual_multiplier=0.7, logits_scaling=0.5
            )
        case "cohere":
            return tf.CohereConfig(**_NO_HEAD_DIM, use_qk_norm=True)
        case "smollm3":
            return tf.SmolLM3Config(**_NO_HEAD_DIM)
        case "deepseek_v3":
            sizes = {"q_lora_rank": 14, "kv_lora_rank": 16, "qk_nope_head_dim": D_QUERY - 6, "qk_rope_head_dim": 6}
            plain = {k: v for k, v in _COMMON.items() if k not in ("head_dim", "num_key_value_heads")}
            plain |= {"num_key_value_heads": N_HEADS, "first_k_dense_replace": N_LAYERS}  # its router is in float32
            return tf.DeepseekV3Config(**plain, **sizes, v_head_dim=D_HEAD)
        case "gpt_oss":
            experts = {"num_local_experts": 5, "num_experts_per_tok": 3, "layer_types": _LAYER_TYPES}
            return tf.GptOssConfig(**_COMMON, **_SLIDING, **experts)
    raise KeyError(architecture)


ARCHITECTURES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"),
    *("gpt_neox", "phi3", "olmo2", "opt", "granite", "cohere", "smollm3", "gpt_oss"),
)
_LAYERS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers"}
_PROJECTION = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "opt": "self_attn.out_proj"}
_PROJECTION |= {"phi": "self_attn.dense"}
_MLP = dict.fromkeys(("gemma2", "gemma3", "olmo2"), "post_feedforward_layernorm")
_MLP |= {"opt": "fc2", "gpt_oss": "mlp.experts"}


@dataclass(frozen=True)
class Subject:
    """One model twice: as circuitdiff sees it, and as the reference runs it."""

    model: Model
    reference: Reference


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights, norms and biases so large that every edit shows in the logits."""
    g = torch.Generator().manual_seed(seed)
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=g, dtype=parameter.dtype)
        if any(part.weight is parameter for part in embeddings):
            parameter.copy_(noise)
        elif parameter.dim() == 1 or "norm" in name:
            parameter.add_(0.3 * noise)
        else:
            parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)


def as_model(name: str, module: PreTrainedModel) -> Model:
    s = find_structure(module, name)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"the": 0}, unk_token="the")))
    return Model(name=name, module=module, tokenizer=tokenizer, provenance={}, **vars(s))


@functools.cache
def subject(architecture: str) -> Subject:
    config = _config(architecture)
    how = {"experts_implementation": "eager"} if architecture == "gpt_oss" else {}  # the others know no float64
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float64, **how).eval().requires_grad_(False)
    randomise(module)
    return as_subject(architecture, module)


def as_subject(architecture: str, module: PreTrainedModel) -> Subject:
    twin = copy.deepcopy(module)
    twin.set_attn_implementation(NAME)
    layers = twin.get_submodule(_LAYERS.get(architecture, "model.layers"))
    path = _PROJECTION.get(architecture, "self_attn.o_proj")
    layers = list(layers)  # pyright: ignore[reportArgumentType]
    projections = [layer.get_submodule(path) for layer in layers]
    mlps = [layer.get_submodule(_MLP.get(architecture, "mlp")) for layer in layers]
    scale = getattr(twin.config, "residual_multiplier", 1.0)
    return Subject(as_model(architecture, module), Reference(twin, layers, projections, mlps, scale, D_HEAD))


def random_tokens(n_prompts: int = N_PROMPTS, length: int = LENGTH, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(3, D_VOCAB, (n_prompts, length), generator=g)


def batch_of(chosen: Subject, tokens: Tensor, start: int = 0) -> Batch:
    return Batch(chosen.model, tokens, start)


class Draw:
    """Random edits, the same for the same seed."""

    def __init__(self, seed: int = 0, n_prompts: int = N_PROMPTS):
        self._g = torch.Generator().manual_seed(seed)
        self._n_prompts = n_prompts

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._g, dtype=torch.float64)

    def edit(
        self,
        layer: int,
        what: What,
        at: int,
        heads: list[int],
        variants: list[int],
        *,
        read_at: int | None = None,
        kept: bool = False,
        shared: bool = False,
        width: int = D_HEAD,
    ) -> Edit:
        """A random replacement, of each variant and prompt its own, or `shared`."""
        n_some, n_prompts = (1, 1) if shared else (len(variants), self._n_prompts)
        replacement = 2 * self.normal(n_some, n_prompts, len(heads), width)
        keep = torch.rand(n_some, n_prompts, len(heads), generator=self._g, dtype=torch.float64) if kept else None
        return Edit(layer, what, at, torch.tensor(heads), torch.tensor(variants), replacement, keep, read_at)


def everything(logits: Tensor, _: Tensor) -> Tensor:
    """A readout: all logits."""
    return logits


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
