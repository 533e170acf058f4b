"""The steps of a training of a Lightning module with automatic optimisation.

What Lightning's trainer does and this one does not is refused by name before the first step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ._devices import Place
from ._distributed import World
from ._modules import PHASES, Steps, _length, _rows
from ._plan import Plan
from ._schedules import Scheduler
from .errors import ConfigurationError, InvalidInputError
from .tracking import Recorder

# The layout of the checkpoints; Lightning's loaders ask for a version.
LAYOUT = "2.6.0"
# Methods that Lightning calls in place of its own ones where a module has them.
REFUSED = (
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "configure_sharded_model",
    "configure_callbacks",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_validation_model_zero_grad",
)


def is_lightning(module: object) -> bool:
    """Return True for a module of `lightning` or `pytorch_lightning`; neither is imported for that."""
    return any(isinstance(module, base) for base in _bases("LightningModule"))


def is_data_module(data: object) -> bool:
    """Return True for a data module of either package."""
    return any(isinstance(data, base) for base in _bases("LightningDataModule"))


def _bases(name: str) -> list[type]:
    modules = (sys.modules.get(package) for package in ("lightning.pytorch", "pytorch_lightning"))
    return [getattr(module, name) for module in modules if module is not None]


def check(module: Any, callbacks: list[Any]) -> None:
    """Refuse what this trainer does not do.

    Raises:
        ConfigurationError: The module or a callback needs it; the text names it.
    """
    if not module.automatic_optimization:
        raise ConfigurationError(
            f"{type(module).__name__}.automatic_optimization must be True; "
            "manual optimisation is not supported"
        )
    for name in REFUSED:
        if overrides(module, name):
            raise ConfigurationError(
                f"{type(module).__name__}.{name} is not supported: leave it out, or use lightning.Trainer"
            )
    for callback in callbacks:
        origin = type(callback).__module__
        if origin.startswith(("lightning.", "pytorch_lightning.")):
            raise ConfigurationError(
                f"the callback {type(callback).__name__} of Lightning is not supported: it needs Lightning's "
                "loops. Checkpoints and early stopping are arguments here: save_top_k, monitor, patience"
            )


def overrides(module: Any, name: str) -> bool:
    """Return True where a module has a method of its own in place of Lightning's."""
    lightning = next(base for base in type(module).__mro__ if base.__name__ == "LightningModule")
    return getattr(type(module), name, None) is not getattr(lightning, name, None)


def configured(module: Any) -> tuple[torch.optim.Optimizer, list[Scheduler]]:
    """Return what `configure_optimizers` gives, in each of the forms that Lightning takes.

    Raises:
        ConfigurationError: It gives another form, no optimiser, or several.
    """
    given = module.configure_optimizers()
    schedulers: list[Any] = []
    if isinstance(given, Mapping):
        schedulers = [given["lr_scheduler"]] if given.get("lr_scheduler") is not None else []
        given = given.get("optimizer")
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], (list, tuple)):
        given, schedulers = given[0], list(given[1])
    if isinstance(given, (list, tuple)):
        if len(given) != 1:
            raise ConfigurationError(
                f"configure_optimizers() of {type(module).__name__} must give one optimiser, not {len(given)}"
            )
        given = given[0]
        if isinstance(given, Mapping):
            schedulers = [given["lr_scheduler"]] if given.get("lr_scheduler") is not None else []
            given = given["optimizer"]
    if not isinstance(given, torch.optim.Optimizer):
        raise ConfigurationError(
            f"configure_optimizers() of {type(module).__name__} must give a torch.optim.Optimizer, "
            f"not {type(given).__name__}"
        )
    return given, [_scheduler(it) for it in schedulers]


def _scheduler(given: Any) -> Scheduler:
    if not isinstance(given, Mapping):
        return Scheduler(given)
    interval = given.get("interval", "epoch")
    if interval not in ("step", "epoch"):
        raise ConfigurationError(f"the interval of a scheduler must be 'step' or 'epoch', not {interval!r}")
    return Scheduler(given["scheduler"], interval, int(given.get("frequency", 1)), given.get("monitor"))


