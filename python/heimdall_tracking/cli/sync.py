"""`heimdall sync`: deliver the journals of processes that are gone."""

from __future__ import annotations

import argparse
import os
import sys
import time

from .. import _environment, _native
from .._plain_settings import PlainSettings
from .._progress import draw
from ..tracker import S3_KEYS
from .folder import heimdall_dir


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sync",
        description=(
            "Deliver the journals of processes that are gone: those of offline runs, of outages, of kills. "
            "Journals hold no credentials; these are taken from the environment as a tracker takes them "
            "(MLFLOW_TRACKING_URI, POSTGRES_*, MLFLOW_MIRROR_URIS, ...) or from --uri."
        ),
    )
    parser.add_argument("dir", nargs="?", help="folder of the journals; HEIMDALL_DIR, else .heimdall")
    parser.add_argument("--uri", help="deliver everything there, whatever the journals name")
    parser.add_argument("--timeout", type=float, metavar="S", help="work at most so many seconds")
    parser.set_defaults(run=run, stays="what is not delivered stays in the journal")


def run(given: argparse.Namespace) -> int:
    """Deliver, and print the records that were delivered and those that are left."""
    _use_keys_of_mlflow()
    folder = heimdall_dir(given.dir)
    if not folder.is_dir():
        print(f"nothing to deliver: there is no folder {folder}")
        return 0
    bar = _Bar()
    done = _native.sync(folder, known_uris(), given.uri, given.timeout, bar.show)
    bar.close()
    for notice in done.notices:
        print(f"heimdall: {notice}", file=sys.stderr)
    print(f"{_records(done.delivered)} delivered", end="")
    print(f", {_records(done.parked)} refused and kept in {folder / 'dead_letter'}" if done.parked else "")
    for uri, (count, reason) in done.left.items():
        print(f"{_records(count)} left for {uri}: {reason}", file=sys.stderr)
    alive = [journal for journal in _native.journals(folder) if journal.alive]
    if alive:
        print(f"{len(alive)} of the journals belong to processes that live, which deliver them themselves")
    return 1 if done.left or done.parked else 0


def known_uris() -> list[str]:
    """Return the URIs, with credentials, that the environment names."""
    settings = PlainSettings()
    mirrors = os.environ.get("MLFLOW_MIRROR_URIS", "").replace(",", " ").split()
    return [settings.mlflow_tracking_uri, *mirrors]


def _use_keys_of_mlflow() -> None:
    """Have the delivery use MLflow's S3 keys, where the environment or `.env` has them, as a tracker does."""
    key, secret = (_environment.get(name) for name in S3_KEYS)
    if key and secret:
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = key, secret
        os.environ.pop("AWS_SESSION_TOKEN", None)


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"


class _Bar:
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.shown = ""

    def show(self, delivered: int, total: int, uploading: int, uploaded: int) -> None:
        """Show how many records are delivered, and how far the files are that are on their way, in bytes."""
        if not sys.stderr.isatty() or not total:
            return
        filled = round(30 * min(delivered / total, 1))
        rate = delivered / max(time.monotonic() - self.begun, 1e-3)
        files = f", {uploaded / 2**20:,.0f} of {uploading / 2**20:,.0f} MiB" if uploading else ""
        text = (
            f"[{'#' * filled}{'.' * (30 - filled)}] {delivered:,} of {total:,} records, {rate:,.0f}/s{files} "
        )
        self.shown = draw(text, self.shown)

    def close(self) -> None:
        """Leave the terminal with a line of its own."""
        if self.shown:
            sys.stderr.write("\n")
