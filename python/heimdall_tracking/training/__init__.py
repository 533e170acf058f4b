"""The training loop, from the wheel heimdall-training.

    from heimdall_tracking.training import RssDataset, RssLocalizationNet, Trainer

The wheel is linked to one exact torch, so it is installed and loaded apart: importing this package
loads neither, the first use of one of its names does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heimdall_training import (
        BackboneArchitecture,
        Baseline,
        CheckpointNotFoundError,
        DatasetError,
        DatasetNotFoundError,
        EarlyStopping,
        FitResult,
        LocalizationModule,
        LocalizationNet,
        ModelCheckpoint,
        ModelConfig,
        ModuleFitResult,
        PretrainedWeightsNotFoundError,
        RecordingDataset,
        RecordingLoader,
        RssDataset,
        RssLocalizationModule,
        RssLocalizationNet,
        TestResult,
        TorchLocalizationNet,
        Tracker,
        Trainer,
        TrainingError,
        TrainingPipeline,
        TrainingResult,
        as_module,
        baselines,
        delays,
        find_pretrained,
        get_backbone_info,
        get_model_config,
        levels,
        load_model,
        load_weights,
        mel_spectrogram,
        save_model,
        save_weights,
    )

    from .config import TrainingConfig, load_training_config

__all__ = [
    "BackboneArchitecture",
    "Baseline",
    "CheckpointNotFoundError",
    "DatasetError",
    "DatasetNotFoundError",
    "EarlyStopping",
    "FitResult",
    "LocalizationModule",
    "LocalizationNet",
    "ModelCheckpoint",
    "ModelConfig",
    "ModuleFitResult",
    "PretrainedWeightsNotFoundError",
    "RecordingDataset",
    "RecordingLoader",
    "RssDataset",
    "RssLocalizationModule",
    "RssLocalizationNet",
    "TestResult",
    "TorchLocalizationNet",
    "Tracker",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "TrainingPipeline",
    "TrainingResult",
    "as_module",
    "baselines",
    "delays",
    "find_pretrained",
    "get_backbone_info",
    "get_model_config",
    "levels",
    "load_model",
    "load_training_config",
    "load_weights",
    "mel_spectrogram",
    "save_model",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("TrainingConfig", "load_training_config"):
        # The command line needs them, without torch.
        return getattr(import_module(".config", __name__), name)
    try:
        return getattr(import_module("heimdall_training"), name)
    except ModuleNotFoundError as error:
        if error.name != "heimdall_training":
            raise
        raise ImportError(
            f"{__name__}.{name} needs the wheel heimdall-training; install it with: "
            "pip install 'heimdall-tracking[training]' (in a checkout: pip install ./training)"
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
