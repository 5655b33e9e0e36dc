"""What every test shares: no network, one thread, and the tiny models of `engine/tiny_models.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).parent / "engine"))

import torch

torch.set_num_threads(1)
