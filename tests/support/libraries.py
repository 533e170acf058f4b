"""Libraries that record by MLflow, in a folder of their own that is made once and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
WANTED = TESTS.parent / "requirements" / "libraries.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heimdall-tracking" / "libraries"


def folder() -> Path:
    """Return the folder with the libraries, which is made if it is not there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    made_for = f"{WANTED.read_text()} {sys.version}"
    made = CACHE / hashlib.sha256(made_for.encode()).hexdigest()[:16]
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            retry = TESTS.parent / "scripts" / "retry.sh"
            pip = [str(retry), sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--target", str(made), "--requirement", str(WANTED)], check=True)
            (made / "complete").touch()
    return made


def variables() -> dict[str, str]:
    """Return the variables with which a process finds the libraries and leaves the network alone."""
    path = [str(folder()), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HUB_OFFLINE": "1",
        "KERAS_BACKEND": "torch",
        "OMP_NUM_THREADS": "1",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
    }
