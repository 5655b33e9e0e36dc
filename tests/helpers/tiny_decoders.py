"""Tiny random decoders and adapters, as folders on disk."""

from __future__ import annotations

import json

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_LAYERS, D_VOCAB = 3, 41
WORDS = [f"w{i}" for i in range(D_VOCAB - 1)]
SHAPE = {
    "vocab_size": D_VOCAB,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 10,
    "max_position_embeddings": 64,
}


def tiny_decoder(seed: int = 0, **changes) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def save_decoder(folder, model=None, **options):
    """`model` (or the tiny decoder) and the tiny tokenizer, saved in `folder`."""
    (model or tiny_decoder()).save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_random_adapter(folder, model=None, seed=1, targets=("q_proj", "o_proj", "up_proj"), scale=0.1):
    """A LoRA whose deltas are not zero, saved in `folder`; also the tensors, by their keys."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model or tiny_decoder(), LoraConfig(r=2, lora_alpha=6, target_modules=list(targets)))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=scale)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def change_weights(folder, change):
    path = next(folder.glob("*model.safetensors"))
    save_file(change(load_file(path)), path, {"format": "pt"})


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
