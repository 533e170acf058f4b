"""A wait that takes long shows on a terminal how far it is, and elsewhere says it once."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import s3
from support.helpers import HEARS_CTRL_C, MIB, PATIENCE_S, clean_environment, write
from support.s3_proxy import S3Proxy, parts

LOGS = """
import sys
from heimdall_tracking import MLflowTracker
uri, artifacts, file = sys.argv[1:]
tracker = MLflowTracker(uri, artifacts)
run_id = tracker.start_run()
upload = tracker.log_artifact(file, "")
"""
WAYS = {
    "wait": "upload.wait()",
    "flush": "tracker.flush()",
    "list": "tracker.list_artifacts()",
    "register": "tracker.register_model('m', f'runs:/{run_id}/weights.ckpt')",
    # The end of the process waits by itself.
    "exit": "",
}


class Terminal:
    """A program whose stderr is a terminal."""

    def __init__(self, code: str, arguments: list[object], folder: Path, columns: int, **variables: object):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEARS_CTRL_C + code, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            cwd=folder,
            env=clean_environment(HEIMDALL_DIR=folder / "heimdall", **variables),
        )
        os.close(theirs)
        self.folder = folder
        self.shown = ""

    def read(self, until: str = "") -> str:
        """Return what was shown up to a text that matches the pattern, else up to the end of the program."""
        give_up = time.monotonic() + PATIENCE_S
        # Unlike `select`, it takes descriptors beyond the thousandth, which a worker with many tests gets to.
        readable = select.poll()
        readable.register(self.ours, select.POLLIN)
        while not until or not re.search(until, self.shown):
            if not readable.poll(max(give_up - time.monotonic(), 0) * 1000):
                pytest.fail(f"waited in vain for {until!r}: {self.shown!r}")
            try:
                self.shown += os.read(self.ours, 4096).decode()
            except OSError:
                # Nobody has the other end any more.
                assert not until, f"ended without {until!r}: {self.shown!r}"
                break
        return self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.ours)


@pytest.fixture
def start_on_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    terminals = []

    def start(code: str, *arguments: object, columns: int = 120, **variables: object) -> Terminal:
        terminals.append(Terminal(code, list(arguments), tmp_path, columns, **variables))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def slow(s3_server: s3.S3Server) -> Iterator[S3Proxy]:
    """A store that takes no more than the first part of a file."""
    with S3Proxy(s3_server.port) as proxy:
        proxy.strike("hold", parts, after=1)
        yield proxy


@pytest.fixture
def arguments(uri: str, bucket: str, tmp_path: Path) -> list[object]:
    """The arguments of `LOGS`, for a file of three parts."""
    return [uri, f"s3://{bucket}/runs", write(tmp_path / "weights.ckpt", os.urandom(24 * MIB))]


@pytest.fixture
def variables(s3_server: s3.S3Server, slow: S3Proxy) -> dict[str, object]:
    return s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": slow.url, "HEIMDALL_EXIT_TIMEOUT": PATIENCE_S}


@pytest.mark.parametrize("way", WAYS)
def test_a_long_upload_shows_how_far_it_is(start_on_terminal, arguments, variables, slow, way):
    # One wait has one bar: after it the end of a busy process may have another.
    code = WAYS[way] + ("\nimport os; os._exit(0)" if way != "exit" else "")
    terminal = start_on_terminal(LOGS + code, *arguments, **variables)
    shown = terminal.read(until=r"\r[^\r]*8 of 24 MiB uploaded[^\r]*\r")
    hint = "Ctrl-C leaves the rest to the next start" if way == "exit" else "Ctrl-C ends the wait"
    assert re.search(rf"\rdelivering \[#{{7}}\.{{13}}\] 8 of 24 MiB uploaded, \d left, [^\r]*{hint}", shown)
    slow.heal()
    shown = terminal.read()
    assert terminal.process.wait(PATIENCE_S) == 0
    # One line that is drawn over, and its end.
    assert shown.count("\n") == 1
    assert shown.endswith("\n")


@pytest.mark.parametrize("way", ["wait", "flush", "exit"])
def test_a_short_wait_shows_nothing(start_on_terminal, uri, tmp_path, way):
    # A wait that a busy machine makes long is not short; the exit has nothing to wait for.
    code = WAYS[way] or "while tracker.status().pending: pass"
    code = f"import time\nbegun = time.monotonic()\n{code}\nprint(time.monotonic() - begun, flush=True)"
    terminal = start_on_terminal(LOGS + code, uri, tmp_path / "artifacts", write(tmp_path / "small"))
    shown = terminal.read()
    assert terminal.process.wait(PATIENCE_S) == 0
    was_short = float(terminal.process.stdout.readline()) < 1
    assert shown == "" or not was_short


def test_the_command_line_shows_how_far_a_long_upload_is(start_on_terminal, arguments, variables, slow):
    offline = LOGS.replace("artifacts)", "artifacts, mode='offline')")
    assert start_on_terminal(offline, *arguments, **variables).process.wait(PATIENCE_S) == 0
    code = "from heimdall_tracking.cli import main; sys.exit(main(['sync']))"
    terminal = start_on_terminal(f"import sys\n{code}", **variables)
    terminal.read(until=r"\r[^\r]*\d of (\d) records, [\d,]+/s, 8 of 24 MiB")
    slow.heal()
    assert re.search(r"(\d) of \1 records", terminal.read())
    assert terminal.process.wait(PATIENCE_S) == 0


def test_a_download_has_no_bar_of_what_is_delivered(start_on_terminal, arguments, variables, slow):
    slow.heal()
    slow.strike("hold", lambda request: request.method == "GET" and "range" in request.headers)
    code = """
