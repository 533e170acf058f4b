"""`heimdall journal inspect`: a file of a journal in words."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import _native


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("journal")
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    inspect = actions.add_parser(
        "inspect",
        help="print the records of a segment",
        description=(
            "Print the records of a segment, one a line: number, time, run, what it says. Credentials of "
            "stores are in no journal; what the training itself has logged is shown as it is."
        ),
    )
    inspect.add_argument("file", type=Path, help="a .segment file, or the folder of a journal")
    inspect.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the records of the file, or of every segment of the folder."""
    files = sorted(given.file.glob("*.segment")) if given.file.is_dir() else [given.file]
    for file in files:
        print(f"# {file}")
        _native.inspect(file, print)
    return 0
