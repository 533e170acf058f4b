"""A module to log, and a run of its own for each model that is logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.models import Net


@pytest.fixture
def net() -> Net:
    torch.manual_seed(5)
    return Net()


@pytest.fixture
def log(tracker, tmp_path):
    """Log a model in a run of its own, and return what was logged and its folder."""

    def log(model, *arguments, **options):
        with tracker.run():
            info = tracker.log_model(model, *arguments, **options)
        tracker.flush()
        return info, Path(
            tracker.get_run(info.run_id).artifact_uri.removeprefix("file://")
        ) / info.artifact_path

    return log
