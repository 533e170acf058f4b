"""Runs in a real kernel: their status is that of the cells since they began, also when the kernel stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, clean_environment, rows, wait_until

SET_UP = """
from types import SimpleNamespace
from heimdall_tracking import initialize_mlflow, settings
tracker = initialize_mlflow(settings)
"""


class Kernel:
    """A kernel that runs cells, as a notebook does."""

    def __init__(self, folder: Path, **variables: object) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=clean_environment(**variables))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(PATIENCE_S)

    def begin(self, code: str, cell_id: str | None = None) -> str:
        """Send a cell and return the message's id."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        message = self.client.session.msg("execute_request", content)
        message["metadata"] = {"cellId": cell_id} if cell_id else {}
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def end(self, sent: str) -> tuple[str, str]:
        """Wait for a cell: its error, or "ok", and what it has printed."""
        printed = ""
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE_S)
            if message["parent_header"].get("msg_id") != sent:
                continue
            if message["msg_type"] == "stream":
                printed += message["content"]["text"]
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        while (reply := self.client.get_shell_msg(timeout=PATIENCE_S))["parent_header"]["msg_id"] != sent:
            pass
        return reply["content"].get("ename", "ok"), printed

    def run(self, code: str, cell_id: str | None = None) -> tuple[str, str]:
        return self.end(self.begin(code, cell_id))

    def wait_until_busy(self, sent: str) -> None:
        """Wait until a cell prints."""
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE_S)
            if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == sent:
                return

    def shut_down(self, now: bool = False) -> None:
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=now)
        self.client.stop_channels()