tracker.flush()
# The flush has a bar of its own where the machine is busy.
print("there", file=sys.stderr, flush=True)
tracker.download_artifacts(run_id, 'weights.ckpt', '.')
"""
    terminal = start_on_terminal(LOGS + code, *arguments, **variables)
    before = terminal.read(until="there\r\n")
    with pytest.raises(subprocess.TimeoutExpired):
        terminal.process.wait(4)
    slow.heal()
    assert terminal.process.wait(PATIENCE_S) == 0
    assert terminal.read() == before


@pytest.mark.parametrize("way", ["wait", "flush", "register"])
def test_ctrl_c_ends_a_wait_that_shows_a_bar(start_on_terminal, arguments, variables, way):
    variables |= {"HEIMDALL_EXIT_TIMEOUT": 0}
    code = f"""
try:
    {WAYS[way]}
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    terminal = start_on_terminal(LOGS + code, *arguments, **variables)
    terminal.read(until="MiB uploaded")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.stdout.readline() == "stopped\n"


def test_the_timeout_of_a_wait_is_shown(start_on_terminal, arguments, variables):
    terminal = start_on_terminal(LOGS + "upload.wait(600)", *arguments, **variables)
    assert "at most 600 s; Ctrl-C ends the wait" in terminal.read(until="wait")


def test_the_timeout_of_a_wait_is_kept(run_script, arguments, variables):
    code = """
from heimdall_tracking import UndeliveredError
try:
    upload.wait(0.5)
except UndeliveredError:
    print("late", flush=True)
"""
    variables |= {"HEIMDALL_EXIT_TIMEOUT": 0}
    assert run_script(LOGS + code, *arguments, **variables).out == "late\n"


def test_a_narrow_terminal_has_a_line_that_fits(start_on_terminal, arguments, variables, slow):
    terminal = start_on_terminal(LOGS + WAYS["wait"], *arguments, columns=60, **variables)
    terminal.read(until=r"8 of 24 MiB uploaded[^\r]*\r")
    slow.heal()
    lines = terminal.read().split("\r")
    assert {len(line) for line in lines if line.strip()} == {59}


def test_several_waits_at_a_time_have_one_bar(start_on_terminal, arguments, variables, slow):
    code = """
from threading import Thread
waits = [Thread(target=upload.wait) for _ in range(5)]
for wait in waits:
    wait.start()
for wait in waits:
    wait.join()
"""
    terminal = start_on_terminal(LOGS + code, *arguments, **variables)
    terminal.read(until=r"8 of 24 MiB uploaded[^\r]*\r")
    slow.heal()
    assert terminal.read().count("\n") == 1


def test_a_wait_takes_over_the_bar_of_one_that_has_ended(start_on_terminal, arguments, variables, slow):
    code = """
from pathlib import Path
from threading import Thread
import time
def second():
    while not Path("first").exists():
        time.sleep(0.01)
    upload.wait()
Thread(target=second).start()
try:
    tracker.flush(600)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    terminal = start_on_terminal(LOGS + code, *arguments, **variables)
    terminal.read(until="at most 600 s; Ctrl-C ends the wait")
    write(terminal.folder / "first")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.stdout.readline() == "stopped\n"
    terminal.read(until=r"uploaded, \d left, Ctrl-C ends the wait")
    slow.heal()
    terminal.read()


def test_a_handler_of_logs_that_waits_itself_holds_up_nothing(start_script, arguments, variables, slow):
    code = """
import logging
from heimdall_tracking import UndeliveredError
class Waits(logging.Handler):
    def emit(self, record):
        if record.getMessage() == "mine":
            try:
                tracker.flush(3)
            except UndeliveredError:
                print("late", flush=True)
handler = Waits()
logging.getLogger().addHandler(handler)
logging.getLogger("theirs").warning("mine")
print("went on", flush=True)
"""
    process = start_script(LOGS + code, *arguments, **variables | {"HEIMDALL_EXIT_TIMEOUT": 0})
    assert [process.stdout.readline(), process.stdout.readline()] == ["late\n", "went on\n"]


def test_where_no_terminal_is_waits_are_told_once(start_script, arguments, variables, slow):
    code = """
from heimdall_tracking import UndeliveredError
try:
    tracker.flush()
except KeyboardInterrupt:
    print("stopped", flush=True)
try:
    upload.wait(3)
except UndeliveredError:
    print("late", flush=True)
sys.stdin.read()
"""
    process = start_script(LOGS + code, *arguments, **variables | {"HEIMDALL_EXIT_TIMEOUT": 0})
    assert process.stderr.readline() == "delivering what is recorded, Ctrl-C ends the wait\n"
    process.send_signal(signal.SIGINT)
    assert [process.stdout.readline(), process.stdout.readline()] == ["stopped\n", "late\n"]
    slow.heal()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert "delivering" not in err


def test_a_flush_at_the_very_end_of_the_interpreter_needs_no_bar(run_script, uri, tmp_path):
    code = """
class Last:
    def __init__(self):
        self.tracker = tracker

    def __del__(self):
        self.tracker.flush()
        print("flushed", flush=True)

last = Last()
"""
    run = run_script(LOGS + code, uri, tmp_path / "artifacts", write(tmp_path / "small"))
    assert (run.code, run.out, run.err) == (0, "flushed\n", "")
