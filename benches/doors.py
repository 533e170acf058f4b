"""The cost of a call through each door: stock MLflow with and without the bridge, and Lightning's logger.

`python benches/calls.py doors [--quick]` runs it: each door in a process of its own, as MLflow keeps state
for the whole process. "a store that does nothing" is MLflow's own Python and no more: the same calls with the
same arguments, and no check of a store.

The last door is a step of a training by Lightning, in turns with and without a logger in one process. One
that does nothing is there too: Lightning itself does more where there is a logger, such as making numbers of
tensors.
"""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUICK = "--quick" in sys.argv
COUNT = 50 if QUICK else 2_000
STOCK_COUNT = 10 if QUICK else 200
RUN_COUNT = 3 if QUICK else 50
SIZES = (1, 10, 100, 1000)
STEP_ROUNDS, STEPS = (2, 8) if QUICK else (100, 30)
BATCH, CHANNELS, SIDE = 16, 24, 48


def median_us(call: Callable[[int], object], count: int) -> float:
    """Return the median of the time that a call takes, in microseconds."""
    for number in range(3):
        call(-1 - number)
    taken = []
    for number in range(count):
        begun = time.perf_counter_ns()
        call(number)
        taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1000


def show(name: str, us: float) -> None:
    print(f"{name:60} {us:12,.1f}", flush=True)


