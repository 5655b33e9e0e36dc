"""A study of two tiny models: a base, and a variant with a few other weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitdiff.cache.store import Store
from circuitdiff.settings import read_settings
from circuitdiff.workbench import Workbench
from helpers.tiny_folder import save_tiny_model, study_yaml


@torch.no_grad()
def two_model_bench(folder: Path) -> Workbench:
    """A workbench whose variant "tuned" differs in the values of layer 1 and the last MLP."""
    base = save_tiny_model(folder / "base")
    tuned = AutoModelForCausalLM.from_pretrained(base)
    tuned.model.layers[1].self_attn.v_proj.weight.mul_(-1.5)
    tuned.model.layers[2].mlp.up_proj.weight.mul_(1.5)
    tuned.save_pretrained(folder / "tuned")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "tuned")
    text = study_yaml(base, variants=f"{{tuned: {folder / 'tuned'}}}")
    (folder / "two.yaml").write_text(text)
    return Workbench(read_settings(folder / "two.yaml"), Store.open(folder / "run"), lambda *_: None)
