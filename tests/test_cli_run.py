"""`heimdall run`: any command as a run, with its console and its end."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.cli.console import Kept
from support.helpers import PATIENCE_S, clean_environment, free_port, wait_until

PYTHON = sys.executable


@pytest.fixture
def record(heimdall, uri, heimdall_dir):
    """Run a command by `heimdall run`."""

    def run(*command: object, options: tuple[str, ...] = (), **variables: object):
        return heimdall("run", "--uri", uri, *options, "--", *command, HEIMDALL_DIR=heimdall_dir, **variables)

    return run


@pytest.fixture
def started(uri, heimdall_dir, tmp_path):
    """Start a command by `heimdall run`, in a process group of its own."""
    with contextlib.ExitStack() as processes:

        def start(*command: object, stream: int = subprocess.PIPE, **variables: object) -> subprocess.Popen:
            program = [Path(PYTHON).with_name("heimdall"), "run", "--uri", uri, "--", *command]
            process = subprocess.Popen(
                [*map(str, program)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=tmp_path,
                env=clean_environment(HEIMDALL_DIR=heimdall_dir, **variables),
                start_new_session=True,
            )
            processes.enter_context(process)
            processes.callback(process.kill)
            return process

        yield start


def only_run(uri: str, *search: str):
    (run,) = reader(uri).search_runs(*search)
    return run


def reader(uri: str) -> MLflowTracker:
    return MLflowTracker(uri, bridge=False, set_environment=False)


def console(uri: str, run_id: str, stream: str = "stdout") -> str:
    return reader(uri).load_text(run_id, f"console/{stream}.log")


def test_a_command_is_a_run_with_both_streams(record, uri):
    command = ["bash", "-c", "echo out; echo err >&2; printf 'no end of the line'"]
    done = record(*command, options=("--name", "mine", "--experiment", "e", "--tag", "a=b=c"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\nno end of the line", "err\n")
    tracker = MLflowTracker(uri, experiment_name="e")
    (run,) = tracker.search_runs()
    assert (run.run_name, run.status, run.tags["a"]) == ("mine", "FINISHED", "b=c")
    assert run.tags["mlflow.source.name"] == "bash"
    assert tracker.load_text(run.run_id, "console/stdout.log") == done.stdout
    assert tracker.load_text(run.run_id, "console/stderr.log") == done.stderr


@pytest.mark.parametrize(
    ("code", "script", "status"),
    [
        (3, "exit 3", "FAILED"),
        (130, "exit 130", "KILLED"),
        (143, "kill -TERM $$", "KILLED"),
        (137, "kill -KILL $$", "FAILED"),
    ],
)
def test_the_exit_status_is_the_end_of_the_run(record, uri, code, script, status):
    assert record("bash", "-c", script).returncode == code
    assert only_run(uri).status == status


def test_a_command_that_is_not_there(record, uri):
    done = record("no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr
    run = only_run(uri)
    assert run.status == "FAILED"
    assert "No such file" in console(uri, run.run_id, "stderr")


def test_no_command_is_a_wrong_call(heimdall):
    done = heimdall("run")
    assert done.returncode == 2
    assert "name a command" in done.stderr


def test_bytes_are_shown_unchanged(started, uri):
    data = bytes(range(256)) * 100
    process = started(PYTHON, "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 100)")
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, data)
    run = only_run(uri)
    assert Path(reader(uri).download_artifacts(run.run_id, "console/stdout.log")).read_bytes() == data


def test_the_console_is_in_the_run_while_it_goes_on(started, uri):
    process = started("bash", "-c", "echo out; echo err >&2; sleep 1000")
    tracker = reader(uri)

    def streams() -> list[str]:
        runs = tracker.search_runs()
        return sorted(it.path for run in runs for it in tracker.list_artifacts("console", run_id=run.run_id))

    wait_until(lambda: streams() == ["console/stderr.log", "console/stdout.log"], "the console is in the run")
    run = only_run(uri)
    assert run.status == "RUNNING"
    assert (console(uri, run.run_id), console(uri, run.run_id, "stderr")) == ("out\n", "err\n")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 143
    assert only_run(uri).status == "KILLED"


@pytest.mark.parametrize("to_all", [False, True], ids=["to heimdall alone", "from a terminal"])
def test_ctrl_c_reaches_the_command_once(uri, heimdall_dir, tmp_path, to_all):
    """It counts the signals for a second, and ends itself."""
    script = """
import signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print("ready", flush=True)
while not seen:
    time.sleep(0.01)
time.sleep(0.5)
print("seen", len(seen), flush=True)
sys.exit(130)
"""
    program = [Path(PYTHON).with_name("heimdall"), "run", "--uri", uri, "--", PYTHON, "-c", script]
    pid, terminal = pty.fork()
    if not pid:
        # A shell starts its background jobs deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(tmp_path)
        environment = clean_environment(HEIMDALL_DIR=heimdall_dir)
        os.execve(program[0], [*map(str, program)], environment)
    said = b""
    while b"ready\r\n" not in said:
        said += os.read(terminal, 1000)
    # Byte 3 is Ctrl-C to a terminal, which sends the signal to all of its programs.
    os.write(terminal, b"\x03") if to_all else os.kill(pid, signal.SIGINT)
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 1000):
            said += data
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)
    assert b"seen 1\r\n" in said
    run = only_run(uri)
    assert run.status == "KILLED"
    # In the file, the ends of lines are those of the program.
    assert "ready\n" in console(uri, run.run_id)
    assert "seen 1\n" in console(uri, run.run_id)


def test_a_command_finds_a_terminal_where_there_is_one(uri, heimdall_dir, tmp_path):
    script = "import os, sys; print(sys.stdout.isatty(), sys.stderr.isatty(), *os.get_terminal_size())"
    program = [Path(PYTHON).with_name("heimdall"), "run", "--uri", uri, "--", PYTHON, "-c", script]
    pid, terminal = pty.fork()
    if not pid:
        # A shell starts its background jobs deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(tmp_path)
        os.execve(program[0], [*map(str, program)], clean_environment(HEIMDALL_DIR=heimdall_dir))
    said = b""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 1000):
            said += data
    os.waitpid(pid, 0)
    os.close(terminal)
    assert said.startswith(b"True True")


STOCK = """
import mlflow, os, sys
with mlflow.start_run() as run:
    mlflow.log_metric("m", 1.0)
    assert "MLFLOW_RUN_ID" not in os.environ
