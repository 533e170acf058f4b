"""Runs: how they start, what they carry from the beginning, how they end."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from heimdall_tracking import InvalidInputError, RunStateError


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_started_run_is_running_and_has_no_end(tracker, client):
    before = now_ms()
    run_id = tracker.start_run("first")
    after = now_ms()
    tracker.flush()
    info = client.get_run(run_id).info
    assert re.fullmatch("[0-9a-f]{32}", run_id)
    assert (info.status, info.end_time, info.lifecycle_stage) == ("RUNNING", None, "active")
    assert (info.run_name, info.experiment_id) == ("first", tracker.experiment_id)
    assert before <= info.start_time <= after


def test_the_experiment_is_the_one_that_the_stock_client_finds_by_name(tracker, client):
    experiment = client.get_experiment_by_name("tests")
    assert experiment.experiment_id == tracker.experiment_id
    assert experiment.lifecycle_stage == "active"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED", "killed"])
def test_a_run_ends_with_the_status_it_is_given(tracker, client, status):
    run_id = tracker.start_run()
    before = now_ms()
    tracker.end_run(status)
    after = now_ms()
    tracker.flush()
    info = client.get_run(run_id).info
    assert info.status == status.upper()
    assert before <= info.end_time <= after


@pytest.mark.parametrize("status", ["RUNNING", "DONE", "", "FINISHED "])
def test_a_status_that_ends_no_run_is_refused_and_the_run_stays_active(tracker, status):
    run_id = tracker.start_run()
    with pytest.raises(InvalidInputError, match="FINISHED, FAILED or KILLED"):
        tracker.end_run(status)
    assert tracker.active_run_id == run_id


def test_ending_twice_leaves_the_first_end(tracker, client):
    run_id = tracker.start_run()
    tracker.end_run("FAILED")
    tracker.end_run("FINISHED")
    tracker.flush()
    assert client.get_run(run_id).info.status == "FAILED"


def test_a_second_run_is_refused_while_one_is_active(tracker):
    run_id = tracker.start_run()
    with pytest.raises(RunStateError, match=run_id):
        tracker.start_run()
    assert tracker.active_run_id == run_id


def test_a_run_can_follow_a_run(tracker, client):
    first = tracker.start_run()
    tracker.end_run()
    second = tracker.start_run()
    tracker.end_run()
    tracker.flush()
    found = client.search_runs([tracker.experiment_id])
    assert {run.info.run_id for run in found} == {first, second}


def test_no_run_is_active_before_the_first_and_after_the_last(tracker):
    assert tracker.active_run_id is None
    tracker.start_run()
    tracker.end_run()
    assert tracker.active_run_id is None


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("log_params", ({"a": 1},)),
        ("log_metrics", ({"a": 1},)),
        ("log_artifact", ("missing",)),
        ("log_artifacts_dir", ("missing",)),
    ],
)
def test_logging_without_a_run_names_the_call_that_is_missing(tracker, call, arguments):
    with pytest.raises(RunStateError, match="start_run"):
        getattr(tracker, call)(*arguments)


@pytest.mark.parametrize("name", [None, ""])
def test_a_run_without_a_name_gets_a_random_one(tracker, client, name):
    run_id = tracker.start_run(name)
    tracker.flush()
    run = client.get_run(run_id)
    assert re.fullmatch(r"\w+-\w+-\d+", run.info.run_name)
    assert run.data.tags["mlflow.runName"] == run.info.run_name


@pytest.mark.parametrize(
    ("name", "tags"), [("n" * 251, None), ("ok", {"bad//key": 1}), ("ok", {"k" * 251: 1})]
)
def test_a_name_or_tag_against_the_rules_starts_no_run(tracker, client, name, tags):
    with pytest.raises(InvalidInputError):
        tracker.start_run(name, tags)
    tracker.flush()
    assert tracker.active_run_id is None
    assert client.search_runs([tracker.experiment_id]) == []


def test_a_name_of_250_characters_is_taken(tracker, client):
    run_id = tracker.start_run("ñ" * 250)
    tracker.flush()
    assert client.get_run(run_id).info.run_name == "ñ" * 250


def test_a_run_has_the_default_tags(tracker):
    tags = tracker.get_run_info(tracker.start_run())["tags"]
    expected = {"phase": "training", "service": "training", "model": "LocalizationNet"}
    assert expected.items() <= tags.items()


def test_the_callers_tags_win_over_every_default(tracker, client):
    mine = {"phase": "test", "mlflow.user": "ada", "mlflow.source.name": "me.py", "new": 3}
    run_id = tracker.start_run(tags=mine)
    tracker.flush()
    tags = client.get_run(run_id).data.tags
    assert {key: str(value) for key, value in mine.items()}.items() <= tags.items()
    assert tags["service"] == "training"


def test_a_name_given_as_tag_is_the_name_of_the_run(tracker, client):
    run_id = tracker.start_run(tags={"mlflow.runName": "by tag"})
    tracker.flush()
    assert client.get_run(run_id).info.run_name == "by tag"


def test_two_names_for_one_run_are_refused(tracker):
    with pytest.raises(InvalidInputError, match=r"mlflow\.runName.*by argument"):
        tracker.start_run("by argument", tags={"mlflow.runName": "by tag"})
    assert tracker.active_run_id is None


def test_long_tag_values_are_cut_at_8000_characters(tracker, client):
    run_id = tracker.start_run(tags={"long": "é" * 8001})
    tracker.flush()
    assert client.get_run(run_id).data.tags["long"] == "é" * 8000


def test_a_run_has_the_tags_that_the_stock_client_would_give_it(tracker):
    from mlflow.tracking.context.registry import resolve_tags

    tags = tracker.get_run_info(tracker.start_run("named"))["tags"]
    assert (resolve_tags() | {"mlflow.runName": "named"}).items() <= tags.items()


def test_a_run_of_a_script_in_a_git_repository_has_its_commit(tracker, uri, tmp_path, run_script):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        print(MLflowTracker(sys.argv[1]).start_run())
        """,
        uri,
    )
    tags = tracker.get_run_info(run.out.strip())["tags"]
    assert tags["mlflow.source.git.commit"] == head.stdout.strip()


