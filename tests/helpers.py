"""What tests of several files do by the same words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# How long a test waits for something that normally takes a moment. Only a defect makes it last.
PATIENCE_S = 60
TRACKING_VARIABLES = ("MLFLOW_", "HEIMDALL_", "AWS_", "POSTGRES_")


def clean_environment(**variables: object) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(TRACKING_VARIABLES)}
    kept["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return kept | {name: str(value) for name, value in variables.items()}


def wait_until(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            pytest.fail(f"waited {PATIENCE_S} s in vain until {what}")
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
