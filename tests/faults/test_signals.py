"""Ctrl-C, SIGTERM and crashes: the run ends as what it was, with everything."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, points, rows

BUSY = """
    import sys
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
    tracker.start_run("busy")
    tracker.flush()
    print("ready", flush=True)
    sys.stdin.readline()
    step = 0
    while True:
        tracker.log_metrics({"loss": step}, step=step)
        step += 1
        print(step, flush=True)
"""


def logged_when(process: subprocess.Popen, at_least: int, end: Callable[[], object]) -> set[int]:
    """The steps whose calls had returned in a process that is ended when it has made some."""
    said = b""
    while said.count(b"\n") <= at_least:
        said += os.read(process.stdout.fileno(), 65536)
    end()
    # It waits while nobody reads.
    while chunk := os.read(process.stdout.fileno(), 65536):
        said += chunk
    process.wait(PATIENCE_S)
    # The last line may be torn.
    return {int(line) - 1 for line in said.split(b"\n")[:-1] if line != b"ready"}


def test_ctrl_c_ends_the_run_within_a_step_as_killed_with_everything(uri, db, start_script):
    process = start_script(BUSY, uri)
    process.stdin.write("go\n")
    process.stdin.flush()
    logged = logged_when(process, 100, lambda: process.send_signal(signal.SIGINT))
    assert "KeyboardInterrupt" in process.stderr.read()
    assert process.returncode in (130, -signal.SIGINT, 1)
    assert {step for _, step in points(db, "loss")} >= logged
    assert rows(db, "SELECT status FROM runs") == [("KILLED",)]


def test_sigterm_delivers_everything_ends_the_run_as_killed_and_then_the_process(
    uri, db, start_script, heimdall_dir
):
    process = start_script(BUSY, uri)
    process.stdin.write("go\n")
    process.stdin.flush()
    logged = logged_when(process, 100, process.terminate)
    assert process.returncode == -signal.SIGTERM
    assert {step for _, step in points(db, "loss")} >= logged
    ((status, ended),) = rows(db, "SELECT status, end_time FROM runs")
    assert status == "KILLED"
    assert ended is not None
    assert list(heimdall_dir.glob("journal/*")) == []


def test_sigterm_waits_for_a_store_that_is_away_no_longer_than_the_grace(uri, db, locked, start_script):
    process = start_script(BUSY, uri, HEIMDALL_TERM_GRACE=0.3)
    ready = b""
    while not ready.endswith(b"\n"):
        ready += os.read(process.stdout.fileno(), 1)
    with locked(db):
        process.stdin.write("go\n")
        process.stdin.flush()
        # Still locked: only the grace can have ended it.
        logged = logged_when(process, 100, process.terminate)
    assert process.returncode == -signal.SIGTERM
    tracker = MLflowTracker(uri, experiment_name="tests")
    tracker.flush(PATIENCE_S)
    assert {step for _, step in points(db, "loss")} >= logged
    assert rows(db, "SELECT status FROM runs") == [("KILLED",)]


def test_sigterm_ends_a_process_whose_main_thread_never_comes_back_to_python(uri, db, start_script):
    process = start_script(
        """
        import hashlib, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("busy")
        tracker.log_metrics({"loss": 1})
        print("logged", flush=True)
        # One call of C for minutes, as a training step may be.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        """,
        uri,
        HEIMDALL_TERM_GRACE=5,
    )
    assert process.stdout.readline() == "logged\n"
    process.terminate()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGTERM
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert points(db, "loss") == [("loss", 0)]
    assert rows(db, "SELECT status FROM runs") == [("KILLED",)]


@pytest.mark.parametrize("before", [True, False])
def test_a_handler_of_sigterm_that_the_user_has_is_called(uri, db, start_script, before):
    install = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    first, then = (install, "") if before else ("", install)
    process = start_script(
        f"""
        import signal, sys, time
        from heimdall_tracking import MLflowTracker
        {first}
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        {then}
        tracker.start_run("busy")
        tracker.log_metrics({{"loss": 1}})
        print("logged", flush=True)
        while True:
            time.sleep(0.01)
        """,
        uri,
    )
    assert process.stdout.readline() == "logged\n"
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7, err
    assert points(db, "loss") == [("loss", 0)]
    ((status,),) = rows(db, "SELECT status FROM runs")
    assert status != "RUNNING"


@pytest.mark.parametrize(
    "crash", ["os.abort()", "os.kill(os.getpid(), 11)", "os._exit(1)", "os.kill(os.getpid(), 9)"]
)
def test_no_run_of_a_process_that_crashed_stays_running(uri, db, run_script, crash):
    run = run_script(
        f"""
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("outer")
        tracker.start_run("inner", nested=True)
        tracker.log_metrics({{"loss": 1}})
        {crash}
        """,
        uri,
    )
    assert run.code != 0
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert sorted(rows(db, "SELECT name, status FROM runs")) == [("inner", "FAILED"), ("outer", "FAILED")]
    assert points(db, "loss") == [("loss", 0)]
    assert rows(db, "SELECT * FROM runs WHERE end_time IS NULL") == []
