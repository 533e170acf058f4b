"""Programs that end in every way while a run is open: the status is that of what happened since it began."""

from __future__ import annotations

import signal
import textwrap

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, rows

# The program goes on after these lines, with a run that is open.
BEGIN = """
import argparse, os, signal, sys, threading, time
from heimdall_tracking import MLflowTracker
tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
tracker.start_run("open")

def interrupt():
    signal.raise_signal(signal.SIGINT)

def leave(code):
    sys.exit(code)
"""
# How the program goes on, by a name; the exit code and the status of the run.
ENDS = {
    "the last line": ("", 0, "FINISHED"),
    "sys.exit()": ("sys.exit()", 0, "FINISHED"),
    "sys.exit(0)": ("leave(0)", 0, "FINISHED"),
    "sys.exit(3)": ("leave(3)", 3, "FAILED"),
    "sys.exit(True)": ("sys.exit(True)", 1, "FAILED"),
    "sys.exit(text)": ("sys.exit('no data')", 1, "FAILED"),
    "exit()": ("exit()", 0, "FINISHED"),
    "quit(2)": ("quit(2)", 2, "FAILED"),
    "raise SystemExit": ("raise SystemExit", 0, "FINISHED"),
    "raise SystemExit(0)": ("raise SystemExit(0)", 0, "FINISHED"),
    "raise SystemExit(3)": ("raise SystemExit(3)", 3, "FAILED"),
    "raise SystemExit(text)": ("raise SystemExit('no data')", 1, "FAILED"),
    "raise SystemExit(130)": ("raise SystemExit(130)", 130, "KILLED"),
    "argparse": ("argparse.ArgumentParser().parse_args(['--none'])", 2, "FAILED"),
    "an exception": ("1 / 0", 1, "FAILED"),
    "Ctrl-C": ("interrupt()", -signal.SIGINT, "KILLED"),
    "Ctrl-C, then code 130": (
        """
        try:
            interrupt()
        except KeyboardInterrupt:
            pass
        sys.exit(130)
        """,
        130,
        "KILLED",
    ),
    "Ctrl-C, caught, then code 1 behind it": (
        """
        try:
            interrupt()
        except KeyboardInterrupt:
            print("tidies up")
        leave(1)
        """,
        1,
        "KILLED",
    ),
    "Ctrl-C, caught, then SystemExit(1) behind it": (
        """
        def main():
            try:
                interrupt()
            except KeyboardInterrupt:
                return 1
        raise SystemExit(main())
        """,
        1,
        "KILLED",
    ),
    "Ctrl-C, caught, then an exception": (
        """
        try:
            interrupt()
        except KeyboardInterrupt:
            print("goes on")
        1 / 0
        """,
        1,
        "FAILED",
    ),
    "Ctrl-C before the run, then code 1": (
        """
        tracker.end_run("KILLED")
        try:
            interrupt()
        except KeyboardInterrupt:
            print("goes on")
        tracker.resume("open")
        leave(1)
        """,
        1,
        "FAILED",
    ),
    "Ctrl-C, caught, then code 1": (
        """
        try:
            interrupt()
        except KeyboardInterrupt:
            leave(1)
        """,
        1,
        "KILLED",
    ),
    "Ctrl-C as click translates it": (
        """
        try:
            try:
                interrupt()
            except KeyboardInterrupt as error:
                raise RuntimeError("aborted") from error
        except RuntimeError:
            leave(1)
        """,
        1,
        "KILLED",
    ),
    "Ctrl-C, caught": (
        """
        try:
            interrupt()
        except KeyboardInterrupt:
            print("goes on")
        """,
        0,
        "FINISHED",
    ),
    "an exception, caught, then code 1": (
        """
        try:
            1 / 0
        except ZeroDivisionError:
            leave(1)
        """,
        1,
        "FAILED",
    ),
    "an exception, caught": (
        """
        try:
            1 / 0
        except ZeroDivisionError:
            print("goes on")
        """,
        0,
        "FINISHED",
    ),
    "sys.exit(3), caught": (
        """
        try:
            leave(3)
        except SystemExit:
            print("goes on")
        """,
        0,
        "FINISHED",
    ),
    "sys.exit(3), caught further in": (
        """
        def guarded():
            try:
                leave(3)
            except SystemExit:
                print("goes on")
        guarded()
        """,
        0,
        "FINISHED",
    ),
    "sys.exit(0), caught, then an exception": (
        """
        try:
            leave(0)
        except SystemExit:
            1 / 0
        """,
        1,
        "FAILED",
    ),
    "an exception and an exit of other threads": (
        """
        for target in (lambda: 1 / 0, lambda: leave(3)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        """,
        0,
        "FINISHED",
    ),
    "an exception that a hook has shown": (
        """
        try:
            1 / 0
        except ZeroDivisionError as error:
            # Windows do so with exceptions of their callbacks.
            sys.last_value = error
            sys.excepthook(type(error), error, None)
        def callback():
            try:
                1 / 0
            except ZeroDivisionError as error:
                sys.last_value = error
        callback()
        """,
        0,
        "FINISHED",
    ),
    "an exception and a hook that shows nothing": (
        "sys.excepthook = lambda *_: os.write(2, b'ours'); 1 / 0",
        1,
        "FAILED",
    ),
    "os._exit(0)": ("os._exit(0)", 0, "FAILED"),
    "kill -9": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "FAILED"),
    "SIGTERM": ("signal.raise_signal(signal.SIGTERM); time.sleep(60)", -signal.SIGTERM, "KILLED"),
    "SIGHUP": ("signal.raise_signal(signal.SIGHUP); time.sleep(60)", -signal.SIGHUP, "KILLED"),
    "SIGHUP under nohup": (
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        MLflowTracker(sys.argv[1], experiment_name="tests")
        signal.raise_signal(signal.SIGHUP)
        """,
        0,
        "FINISHED",
    ),
    "Ctrl-C in asyncio": (
        """
        import asyncio
        tracker.end_run("KILLED")
        async def train():
            with tracker.run("open"):
                interrupt()
                await asyncio.sleep(60)
        asyncio.run(train())
        """,
        -signal.SIGINT,
        "KILLED",
    ),
    "a fork that fails": (
        """
        if os.fork() == 0:
            leave(3)
        os.wait()
        """,
        0,
        "FINISHED",
    ),
    "a with block and sys.exit(0)": (
        """
        tracker.end_run()
        with tracker.run("open"):
            leave(0)
        """,
        0,
        "FINISHED",
    ),
    "a with block and Ctrl-C that became code 1": (
        """
        tracker.end_run("KILLED")
        with tracker.run("open"):
            try:
                interrupt()
            except KeyboardInterrupt:
                leave(1)
        """,
        1,
        "KILLED",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_is_open_at_the_end_has_the_status_of_what_happened(
    uri, db, run_script, heimdall_dir, end
):
    code, exit_code, status = ENDS[end]
    if end == "SIGHUP" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        pytest.skip("these tests run under nohup, which ignores SIGHUP for their children as well")
    run = run_script(BEGIN + textwrap.dedent(code), uri)
    assert run.code == exit_code, run.err
    if status == "FAILED" and exit_code in (0, -signal.SIGKILL):
        # Nobody was left to say so: the next start does.
        MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert set(rows(db, "SELECT name, status FROM runs")) == {("open", status)}
    assert rows(db, "SELECT * FROM runs WHERE end_time IS NULL") == []


@pytest.mark.parametrize("way", ["-m", "file"])
@pytest.mark.parametrize(
    ("line", "status"),
    [("", "FINISHED"), ("leave(0)", "FINISHED"), ("leave(3)", "FAILED"), ("raise SystemExit(3)", "FAILED")],
)
def test_a_module_and_a_file_end_as_a_command_does(uri, db, run_script, tmp_path, way, line, status):
    (tmp_path / "program.py").write_text(f"{BEGIN}\n{line}\n")
    start = ["-m", "program"] if way == "-m" else ["program.py"]
    run_script(f"import os, sys; os.execv(sys.executable, [sys.executable, *{start}, sys.argv[1]])", uri)
    assert rows(db, "SELECT name, status FROM runs") == [("open", status)]


def test_what_happened_before_the_run_does_not_decide(uri, db, start_script):
    process = start_script(
        "import os, sys; os.execv(sys.executable, [sys.executable, '-i', '-q', '-c', '', sys.argv[1]])", uri
    )
    lines = (
        "1 / 0",
        "from heimdall_tracking import MLflowTracker",
        f"tracker = MLflowTracker({uri!r}, experiment_name='tests')",
        "_ = tracker.start_run('after an error')",
        "tracker.end_run()",
        "1 / 0",
        "_ = tracker.start_run('after another one')",
    )
    _, err = process.communicate("\n".join(lines), timeout=PATIENCE_S)
    assert err.count("ZeroDivisionError") == 2
    assert set(rows(db, "SELECT status FROM runs")) == {("FINISHED",)}


def test_other_hooks_of_the_exit_are_called(uri, db, run_script):
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        exit_before = sys.exit
        hook = sys.excepthook = lambda *_: print("hook of the user")
        def theirs(*code):
            print("exit of others", *code)
            exit_before(*code)
        sys.exit = theirs
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("open")
        assert sys.excepthook is hook
        try:
            sys.exit("caught")
        except SystemExit as error:
            assert error.code == "caught"
        try:
            sys.exit(1, 2)
        except TypeError as error:
            print(error)
        sys.exit(4)
        """,
        uri,
    )
    assert run.code == 4, run.err
    assert run.out.splitlines()[::2] == ["exit of others caught", run.out.splitlines()[2]]
    assert run.out.splitlines()[-1] == "exit of others 4"
    assert rows(db, "SELECT status FROM runs") == [("FAILED",)]


