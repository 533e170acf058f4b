"""Networks and servers that fail in the middle: nothing is lost, nothing arrives twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from heimdall_tracking import MLflowTracker
from proxy import FAULTS, Proxy
from support import postgres
from support.helpers import PATIENCE_S, SEED, contents, free_port, rows, wait_until
from support.stock import server_command, serving

STRIKES = 25


def command_in(folder: Path, port: int) -> list[str]:
    options = ["--artifacts-destination", str(folder / "served")]
    return server_command(port, f"sqlite:///{folder / 'mlflow.db'}", *options)


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    with serving(command_in(folder, port), f"http://127.0.0.1:{port}", folder / "log"):
        yield SimpleNamespace(port=port, folder=folder)


@pytest.fixture(params=["postgresql", "server"])
def far(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimpleNamespace]:
    """A store behind a proxy: its URI, the proxy, and plain SQL that goes past it."""
    # One request, one answer: it is the delivery that tries again.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    rng = random.Random(f"{SEED} {request.node.name}")
    if request.param == "postgresql":
        server: postgres.PostgresServer = request.getfixturevalue("postgres_server")
        uri: str = request.getfixturevalue("postgres_uri")
        database = uri.rpartition("/")[2]
        with Proxy(server.port, rng) as proxy:
            near = SimpleNamespace(
                uri=uri.replace(str(server.port), str(proxy.port)),
                query=lambda sql: server.execute(sql, database),
                artifacts=lambda run_id: next((tmp_path / "artifacts").glob(f"**/{run_id}/artifacts")),
                proxy=proxy,
                rng=rng,
            )
            yield near
        return
    server = request.getfixturevalue("tracking_server")
    with Proxy(server.port, rng) as proxy:
        yield SimpleNamespace(
            uri=f"http://127.0.0.1:{proxy.port}",
            query=partial(rows, server.folder / "mlflow.db"),
            artifacts=lambda run_id: next((server.folder / "served").glob(f"*/{run_id}/artifacts")),
            proxy=proxy,
            rng=rng,
        )


@pytest.fixture
def tracker(far: SimpleNamespace, tmp_path: Path, request: pytest.FixtureRequest) -> MLflowTracker:
    artifacts = None if far.uri.startswith("http") else str(tmp_path / "artifacts")
    return MLflowTracker(far.uri, artifacts, experiment_name=request.node.name)


class Logged:
    """Logs to a run, and checks that exactly this is in the store."""

    def __init__(self, tracker: MLflowTracker, name: str) -> None:
        self.tracker, self.name, self.steps = tracker, name, 0
        tracker.start_run(name)

    def log(self) -> None:
        step = self.steps
        self.steps += 1
        self.tracker.log_metrics({"loss": step / 7, "accuracy": -step}, step=step)
        if step % 10 == 0:
            self.tracker.log_params({f"p{step}": step})
            self.tracker.set_tag("latest", step)
        if step % 50 == 0:
            self.tracker.log_text(f"grüße {step}", f"notes/{step}.txt")

    def end(self) -> None:
        self.tracker.end_run()

    def check(self, far: SimpleNamespace) -> None:
        of_name = f"FROM runs WHERE name = '{self.name}'"
        assert far.query(f"SELECT status {of_name}") == [("FINISHED",)]
        of_run = f"WHERE run_uuid IN (SELECT run_uuid {of_name})"
        points = far.query(f"SELECT key, step, value FROM metrics {of_run}")
        expected = [("loss", step, step / 7) for step in range(self.steps)]
        expected += [("accuracy", step, -step) for step in range(self.steps)]
        assert sorted(points) == sorted(expected)
        tens = range(0, self.steps, 10)
        params = far.query(f"SELECT key, value FROM params {of_run}")
        assert sorted(params) == sorted((f"p{step}", str(step)) for step in tens)
        tags = dict(far.query(f"SELECT key, value FROM tags {of_run}"))
        assert tags["latest"] == str(tens[-1])
        ((run_id,),) = far.query(f"SELECT run_uuid {of_name}")
        assert contents(far.artifacts(run_id)) == {
            f"notes/{step}.txt": f"grüße {step}".encode() for step in range(0, self.steps, 50)
        }


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_network_costs_nothing(far, tracker, fault):
    run = Logged(tracker, f"{tracker.experiment_name} run")
    for _ in range(20):
        run.log()
    tracker.flush(PATIENCE_S)
    far.proxy.strike(fault)
    met = far.proxy.struck
    for _ in range(100):
        run.log()
    wait_until(lambda: far.proxy.struck > met, "the fault has met something")
    for _ in range(100):
        run.log()
    run.end()
    far.proxy.heal(forget=True)
    tracker.flush(PATIENCE_S)
    run.check(far)
    assert tracker.status()["parked"] == 0


# Some pieces later is in the middle of a transaction.
@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_connection_that_is_silent_for_ever_is_given_up(far, tracker, after):
    run = Logged(tracker, f"{tracker.experiment_name} run")
    tracker.flush(PATIENCE_S)
    far.proxy.strike("drop", after)
    met = far.proxy.struck

    def log_until_struck() -> bool:
        run.log()
        return far.proxy.struck > met

    wait_until(log_until_struck, "the fault has met something")
    far.proxy.heal()
    run.end()
    tracker.flush(PATIENCE_S)
    run.check(far)


def test_a_storm_of_faults_costs_nothing(far, tracker):
    print(f"HEIMDALL_SEED={SEED}")
    storm = Thread(target=strike_at_random, args=[far.proxy, far.rng])
    storm.start()
    runs = [Logged(tracker, f"{tracker.experiment_name} run {i}") for i in range(1)]
    while storm.is_alive():
        if runs[-1].steps == 700:
            runs[-1].end()
            runs.append(Logged(tracker, f"{tracker.experiment_name} run {len(runs)}"))
        runs[-1].log()
        time.sleep(0.001)  # The pace of a training, so that there is something to deliver at every moment.
    runs[-1].end()
    far.proxy.heal(forget=True)
    tracker.flush(PATIENCE_S)
    for run in runs:
        run.check(far)
    assert tracker.status()["parked"] == 0


def strike_at_random(proxy: Proxy, rng: random.Random) -> None:
    for _ in range(STRIKES):
        proxy.strike(rng.choice(FAULTS))
        time.sleep(rng.uniform(0.02, 0.25))
        proxy.heal(forget=rng.random() < 0.8)
        time.sleep(rng.uniform(0.02, 0.15))
    proxy.heal(forget=True)


def test_a_postgresql_that_crashes_again_and_again_has_everything_once(tmp_path):
    rng = random.Random(SEED)
    print(f"HEIMDALL_SEED={SEED}")
    with postgres.running() as server:
        far = SimpleNamespace(
            query=lambda sql: server.execute(sql, "mlflow"),
            artifacts=lambda run_id: next((tmp_path / "artifacts").glob(f"**/{run_id}/artifacts")),
        )
        tracker = MLflowTracker(server.create_database("mlflow"), str(tmp_path / "artifacts"))
        run = Logged(tracker, "run")
        for _ in range(4):
            for _ in range(rng.randrange(300)):
                run.log()
                time.sleep(0.0005)
            server.stop("immediate")
            for _ in range(rng.randrange(300)):
                run.log()
            server.start()
        run.end()
        tracker.flush(PATIENCE_S)
        run.check(far)


def test_a_server_that_is_killed_and_restarted_has_everything_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    rng = random.Random(SEED)
    print(f"HEIMDALL_SEED={SEED}")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    far = SimpleNamespace(
        query=partial(rows, tmp_path / "mlflow.db"),
        artifacts=lambda run_id: next((tmp_path / "served").glob(f"*/{run_id}/artifacts")),
    )
    run = None
    for last in (False, True):
        with serving(command_in(tmp_path, port), url, tmp_path / "log") as process:
            if run is None:
                tracker = MLflowTracker(url, experiment_name="e")
                run = Logged(tracker, "run")
            for _ in range(rng.randrange(500)):
                run.log()
                time.sleep(0.0005)
            if last:
                run.end()
                tracker.flush(PATIENCE_S)
            else:
                os.killpg(process.pid, signal.SIGKILL)
                for _ in range(rng.randrange(500)):
                    run.log()
    run.check(far)
