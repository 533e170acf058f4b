"""The values that a module logs: per step, and reduced over an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ._distributed import World

REDUCTIONS = ("mean", "sum", "min", "max")


class Logged:
    """Values of one phase of a training, with the rules of `LightningModule.log`.

    Args:
        on_step: True where a value is logged at each step unless the caller says otherwise.
    """

    def __init__(self, on_step: bool) -> None:
        self._on_step = on_step
        self._sums: dict[str, _Reduced] = {}
        self.step: dict[str, float] = {}
        self.bar: set[str] = set()

    def log(
        self,
        name: str,
        value: Any,
        rows: int,
        on_step: bool | None,
        on_epoch: bool | None,
        reduction: str,
        prog_bar: bool,
    ) -> None:
        """Take one value.

        Raises:
            ValueError: The value is no number, or the reduction is not one of `REDUCTIONS`.
        """
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduce_fx of {name!r} must be one of {REDUCTIONS}, not {reduction!r}")
        on_step = self._on_step if on_step is None else on_step
        on_epoch = not self._on_step if on_epoch is None else on_epoch
        both = on_step and on_epoch
        if prog_bar:
            self.bar.add(name)
        compute: Callable[[], Any] | None = getattr(value, "compute", None)
        if compute is not None:
            if on_epoch:
                self._sums[f"{name}_epoch" if both else name] = _Reduced.of_metric(value)
            if on_step:
                self.step[f"{name}_step" if both else name] = float(value._forward_cache)
            return
        number = _number(name, value)
        if on_step:
            self.step[f"{name}_step" if both else name] = float(number)
        if on_epoch:
            key = f"{name}_epoch" if both else name
            self._sums.setdefault(key, _Reduced(reduction)).add(number, rows)

    def take_step(self) -> dict[str, float]:
        """Return the values of this step, and begin the next one."""
        values, self.step = self.step, {}
        return values

    def take_epoch(self, world: World) -> dict[str, float]:
        """Return the values of the epoch over all processes, and begin the next one."""
        sums, self._sums = self._sums, {}
        if world.size > 1:
            # A metric object reduces its state itself.
            joined = {name: it for name, it in sums.items() if it.is_metric}
            mine = {name: it.state() for name, it in sums.items() if not it.is_metric}
            for states in world.gather(mine):
                for name, state in states.items():
                    other = _Reduced.of_state(state)
                    joined[name] = joined[name].joined(other) if name in joined else other
            sums = joined
        return {name: reduced.value() for name, reduced in sums.items()}

    def state(self) -> dict[str, Any]:
        """Return the values of the epoch so far, as data that `torch.load` takes."""
        return {name: reduced.state() for name, reduced in self._sums.items() if not reduced.is_metric}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the values of an epoch."""
        self._sums = {name: _Reduced.of_state(it) for name, it in state.items()}


class _Reduced:
    def __init__(self, reduction: str) -> None:
        self._reduction = reduction
        self._total: Any = None
        self._rows = 0
        self._metric: Any = None

    @classmethod
    def of_metric(cls, metric: Any) -> _Reduced:
        reduced = cls("mean")
        reduced._metric = metric
        return reduced

    @classmethod
    def of_state(cls, state: Sequence[Any]) -> _Reduced:
        reduction, total, rows = state
        reduced = cls(reduction)
        reduced._total, reduced._rows = total, rows
        return reduced

    @property
    def is_metric(self) -> bool:
        return self._metric is not None

    def state(self) -> list[Any]:
        total = self._total.cpu() if isinstance(self._total, torch.Tensor) else self._total
        return [self._reduction, total, self._rows]

    def add(self, value: Any, rows: int) -> None:
        self._join(value * rows if self._reduction == "mean" else value, rows)

    def joined(self, other: _Reduced) -> _Reduced:
        self._join(other._total, other._rows)
        return self

    def _join(self, value: Any, rows: int) -> None:
        self._rows += rows
        if self._total is None:
            self._total = value
        else:
            # Tensors stay tensors: nothing waits for a device before the end of the epoch.
            join = {"mean": _sum, "sum": _sum, "min": _least, "max": _most}[self._reduction]
            self._total = join(self._total, value)

    def value(self) -> float:
        if self._metric is not None:
            value = float(self._metric.compute())
            self._metric.reset()
            return value
        return float(self._total) / self._rows if self._reduction == "mean" else float(self._total)


def _sum(one: Any, other: Any) -> Any:
    return one + other


def _least(one: Any, other: Any) -> Any:
    return torch.minimum(torch.as_tensor(one), torch.as_tensor(other))


def _most(one: Any, other: Any) -> Any:
    return torch.maximum(torch.as_tensor(one), torch.as_tensor(other))


def _number(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"the logged value {name!r} must be one number, not a tensor of {tuple(value.shape)}"
            )
        return value.detach().reshape(())
    if isinstance(value, (int, float)):
        return value
    raise ValueError(f"the logged value {name!r} must be a number, not {type(value).__name__}")
