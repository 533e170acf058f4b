"""Params: how values become text, what never changes, what is refused."""

from __future__ import annotations

from decimal import Decimal
from pathlib import PurePosixPath
from types import MappingProxyType

import pytest

from heimdall_tracking import InvalidInputError, WrongTypeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        ("", ""),
        ("zwölf 漢字", "zwölf 漢字"),
        (1e-3, "0.001"),
        (12, "12"),
        (True, "True"),
        (None, "None"),
        (Decimal("1.50"), "1.50"),
        (PurePosixPath("a/b"), "a/b"),
        ((1, 2), "(1, 2)"),
        ([1, "a", None], '[1, "a", null]'),
        ({"a": {"b": [True]}}, '{"a": {"b": [true]}}'),
        ([PurePosixPath("a/b")], '["a/b"]'),
        ([], "[]"),
    ],
    ids=repr,
)
def test_lists_and_dicts_are_stored_as_json_and_the_rest_as_str_gives_it(tracker, client, value, text):
    run_id = tracker.start_run()
    tracker.log_params({"value": value})
    tracker.flush()
    assert client.get_run(run_id).data.params == {"value": text}


def test_any_mapping_is_taken(tracker):
    run_id = tracker.start_run()
    tracker.log_params(MappingProxyType({"a": 1}))
    assert tracker.get_run_info(run_id)["parameters"] == {"a": "1"}


def test_more_params_than_the_stock_client_takes_at_once_arrive(tracker, client):
    run_id = tracker.start_run()
    params = {f"group {i % 7}/param {i}": str(i) for i in range(1500)}
    tracker.log_params(params)
    tracker.flush()
    assert client.get_run(run_id).data.params == params


def test_params_that_fill_several_segments_of_the_journal_arrive(tracker, client):
    run_id = tracker.start_run()
    params = {f"p{i}": f"{i:06}" * 1000 for i in range(3000)}
    for i in range(3000):
        tracker.log_params({f"p{i}": params[f"p{i}"]})
    tracker.flush()
    assert client.get_run(run_id).data.params == params


@pytest.mark.parametrize("character", ["x", "é", "漢", "😀"])
def test_long_values_are_cut_at_6000_characters(tracker, client, character):
    run_id = tracker.start_run()
    tracker.log_params({"long": character * 6001, "full": character * 6000})
    tracker.flush()
    params = client.get_run(run_id).data.params
    assert params == {"long": character * 6000, "full": character * 6000}


@pytest.mark.parametrize("value", [0.001, "text", "x" * 6001])
def test_the_same_value_again_is_fine(tracker, value):
    run_id = tracker.start_run()
    tracker.log_params({"a": value})
    tracker.log_params({"a": value})
    tracker.flush()
    assert list(tracker.get_run_info(run_id)["parameters"]) == ["a"]


@pytest.mark.strict
def test_another_value_is_refused_with_both_values_and_none_of_the_call_is_logged(tracker):
    run_id = tracker.start_run()
    tracker.log_params({"lr": 0.1})
    with pytest.raises(InvalidInputError, match=r"lr.*0\.1.*0\.2"):
        tracker.log_params({"other": 1, "lr": 0.2})
    assert tracker.get_run_info(run_id)["parameters"] == {"lr": "0.1"}


def test_a_param_of_one_run_can_differ_in_the_next(tracker):
    with tracker.run():
        tracker.log_params({"lr": 0.1})
    with tracker.run() as second:
        tracker.log_params({"lr": 0.2})
    assert tracker.get_run_info(second.run_id)["parameters"] == {"lr": "0.2"}


@pytest.mark.strict
@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"good": 1, "bad//key": 2}, InvalidInputError),
        ({"good": 1, 7: 2}, WrongTypeError),
        ({"good": 1, None: 2}, WrongTypeError),
    ],
)
def test_a_bad_key_is_refused_and_none_of_the_call_is_logged(tracker, params, error):
    run_id = tracker.start_run()
    with pytest.raises(error):
        tracker.log_params(params)
    tracker.log_params({"good": "free again"})
    assert tracker.get_run_info(run_id)["parameters"] == {"good": "free again"}


@pytest.mark.strict
def test_one_param_is_logged_as_one_of_many(tracker):
    run_id = tracker.start_run()
    tracker.log_param("layers", [1, 2])
    tracker.log_param("layers", [1, 2])
    with pytest.raises(InvalidInputError, match="layers"):
        tracker.log_param("layers", [1])
    assert tracker.get_run(run_id).params == {"layers": "[1, 2]"}


@pytest.mark.strict
@pytest.mark.parametrize("params", [{"nul": "a\0b"}, {"half": "a\ud83d"}, {"half\ud83d": "a"}], ids=repr)
def test_what_no_store_keeps_is_refused_by_its_key(tracker, params):
    run_id = tracker.start_run()
    key = next(iter(params)).encode(errors="ignore").decode()
    with pytest.raises(InvalidInputError, match=key):
        tracker.log_params({"good": 1, **params})
    assert tracker.get_run(run_id).params == {}
