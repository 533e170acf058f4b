"""The networks before the heads, as modules of torch with torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heimdall_tracking._optional import need

from .model_config import get_backbone_info

CONVNEXT_BLOCKS = {
    "convnext_tiny": (3, 3, 9, 3),
    "convnext_small": (3, 3, 27, 3),
    "convnext_base": (3, 3, 27, 3),
    "convnext_large": (3, 3, 27, 3),
}
# Height and width that the positions of patches are learned for: spectrograms are stretched to them.
STRETCHED_TO = {"vit_b_16": (224, 224), "vit_l_16": (224, 224)}


def make_backbone(name: str, stochastic_depth: float) -> nn.Module:
    """Make a backbone with random weights that gives `[rows, features]`.

    Args:
        name: Value of a `BackboneArchitecture`.
        stochastic_depth: Probability that a training row skips the last block of a ConvNeXt; others have
            the one that torchvision trains them with.

    Raises:
        MissingPackageError: The backbone is none of ConvNeXt, and torchvision is not installed.
    """
    if name in CONVNEXT_BLOCKS:
        return ConvNeXt(name, stochastic_depth)
    models = need("torchvision.models", f"the backbone {name}")
    module: nn.Module = getattr(models, name)(weights=None)
    # These only classify ImageNet.
    setattr(module, get_backbone_info(name).head.partition(".")[0], nn.Identity())
    return module


class ConvNeXt(nn.Module):
    """The native ConvNeXt once more as a module of torch, with torchvision's names; it needs no torchvision.

    Args:
        name: Value of a `BackboneArchitecture`.
        stochastic_depth: Probability that a training row skips the last block; it rises from 0 in the first.
    """

    def __init__(self, name: str, stochastic_depth: float) -> None:
        super().__init__()
        blocks = CONVNEXT_BLOCKS[name]
        features = get_backbone_info(name).features
        widths = [features // 8, features // 4, features // 2, features]
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), LayerNorm2d(widths[0], eps=1e-6))
        ]
        made = 0
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if stage:
                before = widths[stage - 1]
                layers.append(
                    nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, stride=2))
                )
            drops = [stochastic_depth * (made + block) / (sum(blocks) - 1) for block in range(count)]
            layers.append(nn.Sequential(*(Block(width, drop) for drop in drops)))
            made += count
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(LayerNorm2d(features, eps=1e-6), nn.Flatten(1))

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Return the features, `[rows, features]`."""
        pooled: Tensor = self.classifier(self.avgpool(self.features(spectrograms)))
        return pooled


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[rows, channels, height, width]`."""
        normalised: Tensor = super().forward(input.permute(0, 2, 3, 1))
        return normalised.permute(0, 3, 1, 2)


class Block(nn.Module):
    """One block of a ConvNeXt, which a training row skips with a probability."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return `[rows, channels, height, width]`."""
        change: Tensor = self.layer_scale * self.block(input)
        if self.training and self.drop > 0:
            kept = change.new_empty(len(change), 1, 1, 1).bernoulli_(1 - self.drop)
            change = change * kept.div_(1 - self.drop)
        return change + input


class Permute(nn.Module):
    """`Tensor.permute` as a layer."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, input: Tensor) -> Tensor:
        """Return the tensor with its axes in this order."""
        return input.permute(self.axes)
