"""Measure how fast the stores take and answer, beside the stock client on the same store, in turns.

Run it with `make bench`, or `python benches/stores.py [sqlite|postgresql|server]… [--quick]` in an
environment that has both clients and PostgreSQL. Written down are medians and ranges.

* metrics/s: points of 20 metrics a step, until all of them are in the store; the stock client by `log_batch`
  of 1,000. "bare" is what the store takes at most: COPY of a text that is there already (PostgreSQL),
  `executemany` (SQLite) of the same rows into the same table; for a server, the same requests, encoded
  beforehand, by two connections.
* milliseconds per question: the best of 10,000 runs of 20 metrics, and a metric's history of 100,000 points.
  "bare SQL" asks the database for the least value alone, which no search for the best run can do without.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HEIMDALL_BRIDGE"] = "0"  # the stock client is the peer
logging.disable(logging.WARNING)  # the stock client's migrations
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psycopg  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric  # noqa: E402

from heimdall_tracking import MLflowTracker  # noqa: E402
from support import postgres  # noqa: E402
from support.helpers import free_port  # noqa: E402
from support.stock import server_command, serving  # noqa: E402

QUICK, KEYS = "--quick" in sys.argv, 20
ROUNDS, RUNS, HISTORY = (1, 50, 1_000) if QUICK else (5, 10_000, 100_000)
POINTS = {"sqlite": 100_000, "postgresql": 100_000, "server": 20_000}
STOCK_POINTS = {"sqlite": 10_000, "postgresql": 10_000, "server": 10_000}
if QUICK:
    POINTS = STOCK_POINTS = dict.fromkeys(POINTS, 2_000)
START = 1_700_000_000_000


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def row(name: str, figures: list[float], unit: str, over: float | None = None) -> float:
    median = statistics.median(figures)
    ratio = f"{over / median if unit == 'ms' else median / over:8.1f} x" if over else ""
    spread = f"({min(figures):,.1f} … {max(figures):,.1f})"
    print(f"  {name:38} {median:12,.1f} {unit:10} {spread} {ratio}", flush=True)
    return median


class Ours:
    def __init__(self, uri: str) -> None:
        self.tracker = MLflowTracker(uri, experiment_name="bench")

    def log(self, points: int) -> float:
        self.tracker.start_run()
        self.tracker.flush()

        def work() -> None:
            for step in range(points // KEYS):
                self.tracker.log_metrics({f"k{key}": (step + key) * 0.5 for key in range(KEYS)}, step=step)
            self.tracker.flush()

        rate = points / timed(work)
        self.tracker.end_run()
        return rate


class Stock:
    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(uri, uri)
        self.experiment_id = self.client.get_experiment_by_name("bench").experiment_id

    def log(self, points: int) -> float:
        run_id = self.client.create_run(self.experiment_id).info.run_id
        metrics = [Metric(f"k{i % KEYS}", i * 0.5, START + i // KEYS, i // KEYS) for i in range(points)]

        def work() -> None:
            for first in range(0, points, 1000):
                self.client.log_batch(run_id, metrics[first : first + 1000])

        return points / timed(work)


def rows_of(run_id: str, points: int) -> list[tuple]:
    return [(f"k{i % KEYS}", i * 0.5, START + i // KEYS, run_id, i // KEYS, False) for i in range(points)]


COLUMNS = "(key, value, timestamp, run_uuid, step, is_nan)"


def bare(uri: str, points: int) -> float:
    """Rows per second of the barest way into the table."""
    run_id = uuid.uuid4().hex
    new_run = "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ({0}, 0, 'active')"
    rows = rows_of(run_id, points)
    if uri.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(new_run.format("?"), [run_id])
            connection.commit()

            def work() -> None:
                connection.executemany(f"INSERT INTO metrics {COLUMNS} VALUES (?, ?, ?, ?, ?, ?)", rows)
                connection.commit()

            return points / timed(work)
    text = "".join(f"{key}\t{value!r}\t{time}\t{run}\t{step}\tf\n" for key, value, time, run, step, _ in rows)
    data = text.encode()
    with psycopg.connect(uri) as connection:
        connection.execute(new_run.format("%s").encode(), [run_id])
        connection.commit()

        def work() -> None:
            cursor: Any = connection.cursor()
            with cursor.copy(f"COPY metrics {COLUMNS} FROM STDIN".encode()) as copy:
                for first in range(0, len(data), 1 << 16):
                    copy.write(data[first : first + (1 << 16)])
            connection.commit()

        return points / timed(work)


def bare_requests(url: str, stock: Stock, points: int) -> float:
    """Metrics per second that the server takes by `log-batch` of 1,000 from whom it costs nothing to ask."""
    run_id = stock.client.create_run(stock.experiment_id).info.run_id
    metrics = [
        {"key": key, "value": value, "timestamp": time, "step": step}
        for key, value, time, _, step, _ in rows_of(run_id, points)
    ]
    bodies = [
        json.dumps({"run_id": run_id, "metrics": metrics[first : first + 1000]}).encode()
        for first in range(0, points, 1000)
    ]

    def send(some: list[bytes]) -> None:
        with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"))) as connection:
            for body in some:
                kind = {"Content-Type": "application/json"}
                connection.request("POST", "/api/2.0/mlflow/runs/log-batch", body, kind)
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()

    with ThreadPoolExecutor(2) as pool:
        return points / timed(lambda: list(pool.map(send, [bodies[::2], bodies[1::2]])))


def fill(uri: str) -> str:
    """Put RUNS runs of KEYS metrics and one history into the database, and return that history's run."""
    tracker = MLflowTracker(uri, experiment_name="many")
    for number in range(RUNS):
        with tracker.run(f"run {number}"):
            value = ((number * 7919) % RUNS) / RUNS
            tracker.log_metrics({f"val/k{key}": value + key for key in range(KEYS)}, step=1)
    with tracker.run("history") as run:
        for step in range(HISTORY):
            tracker.log_metric("m", step / 3, step=step)
    tracker.flush()
    if uri.startswith("postgresql"):
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
    return run.run_id