def all_calls(name: str, mlflow: Any, run_id: str, count: int) -> None:
    """Measure each call of MLflow that records, with few entities and with many."""
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    show(f"{name}: mlflow.log_metric", median_us(lambda n: mlflow.log_metric("m", n, step=n), count))
    fresh = itertools.count()

    def metrics(size: int, number: int) -> list[Metric]:
        return [Metric(f"b{place}", float(number), number + 10, number) for place in range(size)]

    for size in SIZES:
        few = max(count // size, 5)
        values = {f"metric {place}": place / 7 for place in range(size)}
        calls: dict[str, Callable[[int], object]] = {
            "mlflow.log_metrics": lambda n, values=values: mlflow.log_metrics(values, step=n),
            # A param is recorded once.
            "mlflow.log_params": lambda n, size=size: mlflow.log_params(
                {f"p{next(fresh)}": n for _ in range(size)}
            ),
            "MlflowClient.log_batch": lambda n, size=size: client.log_batch(run_id, metrics(size, n)),
        }
        for call, measured in calls.items():
            if size <= 100 or call == "MlflowClient.log_batch":
                show(f"{name}: {call} of {size}", median_us(measured, few))


def nothing(folder: Path) -> None:
    import mlflow
    from mlflow.entities import Run, RunData, RunInfo
    from mlflow.store.tracking.abstract_store import AbstractStore
    from mlflow.tracking._tracking_service import utils

    def do_nothing(*_: object, **__: object) -> None: ...

    names = [name for name in dir(AbstractStore) if not name.startswith("_")]
    store = type("Nothing", (AbstractStore,), {name: do_nothing for name in names})
    utils._tracking_store_registry.register("nothing", lambda store_uri, artifact_uri=None: store())
    mlflow.set_tracking_uri("nothing://x")
    info = RunInfo("a" * 32, "0", "user", "RUNNING", 1, None, "active")
    mlflow.tracking.fluent._active_run_stack.get().append(mlflow.ActiveRun(Run(info, RunData())))
    all_calls("a store that does nothing", mlflow, "a" * 32, COUNT)
    mlflow.tracking.fluent._active_run_stack.get().clear()


def bridged(folder: Path) -> None:
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(f"sqlite:///{folder / 'ours.db'}", experiment_name="doors")
    import mlflow

    with tracker.run() as run:
        all_calls("the bridge, SQLite", mlflow, str(run.run_id), COUNT)


def stock(folder: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'theirs.db'}")
    with mlflow.start_run() as run:
        all_calls("stock MLflow, SQLite", mlflow, run.info.run_id, STOCK_COUNT)


def lightning(folder: Path) -> None:
    from heimdall_tracking import MLflowTracker
    from heimdall_tracking.lightning import HeimdallLogger

    tracker = MLflowTracker(f"sqlite:///{folder / 'ours.db'}", experiment_name="doors")
    values = {"train/loss": 0.5, "val/loss": 0.25, "lr": 1e-3, "epoch": 1.0}
    with tracker.run():
        logger = HeimdallLogger(tracker=tracker)
        show("HeimdallLogger.log_metrics of 4", median_us(lambda n: logger.log_metrics(values, n), COUNT))


def runs(folder: Path) -> None:
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(f"sqlite:///{folder / 'ours.db'}", experiment_name="doors")
    show("tracker.start_run and end_run, SQLite", median_us(lambda n: _run(tracker, n), RUN_COUNT))


def _run(tracker: Any, number: int) -> None:
    tracker.start_run(f"run {number}")
    tracker.end_run()


def step(folder: Path) -> None:
    """Show what a step takes without self.log, without a logger, and with each logger, in turns."""
    import torch
    from lightning.pytorch.loggers import MLFlowLogger
    from lightning.pytorch.loggers.logger import DummyLogger

    from heimdall_tracking import MLflowTracker
    from heimdall_tracking.lightning import HeimdallLogger

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tracker = MLflowTracker(f"sqlite:///{folder / 'ours.db'}", experiment_name="doors")
    theirs = f"sqlite:///{folder / 'theirs.db'}"
    loggers: dict[str, Callable[[], Any]] = {
        "logger=False, no self.log": lambda: False,
        "logger=False": lambda: False,
        "a logger that does nothing": DummyLogger,
        "HeimdallLogger": lambda: HeimdallLogger(tracker=tracker),
        "MLFlowLogger": lambda: MLFlowLogger("doors", tracking_uri=theirs),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in loggers}
    names = list(loggers)
    for turn in range(1 + STEP_ROUNDS):
        # Whoever begins changes, so that a machine that warms up or slows down favours nobody.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken_now = seconds_a_step(loggers[name](), logs=name != names[0])
            if turn:
                taken[name].append(taken_now)
    for name in names:
        show(f"a step of Lightning: {name}", 1e6 * statistics.median(clock for clock, _ in taken[name]))
    print(f"{'over logger=False, in %':60} {'clock':>8} {'quarters':>18} {'processor':>10} {'quarters':>18}")
    for name in names:
        figures = ""
        for place, width in ((0, 8), (1, 10)):
            pairs = zip(taken[name], taken["logger=False"], strict=True)
            over = [100 * (one[place] / other[place] - 1) for one, other in pairs]
            low, middle, high = statistics.quantiles(over, n=4)
            figures += f" {middle:+{width}.2f} {f'{low:+.2f} … {high:+.2f}':>18}"
        print(f"{f'  {name}':60}{figures}", flush=True)


def seconds_a_step(logger: Any, *, logs: bool) -> tuple[float, float]:
    """Train for some steps, and return what one takes from its begin to that of the next.

    The second figure is the processor's time of the training's thread, which other work on the machine does
    not prolong.
    """
    import lightning.pytorch as pl

    begun: list[tuple[float, float]] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            begun.append((time.perf_counter(), time.thread_time()))

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[Clock()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(network(logs=logs))
    # The first step finds nothing warm.
    pairs = list(itertools.pairwise(begun[1:]))
    clock, processor = ([after[place] - before[place] for before, after in pairs] for place in (0, 1))
    return statistics.median(clock), statistics.median(processor)


def network(*, logs: bool) -> Any:
    """A small ConvNeXt, which logs three values a step."""
    import lightning.pytorch as pl
    import torch
    from torch import nn

    def block() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3, groups=CHANNELS),
            nn.GroupNorm(1, CHANNELS),
            nn.Conv2d(CHANNELS, 4 * CHANNELS, 1),
            nn.GELU(),
            nn.Conv2d(4 * CHANNELS, CHANNELS, 1),
        )

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 2))
            self.layers = nn.Sequential(nn.Conv2d(3, CHANNELS, 4, stride=4), block(), block(), *head)

        def training_step(self, batch: Any, index: int) -> Any:
            rows, places = batch
            error = self.layers(rows) - places
            loss = error.square().mean()
            if logs:
                self.log("train/loss", loss)
                self.log("train/error", error.abs().mean())
                self.log("lr", 1e-3)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

        def train_dataloader(self) -> Any:
            rows = torch.utils.data.TensorDataset(
                torch.randn(BATCH * STEPS, 3, SIDE, SIDE), torch.randn(BATCH * STEPS, 2)
            )
            return torch.utils.data.DataLoader(rows, batch_size=BATCH)

    return Net()


DOORS = {"nothing": "0", "bridged": "1", "stock": "0", "lightning": "1", "runs": "1", "step": "0"}


if __name__ == "__main__":
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.WARNING)  # the stock client's migrations, and Lightning's greetings
    globals()[sys.argv[1]](Path(sys.argv[2]))
