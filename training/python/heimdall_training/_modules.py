"""The steps of a training of a `torch.nn.Module`, which the loop calls."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import _native, _native_parts, _random
from ._averaging import Averages
from ._checkpoints import Checkpoints
from ._devices import Place, ScaledOptimizer
from ._display import Display
from ._distributed import World
from ._interrupts import Interrupts
from ._logged import Logged
from ._plan import Plan
from ._schedules import MONITORS, Scheduler
from .errors import ConfigurationError
from .tracking import Recorder

# Names of the parts in the hooks of Lightning.
PHASES = {"val": "validation", "test": "test"}


class Steps:
    """The training of a module: what the loop calls, and the state that callbacks see as the trainer.

    Args:
        module: The module.
        train: Batches of the training; iterated over once in each epoch.
        val: Batches of the validation, or None.
        optimizer: Optimiser of the module's parameters; None where there is only an evaluation.
        schedulers: Schedulers of its learning rates.
        plan: The settings.
        recorder: Receiver of metrics and checkpoints.
        log_dir: Folder of the files.
        place: Device and precision.
        world: The processes of the training.
    """

    def __init__(
        self,
        module: nn.Module,
        train: Iterable[Any],
        val: Iterable[Any] | None,
        optimizer: Any,
        schedulers: list[Scheduler],
        plan: Plan,
        recorder: Recorder,
        log_dir: Path,
        place: Place,
        world: World,
    ) -> None:
        self.module = module
        self.train_dataloader = train
        self.val_dataloaders = val
        self.optimizers: list[Any] = [optimizer]
        self.schedulers = schedulers
        self.plan = plan
        self.max_epochs = plan.max_epochs
        self.callbacks = plan.callbacks
        self.current_epoch = 0
        self.global_step = 0
        self.should_stop = False
        self.callback_metrics: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.training_log = Logged(on_step=True)
        self.validation_log = Logged(on_step=False)
        self.validating = False
        #: `val` or `test`: the part of the data that is being evaluated.
        self.part = "val"
        self.checkpoints = Checkpoints(log_dir / "checkpoints", plan.save_top_k, plan.mode, world.is_first)
        self.place = place
        self.world = world
        self.interrupts = Interrupts()
        self.display = Display(plan.max_epochs) if plan.show is not None and world.is_first else None
        self.averages: Averages | None = None
        # The checkpoints name their run, so that a training that goes on is recorded there.
        self.run_id: str | None = None
        self._recorder = recorder
        self._waited = 0
        # Number of the signal that some process had received before the last step of several.
        self._signal = 0
        self._best = math.inf
        self._batch = self._train_batch = 0
        self._batches_per_epoch: int | None = None
        self._rows_of_epoch = 0
        self._begun = self._ended = 0.0
        self._random_of_epoch: dict[str, Any] = {}
        # The batch that the loop has asked for last: it is one ahead of the steps.
        self._fetched: Any = None
        self._fetches = 0
        # Content of a checkpoint in the middle of an epoch, until that epoch goes on.
        self._middle: Mapping[str, Any] | None = None

    # What the loop calls

    def run(self, first_epoch: int = 0, first_step: int = 0) -> dict[str, Any]:
        """Train, and return what the loop reports."""
        self.current_epoch, self.global_step = first_epoch, first_step
        plan = self.plan
        optimizer = self.optimizers[0]
        if plan.ema_decay is not None and self.averages is None:
            self.averages = Averages(self.module, plan.ema_decay)
        self._batches_per_epoch = _length(self.train_dataloader, plan.limit_train_batches)
        groups = _native_parts.groups(optimizer) if self._is_arithmetic_native() else None
        if groups is not None:
            # Schedulers warn where they find no step that the optimiser itself has taken.
            optimizer._opt_called = True
        scaler = self.place.scaler
        report: dict[str, Any] = _native.fit_module(
            {
                "steps": self,
                "native": self.native() if self._is_arithmetic_native() and self.world.size == 1 else None,
                "optimizer": optimizer if scaler is None else ScaledOptimizer(optimizer, scaler),
                "groups": groups,
                "has_validation": self.val_dataloaders is not None,
                "batches_per_epoch": self._batches_per_epoch,
                "max_epochs": plan.max_epochs,
                "accumulate_grad_batches": plan.accumulate_grad_batches,
                "gradient_clip_val": plan.gradient_clip_val,
                "num_threads": plan.num_threads,
                "val_check_interval": self._interval(),
                "grad_norm_every": plan.log_every_n_steps,
                "has_gradient_hook": scaler is not None or self.world.size > 1 or self.has_gradient_hook(),
                "first_epoch": first_epoch,
                "first_step": first_step,
                "first_batch": 0 if self._middle is None else int(self._middle["batches"]),
            }
        )
        return report

    def native(self) -> dict[str, Any] | None:
        """Return the layers and the loss, where the loop can run them itself."""
        return None

    def train_batches(self, epoch: int) -> Iterator[Any]:
        """Begin an epoch, and yield its batches."""
        self.current_epoch, self._batch, self._fetches, self._rows_of_epoch = epoch, 0, 0, 0
        self.module.train()
        sampler = getattr(self.train_dataloader, "sampler", None)
        for it in (self.train_dataloader, sampler):
            if callable(set_epoch := getattr(it, "set_epoch", None)):
                set_epoch(epoch)
        self.hook("on_train_epoch_start")
        middle, self._middle = self._middle, None
        if middle is not None:
            _random.restore(middle["random"])
        self._random_of_epoch = _random.state()
        batches = self._limited(self.train_dataloader, self.plan.limit_train_batches)
        if middle is not None:
            batches = self._behind(batches, middle)
        self._begun = self._ended = time.perf_counter()
        return self._moved(batches)

    def val_batches(self, epoch: int) -> Iterator[Any]:
        """Yield the batches of a validation, from its beginning to its end; none in an epoch without one."""
        if (epoch + 1) % self.plan.check_val_every_n_epoch != 0 or self.val_dataloaders is None:
            return
        self.world.share_buffers(self.module)
        if self.averages is not None:
            self.averages.swap()
        yield from self.begin_evaluation(self.plan.limit_val_batches)
        self.end_evaluation()
        if self.averages is not None:
            self.averages.swap()
        self.module.train()

    def training_step(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def validation_step(self, batch: Any) -> None:
        """Look at a batch of the validation."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Begin the training."""
        self.hook("on_fit_start")
        self.hook("on_train_start")

    def on_before_optimizer_step(self) -> None:
        """Complete the gradients of a step, over the processes and without the scale of mixed precision."""
        signal = self.world.average_gradients(self.module.parameters(), self.interrupts.received)
        self._signal = signal if self.world.size > 1 else 0
        if self.place.scaler is not None:
            self.place.scaler.unscale_(self.optimizers[0])
        self.hook("on_before_optimizer_step", self.optimizers[0])

    def on_train_batch_end(self, step: int, grad_norm: float | None) -> bool:
        """Note the values of a step; True asks for a checkpoint."""
        has_stepped, self.global_step = step != self.global_step, step
        if has_stepped:
            for scheduler in self.schedulers:
                if scheduler.interval == "step" and step % scheduler.frequency == 0:
                    scheduler.step(self.callback_metrics)
            if self.averages is not None:
                self.averages.update()
        self.after_batch()
        self._batch += 1
        self._ended = time.perf_counter()
        values = self.training_log.take_step()
        if values:
            self.callback_metrics.update(values)
        plan = self.plan
        if has_stepped and step % plan.log_every_n_steps == 0:
            if grad_norm is not None:
                values = {**values, "train/grad_norm": grad_norm}
            self._record({**values, **self.rates(), "epoch": self.current_epoch}, step - 1)
        if self.display is not None:
            self.display.batch(self.current_epoch, self._batch, self._batches_per_epoch, self._shown(values))
        every = plan.save_every_n_steps
        signal = self.interrupts.received
        if self.world.size > 1:
            # All processes end behind the same step, or the others would wait for this one's gradients.
            signal = self._signal
            self.interrupts.tell(signal)
        return signal != 0 or (every is not None and has_stepped and step % every == 0)

    def save_inside(self, epoch: int, step: int, state: list[dict[str, Any]]) -> None:
        """Write a checkpoint in the middle of an epoch, and end there where a signal was received."""
        self._write_state(state)
        content = self.checkpoint(epoch, step)
        is_ahead = self._fetches > self._batch
        content["heimdall"] |= {
            "batches": self._batch,
            "fetched": [self._fetched] if is_ahead and _is_storable(self._fetched) else [],
            "random": self._random_of_epoch,
            "logged": self.training_log.state(),
            "rows": self._rows_of_epoch,
        }
        self.checkpoints.save_last(content)
        if self.world.size == 1 or self._signal:
            self.interrupts.end()

    def on_validation_end(
        self, epoch: int, step: int, lr: float, metrics: dict[str, float], state: list[dict[str, Any]]
    ) -> str | None:
        """End a validation in the middle of an epoch. Returns the reason for an end of the training."""
        values = {**metrics, **self.evaluated()}
        self.callback_metrics.update(values)
        self._record({**values, "epoch": epoch}, max(step - 1, 0))
        monitor = self.monitor(values)
        score = values.get(monitor or "")
        if score is not None and self.checkpoints.wants(score):
            self._write_state(state)
            self.checkpoints.save_best(self.checkpoint(epoch, step), epoch, step, score)
        return self._reason(values, monitor)

    def on_epoch_end(
        self, epoch: int, step: int, lr: float, metrics: dict[str, float], state: list[dict[str, Any]]
    ) -> str | None:
        """End an epoch: metrics, schedulers, checkpoints. Returns the reason for an end of the training."""
        self.hook("on_train_epoch_end")
        trained = self.trained()
        values = {**metrics, **self.over_all("train"), **trained, **self.evaluated()}
        self.callback_metrics.update(values)
        self.history.append({**values, "lr": lr, "epoch": epoch, "step": step})
        rows = sum(self.world.gather(self._rows_of_epoch))
        speed = rows / max(self._ended - self._begun, 1e-9)
        recorded = {**values, **self.rates(), "train/samples_per_second": speed, "epoch": epoch}
        self._record(recorded, max(step - 1, 0))
        for scheduler in self.schedulers:
            if scheduler.interval == "epoch" and (epoch + 1) % scheduler.frequency == 0:
                scheduler.step(self.callback_metrics)
        monitor = self.monitor(values)
        reason = self._reason(values, monitor)
        self._write_state(state)
        score = values.get(monitor or "")
        self.checkpoints.save(self.checkpoint(epoch, step), epoch, step, score)
        if self.display is not None:
            self.display.epoch(epoch, values)
        self.interrupts.tell(max(self.world.gather(self.interrupts.received)))
        self.interrupts.end()
        return reason

    def on_fit_end(self) -> None:
        """End the training. The module has the averages of the weights, where there are some."""
        if self.averages is not None:
            self.averages.swap()
        self.hook("on_train_end")
        self.hook("on_fit_end")

    # Validation and test

    def begin_evaluation(self, limit: int | float | None) -> Iterator[Any]:
        """Begin a validation or a test, and yield its batches."""
        self.validating, self._train_batch, self._batch = True, self._batch, 0
        self.module.eval()
        self.hook(f"on_{PHASES[self.part]}_start")
        self.hook(f"on_{PHASES[self.part]}_epoch_start")
        batches = self._limited(self.val_dataloaders or (), limit)
        return batches if self.place.is_plain else map(self.place.move, batches)

    def end_evaluation(self) -> None:
        """End a validation or a test."""
        self.hook(f"on_{PHASES[self.part]}_epoch_end")
        self.hook(f"on_{PHASES[self.part]}_end")
        self.validating, self._batch = False, self._train_batch

    def evaluated(self) -> dict[str, float]:
        """Return the metrics of a validation or of a test."""
        return {**self.over_all(self.part), **self.validation_log.take_epoch(self.world)}

    def logs(self) -> AbstractContextManager[None]:
        """Return the context in which a module that logs does it here."""
        return nullcontext()

    # For subclasses

    def after_batch(self) -> None:
        """Run after the step of a batch."""

    def trained(self) -> dict[str, float]:
        """Return the values that the training has logged in this epoch."""
        return self.training_log.take_epoch(self.world)

    def over_all(self, part: str) -> dict[str, float]:
        """Return the metrics that are computed of all batches of a part together, and begin anew."""
        return {}

    def has_gradient_hook(self) -> bool:
        """Return True where something wants to see the gradients of a step."""
        return any(hasattr(callback, "on_before_optimizer_step") for callback in self.callbacks)

    def hook(self, name: str, *arguments: Any) -> None:
        """Call a hook of the callbacks, and of the module where it has such hooks."""
        for callback in self.callbacks:
            if (function := getattr(callback, name, None)) is not None:
                function(self, self.module, *arguments)

    def rates(self) -> dict[str, float]:
        """Return the learning rates, under the names of Lightning's `LearningRateMonitor`."""
        optimizer = self.optimizers[0]
        name = f"lr-{type(optimizer).__name__}"
        groups = optimizer.param_groups
        if len(groups) == 1:
            return {name: float(groups[0]["lr"])}
        return {f"{name}/pg{index + 1}": float(group["lr"]) for index, group in enumerate(groups)}

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take what a checkpoint has besides the states: random numbers go on where they were."""
        if "random" in content and self.world.is_first:
            _random.restore(content["random"])
        more = content.get("heimdall")
        if not isinstance(more, Mapping):
            return
        self._waited, self._best = int(more["waited"]), float(more["best"])
        self.checkpoints.restore(more["best_k"])
        if self.place.scaler is not None and "scaler" in more:
            self.place.scaler.load_state_dict(dict(more["scaler"]))
        if "weights" in more and self.plan.ema_decay is not None:
            self.averages = Averages(self.module, self.plan.ema_decay)
            self.averages.load_state_dict(more["weights"])
            self.averages.swap()
        if "batches" in more:
            self._middle = {**more, "random_behind": content.get("random")}

    def checkpoint(self, epoch: int, step: int) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        best_k = self.checkpoints.state()
        more: dict[str, Any] = {"waited": self._waited, "best": self._best, "best_k": best_k}
        if self.run_id is not None:
            more["run_id"] = self.run_id
        if self.place.scaler is not None:
            more["scaler"] = self.place.scaler.state_dict()
        state = {name: tensor.detach() for name, tensor in self.module.state_dict().items()}
        if self.averages is not None:
            # Whoever opens the checkpoint gets the averages; the training goes on with the weights.
            averages = self.averages.state_dict()
            more["weights"] = {name: state[name] for name in averages}
            state |= averages
        return {
            "random": _random.state(),
            "epoch": epoch,
            "global_step": step,
            "state_dict": state,
            "optimizer_states": [self.optimizers[0].state_dict()],
            "lr_schedulers": [scheduler.object.state_dict() for scheduler in self.schedulers],
            "heimdall": more,
        }

    def monitor(self, values: Mapping[str, float]) -> str | None:
        """Return the name of the metric by which the best checkpoint is chosen."""
        name = self.plan.monitor
        if name is None:
            return next((name for name in MONITORS if name in values), None)
        if name not in self.callback_metrics:
            raise ConfigurationError(
                f"monitor={name!r} was not logged; there are {sorted(self.callback_metrics)}"
            )
        return name

    # The rest

    def _is_arithmetic_native(self) -> bool:
        return self.place.is_plain and not self.plan.compile

    def _record(self, values: Mapping[str, float], step: int) -> None:
        if self.world.is_first:
            self._recorder.log_metrics(values, step)

    def _shown(self, values: Mapping[str, float]) -> dict[str, float]:
        bar = self.training_log.bar
        return {name: value for name, value in values.items() if name in bar or name == "train/loss"}

    def _interval(self) -> int | None:
        interval = self.plan.val_check_interval
        if interval is None or isinstance(interval, int):
            return interval
        if self._batches_per_epoch is None:
            raise ConfigurationError(f"val_check_interval={interval} needs a train loader that has a length")
        return max(int(self._batches_per_epoch * interval), 1)

    def _limited(self, batches: Iterable[Any], limit: int | float | None) -> Iterator[Any]:
        length = _length(batches, limit)
        return iter(batches) if limit is None else itertools.islice(iter(batches), length)

    def _behind(self, batches: Iterator[Any], middle: Mapping[str, Any]) -> Iterator[Any]:
        """Leave out the batches that are done; random numbers then go on where they were."""
        done, fetched = int(middle["batches"]), list(middle["fetched"])
        for _ in itertools.islice(batches, done + len(fetched)):
            pass
        self._batch = self._fetches = done
        self._rows_of_epoch = int(middle["rows"])
        self.training_log.restore(middle["logged"])
        if self.world.is_first and middle["random_behind"] is not None:
            _random.restore(middle["random_behind"])
        # The batch that the loop had asked for before the checkpoint has drawn its random numbers already.
        self._rows_of_epoch -= sum(_rows(batch) for batch in fetched)
        return itertools.chain(fetched, batches)

    def _moved(self, batches: Iterator[Any]) -> Iterator[Any]:
        is_plain, move = self.place.is_plain, self.place.move
        for batch in batches:
            self._rows_of_epoch += _rows(batch)
            self._fetched = batch
            self._fetches += 1
            yield batch if is_plain else move(batch)

    def _write_state(self, state: list[dict[str, Any]]) -> None:
        """Give the optimiser the tensors of the loop's state, where the loop does its arithmetic."""
        if not state:
            return
        optimizer = self.optimizers[0]
        parameters = [it for group in optimizer.param_groups for it in group["params"]]
        for parameter, entry in zip(parameters, state, strict=True):
            if entry:
                optimizer.state[parameter] = {**entry, "step": torch.tensor(float(entry["step"]))}

    def _reason(self, values: Mapping[str, float], monitor: str | None) -> str | None:
        if any(self.world.gather(self.should_stop)):
            return "a callback has set should_stop"
        if self.plan.patience is None or monitor is None or monitor not in values:
            return None
        value = values[monitor] if self.plan.mode == "min" else -values[monitor]
        if value < self._best:
            self._best, self._waited = value, 0
            return None
        self._waited += 1
        if self._waited < self.plan.patience:
            return None
        times = "epochs" if self.plan.val_check_interval is None else "validations"
        return f"{monitor} has not improved for {self.plan.patience} {times}"


def _rows(batch: Any) -> int:
    """Return the rows of a batch: those of the first tensor in it."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.dim() else 1
    items = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(items, (str, bytes)) or not hasattr(items, "__iter__"):
        return 1
    return next((_rows(item) for item in items if not isinstance(item, (str, bytes))), 1)


def _is_storable(batch: Any) -> bool:
    """Return True for data that `torch.load` takes without running code."""
    if isinstance(batch, dict):
        return all(isinstance(key, str) and _is_storable(value) for key, value in batch.items())
    if type(batch) in (list, tuple):
        return all(_is_storable(value) for value in batch)
    return type(batch) in (torch.Tensor, int, float, bool, str) or batch is None


def _length(batches: Iterable[Any], limit: int | float | None) -> int | None:
    try:
        length: int | None = len(batches)  # type: ignore[arg-type]
    except TypeError:
        length = None
    if limit is None:
        return length
    if isinstance(limit, float) and limit <= 1.0:
        if length is None:
            raise ConfigurationError(f"a limit of {limit} batches needs a loader that has a length")
        return int(length * limit)
    return int(limit) if length is None else min(length, int(limit))
