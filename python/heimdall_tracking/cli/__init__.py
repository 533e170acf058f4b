"""The command `heimdall`: commands as runs, journals, exports, garbage, settings and checks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__, _environment
from ..errors import HeimdallError
from . import config, doctor, export, gc, journal, run, status, sync

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 1 where something is left or went wrong."""
    parser = argparse.ArgumentParser(
        prog="heimdall",
        description=("Commands as runs, journals and their delivery, exports, garbage, settings and checks."),
    )
    parser.add_argument("--version", action="version", version=f"heimdall-tracking {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    run.add(commands)
    sync.add(commands)
    status.add(commands)
    journal.add(commands)
    gc.add(commands)
    export.add(commands)
    config.add(commands)
    doctor.add(commands)
    given = parser.parse_args(arguments)
    try:
        if getattr(given, "reads_file", True):
            _environment.load()
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