@pytest.fixture
def start_kernel(tmp_path: Path, heimdall_dir: Path, uri: str) -> Iterator[Callable[[], Kernel]]:
    variables = {"HEIMDALL_DIR": heimdall_dir, "MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "tests"}
    started = []

    def start() -> Kernel:
        started.append(Kernel(tmp_path, **variables))
        return started[-1]

    yield start
    for kernel in started:
        kernel.shut_down(now=True)


@pytest.fixture
def kernel(start_kernel: Callable[[], Kernel]) -> Kernel:
    return start_kernel()


@pytest.fixture
def statuses(uri: str, db: Path) -> Callable[[], dict[str, str]]:
    def ask() -> dict[str, str]:
        # Of several runs of a name it is the first.
        return dict(rows(db, "SELECT name, status FROM runs ORDER BY start_time DESC"))

    return ask


BUSY = "import time\nprint('busy', flush=True)\nwhile True:\n    time.sleep(0.01)"


def shut_down_while_busy(kernel: Kernel) -> None:
    kernel.wait_until_busy(kernel.begin(BUSY))
    kernel.shut_down()


def terminate(kernel: Kernel) -> None:
    os.kill(kernel.manager.provisioner.pid, signal.SIGTERM)
    wait_until(lambda: not kernel.manager.is_alive(), "the kernel has died of SIGTERM")


def kill(kernel: Kernel) -> None:
    kernel.shut_down(now=True)


# Cells while a run is open, by the name of the run; how the kernel ends then, and the status of the run.
ENDS = {
    "a good cell": (["tracker.log_metric('loss', 1.0)"], Kernel.shut_down, "FINISHED"),
    "an exception": (["1 / 0"], Kernel.shut_down, "FAILED"),
    "an exception, put right": (["1 / 0", "tracker.log_metric('loss', 1.0)"], Kernel.shut_down, "FINISHED"),
    "no Python": (["def"], Kernel.shut_down, "FAILED"),
    "sys.exit(0)": (["import sys; sys.exit(0)"], Kernel.shut_down, "FINISHED"),
    "sys.exit(1)": (["import sys; sys.exit(1)"], Kernel.shut_down, "FAILED"),
    "a script that fails": (["%run failing.py"], Kernel.shut_down, "FAILED"),
    "exit": (["exit"], Kernel.shut_down, "FINISHED"),
    "a shutdown while a cell runs": ([], shut_down_while_busy, "KILLED"),
    "SIGTERM": ([], terminate, "KILLED"),
    "a kill": ([], kill, "FAILED"),
}


def test_the_cells_since_a_run_began_decide_when_the_kernel_ends(start_kernel, uri, statuses, tmp_path):
    (tmp_path / "failing.py").write_text("1 / 0\n")
    for name, (cells, end, status) in ENDS.items():
        kernel = start_kernel()
        # Before the run, so it does not decide.
        assert kernel.run("undefined_name")[0] == "NameError"
        assert kernel.run(SET_UP)[0] == "ok"
        assert kernel.run(f"tracker.start_run({name!r}); tracker.log_metric('loss', 1.0)")[0] == "ok"
        for cell in cells:
            kernel.run(cell)
        end(kernel)
        if end is kill:
            MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
        assert statuses()[name] == status, name


def test_a_cell_that_is_interrupted_leaves_a_killed_run(kernel, statuses):
    kernel.run(SET_UP + "tracker.start_run('interrupted')")
    sent = kernel.begin(BUSY)
    kernel.wait_until_busy(sent)
    kernel.manager.interrupt_kernel()
    assert kernel.end(sent)[0] == "KeyboardInterrupt"
    kernel.shut_down()
    assert statuses() == {"interrupted": "KILLED"}


def test_a_set_up_cell_that_runs_again_ends_the_open_run(kernel, statuses):
    def begin(name: str) -> None:
        assert kernel.run(f"tracker.start_run({name!r})") == ("ok", "")

    def set_up(code: str, cell_id: str | None = None) -> str:
        error, printed = kernel.run(code + "tracker.flush()", cell_id)
        assert error == "ok", printed
        return printed

    def ends(name: str, status: str) -> None:
        wait_until(lambda: statuses().get(name, "RUNNING") != "RUNNING", f"the run {name} has ended")
        assert statuses()[name] == status

    assert set_up(SET_UP) == ""
    begin("of the same code")
    assert set_up(SET_UP).count("is ended as FINISHED") == 1
    ends("of the same code", "FINISHED")

    begin("failed")
    kernel.run("1 / 0")
    assert set_up(SET_UP).count("is ended as FAILED") == 1
    ends("failed", "FAILED")

    begin("edited, with the name of the variable")
    assert set_up("# Edited." + SET_UP).count("is ended as FINISHED") == 1
    ends("edited, with the name of the variable", "FINISHED")

    # The cell of an editor that names its cells, which needs no variable of that name.
    holder = "holder = SimpleNamespace(tracker=initialize_mlflow(settings)); tracker = holder.tracker;"
    set_up(holder, "cell-1")
    begin("edited")
    kernel.run("del tracker")
    assert set_up("# Edited.\n" + holder, "cell-1").count("is ended as FINISHED") == 1
    ends("edited", "FINISHED")

    # One that nobody has any more.
    nobodys = "initialize_mlflow(settings).start_run('nobody has it')"
    kernel.run(nobodys)
    assert kernel.run(nobodys)[1].count("is ended as FINISHED") == 1
    ends("nobody has it", "FINISHED")

    # Trackers beside it, of another cell, another experiment or the same cell, end nothing.
    begin("stays")
    assert set_up("reader = initialize_mlflow(settings); runs = reader.search_runs();") == ""
    other = "import os; other = type(tracker)(os.environ['MLFLOW_TRACKING_URI'], experiment_name='other');"
    assert set_up(other + "other.start_run('other');") == ""
    assert set_up("pair = [initialize_mlflow(settings) for _ in range(2)]; pair[0].start_run('left');") == ""
    assert {statuses().get(name, "RUNNING") for name in ("stays", "other", "left")} == {"RUNNING"}
    kernel.shut_down()
    assert set(statuses().values()) == {"FINISHED", "FAILED"}


def test_a_script_may_have_trackers_side_by_side(uri, db, run_script):
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        for name in ("one", "two"):
            tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
            tracker.start_run(name)
            tracker.flush()
        print([run.status for run in tracker.search_runs()])
        """,
        uri,
    )
    assert (run.out, run.err) == ("['RUNNING', 'RUNNING']\n", "")
    assert set(rows(db, "SELECT name, status FROM runs")) == {("one", "FINISHED"), ("two", "FINISHED")}
