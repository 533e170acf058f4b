"""Devices, precision and memory format of a training of a module."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ._plan import Plan
from .errors import ConfigurationError

ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
# Spellings that Lightning takes as well.
PRECISIONS = {
    "32-true": "32-true",
    "32": "32-true",
    "64-true": "64-true",
    "64": "64-true",
    "bf16-mixed": "bf16-mixed",
    "bf16": "bf16-mixed",
    "16-mixed": "16-mixed",
    "16": "16-mixed",
}
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def precision_of(given: str | int) -> str:
    """Return the full name of a precision.

    Raises:
        ConfigurationError: It is another one.
    """
    found = PRECISIONS.get(str(given))
    if found is None:
        names = sorted(set(PRECISIONS.values()))
        raise ConfigurationError(f"precision must be one of {names}, not {given!r}")
    return found


def device_of(accelerator: str) -> torch.device:
    """Return the device of this process: `auto` is CUDA, else Apple's GPU, else the CPU.

    Raises:
        ConfigurationError: It is no accelerator, or this machine or torch has none of that kind.
    """
    name, _, index = accelerator.partition(":")
    if name not in ACCELERATORS or (index and not index.isdecimal()):
        raise ConfigurationError(
            f"accelerator must be one of {ACCELERATORS} or 'cuda:<n>', not {accelerator!r}"
        )
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if name == "gpu":
        name = "mps" if has_mps and not has_cuda else "cuda"
    if (name == "cuda" and not has_cuda) or (name == "mps" and not has_mps):
        raise ConfigurationError(
            f"accelerator={accelerator!r}, but torch {torch.__version__} finds no such device here: "
            "use 'auto' or 'cpu'"
        )
    if name != "cuda":
        return torch.device(name)
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ConfigurationError(
            f"accelerator={accelerator!r} is cuda:{number}, but there are {torch.cuda.device_count()} devices"
        )
    return torch.device("cuda", number)


def check(accelerator: str, devices: int | str, precision: str | int) -> None:
    """Refuse settings of devices that no machine has.

    Raises:
        ConfigurationError: The text names the setting and what it must be.
    """
    device_of(accelerator)
    precision_of(precision)
    is_number = isinstance(devices, int) or str(devices).isdecimal()
    if str(devices) != "auto" and not (is_number and int(devices) >= 1):
        raise ConfigurationError(f"devices must be a number from 1 on or 'auto', not {devices!r}")


class Place:
    """Device, precision and memory format of a module and of its batches.

    Args:
        plan: The settings.

    Raises:
        ConfigurationError: A setting names what is not there.
    """

    def __init__(self, plan: Plan) -> None:
        self.device = device_of(plan.accelerator)
        self.precision = precision_of(plan.precision)
        self._is_channels_last = plan.channels_last
        self.scaler: torch.amp.GradScaler | None = None
        if self.precision == "16-mixed":
            self.scaler = torch.amp.GradScaler(self.device.type)
        is_plain = self.device.type == "cpu" and self.precision == "32-true" and not plan.channels_last
        #: True where modules and batches stay as they are.
        self.is_plain = is_plain

    def put(self, module: nn.Module) -> None:
        """Bring a module here; its parameters stay the same objects."""
        if self.is_plain:
            return
        module.to(self.device)
        if self.precision == "64-true":
            module.double()
        if self._is_channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        kind = MIXED.get(self.precision)
        return nullcontext() if kind is None else torch.autocast(self.device.type, kind)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss for the gradients: with a scale where 16 bits could lose small ones."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def move(self, batch: Any) -> Any:
        """Bring a batch here: every tensor in lists, tuples and dicts."""
        return batch if self.is_plain else _each_tensor(batch, self._moved)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        is_real = tensor.is_floating_point()
        kind = torch.float64 if self.precision == "64-true" and is_real else None
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            kind = torch.float32
        moved = tensor.to(self.device, kind, non_blocking=True)
        if self._is_channels_last and moved.dim() == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        return moved


def _each_tensor(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        items = {key: _each_tensor(value, change) for key, value in batch.items()}
        return items if type(batch) is dict else type(batch)(items)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each_tensor(value, change) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_each_tensor(value, change) for value in batch)
    return batch


class ScaledOptimizer:
    """An optimiser behind a scaler of gradients: a step with infinite gradients is left out."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self._optimizer = optimizer
        self._scaler = scaler

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of the optimiser."""
        return self._optimizer.param_groups

    def step(self) -> None:
        """Take a step, unless a gradient is infinite."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def zero_grad(self) -> None:
        """Remove the gradients."""
        self._optimizer.zero_grad()
