"""Functions that tests of several files call."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

# A test waits so many seconds for something that normally takes a moment. Only a defect makes it last.
PATIENCE_S = 120
# The seed of the tests that draw at random; a test that fails prints it.
SEED = int(os.environ.get("HEIMDALL_SEED", random.SystemRandom().getrandbits(32)))
MIB = 1 << 20
TRACKING_VARIABLES = ("MLFLOW_", "HEIMDALL_", "AWS_", "AZURE_", "GOOGLE_", "POSTGRES_", "PG")
# A shell starts its background jobs deaf to Ctrl-C, and theirs inherit that.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def clean_environment(**variables: object) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(TRACKING_VARIABLES)}
    kept["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return kept | {name: str(value) for name, value in variables.items()}


def run_program(
    command: list[object], cwd: Path | None = None, timeout: float = PATIENCE_S, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in an environment without variables of any tracker but these."""
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=clean_environment(**variables),
    )


def sync(folder: Path, *arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run `heimdall sync` to its end."""
    command = [sys.executable, "-m", "heimdall_tracking.cli", "sync", *arguments, folder]
    return run_program(command, **variables)


def wait_until(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            pytest.fail(f"waited {PATIENCE_S} s in vain until {what}")
        time.sleep(0.02)


def write(path: Path, content: bytes = b"content") -> Path:
    """Write a file, with the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_large(path: Path) -> Path:
    """Write a file of 256 MiB, a block at a time."""
    with path.open("wb") as file:
        for _ in range(16):
            file.write(os.urandom(16 * MIB))
    return path


def rows(db: Path, query: str, *values: object) -> list[tuple]:
    """Return what a SQLite database answers."""
    with contextlib.closing(sqlite3.connect(db, timeout=PATIENCE_S)) as connection:
        return connection.execute(query, values).fetchall()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def memory_of_an_upload(
    run_script: Callable[..., SimpleNamespace], uri: str, artifacts: str, large: Path, **variables: object
) -> float:
    """By how many MiB the peak of a process grows by an upload of a file or folder that is not its first."""
    script = """
        import re, sys
        from pathlib import Path
        from heimdall_tracking import MLflowTracker

        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

        uri, artifacts, small, large = sys.argv[1:]
        tracker = MLflowTracker(uri, artifacts)
        tracker.start_run()
        tracker.log_artifact(small).wait(60)
        before = peak()
        log = tracker.log_artifacts_dir if Path(large).is_dir() else tracker.log_artifact
        log(large, "").wait(60)
        print(peak() - before)
        tracker.end_run()
        """
    small = large.with_name("small")
    small.write_text("content")
    grown = run_script(script, uri, artifacts, small, large, **variables)
    assert grown.code == 0, grown.err
    return float(grown.out)


def points(db: Path, prefix: str) -> list[tuple]:
    """The keys and steps of the metrics in a database."""
    return sorted(rows(db, "SELECT key, step FROM metrics WHERE key LIKE ?", f"{prefix}%"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def reset(connection: socket.socket) -> None:
    """Close a connection so that its peer is told RST, whatever is on its way."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A thread that waits in `recv` would keep it open.
        connection.shutdown(socket.SHUT_RD)
    connection.close()


def certificate_in(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed but itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    return certificate, key


def both_clients(
    request: pytest.FixtureRequest, folders: pytest.TempPathFactory, name: str
) -> SimpleNamespace:
    """Make a database of the kind that a fixture of module scope has as param, with both clients on it."""
    from mlflow import MlflowClient

    from heimdall_tracking import MLflowTracker

    folder = folders.mktemp(name)
    if request.param == "sqlite":
        uri = f"sqlite:///{folder / 'mlflow.db'}"
    else:
        uri = request.getfixturevalue("postgres_server").create_database(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEIMDALL_DIR", str(folder / "heimdall"))
        tracker = MLflowTracker(uri, experiment_name=name)
    # A stock client that has not seen the database takes a second to look at it.
    return SimpleNamespace(uri=uri, tracker=tracker, stock=MlflowClient(uri, uri))
