"""Measure the cost of one logging call to the training, beside an empty call and the stock client's.

Run it with `make bench`, or `python benches/calls.py [calls] [loop] [memory] [doors] [--quick]` where
both are installed.

* calls: microseconds around each call, journal on, default durability, SQLite, while delivery runs as fast as
  it can. "floor" is a function of ours that takes the same dict and does nothing; "empty" is what reading the
  clock twice costs, which is in every figure. The stock client is measured with fewer calls: it takes that
  long.
* loop: steps per second of a training loop on one thread with ten metrics a step, with and without the
  tracker, in turns.
* memory: what the process has resident after a million and after ten million points.
* doors: the same call through stock MLflow with and without the bridge, and through Lightning's logger.

HEIMDALL_BENCH_CALLS says how many calls there are of the first kind; the others follow from it.
"""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HEIMDALL_BRIDGE"] = "0"  # the stock client is the peer
logging.disable(logging.WARNING)  # the stock client's migrations
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from heimdall_tracking import MLflowTracker, _native  # noqa: E402

SCRIPT = Path(__file__).resolve()
QUICK = "--quick" in sys.argv
CALLS = int(os.environ.get("HEIMDALL_BENCH_CALLS", "2000" if QUICK else "1000000"))
STOCK_CALLS = (
    {"sqlite": 10, "server": 10, "asynchronous": 10}
    if QUICK
    else {"sqlite": 200, "server": 100, "asynchronous": 300}
)
ONE, THREE = {"loss": 0.5}, {"train/loss": 0.5, "val/loss": 0.25, "lr": 1e-3}
TWENTY = {f"metric {i}": i / 7 for i in range(20)}
LOOP_ROUNDS, LOOP_STEPS = (2, 20) if QUICK else (24, 300)
MEMORY_POINTS = (10_000, 20_000) if QUICK else (1_000_000, 10_000_000)


def nanoseconds(call: Callable[..., object], arguments: Iterable[tuple]) -> array[int]:
    """Return the time that each call took."""
    now, taken = time.perf_counter_ns, array("q")
    note = taken.append
    for each in arguments:
        before = now()
        call(*each)
        after = now()
        note(after - before)
    return taken


def nothing(*_: object) -> None:
    pass


def empty(count: int) -> array[int]:
    now, taken = time.perf_counter_ns, array("q")
    note = taken.append
    for _ in range(count):
        before = now()
        after = now()
        note(after - before)
    return taken


def show(name: str, taken: array[int], over: float = 0.0) -> float:
    ordered = sorted(taken)

    def quantile(part: float) -> str:
        # Of few calls there is no thousandth.
        enough = len(ordered) * (1 - part) >= 1
        return f"{ordered[int(part * (len(ordered) - 1))] / 1e3:10,.2f}" if enough else f"{'':>10}"

    median = statistics.median(ordered) / 1e3
    ratio = f"{median / over:10,.1f}" if over else ""
    figures = [f"{median:10,.2f}", quantile(0.99), quantile(0.999), f"{ordered[-1] / 1e3:12,.1f}"]
    print(f"{name:50} {len(ordered):>9,} {' '.join(figures)} {ratio}", flush=True)
    return median


def metrics(values: dict[str, float], count: int) -> Iterator[tuple]:
    return ((values, step) for step in range(count))


def params(count: int) -> Iterator[tuple]:
    return (({f"p{i}": i, f"q{i}": 0.5, f"r{i}": "sgd"},) for i in range(count))


def tags(count: int) -> Iterator[tuple]:
    return (({"phase": f"epoch {i}", "best": str(i), "host": "here"},) for i in range(count))


