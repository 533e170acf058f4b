"""Data that cannot be recorded: it costs its own key, is told, counted and kept, and ends no training."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heimdall_tracking import (
    ArtifactNotFoundError,
    InvalidInputError,
    MLflowTracker,
    NotFoundError,
    RunStateError,
    WrongTypeError,
)
from support.helpers import contents, write

TAKEN = [
    (True, 1.0),
    (np.bool_(True), 1.0),
    (np.array(False), 0.0),
    ("0.5", 0.5),
    (b"1", 1.0),
    (Decimal("0.5"), 0.5),
    (Fraction(1, 2), 0.5),
    (np.array([0.5]), 0.5),
]
LOST = [None, "high", [1.0], {}, 1j, object(), np.array([1.0, 2.0]), 10**400]


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Optimizer:
    name: str = "adam"
    lr: float = 0.1


class Sizes(NamedTuple):
    width: int = 2
    depth: int = 3


@pytest.fixture
def letters(heimdall_dir):
    """Dead letters of this test, as objects."""

    def letters() -> list[dict[str, Any]]:
        files = sorted((heimdall_dir / "dead_letter").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    return letters


@pytest.mark.parametrize("value", LOST, ids=lambda value: f"{type(value).__name__}")
def test_a_metric_that_is_no_number_costs_itself_alone(tracker, letters, caplog, value):
    run_id = tracker.start_run()
    for step in range(3):
        tracker.log_metrics({"good": 1.0, "bad": value}, step=step)
    assert tracker.get_run(run_id).metrics == {"good": 1.0}
    assert tracker.status().unrecorded == tracker.status()["unrecorded"] == 3
    assert "3 values could not be recorded" in repr(tracker.status())
    (told,) = [record.getMessage() for record in caplog.records if "bad" in record.getMessage()]
    assert "dead_letter" in told
    assert [letter["record"]["step"] for letter in letters()] == ["0", "1", "2"]
    assert {(letter["run"], letter["record"]["key"]) for letter in letters()} == {(run_id, "bad")}
    assert all(letter["reason"] for letter in letters())


@pytest.mark.parametrize(("value", "number"), TAKEN, ids=lambda value: f"{type(value).__name__} {value}")
def test_a_metric_that_stock_mlflow_takes_is_taken(tracker, value, number):
    run_id = tracker.start_run()
    tracker.log_metrics({"m": value})
    assert tracker.get_run(run_id).metrics == {"m": number}
    assert tracker.status().unrecorded == 0


def test_a_bool_tensor_is_a_number(tracker):
    torch = pytest.importorskip("torch")
    run_id = tracker.start_run()
    tracker.log_metrics({"m": torch.tensor(True)})
    assert tracker.get_run(run_id).metrics == {"m": 1.0}


@pytest.mark.parametrize("step", [7.0, "7", np.float32(7), np.int64(7), np.array(7), Decimal(7), 7.5])
def test_a_step_that_can_be_read_is_taken(tracker, client, step):
    run_id = tracker.start_run()
    tracker.log_metrics({"m": 1.0}, step=step, timestamp=1234.5)
    tracker.log_metric("n", 1.0, step, 1234.5)
    tracker.log_batch([("o", 1.0, step, 1234.5)])
    tracker.flush()
    points = [client.get_metric_history(run_id, key) for key in "mno"]
    assert [[(point.step, point.timestamp) for point in history] for history in points] == [[(7, 1234)]] * 3


@pytest.mark.parametrize("moment", [{"step": "x"}, {"step": 2**63}, {"step": math.nan}, {"timestamp": -1}])
@pytest.mark.parametrize("more", [{}, {"n": True}])
def test_a_moment_that_cannot_be_read_costs_the_metrics_alone(tracker, letters, moment, more):
    run_id = tracker.start_run()
    tracker.log_metrics({"m": 0.5, **more}, **moment)
    tracker.log_metric("m", 0.25)
    assert tracker.get_run(run_id).metrics == {"m": 0.25}
    assert [letter["record"]["value"] for letter in letters()] == ["0.5", *map(str, more.values())]


def test_keys_that_mlflow_forbids_are_recorded_under_another_spelling_and_told_once(tracker, caplog):
    run_id = tracker.start_run()
    for step in range(2):
        tracker.log_metrics({"acc@1": 0.5, "metrics/mAP50(B)": 0.25, "//val//loss/": 1, 7: 2}, step=step)
    tracker.log_params({"a//b": 1, None: 2, Color.RED: 3})
    tracker.set_tags({"half\ud83d": 1, "": 2, "x" * 300: 3})
    run = tracker.get_run(run_id)
    assert run.metrics == {"acc_1": 0.5, "metrics/mAP50_B_": 0.25, "val/loss": 1.0, "7": 2.0}
    assert run.params == {"a/b": "1", "None": "2", "Color.RED": "3"}
    assert {"half_": "1", "_": "2"}.items() <= run.tags.items()
    assert any(key.startswith("x" * 200) for key in run.tags)
    assert len([record for record in caplog.records if "acc@1" in record.getMessage()]) == 1
    assert tracker.status().unrecorded == 0


def test_two_keys_of_one_spelling_stay_apart_in_every_call(tracker):
    run_id = tracker.start_run()
    for step in range(2):
        tracker.log_metrics({"acc@1": 1, "acc#1": 2, "acc_1": 3}, step=step)
    tracker.log_metrics({"acc#1": 4}, step=2)
    metrics = tracker.get_run(run_id).metrics
    assert sorted(metrics.values()) == [1.0, 3.0, 4.0]
    assert metrics["acc_1"] == 3.0


def test_a_param_that_would_change_costs_itself_alone(tracker, letters, caplog):
    run_id = tracker.start_run()
    tracker.log_params({"lr": 0.1})
    for _ in range(2):
        tracker.log_params({"other": 1, "lr": 0.2})
    tracker.log_param("lr", 0.3)
    assert tracker.get_run(run_id).params == {"lr": "0.1", "other": "1"}
    assert [letter["record"]["value"] for letter in letters()] == ["0.2", "0.2", "0.3"]
    assert len([record for record in caplog.records if '"lr"' in record.getMessage()]) == 1


def test_a_param_that_would_change_costs_itself_alone_in_a_run_that_is_named(tracker):
    with tracker.run() as run:
        run.log_params({"lr": 0.1})
    run.log_params({"lr": 0.2, "more": 1})
    assert tracker.get_run(run.run_id).params == {"lr": "0.1", "more": "1"}
    assert tracker.status().unrecorded == 1


def holders() -> list[Any]:
    found = [
        argparse.Namespace(name="adam", lr=0.1),
        SimpleNamespace(name="adam", lr=0.1),
        Optimizer(),
        {"name": "adam", "lr": 0.1},
        [("name", "adam"), ("lr", 0.1)],
    ]
    pydantic = pytest.importorskip("pydantic")
    attrs = pytest.importorskip("attrs")
    fields = {"name": (str, "adam"), "lr": (float, 0.1)}
    return [
        *found,
        pydantic.create_model("Model", **fields)(),
        attrs.make_class("Attrs", {"name": attrs.field(default="adam"), "lr": attrs.field(default=0.1)})(),
    ]


def test_objects_that_hold_data_are_params(tracker):
    for holder in holders():
        with tracker.run() as run:
            tracker.log_params(holder)
        assert tracker.get_run(run.run_id).params == {"name": "adam", "lr": "0.1"}, holder
    with tracker.run() as run:
        tracker.log_params(Sizes())
    assert tracker.get_run(run.run_id).params == {"width": "2", "depth": "3"}


def test_objects_that_hold_data_are_json_as_values_and_files(tracker):
    values = [holder for holder in holders() if not isinstance(holder, list)]
    with tracker.run() as run:
        for place, holder in enumerate(values):
            tracker.log_param(f"p{place}", holder)
            tracker.log_dict(holder, f"{place}.json")
            tracker.log_dict({"optimizer": holder}, f"in/{place}.yaml")
    params = tracker.get_run(run.run_id).params
    expected = {"name": "adam", "lr": 0.1}
    assert [json.loads(params[f"p{place}"]) for place in range(len(values))] == [expected] * len(values)
    for place in range(len(values)):
        assert tracker.load_dict(run.run_id, f"{place}.json") == expected
        assert tracker.load_dict(run.run_id, f"in/{place}.yaml") == {"optimizer": expected}


def test_a_config_of_omegaconf_is_params(tracker):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"lr": 0.1, "half": "${lr}", "sizes": [1, 2]})
    run_id = tracker.start_run()
    tracker.log_params(config)
    assert tracker.get_run(run_id).params == {"lr": "0.1", "half": "0.1", "sizes": "[1, 2]"}


def test_a_value_that_raises_costs_itself_alone(tracker, letters):
    run_id = tracker.start_run()
    tracker.log_params({"good": 1, "bad": Unshown()})
    tracker.set_tags({"good": 1, "bad": Unshown(), "nul": "a\0b"})
    run = tracker.get_run(run_id)
    assert (run.params, run.tags["good"]) == ({"good": "1"}, "1")
    assert {letter["record"]["value"] for letter in letters()} == {"a value that cannot be shown", "a\0b"}


def test_secrets_are_not_shown(tracker, letters, caplog):
    tracker.start_run()
    tracker.log_params({"db_password": "hunter1", "uri": "postgresql://ada:hunter3@host/db"})
    tracker.log_params({"db_password": "hunter2", "uri": "postgresql://ada:hunter4@host/db"})
    shown = caplog.text + json.dumps(letters())
    assert len(letters()) == 2
    assert "hunter" not in shown


@pytest.mark.parametrize(
    "wrong", [None, 3, "text", b"x", object, Unshown()], ids=lambda it: type(it).__name__
)
def test_an_argument_of_another_type_costs_itself_alone(tracker, wrong):
    run_id = tracker.start_run()
    tracker.log_metrics(wrong)
    tracker.log_params(wrong)
    tracker.set_tags(wrong)
    tracker.log_batch([("good", 1), wrong], wrong, {"good": 1})
    tracker.log_batch(wrong)
    run = tracker.get_run(run_id)
    assert (run.metrics, run.tags["good"]) == ({"good": 1.0}, "1")


@pytest.mark.strict
@pytest.mark.parametrize(
    "call",
    [
        lambda it: it.log_metrics(None),
        lambda it: it.log_metrics({"m": 1}, step="x"),
        lambda it: it.log_metrics({"m": 1}, step=2**64),
        lambda it: it.log_metric("m", 1, timestamp=2**64),
        lambda it: it.log_params(3),
        lambda it: it.log_params({"p": Unshown()}),
        lambda it: it.log_param(3, 3),
        lambda it: it.set_tag(3, 3),
        lambda it: it.set_tags(None),
        lambda it: it.log_batch(3),
        lambda it: it.log_artifact(3),
        lambda it: it.log_artifact(""),
        lambda it: it.log_text("x", 3),
        lambda it: it.log_dict({"a": Unshown()}, "a.json"),
        lambda it: it.log_metrics({"m": 1}, run_id=3),
    ],
)
def test_a_strict_tracker_raises_its_own_errors_before_anything_is_recorded(tracker, call):
    run_id = tracker.start_run()
    with pytest.raises((InvalidInputError, WrongTypeError, ArtifactNotFoundError)):
        call(tracker)
    run = tracker.get_run(run_id)
    assert (run.metrics, run.params) == ({}, {})
    assert (tracker.list_artifacts("", run_id), tracker.status().unrecorded) == ([], 0)


def test_a_variable_makes_trackers_strict(uri, monkeypatch):
    monkeypatch.setenv("HEIMDALL_STRICT", "1")
    tracker = MLflowTracker(uri)
    with tracker.run(), pytest.raises(WrongTypeError):
        tracker.log_metric("m", None)
    assert not MLflowTracker(uri, strict=False)._is_strict


def test_a_call_without_a_run_raises_nonetheless(tracker):
    with pytest.raises(RunStateError):
        tracker.log_metrics({"m": None})
    with pytest.raises(RunStateError):
        tracker.log_artifact("nowhere")
    with pytest.raises(NotFoundError):
        tracker.log_metric("m", None, run_id="0" * 32)
    with pytest.raises(InvalidInputError):
        tracker.log_text("x", "a.txt", run_id="no id")


def test_a_file_that_cannot_be_logged_costs_itself_alone(tracker, letters, tmp_path):
    run_id = tracker.start_run()
    for lost in ("", tmp_path / "missing", None, 3):
        upload = tracker.log_artifact(lost, "checkpoints")
        assert (upload.paths, upload.done) == ([], True)
        with pytest.raises((ArtifactNotFoundError, InvalidInputError)) as refused:
            upload.wait()
        assert upload.error is refused.value
    assert "is not a file" in str(tracker.log_artifact("").error)
    assert tracker.log_artifacts_dir(write(tmp_path / "file")).error is not None
    tracker.log_text(3, "a.txt")
    tracker.log_text("x", "")
    tracker.log_figure("no figure", "a.png")
    tracker.log_image("no image", "a.png")
    tracker.log_table([1], "a.json")
    tracker.log_input([1, 2])
    loop: list[Any] = []
    loop.append(loop)
    tracker.log_dict(loop, "a.json")
    tracker.log_text("x", "good.txt")
    assert [it.path for it in tracker.list_artifacts("", run_id)] == ["good.txt"]
    assert len(letters()) == tracker.status().unrecorded == 13
    assert {letter["record"]["kind"] for letter in letters()} == {"artifact", "input"}


def test_a_folder_is_logged_under_its_name_as_by_mlflow(tracker, client, tmp_path):
    write(tmp_path / "plots" / "loss.txt")
    run_id = tracker.start_run()
    tracker.log_artifact(tmp_path / "plots", "all")
    tracker.flush()
    (tmp_path / "down").mkdir()
    client.download_artifacts(run_id, "", str(tmp_path / "down"))
    assert contents(tmp_path / "down") == {"all/plots/loss.txt": b"content"}


def test_paths_that_would_lead_out_of_the_run_stay_in_it(tracker, tmp_path):
    run_id = tracker.start_run()
    paths = tracker.log_artifact(write(tmp_path / "a.txt"), "/../up").paths
    tracker.log_text("x", "..\\notes//b.txt")
    assert paths == ["up/a.txt"]
    assert [it.path for it in tracker.list_artifacts("notes", run_id)] == ["notes/b.txt"]


def test_a_run_starts_whatever_its_tags_are(tracker, letters):
    run_id = tracker.start_run("n" * 300, tags={"good": 1, "bad": "a\0b", "a//b": 2, 7: 3})
    run = tracker.get_run(run_id)
    assert run.run_name == "n" * 250
    assert {"good": "1", "a/b": "2", "7": "3"}.items() <= run.tags.items()
    assert [letter["record"]["key"] for letter in letters()] == ["bad"]


def test_dead_letters_that_cannot_be_kept_are_told(tracker, heimdall_dir, caplog):
    tracker.start_run()
    (heimdall_dir / "dead_letter").write_text("in the way")
    tracker.log_metric("lost", "its value")
    assert "its value" in caplog.text
    assert tracker.status().unrecorded == 1


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.complex_numbers(), st.decimals(), st.just(Color.RED),
    st.builds(Unshown), st.builds(object),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=9), st.integers(), st.none(), st.booleans(), st.sampled_from("a./@# "))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(KEYS, VALUES, max_size=5), step=VALUES)
def test_any_data_is_recorded_or_costs_itself(tracker, data, step):
    with tracker.run(tags=data) as run:
        before = tracker.status().unrecorded
        tracker.log_metrics(data)
        lost = tracker.status().unrecorded - before
        tracker.log_metrics(data, step=step, timestamp=step)
        tracker.log_params(data)
        tracker.log_metric("certain", 1.0)
    assert len(tracker.get_run(run.run_id).metrics) >= 1 + len({str(key) for key in data}) - lost - 1
    assert tracker.get_run(run.run_id).metrics["certain"] == 1.0
