"""The parts of a module training that the loop can do itself: layers, losses and the arithmetic of AdamW.

They compute what PyTorch's Python code computes, on the same tensors. What is not known here is left to
Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LAYERS = (
    nn.Linear,
    nn.LayerNorm,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Dropout,
    nn.Flatten,
    nn.Identity,
)
LOSSES: dict[Any, str] = {
    functional.mse_loss: "mse",
    functional.l1_loss: "l1",
    functional.huber_loss: "huber",
    functional.cross_entropy: "cross_entropy",
    functional.binary_cross_entropy_with_logits: "bce_with_logits",
}
LOSS_MODULES: dict[type, str] = {
    nn.MSELoss: "mse",
    nn.L1Loss: "l1",
    nn.HuberLoss: "huber",
    nn.CrossEntropyLoss: "cross_entropy",
    nn.BCEWithLogitsLoss: "bce_with_logits",
}
# Settings of `torch.optim.AdamW` that change its arithmetic, with the values that they must have.
ADAMW = {"amsgrad": False, "maximize": False, "capturable": False, "differentiable": False}


def layers(module: nn.Module, loss: Callable[..., Any]) -> dict[str, Any] | None:
    """Describe a `nn.Sequential` of known layers and a known loss for the native loop.

    Returns:
        None where Python has to run the module: another class, a hook, a layer or a loss that is not known.
    """
    name = loss_name(loss)
    found = _flat(module)
    if name is None or found is None:
        return None
    return {
        "layers": found,
        "state": [(key, tensor.detach()) for key, tensor in module.state_dict(keep_vars=True).items()],
        "loss": name,
        "delta": float(getattr(loss, "delta", 1.0)),
    }


def loss_name(loss: Callable[..., Any]) -> str | None:
    """Return the name of a loss that the loop knows; None for another one, or for other settings."""
    if isinstance(loss, nn.Module):
        plain: dict[str, Any] = {"reduction": "mean", "weight": None, "pos_weight": None}
        plain |= {"ignore_index": -100, "label_smoothing": 0.0}
        if any(getattr(loss, name, value) != value for name, value in plain.items()):
            return None
        return LOSS_MODULES.get(type(loss))
    return LOSSES.get(loss)


def _flat(module: nn.Module) -> list[nn.Module] | None:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return None
    if type(module) in LAYERS:
        return [module] if not hasattr(module, "parametrizations") else None
    if type(module) is not nn.Sequential:
        return None
    found: list[nn.Module] = []
    for child in module:
        inner = _flat(child)
        if inner is None:
            return None
        found += inner
    return found


def groups(optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]] | None:
    """Return the parameters of each group of an AdamW whose arithmetic the loop can do; else None."""
    if type(optimizer) is not torch.optim.AdamW:
        return None
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if any(getattr(optimizer, name, None) for name in hooks):
        return None
    for group in optimizer.param_groups:
        if any(group.get(name, value) != value for name, value in ADAMW.items()):
            return None
        if any(it.is_sparse or it.is_complex() for it in group["params"]):
            return None
    return [list(group["params"]) for group in optimizer.param_groups]