def test_a_block_without_an_exception_finishes_its_run(tracker):
    with tracker.run("block", tags={"a": 1}) as run:
        assert tracker.active_run_id == run.run_id
    info = tracker.get_run_info(run.run_id)
    assert (info["status"], info["tags"]["mlflow.runName"], info["tags"]["a"]) == (
        "FINISHED",
        "block",
        "1",
    )


@pytest.mark.parametrize(
    ("exception", "status"),
    [(ValueError("mine"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(3), "FAILED")],
)
def test_an_exception_passes_through_the_block_and_ends_its_run(tracker, exception, status):
    with pytest.raises(type(exception)) as caught, tracker.run() as run:
        raise exception
    assert caught.value is exception
    assert tracker.get_run_info(run.run_id)["status"] == status


def test_a_block_has_no_run_before_it_is_entered(tracker):
    run = tracker.run()
    assert run.run_id is None
    assert tracker.active_run_id is None


def test_a_run_that_the_block_has_ended_itself_keeps_that_end(tracker):
    with tracker.run() as run:
        tracker.end_run("FAILED")
        after = tracker.start_run()
    assert tracker.get_run_info(run.run_id)["status"] == "FAILED"
    assert tracker.active_run_id == after


def test_a_block_entered_a_second_time_is_a_second_run(tracker):
    block = tracker.run()
    with block:
        first = block.run_id
    with block:
        second = block.run_id
        assert tracker.active_run_id == second
    assert first != second
    assert [tracker.get_run_info(run)["status"] for run in (first, second)] == ["FINISHED"] * 2


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", "FINISHED"),
        ("sys.exit(0)", "FINISHED"),
        ("del tracker", "FINISHED"),
        ("raise RuntimeError('boom')", "FAILED"),
        ("signal.raise_signal(signal.SIGINT)", "KILLED"),
    ],
)
def test_the_run_open_at_the_end_of_the_interpreter_is_ended(tracker, uri, run_script, ending, status):
    run = run_script(
        f"""
        import signal, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        print(tracker.start_run(), flush=True)
        tracker.log_metrics({{"loss": 0.5}}, step=1)
        {ending}
        """,
        uri,
    )
    info = tracker.get_run_info(run.out.strip())
    assert info["status"] == status, run.err
    assert info["end_time"] >= info["start_time"]
    assert info["metrics"] == {"loss": 0.5}
