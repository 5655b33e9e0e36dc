"""Workers on the machines of a Ray cluster (the extra `circuitdiff[ray]`).

Each is an actor that holds a `Host`. Models and files that a study names must be where the actors run, at the same
paths; prompts, units and records travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from circuitdiff.errors import InputError
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.workers import HostOfProcess, Worker, WorkerLost

LOCAL = "local"  # a cluster on this machine, for as long as the study runs


class RayWorker:
    """An actor; one that dies is replaced by a new one."""

    def __init__(self, ray: Any, settings: CommonSettings, device: str, n_threads: int) -> None:
        self._ray, self._arguments = ray, (settings, device, n_threads)
        self._resources = {"num_cpus": n_threads, "num_gpus": 0 if torch.device(device).type == "cpu" else 1}
        self._actor: Any = None

    async def call(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            self._actor = self._ray.remote(**self._resources)(HostOfProcess).remote(*self._arguments)
        try:
            return await self._actor.call.remote(method, arguments)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:  # the actor, its node, or what it had to say is gone
            self.end()
            raise WorkerLost("a Ray worker died") from error

    def end(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._actor = None


@contextmanager
def ray_workers(settings: CommonSettings, address: str, n: int) -> Iterator[list[Worker]]:
    """`n` workers on the cluster at `address`, or on one that is started on this machine ("local").

    Of several devices each gets one, in turn; a GPU that Ray hands out is called cuda there.

    Raises: InputError if Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs Ray: pip install 'circuitdiff[ray]'") from error
    n_threads = max(1, torch.get_num_threads() // n) if address == LOCAL else 1
    try:
        where: dict[str, Any] = {"num_cpus": n * n_threads} if address == LOCAL else {"address": address}
        ray.init(**where, log_to_driver=False, include_dashboard=False, configure_logging=False)
    except Exception as error:  # whatever Ray says of its clusters
        raise InputError(
            f"there is no Ray cluster at {address!r} ({type(error).__name__}); give its address, or local"
        ) from error
    try:
        _check_room(ray, settings, n, n_threads)
        yield [RayWorker(ray, settings, settings.device[i % len(settings.device)], n_threads) for i in range(n)]
    finally:
        ray.shutdown()


def _check_room(ray: Any, settings: CommonSettings, n: int, n_threads: int) -> None:
    """Raises: InputError if the cluster has too few processors or GPUs: its workers would be waited for, for ever."""
    on_gpu = torch.device(settings.device[0]).type != "cpu"
    has, needs = ray.cluster_resources(), {"CPU": n * n_threads} | ({"GPU": n} if on_gpu else {})
    for what, number in needs.items():
        if has.get(what, 0) < number:
            raise InputError(
                f"{n} workers need {number} {what}s, and the Ray cluster has {has.get(what, 0):g}; give fewer --workers"
            )
