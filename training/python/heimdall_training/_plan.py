"""The settings of a training of a module."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigurationError

SCHEDULES = ("constant", "cosine", "plateau")
AT_LEAST_ONE = (
    "max_epochs",
    "num_threads",
    "log_every_n_steps",
    "check_val_every_n_epoch",
    "accumulate_grad_batches",
    "patience",
    "save_every_n_steps",
)
NOT_NEGATIVE = ("save_top_k", "warmup_steps", "min_lr")
# Fields that are no hyperparameters.
NOT_RECORDED = ("show", "callbacks")


@dataclass
class Plan:
    """Settings of a training of a module; see `Trainer` for each of them."""

    max_epochs: int
    lr: float
    min_lr: float
    weight_decay: float
    decay_norms_and_biases: bool
    schedule: str
    warmup_steps: int
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    ema_decay: float | None
    seed: int | None
    num_threads: int
    accelerator: str
    devices: int | str
    precision: str | int
    channels_last: bool
    compile: bool | str | Callable[[], object]
    log_every_n_steps: int
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    limit_test_batches: int | float | None
    check_val_every_n_epoch: int
    val_check_interval: int | float | None
    monitor: str | None
    mode: str
    patience: int | None
    save_top_k: int
    save_every_n_steps: int | None
    show: Callable[[str], object] | None
    callbacks: list[Any] = field(default_factory=list)

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            ConfigurationError: The text names the setting and what it must be.
        """
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < 1):
                raise ConfigurationError(f"{name} must be at least 1, not {value!r}")
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if not value >= 0 or value == math.inf:
                raise ConfigurationError(f"{name} must be a number from 0 on, not {value!r}")
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} must be above 0, not {value!r}")
        clip = self.gradient_clip_val
        if clip is not None and not (clip > 0 and math.isfinite(clip)):
            raise ConfigurationError(f"gradient_clip_val must be a number above 0 or None, not {clip!r}")
        self._check_rest()

    def _check_rest(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigurationError(f"lr must be a number above 0, not {self.lr!r}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ConfigurationError(f"weight_decay must be a number from 0 on, not {self.weight_decay!r}")
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"mode must be 'min' or 'max', not {self.mode!r}")
        if self.schedule not in SCHEDULES:
            raise ConfigurationError(f"schedule must be one of {SCHEDULES}, not {self.schedule!r}")
        if self.min_lr > self.lr:
            raise ConfigurationError(f"min_lr must be at most lr ({self.lr}), not {self.min_lr!r}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must be between 0 and 1 or None, not {self.ema_decay!r}")
        interval = self.val_check_interval
        if interval is None:
            return
        is_share = isinstance(interval, float) and 0 < interval <= 1
        if not is_share and not (_is_whole(interval) and interval >= 1):
            raise ConfigurationError(
                "val_check_interval must be a number of batches from 1 on, or a share of an epoch, 0…1 as "
                f"a float, not {interval!r}"
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
