"""Validation, test and prediction of a module, without a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import _lightning
from ._devices import Place
from ._distributed import World
from ._modules import Steps
from ._plan import Plan
from ._supervised import LocalizationSteps, ModuleSteps
from .errors import ConfigurationError, InvalidInputError
from .module_training import bare, check_batches, compiled, loss_of, only
from .torch_net import TorchLocalizationNet
from .tracking import Recorder

LOADERS = {"val": "val_dataloader", "test": "test_dataloader"}
STAGES = {"val": "validate", "test": "test"}
STEPS = {"val": "validation_step", "test": "test_step"}


def evaluate(
    part: str,
    module: Any,
    batches: Any,
    datamodule: Any,
    loss: str | Callable[..., torch.Tensor] | None,
    plan: Plan,
) -> dict[str, float]:
    """Measure a module on all batches, over all processes.

    Args:
        part: `val` or `test`.
        module: The module.
        batches: Its batches, or None where the module or the data module has them.
        datamodule: A Lightning data module, or None.
        loss: Loss of a plain module.
        plan: The settings.

    Returns:
        The metrics: `<part>/loss` of a plain module, what a Lightning module logs, errors of positions.

    Raises:
        InvalidInputError: There are no such batches, or something is no module or no loss.
        ConfigurationError: The module has no such step.
    """
    plan.check()
    place = Place(plan)
    module, plan = bare(module, plan)
    check_module(module)
    batches = _batches(part, module, batches, datamodule)
    world = World(place.device, plan.devices)
    batches = world.shard(f"{part}_dataloaders", batches, False)
    place.put(module)
    steps = _steps(part, module, batches, loss, plan, place, world)
    limit = plan.limit_val_batches if part == "val" else plan.limit_test_batches
    was_training = module.training
    with torch.no_grad(), steps.logs(), compiled(module, plan):
        for batch in steps.begin_evaluation(limit):
            steps.validation_step(batch)
        steps.end_evaluation()
    module.train(was_training)
    return steps.evaluated()


def predict(module: Any, batches: Any, datamodule: Any, plan: Plan) -> list[Any]:
    """Return the outputs of a module for each batch; of a batch of inputs and targets, for the inputs.

    Raises:
        InvalidInputError: There are no batches, or something is no module.
    """
    plan.check()
    place = Place(plan)
    module, plan = bare(module, plan)
    check_module(module)
    is_lightning = _lightning.is_lightning(module)
    if batches is None and datamodule is not None:
        datamodule.setup("predict")
        batches = datamodule.predict_dataloader()
    batches = only("predict dataloaders", batches) if is_lightning else batches
    check_batches("dataloaders", batches)
    place.put(module)
    was_training = module.training
    module.eval()
    outputs = []
    with torch.inference_mode(), compiled(module, plan), place.autocast():
        for index, batch in enumerate(batches):
            moved = place.move(batch)
            outputs.append(module.predict_step(moved, index) if is_lightning else module(_inputs(moved)))
    module.train(was_training)
    return outputs


def check_module(module: object) -> None:
    """Refuse things that are no module, as `fit` does; one without parameters to learn is fine."""
    if not isinstance(module, nn.Module):
        given = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise InvalidInputError(
            "validate, test and predict need a RssLocalizationNet, a LocalizationNet, a torch.nn.Module or a "
            f"LightningModule, not {given}"
        )


def _batches(part: str, module: Any, batches: Any, datamodule: Any) -> Any:
    is_lightning = _lightning.is_lightning(module)
    if datamodule is None and _lightning.is_data_module(batches):
        batches, datamodule = None, batches
    if batches is None and is_lightning:
        source = datamodule if datamodule is not None else module
        source.prepare_data()
        source.setup(STAGES[part])
        batches = getattr(source, LOADERS[part])()
    if is_lightning:
        batches = only(f"{part} dataloaders", batches)
        if not _lightning.overrides(module, STEPS[part]):
            raise ConfigurationError(f"{type(module).__name__} has no {STEPS[part]}")
    check_batches("dataloaders", batches)
    return batches


def _steps(part: str, module: Any, batches: Any, loss: Any, plan: Plan, place: Place, world: World) -> Steps:
    common: Any = (module, None, batches, None, [], plan, Recorder(None), Path(), place, world)
    steps: Steps
    if _lightning.is_lightning(module):
        if loss is not None:
            raise ConfigurationError(f"loss= is for plain modules: {type(module).__name__} has {STEPS[part]}")
        steps = _lightning.LightningSteps(*common)
        steps.attach()
    else:
        is_ours = isinstance(module, TorchLocalizationNet)
        steps = (LocalizationSteps if is_ours else ModuleSteps)(*common)
        steps.loss = None if is_ours and loss is None else loss_of(loss)
    steps.part = part
    return steps


def _inputs(batch: Any) -> Any:
    if isinstance(batch, (list, tuple)) and batch:
        return batch[0]
    if isinstance(batch, Mapping):
        raise InvalidInputError("a batch must be the inputs, or a pair of inputs and targets, not a dict")
    return batch
