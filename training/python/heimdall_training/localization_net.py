"""The network from spectrograms to positions: native for ConvNeXt, a module of torch for other backbones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import weights as weight_files
from ._native import ConvNextLocalizationNet, RssLocalizationNet
from .backbones import CONVNEXT_BLOCKS
from .errors import ConfigurationError
from .model_config import BackboneArchitecture, ModelConfig
from .torch_module import RssLocalizationModule
from .torch_net import LocalizationModule, TorchLocalizationNet


class LocalizationNet(ConvNextLocalizationNet):
    """The position and uncertainty heads of the Heimdall networks on a backbone for spectrograms.

    The input is `[rows, 3, 128, 32]`, one channel per receiver, or any other height and width from 32. The
    output is east and north of `origin` and the standard deviation of each, in units of `position_scale_m`;
    `predict` gives degrees and metres.

    With a ConvNeXt it is native. With another backbone or a module, this call returns a
    `TorchLocalizationNet`, which has the same methods.

    Args:
        backbone: A `BackboneArchitecture`, its name, or a module of torch that gives `[rows, features]`.
        pretrained: Begin with torchvision's ImageNet weights, from torch's cache.
        freeze_backbone: Train the heads alone: the backbone gets no gradients, and works as in evaluation.
        weights: File to begin with: see `load_weights`.
        download: Let `pretrained` download what is not in the cache.
        features: Width of the output of a module of yours; of a named backbone it is known.
        stochastic_depth: Probability that a training row skips the last block of a ConvNeXt; default that of
            torchvision, 0.1 to 0.5.
        head_dropout: Dropout after the first and the second layer of each head; default 0.3 and 0.2.
        origin: Latitude and longitude in degrees that east and north are counted from; default the middle of
            the receivers of Piedmont, Liguria and Lombardy, 44.966 and 8.161.
        position_scale_m: Metres that make an output of 1; default 50,000. The loss is in this unit.
        sigma_floor_m: Smooth lower bound of sigma in metres; default 20.
        sigma_init_m: Sigma of the untrained network in metres; default 20,000.
        seed: Seed of the first weights; default 0.

    Raises:
        ConfigurationError: A setting makes no network.
        MissingPackageError: The backbone needs torchvision, which is not installed.
        PretrainedWeightsNotFoundError: The ImageNet weights are not in the cache; the message has the URL and
            the place.

    Example:
        >>> import torch
        >>> from heimdall_training import LocalizationNet
        >>> net = LocalizationNet("convnext_tiny", origin=(45.0, 8.0))
        >>> positions, sigmas = net.predict(torch.zeros(2, 3, 128, 32))
        >>> positions.shape
        (2, 2)
    """

    def __new__(  # noqa: D102
        cls,
        backbone: str | BackboneArchitecture | nn.Module = "convnext_tiny",
        *,
        pretrained: bool = False,
        freeze_backbone: bool = False,
        weights: str | Path | None = None,
        download: bool = False,
        features: int | None = None,
        stochastic_depth: float | None = None,
        head_dropout: tuple[float, float] | None = None,
        origin: tuple[float, float] | None = None,
        position_scale_m: float | None = None,
        sigma_floor_m: float | None = None,
        sigma_init_m: float | None = None,
        seed: int | None = None,
    ) -> Any:
        settings: dict[str, Any] = {
            "freeze_backbone": freeze_backbone,
            "stochastic_depth": stochastic_depth,
            "head_dropout": head_dropout,
            "origin": origin,
            "position_scale_m": position_scale_m,
            "sigma_floor_m": sigma_floor_m,
            "sigma_init_m": sigma_init_m,
            "seed": seed,
        }
        name = None if isinstance(backbone, nn.Module) else BackboneArchitecture.of(backbone).value
        if name not in CONVNEXT_BLOCKS:
            begun: dict[str, Any] = {"pretrained": pretrained, "weights": weights, "download": download}
            return TorchLocalizationNet(backbone, features=features, **begun, **settings)
        file = weight_files.first_weights(name, pretrained, weights, download)
        net = super().__new__(cls, name, settings)
        if features not in (None, net.num_features):
            raise ConfigurationError(f"features={features!r} cannot be used: {name} has {net.num_features}")
        if file is not None:
            weight_files.load_weights(net, file)
        return net

    @classmethod
    def from_config(cls, config: ModelConfig, **settings: Any) -> LocalizationNet | TorchLocalizationNet:
        """Make the network of a preset.

        Args:
            config: The preset, or other settings.
            **settings: Further arguments of `LocalizationNet`.
        """
        named = {name: getattr(config, name) for name in ("pretrained", "freeze_backbone", "sigma_floor_m")}
        net: LocalizationNet | TorchLocalizationNet = cls(config.backbone, **{**named, **settings})
        return net

    def module(self) -> TorchLocalizationNet:
        """Make a module of torch with the tensors of this network.

        Both use the same memory: a step of an optimiser of the module changes this network. Gradients are
        apart. The module is for training, `torch.compile` and everything else of torch; `as_module` is for
        exports.
        """
        settings = {**self.hyper_parameters}
        with torch.device("meta"):
            module = TorchLocalizationNet(settings.pop("backbone"), **settings)
        module.load_state_dict(self.state_dict(), assign=True)
        module.backbone.requires_grad_(not module.freeze_backbone)
        return module

    def __repr__(self) -> str:
        """Return the backbone and the size."""
        return f"LocalizationNet({self.backbone_name}, {self.num_parameters} parameters)"


def as_module(
    model: RssLocalizationNet | LocalizationNet | TorchLocalizationNet,
) -> RssLocalizationModule | LocalizationModule:
    """Make a module of torch of a network, for TorchScript, ONNX and whatever else knows modules.

    Args:
        model: The network. The module of an `RssLocalizationNet` does not get later updates of it; that of
            another network has the same tensors.

    Returns:
        The module in evaluation mode. It predicts the same as the network, in degrees and metres.

    Example:
        >>> import torch
        >>> from heimdall_training import RssDataset, RssLocalizationNet, as_module
        >>> dataset = RssDataset.load("examples/powder_rss_462mhz")
        >>> module = as_module(RssLocalizationNet(dataset.receivers))
        >>> positions, sigmas = module(torch.as_tensor(dataset.rss("test")))
        >>> positions.shape[1]
        2
    """
    if isinstance(model, RssLocalizationNet):
        return RssLocalizationModule(model)
    if isinstance(model, LocalizationNet):
        return LocalizationModule(model.module())
    # The copy has the same tensors, and a mode of its own.
    tensors = (*model.parameters(), *model.buffers())
    return LocalizationModule(copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}))
