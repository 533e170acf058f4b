"""The folder whose journals a command is about."""

from __future__ import annotations

import os
from pathlib import Path


def heimdall_dir(given: str | None) -> Path:
    """Return the folder that is meant: as given, else `HEIMDALL_DIR`, else `.heimdall`."""
    return Path(given or os.environ.get("HEIMDALL_DIR") or ".heimdall")