def kinds(client: Any, count: int, few: int) -> Iterator[tuple[str, Callable[..., object], Iterator[tuple]]]:
    """The calls that are measured, by the names that both clients have for them."""
    yield "log_metrics, 1 key", client.log_metrics, metrics(ONE, count)
    yield "log_metrics, 3 keys", client.log_metrics, metrics(THREE, count)
    yield "log_metrics, 20 keys", client.log_metrics, metrics(TWENTY, max(few, count // 10))
    yield "log_params, 3 keys", client.log_params, params(few)
    yield "set_tags, 3 keys", client.set_tags, tags(few)


class Fluent:
    """The stock client's fluent API, told to wait or not to."""

    def __init__(self, uri: str, *, synchronous: bool) -> None:
        import mlflow

        self.mlflow, self.synchronous = mlflow, synchronous
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("stock")
        mlflow.start_run()

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(values, step=step, synchronous=self.synchronous)

    def log_params(self, values: dict[str, object]) -> None:
        self.mlflow.log_params(values, synchronous=self.synchronous)

    def set_tags(self, values: dict[str, str]) -> None:
        self.mlflow.set_tags(values, synchronous=self.synchronous)

    def finish(self) -> None:
        self.mlflow.flush_async_logging()
        self.mlflow.end_run()


def calls(folder: Path) -> None:
    from support.helpers import free_port
    from support.stock import server_command, serving

    heads = f"{'median':>10} {'99 %':>10} {'99.9 %':>10} {'max':>12} {'over ours':>10}"
    print(f"{'µs per call':50} {'calls':>9} {heads}")
    show("empty", empty(CALLS))
    floors = {"a Python function": nothing}
    if hasattr(_native, "_floor"):
        floors["floor"] = _native._floor
    for name, floor in floors.items():
        for kind, values in (("1 key", ONE), ("3 keys", THREE), ("20 keys", TWENTY)):
            show(f"{name}, {kind}", nanoseconds(floor, metrics(values, CALLS)))

    tracker = MLflowTracker(f"sqlite:///{folder / 'ours.db'}", experiment_name="ours")
    medians: dict[str, float] = {}
    for kind, call, arguments in kinds(tracker, CALLS, max(1_000, CALLS // 50)):
        tracker.start_run()
        tracker.flush()
        medians[kind] = show(f"heimdall_tracking, {kind}", nanoseconds(call, arguments))
        tracker.end_run()
        begun = time.perf_counter()
        tracker.flush()
        print(f"    the rest is delivered after another {time.perf_counter() - begun:.1f} s", flush=True)

    port = free_port()
    command = server_command(port, f"sqlite:///{folder / 'served.db'}")
    server, database = f"http://127.0.0.1:{port}", f"sqlite:///{folder / 'theirs.db'}"
    with serving(command, server, folder / "log"):
        for name, uri, synchronous, count in (
            ("mlflow, SQLite", database, True, STOCK_CALLS["sqlite"]),
            ("mlflow, server", server, True, STOCK_CALLS["server"]),
            ("mlflow, SQLite, asynchronous", database, False, STOCK_CALLS["asynchronous"]),
        ):
            client = Fluent(uri, synchronous=synchronous)
            for kind, call, arguments in kinds(client, count, count):
                warm = itertools.islice(arguments, 5)
                nanoseconds(call, warm)
                show(f"{name}, {kind}", nanoseconds(call, arguments), medians[kind])
            client.finish()


def loop(folder: Path, rounds: int = LOOP_ROUNDS, steps: int = LOOP_STEPS) -> None:
    """A network of 256-512-512-10 on batches of 128, as small as a training step reasonably is."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = (256, 512, 512)
    layers = [layer for i in range(2) for layer in (torch.nn.Linear(sizes[i], sizes[i + 1]), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(512, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    batch, truth = torch.randn(128, 256), torch.randint(10, (128,))
    tracker = MLflowTracker(f"sqlite:///{folder / 'loop.db'}", experiment_name="loop")
    tracker.start_run()
    tracker.flush()
    count = itertools.count()

    def train(log: Callable[[dict[str, float], int], object]) -> tuple[float, float]:
        """Steps per second, and milliseconds of processor per step, delivery included."""
        begun, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(model(batch), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = loss.item()
            log({f"metric {i}": value + i for i in range(10)}, next(count))
        rate = steps / (time.perf_counter() - begun)
        tracker.flush()
        return rate, 1e3 * (time.process_time() - used) / steps

    train(nothing)
    without: list[tuple[float, float]] = []
    with_tracker: list[tuple[float, float]] = []
    for turn in range(rounds):
        # The order changes, so that a machine that warms up or slows down favours neither.
        if turn % 2:
            with_tracker.append(train(tracker.log_metrics))
            without.append(train(nothing))
        else:
            without.append(train(nothing))
            with_tracker.append(train(tracker.log_metrics))
    for place, what in enumerate(("steps/s, 10 metrics a step", "processor, ms per step, delivery included")):
        print(f"{what:50} {'median':>10} {'min':>10} {'max':>10}")
        for name, rounds_of in (("without a tracker", without), ("heimdall_tracking", with_tracker)):
            figures = [figure[place] for figure in rounds_of]
            print(
                f"{name:50} {statistics.median(figures):10,.2f} {min(figures):10,.2f} {max(figures):10,.2f}"
            )
        pairs = zip(with_tracker, without, strict=True)
        ordered = sorted(100 * (one[place] / other[place] - 1) for one, other in pairs)
        median = statistics.median(ordered)
        print(f"{'difference of neighbours':50} {median:9.2f}% {ordered[0]:9.2f}% {ordered[-1]:9.2f}%")
    tracker.end_run()


def resident() -> tuple[float, float]:
    """MiB that this process has resident now, and had at most."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def log_and_show_memory(folder: Path) -> None:
    tracker = MLflowTracker(f"sqlite:///{folder / 'memory.db'}", experiment_name="memory")
    tracker.start_run()
    tracker.flush()
    values = {f"metric {i}": i / 7 for i in range(10)}
    print(f"{'MiB resident':50} {'now':>10} {'at most':>10} {'pending':>12}")
    print(f"{'before':50} {resident()[0]:10.1f} {resident()[1]:10.1f} {0:12,}", flush=True)
    logged = 0
    for points in MEMORY_POINTS:
        for step in range(logged // 10, points // 10):
            tracker.log_metrics(values, step=step)
        logged = points
        pending = tracker.status()["pending"]
        now, most = resident()
        print(f"{f'after {points:,} points':50} {now:10.1f} {most:10.1f} {pending:12,}", flush=True)
    begun = time.perf_counter()
    tracker.flush()
    now, most = resident()
    print(f"{'all delivered':50} {now:10.1f} {most:10.1f} {0:12,}")
    print(f"    after another {time.perf_counter() - begun:.0f} s", flush=True)
    tracker.end_run()


def memory(folder: Path) -> None:
    # In a process of its own: what the other figures have left behind does not count.
    command = [sys.executable, SCRIPT, "log_and_show_memory", *(["--quick"] if QUICK else [])]
    subprocess.run(command, check=True, cwd=folder)


def doors(folder: Path) -> None:
    import doors as of_each

    # What the stock client has set for processes like these, such as its experiment, is not theirs.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    print(f"{'median':60} {'µs':>12}", flush=True)
    for name, bridge in of_each.DOORS.items():
        place = folder / name
        place.mkdir()
        command = [sys.executable, of_each.__file__, name, str(place), *(["--quick"] if QUICK else [])]
        subprocess.run(command, check=True, cwd=place, env={**kept, "HEIMDALL_BRIDGE": bridge})


def main() -> None:
    chosen = [it for it in sys.argv[1:] if it != "--quick"]
    for name in chosen or ("calls", "loop", "memory", "doors"):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            os.chdir(place)
            os.environ["HEIMDALL_DIR"] = str(Path(place) / "heimdall")
            globals()[name](Path(place))
            os.chdir("/")
        print()


if __name__ == "__main__":
    main()
