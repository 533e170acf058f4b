"""Training in several processes of `torchrun`: gradients averaged, rows shared out, values reduced."""

from __future__ import annotations

import atexit
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from .errors import ConfigurationError, InvalidInputError
from .loader import RecordingLoader

# Bytes of gradients that are sent at once: those of the first layers wait for nobody.
BUCKET_BYTES = 25 << 20
NAMED_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """Return the number of this process, 0 where it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


class World:
    """The processes of a training; one alone where nobody has started several.

    Args:
        device: Device of this process.
        devices: Processes that the user asks for on this machine, or `auto`.

    Raises:
        ConfigurationError: Other numbers of processes are asked for than there are.
    """

    def __init__(self, device: torch.device, devices: int | str = "auto") -> None:
        if not distributed.is_initialized() and _is_started_by_torchrun():
            # What torchrun says is read from the environment, several machines included.
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_leave)
        is_several = distributed.is_initialized()
        self.rank = rank()
        self.size = distributed.get_world_size() if is_several else 1
        self._device = device
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        if str(devices) != "auto" and int(devices) != here:
            started = "1 process was" if here == 1 else f"{here} processes were"
            raise ConfigurationError(
                f"devices={devices!r}, but {started} started on this machine: "
                f"use devices='auto', and torchrun --nproc-per-node {devices} script.py"
            )

    @property
    def is_first(self) -> bool:
        """True in the one process that records and writes."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """Return the value that the first process has."""
        if self.size == 1:
            return value
        found = [value]
        distributed.broadcast_object_list(found, src=0, device=self._device)
        return found[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of the first one."""
        self._share(list(module.state_dict(keep_vars=True).values()))

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers of the first one, such as the statistics of a BatchNorm."""
        self._share(list(module.buffers()))

    @torch.no_grad()
    def _share(self, tensors: list[Any]) -> None:
        if self.size > 1:
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor):
                    distributed.broadcast(tensor.detach(), src=0)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter], signal: int = 0) -> int:
        """Replace every gradient by its mean over the processes, in buckets that are sent together.

        Args:
            parameters: The parameters of the gradients.
            signal: Number of a signal that this process has received, or 0.

        Returns:
            The largest of these numbers, for all processes to end behind the same step.
        """
        if self.size == 1:
            return signal
        learning = [it for it in parameters if it.requires_grad]
        used_here = [int(it.grad is not None) for it in learning]
        has_one = torch.tensor([*used_here, signal], dtype=torch.uint8, device=self._device)
        # A layer that this process did not use may have been used by another one.
        distributed.all_reduce(has_one, op=distributed.ReduceOp.MAX)
        gradients = []
        *used_anywhere, signal = has_one.tolist()
        for parameter, used in zip(learning, used_anywhere, strict=True):
            if used and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if used and parameter.grad is not None:
                gradients.append(parameter.grad)
        under_way = []
        for bucket in _buckets(gradients):
            flat = torch.cat([it.reshape(-1) for it in bucket])
            under_way.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))
        for bucket, flat, work in under_way:
            work.wait()
            flat.div_(self.size)
            parts = torch.split(flat, [it.numel() for it in bucket])
            for gradient, mean in zip(bucket, parts, strict=True):
                gradient.copy_(mean.view_as(gradient))
        return signal

    def shard(self, name: str, batches: Any, is_training: bool) -> Any:
        """Return the part of a source of batches that this process takes.

        Raises:
            ConfigurationError: A DataLoader has a batch sampler of the user's own, which cannot be divided.
        """
        if self.size == 1 or batches is None:
            return batches
        if isinstance(batches, RecordingLoader):
            return batches.sharded(self.size, self.rank, is_training)
        if not isinstance(batches, DataLoader):
            return EveryNth(batches, self, is_training)
        if isinstance(batches.dataset, IterableDataset) or isinstance(batches.sampler, DistributedSampler):
            return batches
        if batches.batch_size is None or type(batches.batch_sampler) is not torch.utils.data.BatchSampler:
            raise ConfigurationError(
                f"{name} has a batch_sampler of its own, which cannot be divided among {self.size} "
                "processes: give batch_size and sampler, or a DistributedSampler"
            )
        return _with_sampler(batches, ShardedSampler(batches.sampler, self, is_training))


def _is_started_by_torchrun() -> bool:
    size = os.environ.get("WORLD_SIZE", "1")
    return size.isdecimal() and int(size) > 1 and all(os.environ.get(name) for name in NAMED_BY_TORCHRUN)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _buckets(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    size = 0
    # The gradients of the last layers are complete first.
    for tensor in reversed(tensors):
        is_other = bool(bucket) and tensor.dtype != bucket[0].dtype
        if bucket and (is_other or size + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


class ShardedSampler(Sampler[int]):
    """Every `size`-th row of another sampler. The order is the one that the first process draws.

    So the batches of all processes together are those of one process with batches of all their rows.

    Args:
        sampler: The sampler of the user's.
        world: The processes.
        is_training: Each process gets the same number of rows; the first rows fill up what is missing.
    """

    def __init__(self, sampler: Any, world: World, is_training: bool) -> None:
        self._sampler = sampler
        self._world = world
        self._is_training = is_training

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler of the user's the epoch."""
        if callable(set_epoch := getattr(self._sampler, "set_epoch", None)):
            set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = self._world.agree(list(self._sampler) if self._world.is_first else None)
        size = self._world.size
        if self._is_training and order:
            missing = -len(order) % size
            order += list(itertools.islice(itertools.cycle(order), missing))
        return iter(order[self._world.rank :: size])

    def __len__(self) -> int:
        return _share_of(len(self._sampler), self._world, self._is_training)


def _share_of(total: int, world: World, is_training: bool) -> int:
    return -(-total // world.size) if is_training else len(range(world.rank, total, world.size))


class EveryNth:
    """Every `size`-th batch of a source; a training leaves out those that are left over at the end."""

    def __init__(self, batches: Iterable[Any], world: World, is_training: bool) -> None:
        self._batches = batches
        self._world = world
        self._is_training = is_training

    def set_epoch(self, epoch: int) -> None:
        """Tell the source the epoch."""
        if callable(set_epoch := getattr(self._batches, "set_epoch", None)):
            set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        while group := list(itertools.islice(batches, self._world.size)):
            if len(group) == self._world.size or (not self._is_training and self._world.rank < len(group)):
                yield group[self._world.rank]

    def __len__(self) -> int:
        total = len(self._batches)  # type: ignore[arg-type]
        if not self._is_training:
            return _share_of(total, self._world, False)
        if total < self._world.size:
            raise InvalidInputError(
                f"a training needs at least one batch for each of {self._world.size} processes, not {total}"
            )
        return total // self._world.size


def _with_sampler(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
