"""The backbones, and settings of a training that belong together. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from heimdall_tracking.errors import ConfigurationError


class BackboneArchitecture(Enum):
    """The networks that the heads can be put on, by the names that torchvision has for them."""

    CONVNEXT_TINY = "convnext_tiny"
    CONVNEXT_SMALL = "convnext_small"
    CONVNEXT_MEDIUM = "convnext_base"
    CONVNEXT_BASE = CONVNEXT_MEDIUM
    CONVNEXT_LARGE = "convnext_large"
    RESNET_50 = "resnet50"
    RESNET_101 = "resnet101"
    VIT_BASE = "vit_b_16"
    VIT_LARGE = "vit_l_16"
    EFFICIENTNET_B3 = "efficientnet_b3"
    EFFICIENTNET_B4 = "efficientnet_b4"

    @classmethod
    def of(cls, backbone: str | BackboneArchitecture) -> BackboneArchitecture:
        """Return the architecture of a name, such as `"convnext_tiny"` or `"CONVNEXT_TINY"`.

        Raises:
            ConfigurationError: There is none of that name; the message lists them.
        """
        if isinstance(backbone, cls):
            return backbone
        for name, architecture in cls.__members__.items():
            if backbone in (name, architecture.value):
                return architecture
        raise ConfigurationError(
            f"backbone={backbone!r} is not valid: it must be {_one_of(it.value for it in cls)}"
        )


class BackboneInfo(NamedTuple):
    """Facts about a backbone.

    Args:
        features: Width of its output, which is that of the input of the heads.
        params_millions: Its parameters with torchvision's classifier, in millions.
        imagenet_top1: Share of right answers of `checkpoint` on ImageNet-1k in percent, as torchvision tells.
        checkpoint: File of torchvision's weights; the end of the name is the beginning of its SHA-256.
        head: Prefix of the tensors in `checkpoint` that only classify ImageNet and are not used here.
    """

    features: int
    params_millions: float
    imagenet_top1: float
    checkpoint: str
    head: str


_BACKBONES = {
    "convnext_tiny": BackboneInfo(768, 28.6, 82.5, "convnext_tiny-983f1562.pth", "classifier.2."),
    "convnext_small": BackboneInfo(768, 50.2, 83.6, "convnext_small-0c510722.pth", "classifier.2."),
    "convnext_base": BackboneInfo(1024, 88.6, 84.1, "convnext_base-6075fbad.pth", "classifier.2."),
    "convnext_large": BackboneInfo(1536, 197.8, 84.4, "convnext_large-ea097f82.pth", "classifier.2."),
    "resnet50": BackboneInfo(2048, 25.6, 80.9, "resnet50-11ad3fa6.pth", "fc."),
    "resnet101": BackboneInfo(2048, 44.5, 81.9, "resnet101-cd907fc2.pth", "fc."),
    "vit_b_16": BackboneInfo(768, 86.6, 81.1, "vit_b_16-c867db91.pth", "heads."),
    "vit_l_16": BackboneInfo(1024, 304.3, 79.7, "vit_l_16-852ce7e3.pth", "heads."),
    "efficientnet_b3": BackboneInfo(
        1536, 12.2, 82.0, "efficientnet_b3_rwightman-b3899882.pth", "classifier."
    ),
    "efficientnet_b4": BackboneInfo(
        1792, 19.3, 83.4, "efficientnet_b4_rwightman-23ab8bcd.pth", "classifier."
    ),
}


def get_backbone_info(backbone: str | BackboneArchitecture) -> BackboneInfo:
    """Return facts about a backbone.

    Args:
        backbone: The architecture or its name.

    Raises:
        ConfigurationError: There is none of that name.

    Example:
        >>> from heimdall_training.model_config import get_backbone_info
        >>> get_backbone_info("convnext_large").features
        1536
    """
    return _BACKBONES[BackboneArchitecture.of(backbone).value]


def _check_number(name: str, value: Any, is_zero_allowed: bool) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (value == 0 and not is_zero_allowed):
        raise _refused(name, value, "a number of at least 0" if is_zero_allowed else "a number above 0")


def _refused(name: str, value: Any, form: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r} is not valid: it must be {form}")


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


# Names of settings of the original network that have another meaning here.
_IN_DEGREES = ("uncertainty_min", "uncertainty_max")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings of a network and of its training.

    Args:
        backbone: The architecture or its name.
        pretrained: Begin with torchvision's ImageNet weights.
        freeze_backbone: Train the heads alone.
        sigma_floor_m: Smooth lower bound of sigma in metres. There is no upper bound.
        learning_rate: Highest learning rate.
        weight_decay: Weight decay of matrices.
        warmup_steps: Steps in which the learning rate rises, fewer than `num_training_steps`.
        num_training_steps: Steps of the optimiser in all.
        n_mels: Height of a spectrogram, at least 32.
        n_frames: Width of a spectrogram, at least 32.

    Raises:
        ConfigurationError: A value is out of range; the message has the setting, the value and the range.
    """

    backbone: BackboneArchitecture = BackboneArchitecture.CONVNEXT_LARGE
    pretrained: bool = True
    freeze_backbone: bool = False
    sigma_floor_m: float = 20.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    warmup_steps: int = 500
    num_training_steps: int = 10_000
    n_mels: int = 128
    n_frames: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", BackboneArchitecture.of(self.backbone))
        for name in ("pretrained", "freeze_backbone"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise _refused(name, value, "True or False")
        for name, is_zero_allowed in (
            ("sigma_floor_m", False),
            ("learning_rate", False),
            ("weight_decay", True),
        ):
            _check_number(name, getattr(self, name), is_zero_allowed)
        at_least = {"num_training_steps": 1, "warmup_steps": 0, "n_mels": 32, "n_frames": 32}
        for name, least in at_least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise _refused(name, value, f"a whole number of at least {least}")
        if self.warmup_steps >= self.num_training_steps:
            below = f"below num_training_steps ({self.num_training_steps})"
            raise _refused("warmup_steps", self.warmup_steps, below)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> ModelConfig:
        """Read settings, such as those of a file; those that are missing have their defaults.

        Raises:
            ConfigurationError: There is no setting of a name, or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name in _IN_DEGREES:
                raise ConfigurationError(
                    f"{name}={settings[name]!r} is not valid: it is a bound in degrees; the bound is "
                    "sigma_floor_m, in metres, and there is no upper one"
                )
            if name not in known:
                raise ConfigurationError(f"there is no setting {name!r}: it must be {_one_of(known)}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for `from_dict`, JSON or `log_params`."""
        return {**dataclasses.asdict(self), "backbone": self.backbone.value}

    def replace(self, **settings: Any) -> ModelConfig:
        """Return the settings with some of them changed.

        Raises:
            ConfigurationError: There is no setting of a name, or a value is out of range.
        """
        return self.from_dict({**self.to_dict(), **settings})


# The production presets are for results, the dev ones for quick trials.
CONFIGS: Mapping[str, ModelConfig] = {
    "production_high_accuracy": ModelConfig(num_training_steps=50_000),
    "production_balanced": ModelConfig(BackboneArchitecture.CONVNEXT_MEDIUM, num_training_steps=30_000),
    "production_lightweight": ModelConfig(BackboneArchitecture.EFFICIENTNET_B4, num_training_steps=20_000),
    "dev_fast": ModelConfig(
        BackboneArchitecture.CONVNEXT_SMALL,
        freeze_backbone=True,
        learning_rate=5e-4,
        num_training_steps=5_000,
    ),
    "dev_test": ModelConfig(BackboneArchitecture.EFFICIENTNET_B3, pretrained=False, num_training_steps=1_000),
    "experimental_vit": ModelConfig(
        BackboneArchitecture.VIT_BASE, learning_rate=1e-4, num_training_steps=50_000
    ),
    "experimental_resnet": ModelConfig(BackboneArchitecture.RESNET_101, num_training_steps=30_000),
}


def get_model_config(name: str) -> ModelConfig:
    """Return the preset of a name.

    Args:
        name: One of `CONFIGS`.

    Raises:
        ConfigurationError: There is none of that name; the message lists them.

    Example:
        >>> from heimdall_training.model_config import get_model_config
        >>> get_model_config("dev_fast").backbone.value
        'convnext_small'
    """
    if name not in CONFIGS:
        raise ConfigurationError(f"there is no preset {name!r}: it must be {_one_of(CONFIGS)}")
    return CONFIGS[name]
