"""Runs: how they start, what they carry from the beginning, how they end."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from heimdall_tracking import (
    InvalidInputError,
    MLflowTracker,
    NotFoundError,
    RunStateError,
    Settings,
    initialize_mlflow,
)
from support.helpers import wait_until


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
        ("log_param", ("a", 1)),
        ("log_params", ({"a": 1},)),
        ("log_metric", ("a", 1)),
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


@pytest.mark.strict
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


HEIMDALL_TAGS = {"phase": "training", "service": "training", "model": "LocalizationNet"}


def test_a_run_of_the_heimdall_settings_has_their_default_tags(uri):
    tracker = initialize_mlflow(Settings(mlflow_tracking_uri=uri))
    tags = tracker.get_run(tracker.start_run()).tags
    tracker.end_run()
    assert HEIMDALL_TAGS.items() <= tags.items()


def test_the_run_of_an_iris_classifier_is_not_tagged_as_a_localization_network(tracker):
    with tracker.run("iris", tags={"model": "LogisticRegression"}) as run:
        tracker.log_metric("accuracy", 0.97)
    assert tracker.get_run(run.run_id).tags["model"] == "LogisticRegression"
    with tracker.run("iris without tags") as run:
        pass
    assert not tracker.get_run(run.run_id).tags.keys() & HEIMDALL_TAGS.keys()


def test_a_tracker_gives_its_runs_the_default_tags_that_it_is_asked_for(uri):
    tracker = MLflowTracker(uri, default_tags={"team": "iris", "fold": 3})
    with tracker.run(tags={"fold": 4}) as run:
        pass
    tags = tracker.get_run(run.run_id).tags
    assert (tags["team"], tags["fold"]) == ("iris", "4")


@pytest.mark.parametrize("wrong", [{"bad//key": 1}, {"k" * 251: 1}])
def test_default_tags_that_mlflow_refuses_are_an_error_before_a_run_starts(uri, wrong):
    with pytest.raises(InvalidInputError, match="tag key"):
        MLflowTracker(uri, default_tags=wrong)


def test_the_callers_tags_win_over_every_default(uri):
    tracker = initialize_mlflow(Settings(mlflow_tracking_uri=uri))
    mine = {"phase": "test", "mlflow.user": "ada", "mlflow.source.name": "me.py", "new": 3}
    tags = tracker.get_run(tracker.start_run(tags=mine)).tags
    tracker.end_run()
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
    subprocess.run([*git, "init", "--quiet", "--initial-branch", "trunk"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://me:hush@example.org/x.git"], check=True)
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
    assert tags["mlflow.source.git.branch"] == "trunk"
    # The password of an address is not recorded.
    assert tags["mlflow.source.git.repoURL"] == "https://***@example.org/x.git"


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


def test_nested_runs_have_the_parents_that_the_stock_client_would_give_them(tracker, client):
    outer = tracker.start_run("outer")
    middle = tracker.start_run("middle", nested=True)
    inner = tracker.start_run("inner", nested=True)
    assert tracker.active_run_ids == [outer, middle, inner]
    tracker.log_metric("depth", 2)
    tracker.end_run("FAILED")
    tracker.log_metric("depth", 1)
    tracker.end_run()
    tracker.log_metric("depth", 0)
    assert tracker.active_run_id == outer
    tracker.end_run()
    tracker.flush()
    runs = [client.get_run(run_id) for run_id in (outer, middle, inner)]
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs] == [None, outer, middle]
    assert [run.data.metrics["depth"] for run in runs] == [0, 1, 2]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "FAILED"]


def test_a_run_can_be_nested_in_one_that_has_ended_or_is_somebody_else_s(tracker, client):
    with tracker.run() as ended:
        pass
    theirs = client.create_run(tracker.experiment_id).info.run_id
    for parent in (ended.run_id, theirs):
        with tracker.run(parent_run_id=parent) as run:
            pass
        assert tracker.get_run(run.run_id).tags["mlflow.parentRunId"] == parent


@pytest.mark.parametrize(
    ("parent", "error"), [("0" * 32, NotFoundError), ("no id", InvalidInputError), ("", InvalidInputError)]
)
def test_a_parent_that_does_not_exist_starts_no_run(tracker, parent, error):
    with pytest.raises(error):
        tracker.start_run(parent_run_id=parent)
    assert tracker.active_run_id is None


def test_a_parent_that_is_deleted_starts_no_run(tracker):
    with tracker.run() as deleted:
        pass
    tracker.delete_run(deleted.run_id)
    with pytest.raises(InvalidInputError, match="deleted"):
        tracker.start_run(parent_run_id=deleted.run_id)


def test_a_nested_run_belongs_to_the_innermost_active_one(tracker):
    with tracker.run() as other:
        pass
    outer = tracker.start_run()
    with pytest.raises(InvalidInputError, match="innermost"):
        tracker.start_run(nested=True, parent_run_id=other.run_id)
    tracker.start_run(nested=True, parent_run_id=outer)
    assert len(tracker.active_run_ids) == 2
    tracker.end_run()


def test_runs_that_a_block_leaves_open_end_with_it(tracker):
    with tracker.run() as outer:
        inner = tracker.start_run(nested=True)
    assert tracker.active_run_ids == []
    assert [tracker.get_run(run).status for run in (outer.run_id, inner)] == ["FINISHED"] * 2


def test_nested_runs_that_are_open_at_the_end_of_the_interpreter_are_ended(tracker, uri, run_script):
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        print(tracker.start_run(), tracker.start_run(nested=True))
        """,
        uri,
    )
    assert [tracker.get_run(run_id).status for run_id in run.out.split()] == ["FINISHED"] * 2


