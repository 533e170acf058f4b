"""Networks and trainers, of both packages of Lightning, that the tests of the logger share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


@pytest.fixture(params=PACKAGES)
def pl(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two packages that have a trainer."""
    return pytest.importorskip(request.param)


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a trainer without a folder of its own stay in that of the test, which belongs to no job."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def trainer_of() -> Callable[..., Any]:
    """A quiet trainer on one processor, of the package that is named."""

    def make(package: str, logger: Any, **settings: Any) -> Any:
        quiet = {
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": logger,
        }
        return import_module(package).Trainer(**(quiet | settings))

    return make
