"""Stores that are away: training begins all the same, is told once, and everything arrives later."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker
from support import postgres
from support.helpers import PATIENCE_S, free_port, rows, sync, wait_until
from support.stock import server_command, serving

HAS_SYNC = importlib.util.find_spec("heimdall_tracking.cli") is not None


class Absent:
    """A store that is not there yet: its URI, `present()` to start it, and plain SQL on what it has then."""

    def __init__(
        self, uri: str, port: int, present: Callable[[], object], query: Callable[[str], list]
    ) -> None:
        self.uri, self.port, self.query = uri, port, query
        self._present = present

    def present(self) -> None:
        self._present()


@pytest.fixture(params=["postgresql", "server"])
def absent(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Absent]:
    monkeypatch.setenv("HEIMDALL_CONNECT_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with contextlib.ExitStack() as running:
        if request.param == "postgresql":
            server = postgres.PostgresServer()

            def begin() -> None:
                server.start()
                running.callback(server.stop, "immediate")
                server.create_database("mlflow")

            yield Absent(server.uri("mlflow"), server.port, begin, lambda sql: server.execute(sql, "mlflow"))
            return
        port, db = free_port(), tmp_path / "served.db"
        command = server_command(port, f"sqlite:///{db}")

        url = f"http://127.0.0.1:{port}"
        yield Absent(
            url,
            port,
            lambda: running.enter_context(serving(command, url, tmp_path / "log")),
            partial(rows, db),
        )


def check_one_run(absent: Absent, steps: int, status: str = "FINISHED") -> None:
    """Assert that only one run is there, with that many steps, and that later values replaced others."""
    assert absent.query("SELECT name, status FROM runs") == [("patient", status)]
    points = absent.query("SELECT step, value FROM metrics WHERE key = 'loss'")
    assert sorted(points) == [(step, step / 7) for step in range(steps)]
    assert absent.query("SELECT value FROM tags WHERE key = 'step'") == [(str(steps - 1),)]
    assert absent.query("SELECT key, value FROM params") == [("lr", "0.1")]


def test_training_starts_without_the_store_is_told_once_and_all_arrives_in_order(absent, tmp_path, caplog):
    tracker = MLflowTracker(absent.uri, str(tmp_path / "artifacts") if "postgres" in absent.uri else None)
    run_id = tracker.start_run("patient")
    assert run_id == tracker.active_run_id
    tracker.log_params({"lr": 0.1})
    for step in range(500):
        tracker.log_metrics({"loss": step / 7}, step=step)
        tracker.set_tag("step", step)
    status = tracker.status()
    assert (status.mode, status.degraded, status.pending >= 1000) == ("online", True, True)
    assert status.last_error
    assert status.oldest is not None

    absent.present()
    tracker.log_text("grüße", "notes.txt")
    tracker.end_run()
    tracker.flush(PATIENCE_S)

    check_one_run(absent, 500)
    status = tracker.status()
    assert (status.pending, status.parked, status.degraded, status.last_error, status.oldest) == (
        0,
        0,
        False,
        None,
        None,
    )
    told = [record.getMessage() for record in caplog.records]
    assert sum("degraded" in text for text in told) == 1, told
    run = tracker.get_run(run_id)
    assert (run.run_name, run.metrics["loss"]) == ("patient", 499 / 7)


def test_training_starts_before_a_server_that_accepts_and_says_nothing(monkeypatch, caplog):
    monkeypatch.setenv("HEIMDALL_CONNECT_TIMEOUT", "0.5")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for uri in (f"http://127.0.0.1:{port}", f"postgresql://me@127.0.0.1:{port}/db"):
            tracker = MLflowTracker(uri)
            tracker.start_run()
            tracker.log_metrics({"loss": 1})
            assert tracker.status().degraded
    assert sum("degraded" in record.getMessage() for record in caplog.records) == 2


PATIENT = """
    import sys
    from heimdall_tracking import MLflowTracker

    uri, mode = sys.argv[1:]
    tracker = MLflowTracker(uri, mode=mode)
    tracker.start_run("patient")
    tracker.log_params({"lr": 0.1})
    for step in range(100):
        tracker.log_metrics({"loss": step / 7}, step=step)
        tracker.set_tag("step", step)
    print(tracker.status().mode, tracker.status().pending)
