"""How many bytes of tensors are alive at once while a block runs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """Counts each storage that an operation makes, until it is freed; what was there before does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_iter(result):
            if isinstance(made, Tensor) and id(made.untyped_storage()) not in given:
                self._count(made.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        n_bytes = storage.nbytes()
        weakref.finalize(storage, self._free, n_bytes)
        self.alive += n_bytes
        self.peak = max(self.peak, self.alive)

    def _free(self, n_bytes: int) -> None:
        self.alive -= n_bytes
