"""Tags: set, replaced, removed, as by the stock client."""

from __future__ import annotations

import pytest

from heimdall_tracking import InvalidInputError, RunStateError, WrongTypeError


def test_a_tag_that_is_set_again_is_replaced(tracker, client):
    run_id = tracker.start_run()
    tracker.set_tag("stage", "one")
    tracker.set_tags({"stage": "two", "count": 3, "none": None})
    tracker.flush()
    tags = client.get_run(run_id).data.tags
    assert (tags["stage"], tags["count"], tags["none"]) == ("two", "3", "None")


def test_a_tag_that_is_deleted_is_gone_and_can_be_set_again(tracker, client):
    run_id = tracker.start_run(tags={"a": 1, "b": 2})
    tracker.delete_tag("a")
    tracker.delete_tag("b")
    tracker.set_tag("b", 3)
    tracker.flush()
    tags = client.get_run(run_id).data.tags
    assert "a" not in tags
    assert tags["b"] == "3"


def test_deleting_a_tag_that_is_not_there_is_fine(tracker):
    run_id = tracker.start_run()
    tracker.delete_tag("never set")
    tracker.set_tag("after", "fine")
    assert tracker.get_run(run_id).tags["after"] == "fine"
    assert tracker.status()["parked"] == 0


def test_the_tag_of_the_name_renames_the_run(tracker, client):
    run_id = tracker.start_run("first")
    tracker.set_tag("mlflow.runName", "second")
    tracker.flush()
    assert client.get_run(run_id).info.run_name == "second"


def test_long_values_are_cut_at_8000_characters(tracker, client):
    run_id = tracker.start_run()
    tracker.set_tag("long", "é" * 8001)
    tracker.flush()
    assert client.get_run(run_id).data.tags["long"] == "é" * 8000


@pytest.mark.strict
@pytest.mark.parametrize(
    ("tags", "error"),
    [
        ({"good": 1, "bad//key": 2}, InvalidInputError),
        ({"good": 1, 7: 2}, WrongTypeError),
        ({"good": 1, "nul": "a\0b"}, InvalidInputError),
        ({"good": 1, "half": "a\ud83d"}, InvalidInputError),
        ({"good": 1, "half\ud83d": "a"}, InvalidInputError),
    ],
)
def test_a_bad_tag_is_refused_by_its_key_and_none_of_the_call_is_set(tracker, tags, error):
    run_id = tracker.start_run()
    bad = str(list(tags)[1])
    with pytest.raises(error) as refused:
        tracker.set_tags(tags)
    assert bad.encode(errors="ignore").decode() in str(refused.value)
    assert "good" not in tracker.get_run(run_id).tags


@pytest.mark.parametrize(
    ("call", "arguments"), [("set_tag", ("a", 1)), ("set_tags", ({"a": 1},)), ("delete_tag", ("a",))]
)
def test_tags_need_a_run(tracker, call, arguments):
    with pytest.raises(RunStateError, match=call):
        getattr(tracker, call)(*arguments)
