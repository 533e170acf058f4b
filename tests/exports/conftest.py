"""The network that the tests of the export share, and where an export is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.networks import LocalizationNet


@pytest.fixture
def net() -> LocalizationNet:
    torch.manual_seed(3)
    net = LocalizationNet()
    # Statistics that are not those of the start.
    net(torch.randn(16, 3, 128, 32))
    return net


@pytest.fixture
def folder_of(tracker):
    def folder_of(export) -> Path:
        tracker.flush()
        run_id, path = export.model_uri.removeprefix("runs:/").split("/", 1)
        return Path(tracker.get_run(run_id).artifact_uri.removeprefix("file://")) / path

    return folder_of