"""


def test_a_run_without_its_store_exits_in_time_and_goes_out_with_the_next_start(
    absent, run_script, heimdall_dir
):
    run = run_script(PATIENT, absent.uri, "online", HEIMDALL_EXIT_TIMEOUT=0.2, HEIMDALL_CONNECT_TIMEOUT=0.2)
    assert run.code == 0, run.err
    assert run.err.count("degraded") == 1
    assert "next start" in run.err

    absent.present()
    tracker = MLflowTracker(absent.uri)
    tracker.flush(PATIENCE_S)
    check_one_run(absent, 100)
    assert tracker.status().pending == 0
    assert len(list((heimdall_dir / "journal").iterdir())) == 1, "only the journal of the tracker that lives"


@pytest.mark.skipif(not HAS_SYNC, reason="there is no `heimdall sync` yet")
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_without_its_store_is_delivered_by_sync(absent, run_script, heimdall_dir, mode):
    run = run_script(PATIENT, absent.uri, mode, HEIMDALL_EXIT_TIMEOUT=0.2, HEIMDALL_CONNECT_TIMEOUT=0.2)
    assert run.code == 0, run.err

    failed = sync(heimdall_dir, "--uri", absent.uri, "--timeout", "0.2")
    assert failed.returncode != 0
    assert postgres.PASSWORD not in failed.stdout + failed.stderr
    assert list((heimdall_dir / "journal").iterdir()), "what is not delivered is kept"

    absent.present()
    done = sync(heimdall_dir, "--uri", absent.uri)
    assert done.returncode == 0, done.stderr
    check_one_run(absent, 100)
    assert list((heimdall_dir / "journal").iterdir()) == []
    again = sync(heimdall_dir, "--uri", absent.uri)
    assert again.returncode == 0, again.stderr
    check_one_run(absent, 100)


@pytest.mark.parametrize("mode", ["argument", "environment"])
def test_a_tracker_that_is_offline_opens_no_socket(absent, run_script, mode):
    with socket.create_server(("127.0.0.1", absent.port)) as listener:
        if mode == "argument":
            run = run_script(PATIENT, absent.uri, "offline")
        else:
            code = PATIENT.replace(", mode=mode", "")
            run = run_script(code, absent.uri, "", HEIMDALL_MODE="offline")
        assert run.code == 0, run.err
        mode, pending = run.out.split()
        assert (mode, int(pending) > 200) == ("offline", True)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_an_offline_run_makes_no_database_and_goes_out_with_the_next_online_start(uri, db, run_script):
    run = run_script(PATIENT, uri, "offline")
    assert run.code == 0, run.err
    assert not db.exists()
    tracker = MLflowTracker(uri)
    tracker.flush(PATIENCE_S)
    (found,) = tracker.search_runs()
    assert (found.run_name, found.status, found.params) == ("patient", "FINISHED", {"lr": "0.1"})
    assert len(tracker.get_metric_history(found.run_id, "loss")) == 100


def test_a_run_of_a_process_that_was_killed_offline_is_failed_by_the_next_online_start(uri, start_script):
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], mode="offline")
        print(tracker.start_run(), flush=True)
        tracker.log_metrics({"loss": 1})
        print("logged", flush=True)
        sys.stdin.read()
        """,
        uri,
    )
    run_id, logged = process.stdout.readline().strip(), process.stdout.readline()
    assert logged == "logged\n"
    process.kill()
    process.wait()
    tracker = MLflowTracker(uri)
    tracker.flush(PATIENCE_S)
    found = tracker.get_run(run_id)
    assert (found.status, found.metrics) == ("FAILED", {"loss": 1.0})


def test_a_mode_that_does_not_exist_is_refused(uri):
    with pytest.raises(ValueError, match="offline"):
        MLflowTracker(uri, mode="of-line")


def test_what_the_user_can_put_right_is_still_an_error_at_the_start(postgres_server):
    for wrong in (
        postgres_server.uri("postgres", password="hush"),
        postgres_server.uri("missing"),
        "postgresql://",
        "ftp://somewhere",
    ):
        with pytest.raises(ValueError, match=r"\S"):
            MLflowTracker(wrong)


def test_a_question_to_a_store_that_is_away_says_so_and_ends(monkeypatch):
    from heimdall_tracking import StoreUnavailableError, UndeliveredError

    monkeypatch.setenv("HEIMDALL_CONNECT_TIMEOUT", "0.5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri in (f"http://127.0.0.1:{free_port()}", f"postgresql://me@127.0.0.1:{free_port()}/db"):
        tracker = MLflowTracker(uri)
        run_id = tracker.start_run()
        with pytest.raises(UndeliveredError, match="not delivered"):
            tracker.flush(0.2)
        with pytest.raises(StoreUnavailableError):
            tracker.get_experiment("any")
        assert run_id


def test_the_end_of_an_outage_is_noticed_without_a_call(absent, caplog):
    tracker = MLflowTracker(absent.uri)
    tracker.start_run("patient")
    tracker.log_params({"lr": 0.1})
    tracker.log_metrics({"loss": 0.0}, step=0)
    tracker.set_tag("step", 0)
    tracker.end_run()
    absent.present()
    wait_until(lambda: tracker.status().pending == 0, "everything is delivered")
    check_one_run(absent, 1)
