"""The callback that the logger adds to its trainer: what a logger itself is not told."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import job

_classes: dict[str, type] = {}


class CallbackMethods:
    """Writes the run into each checkpoint, and has the best model logged at the end of the training."""

    logger: Any

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Name the run in a checkpoint, with the first step behind it."""
        run_id = self.logger._known_run_id
        if run_id is not None:
            is_automatic = getattr(pl_module, "automatic_optimization", True)
            # With several optimizers a batch counts several steps; the logger's steps are batches.
            step = trainer.global_step if is_automatic else self.logger._last_step + 1
            checkpoint[job.CHECKPOINT_KEY] = job.mark_of(run_id, step)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the best model."""
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self.logger._fitted(trainer, pl_module)

    def __reduce__(self) -> tuple[Any, ...]:
        package = next(name for name, cls in _classes.items() if type(self) is cls)
        return make, (package, self.logger)


def package_of(trainer: Any) -> str | None:
    """Return the module that a trainer's class, or the class it extends, is of."""
    for cls in type(trainer).__mro__:
        for package in ("lightning.pytorch", "pytorch_lightning"):
            if cls.__module__.startswith(f"{package}."):
                return package
    return None


def make(package: str, logger: Any) -> Any:
    """Make a callback for trainers of a package.

    Args:
        package: `lightning.pytorch` or `pytorch_lightning`.
        logger: The logger.
    """
    if package not in _classes:
        base = import_module(f"{package}.callbacks").Callback
        _classes[package] = type("HeimdallCallback", (CallbackMethods, base), {})
    callback = _classes[package]()
    callback.logger = logger
    return callback


def attach(trainer: Any, logger: Any) -> None:
    """Add the callback to a trainer that has the logger, once."""
    package = package_of(trainer)
    if package is None:
        return
    for callback in trainer.callbacks:
        if isinstance(callback, CallbackMethods) and callback.logger is logger:
            return
    # Checkpoint callbacks stay the last.
    trainer.callbacks.insert(0, make(package, logger))
