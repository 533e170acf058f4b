"""What a call of `log_metrics` costs the training, beside the stock client on the same kind of database.

Run it with `make bench`, or `python benches/log_metrics.py` in an environment that has both. Each client logs
three metrics a step into a SQLite database of its own; the clients take turns. "per call" is what the caller
waits for; "per step, delivered" is the whole time until everything is in the database.
"""

import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
logging.disable(logging.WARNING)  # the stock client's migrations

import mlflow  # noqa: E402

from heimdall_tracking import MLflowTracker  # noqa: E402

ROUNDS = 3
METRICS = {"train/loss": 0.5, "val/loss": 0.25, "lr": 1e-3}


class Heimdall:
    name, steps = "heimdall_tracking", 10_000

    def __init__(self, folder: Path) -> None:
        os.environ["HEIMDALL_DIR"] = str(folder / "heimdall")
        self.tracker = MLflowTracker(f"sqlite:///{folder / 'ours.db'}")
        self.tracker.start_run()
        self.tracker.flush()

    def log(self, step: int) -> None:
        self.tracker.log_metrics(METRICS, step=step)

    def finish(self) -> None:
        self.tracker.end_run()
        self.tracker.flush()


class Mlflow:
    name, steps, synchronous = "mlflow, synchronous", 300, True

    def __init__(self, folder: Path) -> None:
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'theirs.db'}")
        mlflow.set_experiment("bench")
        mlflow.start_run()
        mlflow.log_metrics(METRICS)

    def log(self, step: int) -> None:
        mlflow.log_metrics(METRICS, step=step, synchronous=self.synchronous)

    def finish(self) -> None:
        mlflow.flush_async_logging()
        mlflow.end_run()


class MlflowAsync(Mlflow):
    name, synchronous = "mlflow, asynchronous", False


def main() -> None:
    calls: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for client_class in (Heimdall, Mlflow, MlflowAsync):
            with tempfile.TemporaryDirectory() as folder:
                client = client_class(Path(folder))
                taken = calls.setdefault(client.name, [])
                begun = time.perf_counter()
                for step in range(client.steps):
                    before = time.perf_counter()
                    client.log(step)
                    taken.append(time.perf_counter() - before)
                client.finish()
                whole.setdefault(client.name, []).append((time.perf_counter() - begun) / client.steps)
    print(f"{'µs per call':24} {'mean':>9} {'median':>9} {'99 %':>9} {'per step, delivered':>20}")
    for name, taken in calls.items():
        percentile = statistics.quantiles(taken, n=100)[98]
        numbers = [statistics.mean(taken), statistics.median(taken), percentile]
        print(
            f"{name:24} "
            + " ".join(f"{number * 1e6:9.1f}" for number in numbers)
            + f" {statistics.median(whole[name]) * 1e6:20.1f}"
        )


if __name__ == "__main__":
    main()
