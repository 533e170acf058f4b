"""The folder whose journals a command is about."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def heimdall_dir(given: str | None) -> Path:
    """Return the folder that is meant: as given, else `HEIMDALL_DIR`, else `.heimdall`.

    Ends the command with exit code 2 where the given one is not there: a mistyped name must not look like a
    folder from which everything is delivered.
    """
    if given is not None and not Path(given).is_dir():
        print(f"heimdall: there is no folder {given}", file=sys.stderr)
        raise SystemExit(2)
    return Path(given or os.environ.get("HEIMDALL_DIR") or ".heimdall")
