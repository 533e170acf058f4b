"""The recordings, networks and trainers that the tests of the training loop share."""

from __future__ import annotations

import os
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


@pytest.fixture(scope="session")
def kiwisdr() -> Path:
    """Real recordings of one transmitter at three receivers; their licence keeps them out of here."""
    inside = Path("shared", "data", "kiwisdr_dcf77")
    named = os.environ.get("HEIMDALL_TEST_RECORDINGS")
    places = [Path(named)] if named else [folder / inside for folder in Path(__file__).resolve().parents]
    for place in places:
        if (place / "meta.json").is_file():
            return place
    pytest.skip(f"no {inside} beside the repository or as HEIMDALL_TEST_RECORDINGS")
