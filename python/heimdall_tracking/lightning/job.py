"""The job that a process belongs to, and the run of an earlier process of the same job.

A scheduler that stops a job and starts it again gives it the same id. The run is found by that id, or by the
checkpoint that the training goes on from, which names its run.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .. import _start
from ..errors import HeimdallError, NotFoundError
from ..tracker import MLflowTracker

JOB_TAG = "heimdall.job"
PROCESS_TAG = "heimdall.job.process"
COMMAND_TAG = "heimdall.job.command"
REQUEUED_TAG = "heimdall.job.requeued"
# Key in a checkpoint, and its value. The value is found in the file without unpickling anything.
CHECKPOINT_KEY = "heimdall"
MARK = re.compile(rb"heimdall:/([0-9a-f]{32})\?from_step=(\d+)")
# Values of TORCHELASTIC_RUN_ID by which torchrun says that nobody has named the launch.
UNNAMED = ("", "none")
# Names of Slurm jobs in which people start several trainings by hand.
INTERACTIVE = ("bash", "interactive")


class Resumed(NamedTuple):
    """A run that the training goes on with, and the step from which its points are recorded anew."""

    run_id: str
    from_step: int | None


def job() -> str | None:
    """Return the name of the job that this process belongs to, if it can be started again under that name."""
    environment = os.environ
    slurm = environment.get("SLURM_JOB_ID")
    if slurm and environment.get("SLURM_JOB_NAME") not in INTERACTIVE:
        return f"slurm:{slurm}"
    elastic = environment.get("TORCHELASTIC_RUN_ID", "")
    if elastic not in UNNAMED:
        return f"torchelastic:{elastic}"
    return None


def process() -> str:
    """Return a text that names this process among all of all machines, and says how often its job began."""
    return f"{socket.gethostname()}/{os.getpid()}/{_began(os.getpid())}/{_restarts()}"


def command() -> str:
    """Return a text for the command of this process: each command of a job has runs of its own."""
    words = [_start.path(sys.argv[0]), *sys.argv[1:]]
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:16]


def tags() -> dict[str, str]:
    """Return the tags by which a later process of the same job finds the run."""
    name = job()
    return {} if name is None else {JOB_TAG: name, COMMAND_TAG: command(), PROCESS_TAG: process()}


def run_of_job(tracker: MLflowTracker, run_name: str | None) -> str | None:
    """Return the run that an earlier process of this job has left unfinished.

    Args:
        tracker: Tracker of the experiment.
        run_name: Name of the run, if the logger was given one.
    """
    name = job()
    if name is None or "'" in name or "\\" in name:
        return None
    try:
        found = tracker.search_runs(f"tags.`{JOB_TAG}` = '{name}'")
    except HeimdallError:
        # The store is away: nothing is known of earlier runs.
        return None
    for run in found:
        owner = run.tags.get(PROCESS_TAG, "")
        is_over = run.status == "FINISHED" and REQUEUED_TAG not in run.tags
        is_other = run.tags.get(COMMAND_TAG) != command() or run_name not in (None, run.run_name)
        # A job may have processes on several machines at a time.
        may_work = run.status == "RUNNING" and not _is_older(owner)
        if not (is_over or is_other or may_work or _is_alive(owner)):
            return run.run_id
    return None


def run_of_checkpoint(tracker: MLflowTracker, path: Any) -> Resumed | None:
    """Return the run that a checkpoint is of, where it can be gone on with.

    A run that has finished is a result, which stays as it is, unless it is of this job.
    """
    mark = read_mark(path)
    if mark is None:
        return None
    try:
        run = tracker.get_run(mark.run_id)
    except NotFoundError:
        return None
    except HeimdallError:
        return mark
    is_of_job = job() is not None and run.tags.get(JOB_TAG) == job()
    if run.lifecycle_stage != "active" or (run.status == "FINISHED" and not is_of_job):
        return None
    owner = run.tags.get(PROCESS_TAG, "")
    if run.status == "RUNNING" or owner != process():
        return None if _is_alive(owner) else mark
    return mark


def mark_of(run_id: str, from_step: int) -> str:
    """Return the text that names a run in a checkpoint."""
    return f"heimdall:/{run_id}?from_step={from_step}"


def read_mark(path: Any) -> Resumed | None:
    """Return the run that a checkpoint names, and the first step behind it. No code of the file is run."""
    text = os.fspath(path)
    with suppress(OSError, ValueError, zipfile.BadZipFile, ImportError):
        if (meta := Path(text) / "meta.pt").is_file():
            # The folder of a sharded checkpoint.
            text = str(meta)
        with _opened(text) as file, zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl") and (found := MARK.search(archive.read(name))):
                    return Resumed(found[1].decode(), int(found[2]))
    return None


def _opened(path: str) -> Any:
    if "://" not in path:
        return Path(path).open("rb")
    import fsspec  # type: ignore[import-untyped]

    return fsspec.open(path, "rb").open()


def _is_alive(name: str) -> bool:
    """Return True for a process of this machine that has not ended, this one included."""
    host, pid, began, _ = _parts(name)
    if host != socket.gethostname() or not pid.isdigit():
        return False
    if (now := _began(int(pid))) or began:
        return now == began
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _is_older(name: str) -> bool:
    """Return True for a process of this machine, or of a start of the job before this one."""
    host, _, _, restarts = _parts(name)
    return host == socket.gethostname() or (restarts.isdigit() and int(restarts) < _restarts())


def _parts(name: str) -> list[str]:
    return [*name.split("/"), "", "", "", ""][:4]


def _restarts() -> int:
    for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"):
        if (count := os.environ.get(name, "")).isdigit():
            return int(count)
    return 0


def _began(pid: int) -> str:
    """Return when a process began, in ticks of its machine's clock; empty where the system does not tell."""
    try:
        # The name of the process may have blanks, so the fields behind it are counted.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A process that has ended and that nobody has waited for is dead.
    return "" if fields[0] in "ZX" else fields[19]