class LightningSteps(Steps):
    """The training of a Lightning module. The module sees this object as its trainer."""

    num_nodes = num_devices = 1
    node_rank = 0
    sanity_checking = predicting = False

    def __init__(
        self,
        module: Any,
        train: Any,
        val: Any,
        optimizer: Any,
        schedulers: list[Scheduler],
        plan: Plan,
        recorder: Recorder,
        log_dir: Path,
        place: Place,
        world: World,
        datamodule: Any = None,
    ) -> None:
        super().__init__(module, train, val, optimizer, schedulers, plan, recorder, log_dir, place, world)
        self.is_global_zero = world.is_first
        self.world_size, self.global_rank = world.size, world.rank
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0)) if world.size > 1 else 0
        self.datamodule = datamodule
        self.default_root_dir = str(log_dir)
        self.logger = self.loggers = None
        self._rows = 1
        self._index = 0
        self._output: Any = None
        self._given: Any = None

    def attach(self) -> None:
        """Make this object the module's trainer."""
        module: Any = self.module
        module._trainer = None
        module.__dict__["_fabric"] = None
        module.trainer = self

    @property
    def lightning_module(self) -> Any:
        """The module."""
        return self.module

    model = lightning_module

    @property
    def training(self) -> bool:
        """True outside of a validation."""
        return not self.validating

    @property
    def testing(self) -> bool:
        """True in a test."""
        return self.validating and self.part == "test"

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The newest values of everything that was logged."""
        return self.callback_metrics

    @property
    def estimated_stepping_batches(self) -> float:
        """Optimiser steps of the whole training."""
        batches = _length(self.train_dataloader, self.plan.limit_train_batches)
        if batches is None:
            return float("inf")
        return -(-batches // self.plan.accumulate_grad_batches) * self.plan.max_epochs

    def run(self, first_epoch: int = 0, first_step: int = 0) -> dict[str, Any]:
        """Train, and return what the loop reports."""
        with self.logs():
            return super().run(first_epoch, first_step)

    @contextmanager
    def logs(self) -> Iterator[None]:
        """Make the module log here, while the context lasts."""
        module: Any = self.module
        module.log, module.log_dict = self.log, self.log_dict
        try:
            yield
        finally:
            for name in ("log", "log_dict"):
                module.__dict__.pop(name, None)

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log a value, as `LightningModule.log` does."""
        log = self.validation_log if self.validating else self.training_log
        if self._given is None:
            # Outside of the steps, in the hooks of an epoch, there is no step to log to.
            on_step, on_epoch = False, True
        reduction = getattr(reduce_fx, "__name__", str(reduce_fx)).removeprefix("torch.")
        if self._given is not None and batch_size is None:
            batch_size = _rows(self._given)
        log.log(name, value, batch_size or 1, on_step, on_epoch, reduction, prog_bar)

    def log_dict(self, dictionary: Mapping[str, Any], *arguments: Any, **named: Any) -> None:
        """Log several values."""
        for name, value in dictionary.items():
            self.log(name, value, *arguments, **named)

    def training_step(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch."""
        module: Any = self.module
        self._given, self._index = batch, self._batch
        self.hook("on_train_batch_start", batch, self._index)
        with self.place.autocast():
            output = module.training_step(*self._arguments(module.training_step))
        self._output = output
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, torch.Tensor):
            raise InvalidInputError(
                f"{type(module).__name__}.training_step must return the loss as a tensor, or a dict with "
                f"'loss', not {type(loss).__name__}"
            )
        return self.place.scaled(loss)

    def validation_step(self, batch: Any) -> None:
        """Look at a batch of the validation or of the test."""
        phase = PHASES[self.part]
        step = getattr(self.module, f"{phase}_step")
        self._given, self._index = batch, self._batch
        self.hook(f"on_{phase}_batch_start", batch, self._index)
        with self.place.autocast():
            output = step(*self._arguments(step))
        self.hook(f"on_{phase}_batch_end", output, batch, self._index)
        self._batch += 1
        self._given = None

    def after_batch(self) -> None:
        """Call the hook behind a step."""
        self.hook("on_train_batch_end", self._output, self._given, self._index)
        self._output = self._given = None

    def hook(self, name: str, *arguments: Any) -> None:
        """Call a hook of the callbacks, and then that of the module, as Lightning does."""
        super().hook(name, *arguments)
        if (function := getattr(self.module, name, None)) is not None:
            function(*arguments)

    def has_gradient_hook(self) -> bool:
        """Return True where the module or a callback wants to see the gradients of a step."""
        return super().has_gradient_hook() or overrides(self.module, "on_before_optimizer_step")

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take what a checkpoint has besides the states."""
        super().restore(content)
        module: Any = self.module
        module.on_load_checkpoint(content)

    def checkpoint(self, epoch: int, step: int) -> dict[str, Any]:
        """Return the content of a checkpoint, in Lightning's layout."""
        module: Any = self.module
        content = super().checkpoint(epoch, step)
        content["pytorch-lightning_version"] = LAYOUT
        if getattr(module, "hparams", None):
            content["hparams_name"] = module._hparams_name
            content["hyper_parameters"] = dict(module.hparams)
        module.on_save_checkpoint(content)
        return content

    def _arguments(self, function: Any) -> tuple[Any, ...]:
        """Return the batch, and its index where the step takes one."""
        takes_index = _takes_index(function)
        return (self._given, self._index) if takes_index else (self._given,)


def _takes_index(function: Any) -> bool:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return True
    names = code.co_varnames[: code.co_argcount]
    return "batch_idx" in names or len(names) > 2


def check_module(module: object) -> None:
    """Refuse things that are no module.

    Raises:
        InvalidInputError: It is something else; the text says what is needed.
    """
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise InvalidInputError(f"fit() needs a module, not its class: write {module.__name__}(…)")
    if not isinstance(module, nn.Module):
        raise InvalidInputError(
            "fit() needs a RssLocalizationNet, a LocalizationNet, a torch.nn.Module or a LightningModule, "
            f"not {type(module).__name__}"
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise InvalidInputError(
            f"{type(module).__name__} has no parameters that can learn: "
            "each has requires_grad=False, or there are none"
        )
