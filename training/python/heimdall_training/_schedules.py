"""Learning rates: schedulers of the user's, and those that a trainer makes by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ._plan import Plan
from .errors import ConfigurationError, InvalidInputError

# Names under which a validation loss is looked for, where the user names no metric.
MONITORS = ("val/loss", "val_loss")


@dataclass
class Scheduler:
    """A scheduler of learning rates, and the times of its steps."""

    object: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None

    def step(self, metrics: Mapping[str, float]) -> None:
        """Take a step, with the metric that the scheduler waits for."""
        if not isinstance(self.object, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.object.step()
            return
        name = self.monitor or next((name for name in MONITORS if name in metrics), "val/loss")
        if name not in metrics:
            raise ConfigurationError(
                f"ReduceLROnPlateau monitors {name!r}, which was not logged; there are {sorted(metrics)}"
            )
        self.object.step(metrics[name])


class WarmupCosine:
    """Learning rates that rise linearly over `warmup_steps`, and then stay or fall along half a cosine.

    The formula is equation 5 of Loshchilov and Hutter, "SGDR", 2017, without restarts, as in the native loop.

    Args:
        optimizer: Its groups get the rates; those that they have are the highest ones.
        warmup_steps: The first step uses the highest rate divided by this number.
        total_steps: Steps at which the cosine ends; None stays at the highest rate.
        floor: Rate at the end of the cosine.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int | None, floor: float
    ) -> None:
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.floor = floor
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.steps = 0
        self._set()

    def step(self) -> None:
        """Set the rates of the next step."""
        self.steps += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"steps": self.steps, "base_lrs": self.base_lrs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was."""
        self.steps, self.base_lrs = int(state["steps"]), list(state["base_lrs"])
        self._set()

    def _set(self) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self._rate(peak)

    def _rate(self, peak: float) -> float:
        if self.steps < self.warmup_steps:
            return peak * (self.steps + 1) / self.warmup_steps
        if self.total_steps is None:
            return peak
        falling = max(self.total_steps - self.warmup_steps, 1)
        progress = min((self.steps - self.warmup_steps) / falling, 1.0)
        return self.floor + (peak - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def of_plan(optimizer: torch.optim.Optimizer, plan: Plan, batches_per_epoch: int | None) -> list[Scheduler]:
    """Return the schedulers that a plan names.

    Raises:
        ConfigurationError: A cosine needs the number of steps, and the loader has no length; or the warm-up
            is longer than the training.
    """
    found = []
    if plan.schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=plan.min_lr)
        found.append(Scheduler(plateau, monitor=plan.monitor))
    total = None
    if batches_per_epoch is not None:
        total = -(-batches_per_epoch // plan.accumulate_grad_batches) * plan.max_epochs
    if plan.schedule == "cosine" and total is None:
        raise ConfigurationError("schedule='cosine' needs a train loader that has a length")
    if total is not None and plan.warmup_steps > total:
        raise ConfigurationError(
            f"warmup_steps must be at most the {total} steps of the training, not {plan.warmup_steps}"
        )
    if plan.schedule == "plateau" and plan.warmup_steps:
        raise ConfigurationError("warmup_steps is for schedule='constant' or 'cosine', not for 'plateau'")
    if plan.schedule == "cosine" or plan.warmup_steps:
        until = total if plan.schedule == "cosine" else None
        rates = WarmupCosine(optimizer, plan.warmup_steps, until, plan.min_lr)
        found.append(Scheduler(rates, interval="step"))
    return found


def make_optimizer(module: torch.nn.Module, kind: str, plan: Plan) -> torch.optim.Optimizer:
    """Return the optimiser that a user names: `adamw`, or `sgd` with Nesterov's momentum of 0.9."""
    learning = [it for it in module.parameters() if it.requires_grad]
    groups: list[dict[str, Any]] = [{"params": learning}]
    if not plan.decay_norms_and_biases:
        # Norms and biases are vectors; everything that is multiplied has more axes.
        matrices = [it for it in learning if it.dim() > 1]
        vectors = [it for it in learning if it.dim() <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    is_on_cuda = bool(learning) and learning[0].is_cuda
    if kind == "adamw":
        return torch.optim.AdamW(
            groups, lr=plan.lr, weight_decay=plan.weight_decay, fused=True if is_on_cuda else None
        )
    if kind == "sgd":
        return torch.optim.SGD(
            groups, lr=plan.lr, weight_decay=plan.weight_decay, momentum=0.9, nesterov=True
        )
    raise InvalidInputError(f"optimizer must be 'adamw', 'sgd' or a torch.optim.Optimizer, not {kind!r}")
