"""The bridge in processes of its own: orders of import, ends, kills, and a store that is away."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S

pytestmark = pytest.mark.faults

BODY = """
with tracker.run("outer") as run:
    mlflow.log_metric("theirs", 1.0)
    assert mlflow.active_run().info.run_id == run.run_id
    assert type(mlflow.MlflowClient()._tracking_client.store).__name__ == "HeimdallTrackingStore"
print(run.run_id)
"""
ORDERS = {
    "mlflow first": "import mlflow, sys\nfrom heimdall_tracking import MLflowTracker\n"
    "tracker = MLflowTracker(sys.argv[1])\n",
    "mlflow after the package": "import sys\nfrom heimdall_tracking import MLflowTracker\nimport mlflow\n"
    "tracker = MLflowTracker(sys.argv[1])\n",
    "mlflow after the tracker": "import sys\nfrom heimdall_tracking import MLflowTracker\n"
    "tracker = MLflowTracker(sys.argv[1])\nimport mlflow\n",
    "a client first": "import mlflow, sys\nmlflow.MlflowClient(sys.argv[1]).search_experiments()\n"
    "from heimdall_tracking import MLflowTracker\ntracker = MLflowTracker(sys.argv[1])\n",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_imports_does_not_matter(tracker, uri, run_script, order):
    run = run_script(ORDERS[order] + BODY, uri)
    assert run.code == 0, run.err
    assert tracker.get_run(run.out.strip()).metrics == {"theirs": 1.0}


def test_the_module_that_is_watched_is_imported_as_without_the_bridge(run_script, uri):
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        import mlflow.tracking.fluent as fluent
        import inspect
        assert type(fluent.__spec__.loader).__module__.startswith(("importlib", "_frozen"))
        assert "def start_run" in inspect.getsource(fluent)
        assert not any("heimdall" in type(it).__module__ for it in sys.meta_path)
        """,
        uri,
    )
    assert (run.code, run.err) == (0, "")


@pytest.mark.parametrize(
    ("ending", "status"),
    [("", "FINISHED"), ("raise RuntimeError('boom')", "FAILED"), ("import sys; sys.exit(3)", "FAILED")],
)
def test_a_run_of_mlflow_that_is_left_open_ends_as_the_process_does(tracker, uri, run_script, ending, status):
    run = run_script(
        f"""
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        import mlflow
        print(mlflow.start_run().info.run_id, flush=True)
        mlflow.log_metric("m", 1.0)
        {ending}
        """,
        uri,
    )
    found = tracker.get_run(run.out.split()[0])
    assert (found.status, found.metrics) == (status, {"m": 1.0}), run.err


def test_a_kill_loses_nothing_that_mlflow_has_logged(uri, heimdall_dir):
    script = """
        import os, signal, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="killed")
        import mlflow
        run = mlflow.start_run()
        for step in range(1000):
            mlflow.log_metric("m", step, step=step)
        mlflow.log_param("last", "1")
        print(run.info.run_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), uri],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ},
    )
    tracker = MLflowTracker(uri, experiment_name="killed")
    tracker.flush(PATIENCE_S)
    found = tracker.get_run(killed.stdout.strip())
    assert (found.status, found.params) == ("FAILED", {"last": "1"})
    assert len(tracker.get_metric_history(found.run_id, "m")) == 1000


def test_a_store_that_is_away_does_not_stop_what_mlflow_logs(run_script, heimdall_dir):
    run = run_script(
        """
        import os, time
        os.environ["HEIMDALL_CONNECT_TIMEOUT"] = "1"
        os.environ["HEIMDALL_EXIT_TIMEOUT"] = "1"
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker("postgresql://user:password@127.0.0.1:1/none", experiment_name="away")
        import mlflow
        begun = time.monotonic()
        with mlflow.start_run(run_name="theirs") as run:
            assert tracker.active_run_id == run.info.run_id
            mlflow.log_metric("m", 1.0)
            mlflow.log_params({"a": 1})
        try:
            mlflow.get_run(run.info.run_id)
        except mlflow.MlflowException as error:
            print(error.error_code)
        assert time.monotonic() - begun < 60
        """,
    )
    assert run.code == 0, run.err
    assert run.out == "TEMPORARILY_UNAVAILABLE\n"
    assert run.err.count("training is not") == 1
    assert "password" not in run.err