def test_an_import_changes_nothing_of_the_interpreter(run_script):
    run = run_script(
        """
        import signal, sys
        before = (sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
        import heimdall_tracking
        after = (sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
        print(before == after)
        """
    )
    assert run.out == "True\n"


def test_a_kill_is_a_failure_whatever_others_have_set(store, start_script):
    process = start_script(
        """
        import sys, time
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        run_id = tracker.start_run("open")
        tracker.log_metric("loss", 1.0)
        tracker.flush()
        print(run_id, flush=True)
        time.sleep(600)
        """,
        store,
    )
    run_id = process.stdout.readline().strip()
    from mlflow import MlflowClient

    MlflowClient(store, store).set_terminated(run_id, "FINISHED")
    process.kill()
    process.wait(PATIENCE_S)
    after = MLflowTracker(store, experiment_name="tests")
    after.flush(PATIENCE_S)
    assert after.get_run(run_id).status == "FAILED"


LIGHTNING = """
    import signal, sys
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from heimdall_tracking import MLflowTracker

    class Tiny(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            tracker.log_metric("loss", 1.0, step=index)
            if index == 3:
                print("trains", flush=True)
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    def train():
        loader = torch.utils.data.DataLoader(torch.zeros(1_000_000, 2), num_workers=0)
        trainer = Trainer(
            max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        )
        trainer.fit(Tiny(), loader)

    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
    try:
        with tracker.run("block"):
            train()
    except SystemExit as error:
        print(error.code, flush=True)
    # Lightning has made this process deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tracker.start_run("open")
    train()
"""


def test_ctrl_c_that_lightning_turns_into_code_1_is_no_failure(uri, db, start_script):
    pytest.importorskip("lightning")
    process = start_script(LIGHTNING, uri)
    for _ in ("block", "open"):
        while (said := process.stdout.readline()) and said != "trains\n":
            pass
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    assert sorted(rows(db, "SELECT name, status FROM runs")) == [("block", "KILLED"), ("open", "KILLED")]