ASK_AND_SAY_PEAK = """
import re, sys
from heimdall_tracking import MLflowTracker
tracker = MLflowTracker(sys.argv[1], experiment_name="many")
tracker.get_best_run("val/k7")
tracker.search_runs(order_by="metrics.`val/k7`", max_results=1)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def peak_mib(uri: str) -> float:
    """Most memory of a process of its own that asks for the best run, in MiB."""
    command = [sys.executable, "-c", ASK_AND_SAY_PEAK, uri]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def least(uri: str) -> list[float]:
    """Milliseconds of the least that a search for the best run must ask: no look at the runs, one number."""
    question = "SELECT min(value) FROM latest_metrics WHERE key = 'val/k7' AND NOT is_nan"
    with contextlib.ExitStack() as stack:
        if uri.startswith("sqlite"):
            file = sqlite3.connect(uri.removeprefix("sqlite:///"))
            ask = stack.enter_context(contextlib.closing(file)).execute
        else:
            ask = stack.enter_context(psycopg.connect(uri, autocommit=True)).execute
        return [timed(lambda: ask(question).fetchone()) * 1e3 for _ in range(ROUNDS)]


def questions(uri: str) -> None:
    with MLflowTracker(uri, experiment_name="many").run():
        pass
    before = peak_mib(uri)
    history = fill(uri)
    after = peak_mib(uri)
    print(f"  memory of who asks for the best run: {before:.1f} MiB of 1 run, {after:.1f} MiB of {RUNS:,}")
    ours, stock = MLflowTracker(uri, experiment_name="many"), MlflowClient(uri, uri)
    ours.flush()
    order = ["metrics.`val/k7` ASC"]
    asked = {
        "best run": (
            lambda: ours.get_best_run("val/k7"),
            lambda: stock.search_runs([ours.experiment_id], order_by=order, max_results=1),
        ),
        f"search_runs, one of {RUNS + 1:,}": (
            lambda: ours.search_runs(order_by=order, max_results=1),
            lambda: stock.search_runs([ours.experiment_id], order_by=order, max_results=1),
        ),
        f"history of {HISTORY:,} points": (
            lambda: ours.get_metric_history(history, "m"),
            lambda: stock.get_metric_history(history, "m"),
        ),
    }
    for name, (ask_us, ask_stock) in asked.items():
        figures: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            figures[0].append(timed(ask_us) * 1e3)
            figures[1].append(timed(ask_stock) * 1e3)
        theirs = statistics.median(figures[1])
        row(f"{name}, heimdall", figures[0], "ms", theirs)
        row(f"{name}, mlflow", figures[1], "ms")
    row("least value of a metric, bare SQL", least(uri), "ms")


def sustained(kind: str, uri: str) -> None:
    ours = Ours(uri)
    stock = Stock(uri)
    figures: dict[str, list[float]] = {"heimdall": [], "mlflow log_batch(1000)": [], "bare": []}
    used = whole = 0.0
    for _ in range(ROUNDS):
        begun, before = time.perf_counter(), time.process_time()
        figures["heimdall"].append(ours.log(POINTS[kind]))
        used, whole = used + time.process_time() - before, whole + time.perf_counter() - begun
        figures["mlflow log_batch(1000)"].append(stock.log(STOCK_POINTS[kind]))
        count = POINTS[kind]
        figures["bare"].append(bare_requests(uri, stock, count) if kind == "server" else bare(uri, count))
    theirs = statistics.median(figures["mlflow log_batch(1000)"])
    for name, found in figures.items():
        row(name, found, "metrics/s", theirs)
    print(f"  heimdall's own processor time was {used / whole:.0%} of the time that passed")


@contextlib.contextmanager
def database(kind: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as open_servers:
        os.environ["HEIMDALL_DIR"] = str(Path(folder) / "heimdall")
        os.chdir(folder)
        if kind == "sqlite":
            yield f"sqlite:///{folder}/mlflow.db"
        elif kind == "postgresql":
            # As a user's server: fsync on, and memory for the tables.
            options = ["-c fsync=on", "-c shared_buffers=512MB", "-c max_wal_size=4GB"]
            yield open_servers.enter_context(postgres.running(*options)).create_database("bench")
        else:
            yield serve(open_servers, Path(folder))


def serve(open_servers: contextlib.ExitStack, folder: Path) -> str:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = server_command(port, f"sqlite:///{folder}/mlflow.db", workers=2)
    open_servers.enter_context(serving(command, url, folder / "log"))
    return url


def main() -> None:
    for kind in [it for it in sys.argv[1:] if it != "--quick"] or ["sqlite", "postgresql", "server"]:
        print(kind)
        with database(kind) as uri:
            sustained(kind, uri)
            if kind != "server":
                questions(uri)


if __name__ == "__main__":
    main()
