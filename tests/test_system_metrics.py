"""System metrics: those of the stock client, by a thread that comes and goes with the run."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import psutil
import pytest

from heimdall_tracking import ConfigurationError, MLflowTracker
from support.helpers import wait_until

CPU = "system/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Samples every few milliseconds in place of ten seconds."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")


@pytest.fixture
def observed(uri):
    """A tracker whose runs have system metrics."""
    tracker = MLflowTracker(uri, experiment_name="tests", system_metrics=True)
    yield tracker
    while tracker.active_run_id:
        tracker.end_run()


@pytest.fixture
def stock(observed, uri):
    """The stock client on the same database."""
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def until_points(tracker: MLflowTracker, run_id: str, count: int, key: str = CPU) -> list:
    """The points of a metric as soon as there are so many."""
    wait_until(lambda: len(tracker.get_metric_history(run_id, key)) >= count, f"{key} has {count} points")
    return tracker.get_metric_history(run_id, key)


def until_samplers(count: int) -> None:
    """Waits until so many samplers run in this process. Linux tells, a moment after they begin and end."""

    def running() -> int:
        names = []
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                names.append((thread / "comm").read_text().strip())
        return names.count("heimdall-system")

    wait_until(lambda: running() == count, f"{count} samplers run")


def test_the_metrics_are_those_that_the_stock_client_logs(observed, stock, fluent, monkeypatch):
    with fluent.start_run(log_system_metrics=True) as theirs:
        run_id = theirs.info.run_id
        wait_until(lambda: CPU in stock.get_run(run_id).data.metrics, "the stock client has logged")
    with observed.run() as ours:
        until_points(observed, ours.run_id, 1)
    observed.flush()
    found = set(stock.get_run(ours.run_id).data.metrics)
    if "pynvml" not in sys.modules:
        # The stock client sees GPUs only where a package of NVIDIA's is installed beside.
        found = {key for key in found if not key.startswith("system/gpu_")}
    assert found == set(stock.get_run(run_id).data.metrics)


def test_a_run_has_none_unless_they_are_asked_for(tracker, observed):
    with tracker.run() as without, observed.run() as run:
        until_points(observed, run.run_id, 3)
    assert tracker.get_run(without.run_id).metrics == {}


@pytest.mark.parametrize("word", ["true", "True", "1"])
def test_the_variable_of_mlflow_turns_them_on(uri, monkeypatch, word):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", word)
    tracker = MLflowTracker(uri)
    with tracker.run() as run:
        until_points(tracker, run.run_id, 1)


def test_the_argument_wins_over_the_variable(uri, observed, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    tracker = MLflowTracker(uri, system_metrics=False)
    with tracker.run() as without, observed.run() as run:
        until_points(observed, run.run_id, 3)
    assert tracker.get_run(without.run_id).metrics == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "perhaps"),
        ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "soon"),
        ("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "-1"),
        ("MLFLOW_SYSTEM_METRICS_NODE_ID", "a#b"),
    ],
)
def test_a_variable_that_makes_no_sense_is_an_error(uri, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    switch = None if "ENABLE" in name else True
    with pytest.raises(ConfigurationError, match=name):
        MLflowTracker(uri, system_metrics=switch)


def test_variables_do_not_matter_while_they_are_off(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "soon")
    MLflowTracker(uri)


def test_steps_count_from_zero_and_times_grow(observed):
    with observed.run() as run:
        points = until_points(observed, run.run_id, 4)
    assert [point.step for point in points] == list(range(len(points)))
    times = [point.timestamp for point in points]
    assert times == sorted(times)


def test_a_resumed_run_goes_on_behind_its_last_step(observed):
    with observed.run("long") as run:
        until_points(observed, run.run_id, 2)
    before = len(observed.get_metric_history(run.run_id, CPU))
    observed.resume("long")
    points = until_points(observed, run.run_id, before + 2)
    observed.end_run()
    assert [point.step for point in points] == list(range(len(points)))


def test_several_samples_are_one_point(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "5")
    tracker = MLflowTracker(uri, system_metrics=True)
    with tracker.run() as run:
        first, second = until_points(tracker, run.run_id, 2)[:2]
    # Five times 20 ms; less only if the clock was set.
    assert second.timestamp - first.timestamp >= 99


def test_a_node_is_named_in_the_keys(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_NODE_ID", "node-7")
    tracker = MLflowTracker(uri, system_metrics=True)
    with tracker.run() as run:
        until_points(tracker, run.run_id, 1, "system/node-7/cpu_utilization_percentage")
    keys = tracker.get_run(run.run_id).metrics
    assert all(key.startswith("system/node-7/") for key in keys)


def test_values_are_those_that_psutil_has(observed):
    with observed.run() as run:
        until_points(observed, run.run_id, 3)
        metrics = observed.get_run(run.run_id).metrics
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    found = {key.removeprefix("system/"): value for key, value in metrics.items()}
    # Others use this machine, too.
    gigabyte = 1000
    assert found["system_memory_usage_megabytes"] == pytest.approx(memory.used / 1e6, abs=4 * gigabyte)
    assert found["system_memory_usage_percentage"] == pytest.approx(memory.percent, abs=20)
    assert found["disk_usage_megabytes"] == pytest.approx(disk.used / 1e6, abs=10 * gigabyte)
    assert found["disk_available_megabytes"] == pytest.approx(disk.free / 1e6, abs=10 * gigabyte)
    assert found["disk_usage_percentage"] == pytest.approx(disk.percent, abs=10)
    assert 0 <= found["cpu_utilization_percentage"] <= 100


def test_the_network_is_counted_since_the_start_of_the_run(observed):
    size = 20_000_000
    with observed.run() as run:
        until_points(observed, run.run_id, 1)
        with (
            socket.socket(type=socket.SOCK_DGRAM) as sender,
            socket.socket(type=socket.SOCK_DGRAM) as receiver,
        ):
            receiver.bind(("127.0.0.1", 0))
            for _ in range(size // 50_000):
                sender.sendto(bytes(50_000), receiver.getsockname())

        def counted() -> bool:
            metrics = observed.get_run(run.run_id).metrics
            return metrics["system/network_transmit_megabytes"] >= size / 1e6

        wait_until(counted, "what was sent is counted")
    first = observed.get_metric_history(run.run_id, "system/network_transmit_megabytes")[0]
    sent_since_boot = psutil.net_io_counters().bytes_sent / 1e6
    assert first.value < sent_since_boot - size / 1e6


def test_a_processor_that_works_is_seen_to(observed):
    with observed.run() as run:

        def busy() -> bool:
            sum(range(300_000))
            return any(point.value > 0 for point in observed.get_metric_history(run.run_id, CPU))

        wait_until(busy, "the processor is not idle")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_the_sampler_ends_with_its_run(observed):
    observed.start_run()
    until_samplers(1)
    observed.end_run()
    until_samplers(0)
    with observed.run():
        until_samplers(1)
    until_samplers(0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_nested_runs_have_a_sampler_each(observed):
    with observed.run() as outer, observed.run(nested=True) as inner:
        until_samplers(2)
        until_points(observed, inner.run_id, 1)
        until_points(observed, outer.run_id, 1)
    until_samplers(0)


def test_nothing_is_logged_behind_the_end_of_the_run(observed):
    with observed.run() as run:
        until_points(observed, run.run_id, 2)
    observed.flush()
    before = observed.get_metric_history(run.run_id, CPU)
    with observed.run() as other:
        until_points(observed, other.run_id, 3)
    after = observed.get_metric_history(run.run_id, CPU)
    assert len(after) == len(before)
    assert after[-1].timestamp <= observed.get_run(run.run_id).end_time + 1


def test_a_run_that_is_left_open_is_sampled_until_the_process_ends(run_script, uri, observed):
    run = run_script(
        """
        import sys, time
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        print(tracker.start_run())
        while not tracker.get_metric_history(tracker.active_run_id, sys.argv[2]):
            time.sleep(0.01)
        """,
        uri,
        CPU,
        MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING="true",
        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.02",
    )
    assert (run.code, run.err) == (0, "")
    info = observed.get_run(run.out.strip())
    assert info.status == "FINISHED"
    assert CPU in info.metrics


def test_a_fork_has_no_sampler_and_can_end(run_script, uri, observed):
    run = run_script(
        """
        import os, sys, time
        from pathlib import Path
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests", system_metrics=True)

        def points():
            return len(tracker.get_metric_history(tracker.active_run_id, sys.argv[2]))

        print(tracker.start_run(), flush=True)
        for _ in range(20):
            child = os.fork()
            if child == 0:
                threads = Path("/proc/self/task")
                del tracker
                sys.exit(7 if not threads.exists() or len(list(threads.iterdir())) == 1 else 8)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        before = points()
        while points() == before:
            time.sleep(0.01)
        """,
        uri,
        CPU,
        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.001",
        # Python 3.12 warns of every fork beside threads.
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert (run.code, run.err) == (0, "")
    assert observed.get_run(run.out.strip()).status == "FINISHED"
