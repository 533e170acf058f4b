"""The recordings, networks and trainers that the tests of the training loop share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heimdall_tracking.training import RssDataset, RssLocalizationNet, Trainer

RECORDINGS = Path(__file__).parents[2] / "examples" / "powder_rss_462mhz"


# Networks this small are slower on several threads, and much slower where cores are shared.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recordings() -> Path:
    return RECORDINGS


@pytest.fixture(scope="session")
def dataset() -> RssDataset:
    return RssDataset.load(RECORDINGS)


@pytest.fixture
def model(dataset: RssDataset) -> RssLocalizationNet:
    return RssLocalizationNet(dataset.receivers)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of two quiet epochs, unless told otherwise."""

    def make(**settings: object) -> Trainer:
        quiet = {"max_epochs": 2, "enable_progress_bar": False, "default_root_dir": tmp_path / "out"}
        return Trainer(**(quiet | settings))

    return make
