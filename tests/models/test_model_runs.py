"""Models and their runs: the tag of the run, registered versions, and arguments that are refused."""

from __future__ import annotations

import json

import pytest
import torch

from heimdall_tracking import (
    ArtifactNotFoundError,
    InvalidInputError,
    MLflowTracker,
    RunStateError,
    WrongTypeError,
)
from support.models import ROWS, Net


def test_the_tag_of_the_run_lists_its_models_as_mlflow_does(tracker, client, net):
    with tracker.run() as run:
        infos = [tracker.log_model(net, name, input_example=ROWS) for name in ("first", "second")]
    tracker.resume(run.run_id)
    infos.append(tracker.log_model(net, "third"))
    tracker.end_run()
    tracker.flush()
    listed = json.loads(client.get_run(run.run_id).data.tags["mlflow.log-model.history"])
    assert [entry["model_uuid"] for entry in listed] == [info.model_uuid for info in infos]
    assert [entry["artifact_path"] for entry in listed] == ["first", "second", "third"]
    assert listed[0]["flavors"]["pytorch"]["model_data"] == "data"
    assert listed[0].keys() == {"run_id", "artifact_path", "utc_time_created", "model_uuid", "flavors"}


def test_the_tag_stays_whole_however_many_models_a_run_has(tracker, client, net):
    with tracker.run() as run:
        last = [tracker.log_model(net, f"epoch-{number}") for number in range(15)][-1]
    tracker.flush()
    tag = client.get_run(run.run_id).data.tags["mlflow.log-model.history"]
    assert len(tag) <= 5000
    assert json.loads(tag)[-1]["model_uuid"] == last.model_uuid


def test_a_model_is_registered_with_what_is_said_of_it(tracker, client, net):
    with tracker.run() as run:
        info = tracker.log_model(
            net, registered_model_name="heimdall-localization", description="good", tags={"accuracy": 0.9}
        )
    assert (info.registered_model_name, info.registered_model_version) == ("heimdall-localization", "1")
    version = client.get_model_version("heimdall-localization", "1")
    assert (version.run_id, version.description, version.tags) == (run.run_id, "good", {"accuracy": "0.9"})


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (object(), {}, WrongTypeError, "a model is a torch.nn.Module"),
        (Net(), {"input_example": torch.ones(1, 3)}, InvalidInputError, r"fails with the input_example"),
        (Net(), {"input_example": {}}, InvalidInputError, "empty dict"),
        (Net(), {"input_example": "text"}, WrongTypeError, "no array or tensor"),
        (Net(), {"input_example": ROWS, "output_names": ["a", "b"]}, InvalidInputError, "output_names"),
        (Net(), {"signature": 3}, WrongTypeError, "a signature is"),
        (Net(), {"serialization": "json"}, InvalidInputError, "serialization='json'"),
        (Net(), {"artifact_path": ""}, InvalidInputError, "artifact_path is empty"),
        (Net(), {"artifact_path": "../up"}, InvalidInputError, "up"),
        (Net(), {"metadata": {(1, 2): 3}}, InvalidInputError, "metadata"),
        ("gone.onnx", {}, ArtifactNotFoundError, r"gone\.onnx"),
    ],
)
def test_what_is_no_model_or_no_argument_is_named(tracker, model, options, error, words):
    with tracker.run(), pytest.raises(error, match=words):
        tracker.log_model(model, **options)


def test_a_data_frame_is_told_what_to_do(tracker, net):
    import pandas

    with tracker.run(), pytest.raises(WrongTypeError, match=r"to_numpy"):
        tracker.log_model(net, input_example=pandas.DataFrame({"a": [1.0]}))


def test_a_model_needs_a_run(tracker, net):
    with pytest.raises(RunStateError, match=r"before log_model\(\)"):
        tracker.log_model(net)


def test_another_rank_of_a_distributed_training_records_no_model(
    uri, tracker, client, net, monkeypatch, tmp_path
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = MLflowTracker(uri, experiment_name="tests")
    with other.run():
        info = other.log_model(net, input_example=ROWS, registered_model_name="m")
    assert other.status().mode == "silent"
    assert info.registered_model_version is None
    assert client.search_registered_models() == []
    assert not list(tmp_path.rglob("MLmodel"))
