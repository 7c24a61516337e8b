"""Several processes that train one model, started by `torchrun`: gloo between CPUs, NCCL between GPUs.

Each rank computes its contiguous share of every batch. All draw the same paths, which are functions of (seed, step), so the
parameters that took part are the same everywhere, and their gradients are averaged in one all-reduce for each data type.
There is no DistributedDataParallel: a supernet's step leaves most parameters out, for which it would search the graph in each
step; what that search finds is known here beforehand. The price is that communication starts when the backward pass is over.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from hwnas.errors import InputError, UnavailableError

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others: longer than a checkpoint takes to write."""

_ENVIRONMENT = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE


@dataclass(frozen=True)
class Group:
    """The processes of a run; by default this one alone, which needs no communication.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
        local_rank: Which one this is on its machine: the GPU it takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This rank's device.

        Raises:
            InputError: Several processes would share one GPU.
            UnavailableError: The device is not usable here.
        """
        if self.size > 1 and ":" in name:
            raise InputError(f"With {self.size} processes each takes the device of its rank, but the device is {name!r}: use "
                             f"{name.partition(':')[0]!r}.")
        try:
            device = torch.device(name)
            if self.size > 1 and device.type == "cuda":
                device = torch.device("cuda", self.local_rank)
                torch.cuda.set_device(device)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UnavailableError(f"The device {name!r} must be one that PyTorch can use here, but it reports "
                                   f"{str(error).splitlines()[0]!r}: use 'cpu'.") from None
        return device

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each floating-point tensor by its mean over the ranks; all ranks give tensors of the same shapes."""
        if self.size == 1:
            return
        by_type: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            by_type[tensor.dtype].append(tensor)
        for each in by_type.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in each])
            with self._together():
                distributed.all_reduce(flat)
            flat /= self.size
            parts = flat.split([tensor.numel() for tensor in each])
            torch._foreach_copy_(each, [part.view(tensor.shape) for part, tensor in zip(parts, each, strict=True)])

    @torch.no_grad()
    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by those of rank 0."""
        if self.size == 1:
            return
        for tensor in tensors:
            same = tensor.contiguous()  # channels last is copied there and back
            with self._together():
                distributed.broadcast(same, 0)
            tensor.copy_(same)

    def lowest(self, value: int) -> int:
        """The lowest of the ranks' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        with self._together():
            distributed.all_reduce(found, distributed.ReduceOp.MIN)
        return int(found)

    def wait(self) -> None:
        """Returns once every rank has come here."""
        self.lowest(0)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Turns what a lost rank raises in the others into a sentence."""
        try:
            yield
        except RuntimeError as error:  # DistBackendError and its like among them
            reason = (str(error).splitlines() or [""])[0]
            raise UnavailableError(f"All {self.size} processes of a run must go on together, but rank {self.rank} has lost "
                                   f"another ({reason}): see that one's error; the same command continues from the last "
                                   "checkpoint.") from None


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Joins the processes that `torchrun` started; without it, or with one process, the group is this process alone.

    Args:
        device: Which the ranks compute on, "cpu" or "cuda".

    Raises:
        InputError: The environment is not that of `torchrun`.
        UnavailableError: The other processes cannot be reached.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield Group()
        return
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise InputError(f"Several processes are started by torchrun, which sets {missing[0]}, but WORLD_SIZE is {size} without "
                         "it: use torchrun, or unset WORLD_SIZE.")
    group = Group(int(os.environ["RANK"]), int(size), int(os.environ["LOCAL_RANK"]))
    with group._together():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield group
    finally:
        distributed.destroy_process_group()
