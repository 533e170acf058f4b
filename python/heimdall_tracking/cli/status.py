"""`heimdall status`: records that wait in journals, by destination, with their age and the reason."""

from __future__ import annotations

import argparse
import time

from .. import _native
from .folder import heimdall_dir


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "status",
        description="Show what waits in the journals of a folder, for which destination, since when, why.",
    )
    parser.add_argument("dir", nargs="?", help="folder of the journals; HEIMDALL_DIR, else .heimdall")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print a block for each journal and a line for each file of dead letters."""
    folder = heimdall_dir(given.dir)
    journals = _native.journals(folder)
    for journal in journals:
        state = "its process lives" if journal.alive else "its process is gone: `heimdall sync` delivers it"
        print(f"{journal.journal}\n  process {journal.pid}, begun {_ago(journal.created)} ago; {state}")
        for waiting in journal.destinations:
            if not waiting.pending:
                print(f"  {waiting.uri}: all delivered")
                continue
            since = f", the oldest {_ago(waiting.oldest)} old" if waiting.oldest is not None else ""
            records = "1 record waits" if waiting.pending == 1 else f"{waiting.pending:,} records wait"
            print(f"  {waiting.uri}: {records}{since}")
            if waiting.trouble:
                print(f"    {waiting.trouble}")
    letters = _native.dead_letters(folder)
    for path, count in letters:
        print(f"{path}\n  {count:,} records were refused for good; each line says why")
    if not journals and not letters:
        print(f"nothing waits in {folder}")
    return 0


def _ago(ms: int) -> str:
    seconds = max(0.0, time.time() - ms / 1000)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
