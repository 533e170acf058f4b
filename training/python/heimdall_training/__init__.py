"""The training loop of heimdall-tracking: libtorch driven from Rust.

    from heimdall_training import RssDataset, RssLocalizationNet, Trainer

    dataset = RssDataset.load("examples/powder_rss_462mhz")
    model = RssLocalizationNet(dataset.receivers)
    trainer = Trainer(max_epochs=10)
    trainer.fit(model, dataset)
    print(trainer.test())

Installed beside heimdall-tracking, the same names are in ``heimdall_tracking.training``.
"""

from . import _libtorch
from ._native import RssDataset, RssLocalizationNet, __version__
from .errors import (
    CheckpointNotFoundError,
    DatasetError,
    DatasetNotFoundError,
    TrainingError,
)
from .models import load_model, save_model
from .torch_module import RssLocalizationModule, as_module
from .tracking import Tracker
from .trainer import Baseline, FitResult, TestResult, Trainer, baselines

__all__ = [
    "Baseline",
    "CheckpointNotFoundError",
    "DatasetError",
    "DatasetNotFoundError",
    "FitResult",
    "RssDataset",
    "RssLocalizationModule",
    "RssLocalizationNet",
    "TestResult",
    "Tracker",
    "Trainer",
    "TrainingError",
    "__version__",
    "as_module",
    "baselines",
    "load_model",
    "save_model",
]

del _libtorch
