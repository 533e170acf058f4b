"""Mirrors: the same records in several stores, each at its own pace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

import pytest

from heimdall_tracking import MLflowTracker
from support import postgres
from support.helpers import PATIENCE_S, contents, free_port, rows, wait_until
from support.stock import server_command, serving


class Place(NamedTuple):
    """A store: its URI, plain SQL on it, and the folder that has the artifacts of its runs."""

    uri: str
    query: Callable[[str], list[tuple]]
    folder: Path

    def artifacts(self, run_id: str) -> dict[str, bytes]:
        (folder,) = (path for path in self.folder.glob(f"**/{run_id}/artifacts") if path.is_dir())
        return contents(folder)


def sqlite_place(db: Path) -> Place:
    return Place(f"sqlite:///{db}", partial(rows, db), db.parent)


@pytest.fixture
def primary(tmp_path: Path) -> Place:
    (tmp_path / "primary").mkdir()
    return sqlite_place(tmp_path / "primary" / "mlflow.db")


@pytest.fixture
def second(postgres_server: postgres.PostgresServer, postgres_uri: str, tmp_path: Path) -> Place:
    database = postgres_uri.rpartition("/")[2]
    # A PostgreSQL has no folder of its own: artifacts are below the working directory.
    return Place(postgres_uri, lambda sql: postgres_server.execute(sql, database), tmp_path / "mlruns")


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("mirror")
    port = free_port()
    options = ["--artifacts-destination", str(folder / "served")]
    command = server_command(port, f"sqlite:///{folder / 'mlflow.db'}", *options)
    with serving(command, f"http://127.0.0.1:{port}", folder / "log"):
        place = sqlite_place(folder / "mlflow.db")
        yield Place(f"http://127.0.0.1:{port}", place.query, folder / "served")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def log_run(tracker: MLflowTracker, name: str, steps: int) -> str:
    with tracker.run(name) as run:
        tracker.log_params({"lr": 0.1, "layers": 3})
        for step in range(steps):
            tracker.log_metrics({"loss": step / 7, "accuracy": -step}, step=step)
            tracker.set_tag("step", step)
        tracker.log_text("grüße", "notes/a.txt")
    return run.run_id


def check(place: Place, name: str, steps: int, status: str = "FINISHED") -> None:
    """Assert that a run is in a store once, with everything."""
    of_name = f"FROM runs WHERE name = '{name}'"
    assert place.query(f"SELECT status {of_name}") == [(status,)]
    of_run = f"WHERE run_uuid IN (SELECT run_uuid {of_name})"
    points = place.query(f"SELECT step, value FROM metrics {of_run} AND key = 'loss'")
    assert sorted(points) == [(step, step / 7) for step in range(steps)]
    params = place.query(f"SELECT key, value FROM params {of_run}")
    assert sorted(params) == [("layers", "3"), ("lr", "0.1")]
    tags = place.query(f"SELECT value FROM tags {of_run} AND key = 'step'")
    assert tags == [(str(steps - 1),)]
    if status == "FINISHED":
        ((run_id,),) = place.query(f"SELECT run_uuid {of_name}")
        assert place.artifacts(run_id) == {"notes/a.txt": "grüße".encode()}


@pytest.mark.parametrize("way", ["argument", "blanks", "commas"])
def test_every_mirror_has_everything(primary, second, tracking_server, way, monkeypatch, heimdall_dir):
    mirrors = [second.uri, tracking_server.uri]
    if way == "argument":
        tracker = MLflowTracker(primary.uri, experiment_name="tests", mirrors=mirrors)
    else:
        monkeypatch.setenv("MLFLOW_MIRROR_URIS", (" " if way == "blanks" else ",").join(mirrors))
        tracker = MLflowTracker(primary.uri, experiment_name="tests")
    log_run(tracker, f"mirrored {way}", 200)
    tracker.flush(PATIENCE_S)
    wait_until(lambda: not any(it.pending for it in tracker.status().destinations), "all mirrors have it")
    for place in (primary, second, tracking_server):
        check(place, f"mirrored {way}", 200)
    shown = [it.uri for it in tracker.status().destinations]
    assert len(shown) == 3
    html = tracker.status()._repr_html_()  # type: ignore[attr-defined]
    said = f"{shown} {tracker.status()!r} {html} {tracker!r}"
    said += "".join(path.read_text(errors="replace") for path in heimdall_dir.rglob("*") if path.is_file())
    assert postgres.PASSWORD not in said
    assert "p%40ss" not in said


def test_a_mirror_that_is_away_delays_only_itself_and_catches_up(primary, tmp_path, caplog):
    with postgres.running() as server:
        uri = server.create_database("mlflow")
        tracker = MLflowTracker(primary.uri, experiment_name="tests", mirrors=[uri])
        log_run(tracker, "before", 10)
        tracker.flush(PATIENCE_S)
        server.stop("immediate")
        log_run(tracker, "during", 300)
        tracker.flush(PATIENCE_S)
        check(primary, "during", 300)
        ours, theirs = tracker.status().destinations
        assert (ours.pending, ours.since, ours.last_error) == (0, None, None)
        assert theirs.pending > 300
        wait_until(lambda: tracker.status().destinations[1].last_error, "the outage of the mirror is noticed")
        assert tracker.status().destinations[1].since is not None
        assert tracker.status().pending == 0
        server.start()
        wait_until(lambda: tracker.status().destinations[1].pending == 0, "the mirror has caught up")
        log_run(tracker, "after", 10)
        wait_until(lambda: tracker.status().destinations[1].pending == 0, "the mirror has it")
        mirror = Place(uri, lambda sql: server.execute(sql, "mlflow"), tmp_path / "mlruns")
        for place in (primary, mirror):
            check(place, "before", 10)
            check(place, "during", 300)
            check(place, "after", 10)
    assert sum("degraded" in record.getMessage() for record in caplog.records) <= 1


def test_a_primary_that_is_locked_does_not_delay_its_mirrors(primary, tmp_path, locked):
    mirror = sqlite_place(tmp_path / "mirror.db")
    tracker = MLflowTracker(primary.uri, experiment_name="tests", mirrors=[mirror.uri])
    tracker.start_run("warm")
    tracker.end_run()
    tracker.flush(PATIENCE_S)
    with locked(tmp_path / "primary" / "mlflow.db"):
        tracker.start_run("locked out")
        tracker.log_metrics({"loss": 1})
        wait_until(lambda: tracker.status().destinations[1].pending == 0, "the mirror has it")
        assert tracker.status().pending > 0
    tracker.end_run()
    tracker.flush(PATIENCE_S)
    for place in (primary, mirror):
        wait_until(
            lambda place=place: place.query("SELECT status FROM runs") == [("FINISHED",)] * 2, "it is there"
        )


KILLED = """
    import sys
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name="tests", mirrors=sys.argv[2:])
    tracker.start_run("killed")
    tracker.log_params({"lr": 0.1, "layers": 3})
    for step in range(300):
        tracker.log_metrics({"loss": step / 7}, step=step)
        tracker.set_tag("step", step)
    tracker.flush()
    print("logged", flush=True)
    sys.stdin.read()