def test_a_description_is_the_note_that_the_stock_ui_shows(tracker, client):
    run_id = tracker.start_run(description="*two* receivers")
    tracker.flush()
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == "*two* receivers"
    tracker.end_run()
    with pytest.raises(InvalidInputError, match=r"mlflow\.note\.content"):
        tracker.start_run(description="a", tags={"mlflow.note.content": "b"})


@pytest.mark.strict
@pytest.mark.parametrize("how", ["id", "name", "run_id"])
def test_a_run_goes_on_where_it_ended(tracker, client, how):
    with tracker.run("long") as run:
        tracker.log_params({"lr": 0.1})
        tracker.log_metric("m", 1.0, step=1)
    tracker.flush()
    ended = client.get_run(run.run_id).info
    if how == "run_id":
        resumed = tracker.start_run(run_id=run.run_id, tags={"again": 1})
    else:
        resumed = tracker.resume(run.run_id if how == "id" else "long")
    assert resumed == tracker.active_run_id == run.run_id
    tracker.log_metric("m", 2.0, step=2)
    with pytest.raises(InvalidInputError, match=r"0\.1.*0\.2"):
        tracker.log_params({"lr": 0.2})
    tracker.log_params({"lr": 0.1, "new": 1})
    tracker.flush()
    going = client.get_run(run.run_id)
    assert (going.info.status, going.info.start_time) == ("RUNNING", ended.start_time)
    assert going.data.params == {"lr": "0.1", "new": "1"}
    assert [point.step for point in client.get_metric_history(run.run_id, "m")] == [1, 2]
    tracker.end_run("KILLED")
    assert tracker.get_run(run.run_id).status == "KILLED"


def test_of_runs_of_one_name_the_latest_goes_on(tracker):
    ids = []
    for name in ("same", "same", "other"):
        with tracker.run(name) as run:
            pass
        ids.append(run.run_id)
        # Runs begin in milliseconds, and the next one is to begin later.
        ended = tracker.get_run(run.run_id).end_time
        wait_until(lambda ended=ended: time.time_ns() // 1_000_000 > ended, "it is later")
    assert tracker.resume("same") == ids[1]


@pytest.mark.parametrize("name", ["it's", 'say "a"', 'it\'s "both"', "100%", "a_b", "back\\slash", "`x`"])
def test_a_run_of_any_name_goes_on(tracker, name):
    with tracker.run(name) as run, tracker.run(name.replace("_", "x").replace("%", "0"), nested=True):
        pass
    with tracker.run("another"):
        pass
    assert tracker.get_run(tracker.resume(name)).run_name == name
    assert tracker.active_run_id == run.run_id or "_" not in name


@pytest.mark.strict
def test_a_run_of_the_stock_client_goes_on(tracker, client):
    run_id = client.create_run(tracker.experiment_id).info.run_id
    client.log_param(run_id, "lr", "0.1")
    client.set_terminated(run_id)
    tracker.resume(run_id)
    with pytest.raises(InvalidInputError, match="lr"):
        tracker.log_param("lr", 0.2)


@pytest.mark.parametrize("run", ["0" * 32, "no such name", ""])
def test_a_run_that_does_not_exist_does_not_go_on(tracker, run):
    with pytest.raises(NotFoundError):
        tracker.resume(run)
    assert tracker.active_run_id is None


def test_a_deleted_run_does_not_go_on(tracker):
    with tracker.run("gone") as run:
        pass
    tracker.delete_run(run.run_id)
    with pytest.raises(InvalidInputError, match="restore"):
        tracker.resume(run.run_id)
    with pytest.raises(NotFoundError):
        tracker.resume("gone")
    tracker.restore_run(run.run_id)
    assert tracker.resume("gone") == run.run_id


def test_a_run_that_is_active_does_not_go_on_twice(tracker):
    run_id = tracker.start_run()
    for nested in (False, True):
        with pytest.raises(RunStateError, match=run_id):
            tracker.resume(run_id, nested=nested)


def test_an_active_run_is_not_deleted(tracker):
    run_id = tracker.start_run()
    with pytest.raises(RunStateError, match="delete_run"):
        tracker.delete_run(run_id)
    with pytest.raises(RunStateError, match="delete_experiment"):
        tracker.delete_experiment("tests")


def test_a_resumed_run_whose_process_dies_is_failed(tracker, uri, start_script):
    with tracker.run("long") as run:
        pass
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.resume("long")
        tracker.flush()
        print("resumed", flush=True)
        sys.stdin.read()
        """,
        uri,
    )
    tracker.flush()
    assert process.stdout.readline() == "resumed\n"
    assert tracker.get_run(run.run_id).status == "RUNNING"
    process.kill()
    process.wait()
    MLflowTracker(uri, experiment_name="tests").flush()
    assert tracker.get_run(run.run_id).status == "FAILED"


@pytest.mark.strict
@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_a_name_that_no_store_keeps_is_refused(tracker, name):
    with pytest.raises(InvalidInputError, match="run name"):
        tracker.start_run(name)


def test_terminating_a_run_is_ending_it(tracker):
    run_id = tracker.start_run()
    tracker.set_terminated("FAILED")
    assert tracker.get_run(run_id).status == "FAILED"
