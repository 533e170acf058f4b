"""The command `heimdall`, as a user types it."""

from __future__ import annotations

import signal

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, free_port, wait_until

OFFLINE = """
    import sys
    from heimdall_tracking import MLflowTracker
    tracker = MLflowTracker(sys.argv[1], mode=sys.argv[2])
    with tracker.run("left behind"):
        tracker.log_params({"lr": 0.1})
        tracker.log_metrics({"loss": 0.5}, step=3)
        tracker.log_text("grüße", "notes.txt")
"""


@pytest.fixture
def left_behind(run_script, uri: str) -> None:
    """The journal of an offline run whose process has ended."""
    done = run_script(OFFLINE, uri, "offline")
    assert done.code == 0, done.err
    assert "heimdall sync" in done.err


def test_status_says_what_waits_where_and_since_when(left_behind, heimdall, heimdall_dir, uri):
    done = heimdall("status", heimdall_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{uri}: 6 records wait, the oldest" in done.stdout
    assert "its process is gone: `heimdall sync` delivers it" in done.stdout


def test_status_says_why_a_destination_took_nothing(run_script, heimdall, heimdall_dir):
    uri = f"postgresql://me:hush@127.0.0.1:{free_port()}/db"
    done = run_script(OFFLINE, uri, "online", HEIMDALL_EXIT_TIMEOUT=0.1, HEIMDALL_CONNECT_TIMEOUT=1)
    assert done.code == 0, done.err
    shown = heimdall("status", heimdall_dir)
    assert "Connection refused" in shown.stdout
    assert "hush" not in shown.stdout + shown.stderr + done.err


def test_status_of_nothing_is_said(heimdall, tmp_path):
    done = heimdall("status", HEIMDALL_DIR=tmp_path / "none")
    assert (done.returncode, done.stdout) == (0, f"nothing waits in {tmp_path / 'none'}\n")


def test_a_folder_that_is_not_there_is_a_mistake_of_the_command(heimdall, tmp_path):
    for command in (["status"], ["sync"], ["gc", "--dir"]):
        done = heimdall(*command, "typo")
        assert (done.returncode, done.stdout) == (2, ""), command
        assert done.stderr == "heimdall: there is no folder typo\n"


def test_a_name_that_the_terminal_cannot_show_ends_no_command(run_script, heimdall, heimdall_dir):
    script = """
        from heimdall_tracking import MLflowTracker
        MLflowTracker("sqlite:///m.db", experiment_name="e", mode="offline").start_run("日本")
        """
    assert run_script(script).code == 0
    (journal,) = (heimdall_dir / "journal").iterdir()
    for encoding in ("cp1252", "ascii"):
        done = heimdall("journal", "inspect", journal, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\\u65e5\\u672c" in done.stdout


def test_an_export_makes_no_database(heimdall, tmp_path):
    done = heimdall("export", "nosuch", "--uri", "sqlite:///none.db")
    assert (done.returncode, done.stdout) == (1, "")
    assert "none.db" in done.stderr
    assert not (tmp_path / "none.db").exists()


def test_sync_delivers_and_leaves_nothing(left_behind, heimdall, heimdall_dir, uri):
    done = heimdall("sync", HEIMDALL_DIR=heimdall_dir)
    assert (done.returncode, done.stdout, done.stderr) == (0, "6 records delivered\n", "")
    assert list((heimdall_dir / "journal").iterdir()) == []
    tracker = MLflowTracker(uri)
    [run] = tracker.search_runs()
    assert (run.run_name, run.status, run.params, run.metrics) == (
        "left behind",
        "FINISHED",
        {"lr": "0.1"},
        {"loss": 0.5},
    )
    again = heimdall("sync", heimdall_dir)
    assert "0 records delivered" in again.stdout


def test_sync_takes_the_credentials_from_the_environment(run_script, heimdall, heimdall_dir, postgres_server):
    postgres_server.create_database("synced")
    postgres_server.execute("CREATE ROLE safe LOGIN SUPERUSER PASSWORD 'hush'")
    uri = postgres_server.uri("synced", user="safe", password="hush")
    assert run_script(OFFLINE, uri, "offline").code == 0
    done = heimdall("sync", heimdall_dir, MLFLOW_TRACKING_URI=uri)
    assert (done.returncode, done.stdout) == (0, "6 records delivered\n"), done.stderr
    assert postgres_server.execute("SELECT status FROM runs", "synced") == [("FINISHED",)]


def test_sync_can_deliver_elsewhere(left_behind, heimdall, heimdall_dir, tmp_path, db):
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert heimdall("sync", heimdall_dir, "--uri", other).returncode == 0
    assert not db.exists()
    assert [run.run_name for run in MLflowTracker(other).search_runs()] == ["left behind"]


def test_what_sync_cannot_deliver_in_time_is_left_and_said(run_script, heimdall, heimdall_dir):
    uri = f"http://127.0.0.1:{free_port()}"
    assert run_script(OFFLINE, uri, "offline").code == 0
    done = heimdall("sync", heimdall_dir, "--timeout", "0.5", MLFLOW_HTTP_REQUEST_MAX_RETRIES=0)
    assert done.returncode == 1
    assert f"6 records left for {uri}" in done.stderr
    assert "6 records wait" in heimdall("status", heimdall_dir).stdout


def test_inspect_shows_every_record_and_no_credentials(run_script, heimdall, heimdall_dir):
    uri = "postgresql://me:hush@127.0.0.1:1/db"
    assert run_script(OFFLINE, uri, "offline").code == 0
    [journal] = (heimdall_dir / "journal").iterdir()
    done = heimdall("journal", "inspect", journal)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith(".segment")
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2", "3", "4", "5"]
    for part in (
        "start of run",
        "params lr=",
        "metrics step=3",
        "loss=0.5",
        "artifact notes.txt",
        "FINISHED",
    ):
        assert part in done.stdout, part
    everything = b"".join(path.read_bytes() for path in journal.rglob("*") if path.is_file())
    assert "hush" not in done.stdout
    assert b"hush" not in everything


def test_what_is_no_journal_is_named(heimdall, tmp_path):
    (tmp_path / "file").write_text("something else entirely")
    done = heimdall("journal", "inspect", tmp_path / "file")
    assert done.returncode == 1
    assert "no journal segment" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.faults
def test_ctrl_c_ends_a_sync_that_waits(run_script, start_script, heimdall_dir):
    uri = f"http://127.0.0.1:{free_port()}"
    assert run_script(OFFLINE, uri, "offline").code == 0
    process = start_script(
        """
        import sys
        from heimdall_tracking.cli import main
        print("begun", flush=True)
        sys.exit(main(["sync", sys.argv[1]]))
        """,
        heimdall_dir,
    )
    assert process.stdout.readline() == "begun\n"
    wait_until(lambda: list(heimdall_dir.glob("journal/*/trouble-0.txt")), "it waits")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "stays in the journal" in err
