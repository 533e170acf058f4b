"""The training of a `torch.nn.Module` or of a Lightning module by the native loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import _lightning, _schedules
from ._devices import Place
from ._distributed import World
from ._interrupts import Interrupts, Terminated
from ._modules import Steps, _length
from ._plan import Plan
from ._schedules import Scheduler
from ._supervised import LocalizationSteps, ModuleSteps
from .errors import CheckpointNotFoundError, ConfigurationError, InvalidInputError
from .localization_net import LocalizationNet
from .results import ModuleFitResult
from .torch_net import TorchLocalizationNet
from .tracking import Recorder

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "huber": nn.functional.huber_loss,
    "cross_entropy": nn.functional.cross_entropy,
    "bce_with_logits": nn.functional.binary_cross_entropy_with_logits,
}


@dataclass(frozen=True)
class Data:
    """What `Trainer.fit` was given besides the module."""

    train: Any
    val: Any
    datamodule: Any
    ckpt_path: str | Path | None
    loss: str | Callable[..., torch.Tensor] | None
    optimizer: str | torch.optim.Optimizer | None
    scheduler: Any
    run_id: str | None = None


Make = Callable[[Recorder, Path], Steps]


def prepared(module: Any, data: Data, plan: Plan) -> tuple[World, Make]:
    """Check everything, and return the processes of the training and what makes its steps.

    Raises:
        InvalidInputError: The module, the data or the loss is something else.
        ConfigurationError: The module needs what this trainer does not do, or a setting cannot work.
    """
    plan.check()
    place = Place(plan)
    module, plan = bare(module, plan)
    _lightning.check_module(module)
    if not _lightning.is_lightning(module):
        return _of_module(module, data, plan, place)
    refused = {"loss": data.loss, "optimizer": data.optimizer, "scheduler": data.scheduler}
    refused |= {"schedule": None if plan.schedule == "constant" else plan.schedule}
    refused |= {"warmup_steps": plan.warmup_steps or None}
    for name, value in refused.items():
        if value is not None:
            raise ConfigurationError(
                f"{name}= is for plain modules: {type(module).__name__} has its own by "
                + ("training_step" if name == "loss" else "configure_optimizers")
            )
    _lightning.check(module, plan.callbacks)
    world = World(place.device, plan.devices)
    return world, lambda recorder, log_dir: _of_lightning(module, data, plan, recorder, log_dir, place, world)


def bare(module: Any, plan: Plan) -> tuple[Any, Plan]:
    """Return the module of torch behind ours or behind a compiled one, and the plan with that compilation."""
    if isinstance(module, LocalizationNet):
        # The module has the same tensors.
        return module.module(), plan
    original = getattr(module, "_orig_mod", None)
    if not isinstance(original, nn.Module):
        return module, plan
    # The names of the tensors are those of the module itself, with all settings of its compilation.
    compiled = module.dynamo_ctx(original._call_impl)
    return original, replace(plan, compile=lambda: setattr(original, "_compiled_call_impl", compiled))


def _of_module(module: nn.Module, data: Data, plan: Plan, place: Place) -> tuple[World, Make]:
    is_ours = isinstance(module, TorchLocalizationNet)
    loss = None if is_ours and data.loss is None else loss_of(data.loss)
    train, val = data.train, data.val
    if train is None and data.datamodule is not None:
        raise InvalidInputError("a datamodule is for Lightning modules: give train_dataloaders")
    check_batches("train_dataloaders", train)
    if val is not None:
        check_batches("val_dataloaders", val)
    if data.scheduler is not None and (plan.schedule != "constant" or plan.warmup_steps):
        raise ConfigurationError(
            "scheduler= is given, so schedule and warmup_steps must be left out: the scheduler sets the rates"
        )
    world = World(place.device, plan.devices)
    train, val = world.shard("train_dataloaders", train, True), world.shard("val_dataloaders", val, False)
    place.put(module)
    optimizer = data.optimizer
    if optimizer is None or isinstance(optimizer, str):
        optimizer = _schedules.make_optimizer(module, optimizer or "adamw", plan)
    elif not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidInputError(
            f"optimizer must be 'adamw', 'sgd' or a torch.optim.Optimizer, not {type(optimizer).__name__}"
        )
    if data.scheduler is not None:
        schedulers = [Scheduler(data.scheduler)]
    else:
        length = _length(train, plan.limit_train_batches)
        schedulers = _schedules.of_plan(optimizer, plan, length)

    def make(recorder: Recorder, log_dir: Path) -> Steps:
        kind = LocalizationSteps if is_ours else ModuleSteps
        steps = kind(module, train, val, optimizer, schedulers, plan, recorder, log_dir, place, world)
        steps.loss = loss
        return steps

    return world, make


def _of_lightning(
    module: Any, data: Data, plan: Plan, recorder: Recorder, log_dir: Path, place: Place, world: World
) -> Steps:
    source: Any = module
    for it in (data.datamodule, data.train):
        if it is not None and _lightning.is_data_module(it):
            source = it
    for it in {id(source): source, id(module): module}.values():
        if world.is_first:
            it.prepare_data()
        world.agree(None)
        it.setup("fit")
    module.configure_model()
    place.put(module)
    train = data.train if data.train is not None and data.train is not source else source.train_dataloader()
    check_batches("train_dataloaders", train)
    val = data.val
    if val is None and (source is not module or _lightning.overrides(module, "val_dataloader")):
        val = source.val_dataloader()
    if val is not None and not _lightning.overrides(module, "validation_step"):
        val = None
    val = only("val_dataloaders", val)
    train, val = world.shard("train_dataloaders", train, True), world.shard("val_dataloaders", val, False)
    optimizer, schedulers = _lightning.configured(module)
    datamodule = source if source is not module else None
    steps = _lightning.LightningSteps(
        module, train, val, optimizer, schedulers, plan, recorder, log_dir, place, world, datamodule
    )
    steps.attach()
    return steps


def only(name: str, loaders: Any) -> Any:
    """Return the loader of a list of one.

    Raises:
        ConfigurationError: There are several.
    """
    if isinstance(loaders, (list, tuple)) and len(loaders) == 1 and not isinstance(loaders[0], torch.Tensor):
        return loaders[0]
    if isinstance(loaders, (list, tuple)):
        raise ConfigurationError(f"several {name} are not supported: {len(loaders)} were given")
    return loaders


def loss_of(given: str | Callable[..., torch.Tensor] | None) -> Callable[..., torch.Tensor]:
    """Return the loss that a user names."""
    if isinstance(given, str) and given in LOSSES:
        return LOSSES[given]
    if callable(given) and not isinstance(given, type):
        return given
    if isinstance(given, type):
        raise InvalidInputError(f"loss must be an object, not its class: write {given.__name__}()")
    raise InvalidInputError(
        f"loss must be a function of outputs and targets, or one of {sorted(LOSSES)}, not {given!r}"
    )


def check_batches(name: str, batches: Any) -> None:
    """Refuse what cannot be iterated over once in each epoch."""
    if isinstance(batches, torch.Tensor) or not isinstance(batches, Iterable):
        raise InvalidInputError(
            f"{name} must be batches to iterate over, such as a torch.utils.data.DataLoader, "
            f"not {type(batches).__name__}"
        )
    if hasattr(batches, "__next__"):
        raise InvalidInputError(
            f"{name} must be iterable once in each epoch, but a {type(batches).__name__} is used up "
            "after one: give a list or a DataLoader"
        )


def fit(make: Make, data: Data, recorder: Recorder, log_dir: Path) -> tuple[Steps, ModuleFitResult]:
    """Train, record, and return the result."""
    steps = make(recorder, log_dir)
    with Interrupts() as steps.interrupts:
        try:
            report = _run(steps, data)
        except Terminated as reason:
            report = {"stopped": str(reason), "seconds": 0.0}
        finally:
            for parameter in steps.module.parameters():
                parameter.grad = None
            if steps.display is not None:
                steps.display.close()
            # A training that was interrupted or diverged has checkpoints, too.
            if steps.world.is_first:
                for path in sorted(steps.checkpoints.folder.glob("*.ckpt")):
                    recorder.log_artifact(path, "checkpoints")
    # The other processes may read a checkpoint as soon as they return.
    steps.world.agree(None)
    best = steps.checkpoints.best
    best_path, best_score = next(iter(best.items()), (None, None))
    return steps, ModuleFitResult(
        history=steps.history,
        metrics=dict(steps.callback_metrics),
        best_model_path=best_path,
        best_model_score=best_score,
        best_k_models=dict(best),
        last_model_path=steps.checkpoints.last,
        stopped=report["stopped"],
        seconds=report["seconds"],
        log_dir=log_dir,
    )


def _run(steps: Steps, data: Data) -> dict[str, Any]:
    steps.run_id = data.run_id
    steps.world.share_weights(steps.module)
    first_epoch, first_step = 0, 0
    if data.ckpt_path is not None:
        first_epoch, first_step = _go_on(steps, Path(data.ckpt_path))
    with compiled(steps.module, steps.plan):
        return steps.run(first_epoch, first_step)


@contextmanager
def compiled(module: nn.Module, plan: Plan) -> Iterator[None]:
    """Compile the calls of a module, and give the module its own calls back at the end."""
    if not plan.compile:
        yield
        return
    before = module._compiled_call_impl
    if callable(plan.compile):
        plan.compile()
    else:
        module.compile(**({"backend": plan.compile} if isinstance(plan.compile, str) else {}))
    try:
        yield
    finally:
        module._compiled_call_impl = before


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint; no code of it runs.

    Raises:
        CheckpointNotFoundError: It does not exist, or is none.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(f"the checkpoint {path} does not exist")
    try:
        content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointNotFoundError(f"the checkpoint {path} cannot be read: {error}") from error
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise CheckpointNotFoundError(f"the checkpoint {path} has no state_dict")
    return content


def load_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of a checkpoint.

    Raises:
        CheckpointNotFoundError: It does not exist, or is of another module.
    """
    try:
        module.load_state_dict(read_checkpoint(path)["state_dict"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointNotFoundError(
            f"the checkpoint {path} cannot be used for this module: {error}"
        ) from error


def _go_on(steps: Steps, path: Path) -> tuple[int, int]:
    """Load a checkpoint; returns the epochs and the steps that are done."""
    content = read_checkpoint(path)
    try:
        steps.module.load_state_dict(content["state_dict"])
        for optimizer, state in zip(steps.optimizers, content["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for scheduler, state in zip(steps.schedulers, content["lr_schedulers"], strict=True):
            scheduler.object.load_state_dict(state)
        steps.restore(content)
        is_inside = "batches" in content.get("heimdall", {})
        return int(content["epoch"]) + (0 if is_inside else 1), int(content["global_step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointNotFoundError(
            f"the checkpoint {path} cannot be used for this module: {error}"
        ) from error


def run_of(path: Path) -> tuple[str, int] | None:
    """Return the run that a checkpoint is of, and its step."""
    content = read_checkpoint(path)
    more = content.get("heimdall")
    if not isinstance(more, Mapping) or not isinstance(more.get("run_id"), str):
        return None
    return more["run_id"], int(content["global_step"])
