"""The command `heimdall`: journals of this machine, their delivery, exports, and garbage collection."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import HeimdallError
from . import export, gc, journal, status, sync

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 1 where something is left or went wrong."""
    parser = argparse.ArgumentParser(
        prog="heimdall",
        description="What is journaled on this machine, its delivery, and the end of what nobody needs.",
    )
    parser.add_argument("--version", action="version", version=f"heimdall-tracking {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    sync.add(commands)
    status.add(commands)
    journal.add(commands)
    gc.add(commands)
    export.add(commands)
    given = parser.parse_args(arguments)
    try:
        code: int = given.run(given)
        return code
    except HeimdallError as error:
        print(f"heimdall: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"heimdall: interrupted; {getattr(given, 'stays', 'nothing was changed')}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe. The interpreter must not try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def heimdall_dir(given: str | None) -> Path:
    """Return the folder that is meant: as given, else `HEIMDALL_DIR`, else `.heimdall`."""
    return Path(given or os.environ.get("HEIMDALL_DIR") or ".heimdall")
