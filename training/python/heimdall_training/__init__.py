"""The training loop of heimdall-tracking: libtorch driven from Rust.

    from heimdall_training import RssDataset, RssLocalizationNet, Trainer

    dataset = RssDataset.load("examples/powder_rss_462mhz")
    model = RssLocalizationNet(dataset.receivers)
    trainer = Trainer(max_epochs=10)
    trainer.fit(model, dataset)
    print(trainer.test())

Installed beside heimdall-tracking, the same names are in ``heimdall_tracking.training``.
"""

from heimdall_tracking.training import __all__ as _names
from heimdall_tracking.training.config import TrainingConfig as TrainingConfig
from heimdall_tracking.training.config import load_training_config as load_training_config

from . import _libtorch
from ._native import RecordingDataset as RecordingDataset
from ._native import RssDataset as RssDataset
from ._native import RssLocalizationNet as RssLocalizationNet
from ._native import __version__ as __version__
from ._native import delays as delays
from ._native import levels as levels
from ._native import mel_spectrogram as mel_spectrogram
from .errors import CheckpointNotFoundError as CheckpointNotFoundError
from .errors import DatasetError as DatasetError
from .errors import DatasetNotFoundError as DatasetNotFoundError
from .errors import PretrainedWeightsNotFoundError as PretrainedWeightsNotFoundError
from .errors import TrainingError as TrainingError
from .loader import RecordingLoader as RecordingLoader
from .localization_net import LocalizationNet as LocalizationNet
from .localization_net import as_module as as_module
from .model_config import BackboneArchitecture as BackboneArchitecture
from .model_config import ModelConfig as ModelConfig
from .model_config import get_backbone_info as get_backbone_info
from .model_config import get_model_config as get_model_config
from .models import load_model as load_model
from .models import save_model as save_model
from .pipeline import EarlyStopping as EarlyStopping
from .pipeline import ModelCheckpoint as ModelCheckpoint
from .pipeline import TrainingPipeline as TrainingPipeline
from .pipeline import TrainingResult as TrainingResult
from .results import Baseline as Baseline
from .results import FitResult as FitResult
from .results import ModuleFitResult as ModuleFitResult
from .results import TestResult as TestResult
from .torch_module import RssLocalizationModule as RssLocalizationModule
from .torch_net import LocalizationModule as LocalizationModule
from .torch_net import TorchLocalizationNet as TorchLocalizationNet
from .tracking import Tracker as Tracker
from .trainer import Trainer as Trainer
from .trainer import baselines as baselines
from .weights import find_pretrained as find_pretrained
from .weights import load_weights as load_weights
from .weights import save_weights as save_weights

__all__ = [*_names, "__version__"]

del _libtorch
