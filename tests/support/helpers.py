"""What tests of several files do by the same words."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

# How long a test waits for something that normally takes a moment. Only a defect makes it last.
PATIENCE_S = 120
TRACKING_VARIABLES = ("MLFLOW_", "HEIMDALL_", "AWS_", "AZURE_", "GOOGLE_", "POSTGRES_", "PG")
# A shell starts its background jobs deaf to Ctrl-C, and theirs inherit that.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def clean_environment(**variables: object) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(TRACKING_VARIABLES)}
    kept["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return kept | {name: str(value) for name, value in variables.items()}


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


def rows(db: Path, query: str, *values: object) -> list[tuple]:
    """What a SQLite database answers."""
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


def database_for_a_module(request: pytest.FixtureRequest, folder: Path, name: str) -> str:
    """The URI of a database that a fixture of module scope, with the databases as params, fills."""
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'mlflow.db'}"
    return request.getfixturevalue("postgres_server").create_database(name)