"""


def kill_with_a_mirror_behind(
    start_script: Callable[..., Popen], server: postgres.PostgresServer, primary: Place, uri: str
) -> None:
    """Kill a process that logs while the server of its mirror is stopped."""
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    server.stop("immediate")
    process = start_script(KILLED, primary.uri, uri, HEIMDALL_CONNECT_TIMEOUT=0.5)
    assert process.stdout.readline() == "logged\n", process.stderr.read()
    process.kill()
    process.wait()


def test_a_mirror_that_was_behind_at_a_kill_gets_the_rest_from_the_next_start(
    primary, tmp_path, start_script, heimdall_dir
):
    with postgres.running() as server:
        uri = server.create_database("mlflow")
        kill_with_a_mirror_behind(start_script, server, primary, uri)
        server.start()
        tracker = MLflowTracker(primary.uri, experiment_name="tests", mirrors=[uri])
        tracker.flush(PATIENCE_S)
        mirror = Place(uri, lambda sql: server.execute(sql, "mlflow"), tmp_path / "mlruns")
        wait_until(
            lambda: mirror.query("SELECT status FROM runs WHERE name = 'killed'") == [("FAILED",)],
            "the mirror has it",
        )
        for place in (primary, mirror):
            check(place, "killed", 300, "FAILED")
        wait_until(lambda: len(list(heimdall_dir.glob("journal/*"))) == 1, "the journal of the dead is gone")


def test_a_start_without_the_mirror_keeps_what_the_mirror_lacks(primary, tmp_path, start_script):
    mirror = sqlite_place(tmp_path / "mirror.db")
    with postgres.running() as server:
        uri = server.create_database("mlflow")
        kill_with_a_mirror_behind(start_script, server, primary, uri)
        # It delivers to the primary what there is, and knows nothing of the mirror.
        MLflowTracker(primary.uri, experiment_name="tests", mirrors=[mirror.uri]).flush(PATIENCE_S)
        check(primary, "killed", 300, "FAILED")
        server.start()
        MLflowTracker(primary.uri, experiment_name="tests", mirrors=[uri]).flush(PATIENCE_S)
        of_mirror = Place(uri, lambda sql: server.execute(sql, "mlflow"), tmp_path / "mlruns")
        wait_until(
            lambda: of_mirror.query("SELECT status FROM runs WHERE name = 'killed'") == [("FAILED",)],
            "the mirror has it",
        )
        check(of_mirror, "killed", 300, "FAILED")
        check(primary, "killed", 300, "FAILED")


def test_the_same_destination_twice_is_one(primary):
    tracker = MLflowTracker(primary.uri, experiment_name="tests", mirrors=[primary.uri])
    log_run(tracker, "once", 10)
    tracker.flush(PATIENCE_S)
    check(primary, "once", 10)
    assert len(tracker.status().destinations) == 1


def test_a_mirror_that_is_no_uri_is_an_error_at_the_start(primary):
    with pytest.raises(ValueError, match="ftp"):
        MLflowTracker(primary.uri, mirrors=["ftp://somewhere"])
