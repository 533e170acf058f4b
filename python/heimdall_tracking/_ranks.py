"""Ranks of a distributed training: how those behind rank 0 come to know its run.

Rank 0 leaves the id of a run where the others look for it: in the key-value store of `torch.distributed`,
where that is initialised, and in a file beside the journals, whose name is that of the launch.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import _start

# Longest wait of a rank for rank 0 to start its run; it may have to load a dataset first.
PATIENCE_S = 300.0
# Variables that name a launch: torchrun's and Lightning's variables, and Slurm's.
LAUNCH = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)
# Longest time by which another process of the same launch may have started before this one, in seconds.
LAUNCH_S = 60.0

_started = 0
_attached = 0


def tell_other_ranks(run_id: str) -> None:
    """Leave the id of a run that rank 0 has started where the other ranks look for it."""
    global _started
    store = _store()
    if store is not None:
        store.set(f"heimdall/run/{_started}", run_id)
    file = _file(_started)
    if file is not None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid()}))
            new.replace(file)
            # Another launch of that name must not find the file.
            atexit.register(_remove, file, os.getpid())
    _started += 1


def run_of_rank_zero() -> str:
    """Return the id of rank 0's run: of the first one at the first call, of the second at the second.

    Raises:
        RunStateError: Nothing says which run it is.
    """
    global _attached
    from .errors import RunStateError

    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        return given
    hint = (
        "call torch.distributed.init_process_group() before start_run(), or name the run by "
        "start_run(run_id=...) or MLFLOW_RUN_ID"
    )
    key, file = f"heimdall/run/{_attached}", _file(_attached)
    if file is None and _store() is None:
        raise RunStateError(f"nothing names the launch that rank 0 belongs to: {hint}")
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        store = _store()
        run_id: str | None = None
        if store is None:
            run_id = _read(file)
        elif store.check([key]):
            run_id = store.get(key).decode()
        if run_id is not None:
            _attached += 1
            return run_id
        time.sleep(0.05)
    raise RunStateError(f"rank 0 has not started a run within {PATIENCE_S:.0f} s: {hint}")


def _file(number: int) -> Path | None:
    """Return the file of the launch's run of that number, if anything names the launch."""
    names = [f"{name}={os.environ[name]}" for name in LAUNCH if os.environ.get(name)]
    if not names:
        return None
    launch = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    folder = Path(_start.path(os.environ.get("HEIMDALL_DIR") or ".heimdall"))
    return folder / "ranks" / f"{launch}-{number}.json"


def _read(file: Path | None) -> str | None:
    """Return the id in a file that the rank 0 of this launch has left, and no other before it."""
    if file is None:
        return None
    try:
        if file.stat().st_mtime < _process_began() - LAUNCH_S:
            return None
        found = json.loads(file.read_text())
        run_id: str = found["run_id"]
        if found["host"] == socket.gethostname():
            os.kill(found["pid"], 0)
    except PermissionError:
        return run_id
    except (OSError, ValueError, KeyError):
        return None
    return run_id


def _process_began() -> float:
    """Return when this process began, in seconds since 1970; 0 where the system does not tell."""
    try:
        # The 22nd field, counted behind the name, which may have blanks: clock ticks since the machine began.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def _remove(file: Path, pid: int) -> None:
    """Remove the file at the exit of the process that has made it."""
    if os.getpid() == pid:
        with suppress(OSError):
            file.unlink()
            file.parent.rmdir()


def _store() -> Any:
    """Return the key-value store that torch.distributed's processes share, if there is one."""
    import sys

    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()