with mlflow.start_run() as another:
    mlflow.log_metric("m", 2.0)
print(run.info.run_id)
"""
OURS = """
import os
from heimdall_tracking import initialize_mlflow
tracker = initialize_mlflow()
with tracker.run() as run:
    tracker.log_metrics({"m": 1.0})
    assert "MLFLOW_RUN_ID" not in os.environ
with tracker.run() as another:
    tracker.log_metrics({"m": 2.0})
print(run.run_id)
"""


@pytest.mark.parametrize("script", [STOCK, OURS], ids=["stock", "ours"])
def test_mlflow_and_a_tracker_in_the_command_go_on_with_its_run(record, uri, script):
    done = record(PYTHON, "-c", script, options=("--experiment", "e", "--name", "outer"))
    assert done.returncode == 0, done.stderr
    tracker = MLflowTracker(uri, experiment_name="e")
    by_name = {run.run_name == "outer": run for run in tracker.search_runs()}
    assert len(by_name) == 2
    assert (by_name[True].run_id, by_name[True].metrics) == (done.stdout.strip(), {"m": 1.0})
    assert by_name[False].metrics == {"m": 2.0}
    assert {run.status for run in by_name.values()} == {"FINISHED"}


def test_the_command_s_own_end_of_the_run_is_not_the_last_word(record, uri):
    script = STOCK.replace("print(run", "sys.exit(5)\nprint(run")
    assert record(PYTHON, "-c", script, options=("--name", "outer")).returncode == 5
    assert only_run(uri, "attributes.run_name = 'outer'").status == "FAILED"


@pytest.mark.faults
def test_a_command_that_is_killed_loses_nothing(record, uri):
    script = """
import mlflow, os, signal
mlflow.start_run()
for step in range(1000):
    mlflow.log_metric("loss", step, step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert record(PYTHON, "-c", script).returncode == 137
    run = only_run(uri)
    assert (run.status, run.metrics) == ("FAILED", {"loss": 999.0})
    assert len(reader(uri).get_metric_history(run.run_id, "loss")) == 1000


@pytest.mark.faults
def test_heimdall_run_that_is_killed_is_failed_by_the_next_start(started, record, uri):
    process = started("bash", "-c", "echo before; sleep 1000")
    tracker = reader(uri)
    wait_until(lambda: tracker.search_runs(), "the run has started")
    run = only_run(uri)
    wait_until(lambda: tracker.list_artifacts("console", run_id=run.run_id), "the console is in the run")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert record("true").returncode == 0
    wait_until(lambda: tracker.get_run(run.run_id).status == "FAILED", "the run is ended")
    assert console(uri, run.run_id) == "before\n"


@pytest.mark.faults
def test_a_command_runs_without_its_store(heimdall, heimdall_dir):
    uri = f"http://127.0.0.1:{free_port()}"
    variables = {"HEIMDALL_DIR": heimdall_dir, "HEIMDALL_CONNECT_TIMEOUT": "0.5"}
    variables |= {"HEIMDALL_EXIT_TIMEOUT": "0.5", "HEIMDALL_END_TIMEOUT": "0.5"}
    done = heimdall(
        "run", "--uri", uri, "--", "bash", "-c", "echo ${MLFLOW_RUN_ID:-none}; exit 4", **variables
    )
    assert (done.returncode, done.stdout) == (4, "none\n")


def test_a_long_console_keeps_its_head_and_its_tail(record, uri):
    script = "print(*range(10000), sep='\\n')"
    done = record(PYTHON, "-c", script, HEIMDALL_CONSOLE_LIMIT=4000)
    assert len(done.stdout.splitlines()) == 10000
    lines = console(uri, only_run(uri).run_id).splitlines()
    assert (lines[0], lines[-1]) == ("0", "9999")
    assert sum("bytes are left out here" in line for line in lines) == 1
    assert sum(map(len, lines)) < 4200


def test_a_wrong_limit_is_told_before_the_command_runs(record):
    done = record("touch", "made", HEIMDALL_CONSOLE_LIMIT="much")
    assert done.returncode == 1
    assert "HEIMDALL_CONSOLE_LIMIT" in done.stderr


@pytest.mark.parametrize("limit", [1, 5, 8, 100, 1000])
def test_what_is_kept_is_the_beginning_and_the_end(tmp_path, limit):
    kept = Kept(tmp_path, "stdout", limit)
    data = b"".join(b"%d," % number for number in range(100))
    for at in range(0, len(data), 7):
        kept.write(data[at : at + 7])
        found = kept.snapshot().read_bytes()
        head, _, tail = found.partition(b"\n[heimdall: ")
        written = data[: at + 7]
        assert written.startswith(head)
        assert written.endswith(tail.partition(b"]\n")[2])
        assert tail or found == written
    assert kept.snapshot() is None
    kept.close()


def test_output_of_a_program_left_behind_keeps_nobody_waiting(record):
    begun = time.monotonic()
    assert record("bash", "-c", "sleep 30 & echo $!").returncode == 0
    assert time.monotonic() - begun < 25
