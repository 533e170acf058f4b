"""The command `heimdall`: training, commands as runs, journals, exports, garbage, settings and checks."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__, _environment
from ..errors import HeimdallError

__all__ = ["main"]

# In the order of the help. Each is a module of this package, which is imported where it is named.
COMMANDS = {
    "train": "train the network for positions on recordings",
    "run": "run a command and record it as a run",
    "sync": "deliver what is journaled",
    "status": "show what waits, where, how old, why",
    "journal": "look into a journal",
    "gc": "delete what nobody needs: a list of it, unless told to",
    "export": "export a trained network to ONNX",
    "config": "show each setting and where it comes from",
    "doctor": "check stores, bucket, clock, disk and torch",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 1 where something is left or went wrong."""
    parser = argparse.ArgumentParser(
        prog="heimdall",
        description=(
            "Training, commands as runs, journals and their delivery, exports, garbage, settings and checks."
        ),
    )
    parser.add_argument("--version", action="version", version=f"heimdall-tracking {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    words = sys.argv[1:] if arguments is None else arguments
    named = next((word for word in words if not word.startswith("-")), None)
    if named in COMMANDS:
        import_module(f".{named}", __name__).add(commands)
    else:
        for name, text in COMMANDS.items():
            commands.add_parser(name, help=text)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a name shows its number; the command goes on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unrecognised(unknown, getattr(given, "options", ())))
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


def _unrecognised(unknown: Sequence[str], options: Sequence[str]) -> str:
    """Return the message for words that no command knows, with the flag that the first one resembles."""
    from difflib import get_close_matches

    meant = get_close_matches(unknown[0].partition("=")[0], options, n=1)
    return f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {meant[0]}?" if meant else "")
