"""Events of the tracker's threads reach `logging`, or structlog where that is configured."""

from __future__ import annotations

import pytest

from heimdall_tracking import ConfigurationError, MLflowTracker
from support.helpers import write

LOGS = """
import sys
from pathlib import Path
from heimdall_tracking import MLflowTracker
tracker = MLflowTracker(sys.argv[1], sys.argv[2])
with tracker.run("logged") as run:
    tracker.log_metric("loss", 0.5)
    tracker.log_artifact(sys.argv[3], "weights").wait()
tracker.flush()
"""


@pytest.fixture
def arguments(uri, tmp_path):
    return [uri, tmp_path / "artifacts", write(tmp_path / "net.ckpt", b"weights")]


def test_heimdall_log_shows_the_life_of_an_upload(run_script, arguments):
    run = run_script(LOGS, *arguments, HEIMDALL_LOG="debug")
    assert run.code == 0
    lines = run.err.splitlines()
    life = [line for line in lines if "path=weights/net.ckpt" in line]
    names = ["artifact_logged", "upload_begun", "upload_finished"]
    assert [name for line in life for name in names if f" {name} " in line] == names
    assert any("heimdall_tracking.tracker mlflow_run_started run_id=" in line for line in lines)
    assert any("heimdall_tracking.delivery batch_delivered destination=sqlite" in line for line in lines)


def test_nothing_is_shown_unless_it_is_asked_for(run_script, arguments):
    run = run_script(LOGS, *arguments)
    assert (run.code, run.err) == (0, "")


def test_events_reach_the_handlers_of_logging_from_the_level_that_is_set(run_script, arguments):
    configured = """
import logging
class Collects(logging.Handler):
    def emit(self, record):
        if hasattr(record, "event"):
            print(record.levelname, record.name, record.event, sorted(record.fields))
logging.getLogger().addHandler(Collects())
logging.getLogger("heimdall_tracking").setLevel(logging.INFO)
"""
    run = run_script(configured + LOGS, *arguments)
    assert "INFO heimdall_tracking.artifacts artifact_logged ['path', 'run_id']" in run.out.splitlines()
    assert "DEBUG" not in run.out


def test_structlog_gets_events_with_fields(run_script, arguments):
    configured = """
import structlog
structlog.configure(processors=[lambda logger, method, event: print(method, sorted(event.items())) or ""])
"""
    run = run_script(configured + LOGS, *arguments)
    assert "('event', 'mlflow_run_started'), ('experiment', 'heimdall-localization')" in run.out


def test_an_outage_is_an_event(run_script, tmp_path):
    code = """
import sys
from heimdall_tracking import MLflowTracker
tracker = MLflowTracker(sys.argv[1])
tracker.start_run()
try:
    tracker.flush(3)
except Exception as error:
    print(type(error).__name__)
"""
    away = {"HEIMDALL_LOG": "info", "HEIMDALL_EXIT_TIMEOUT": 0, "HEIMDALL_CONNECT_TIMEOUT": 0.1}
    run = run_script(code, "http://127.0.0.1:9", **away)
    assert run.out == "UndeliveredError\n"
    assert "heimdall_tracking.delivery outage_begun destination=http://127.0.0.1:9" in run.err


def test_a_level_that_is_none_is_named_before_a_run_starts(uri, monkeypatch):
    monkeypatch.setenv("HEIMDALL_LOG", "loud")
    with pytest.raises(ConfigurationError, match="HEIMDALL_LOG"):
        MLflowTracker(uri)
