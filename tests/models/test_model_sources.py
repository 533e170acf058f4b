"""Models are loaded from each place that has one, and by each name that it has."""

from __future__ import annotations

import pytest
import torch

import heimdall_tracking
from heimdall_tracking import (
    InvalidInputError,
    MLflowTracker,
    NotFoundError,
)
from support.models import ROWS, expected_of


@pytest.mark.parametrize(
    "form",
    [
        "models:/{name}/1",
        "models:/{name}/Production",
        "models:/{name}@champion",
        "runs:/{run_id}/model",
        "runs://{run_id}/model",
        "file:{folder}",
        "file://{folder}",
        "file://localhost{folder}",
    ],
)
def test_every_uri_of_a_model_loads_it(tracker, client, log, net, form):
    info, folder = log(net, registered_model_name="heimdall-localization")
    tracker.transition_model_stage("heimdall-localization", "1", "Production")
    client.set_registered_model_alias("heimdall-localization", "champion", "1")
    source = form.format(name="heimdall-localization", run_id=info.run_id, folder=folder)
    loaded = tracker.load_model(source)
    torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS), rtol=0, atol=0)
    again = heimdall_tracking.load_model(source, tracking_uri=tracker.tracking_uri)
    torch.testing.assert_close(again(ROWS), expected_of(net, ROWS), rtol=0, atol=0)


def test_a_version_in_s3_is_loaded_by_every_name(s3_tracker, s3_server, bucket, uri, net, monkeypatch):
    tracker = s3_tracker(bucket)
    with tracker.run() as run:
        info = tracker.log_model(net, registered_model_name="heimdall-localization")
    tracker.transition_model_stage("heimdall-localization", "1", "Production")
    tracker.set_model_alias("heimdall-localization", "champion", "1")
    place = tracker.get_run(run.run_id).artifact_uri
    assert place.startswith(f"s3://{bucket}/")
    name = "models:/heimdall-localization"
    sources = [f"{name}/1", f"{name}/Production", f"{name}@champion", info.model_uri, f"{place}/model"]
    said = [tracker.load_model(source)(ROWS) for source in sources]
    # The function has the keys from the environment, where the tracker has found none.
    for variable, value in s3_server.variables.items():
        monkeypatch.setenv(variable, value)
    said += [heimdall_tracking.load_model(source, tracking_uri=uri)(ROWS) for source in sources]
    for found in said:
        torch.testing.assert_close(found, expected_of(net, ROWS), rtol=0, atol=0)


def test_a_local_folder_is_found_by_its_escaped_uri_and_asks_no_store(log, net, tmp_path):
    _, folder = log(net)
    named = folder.rename(tmp_path / "é 1#100%: net")
    for source in (named.as_uri(), named.as_uri().replace("file://", "file:"), named, str(named)):
        loaded = heimdall_tracking.load_model(source, tracking_uri="no URI of a store")
        torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS), rtol=0, atol=0)


@pytest.mark.parametrize("source", ["file:model", "file://elsewhere/model", "file:"])
def test_a_file_uri_without_an_absolute_path_is_refused(tracker, source):
    with pytest.raises(InvalidInputError, match="absolute path"):
        tracker.load_model(source)


def test_what_a_tracking_server_keeps_is_loaded_by_its_artifact_uri(tracking_server, net):
    tracker = MLflowTracker(tracking_server, experiment_name="models")
    with tracker.run() as run:
        info = tracker.log_model(net)
    tracker.flush()
    place = tracker.get_run(run.run_id).artifact_uri
    assert place.startswith("mlflow-artifacts:/")
    for source in (f"{place}/model", info.model_uri):
        for loaded in (
            tracker.load_model(source),
            heimdall_tracking.load_model(source, tracking_uri=tracking_server),
        ):
            torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS), rtol=0, atol=0)


def test_models_are_logged_and_loaded_without_mlflow(tracker, log, net, tmp_path, run_script, uri):
    info, _ = log(net, input_example=ROWS)
    run = run_script(
        """
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("mlflow", "onnx", "safetensors", "pandas"):
                    raise ImportError(f"{name} is not here")
        sys.meta_path.insert(0, Refuse())
        import torch
        from heimdall_tracking import MLflowTracker
        uri, theirs = sys.argv[1:]
        rows = torch.linspace(-1, 1, 12).reshape(3, 4)
        tracker = MLflowTracker(uri, experiment_name="tests")
        class Own(torch.nn.Linear):
            pass
        own = Own(4, 2)
        with tracker.run():
            info = tracker.log_model(own, input_example=rows, registered_model_name="own")
        again = tracker.load_model("models:/own/1")
        assert torch.equal(again(rows), own(rows))
        torch.save(tracker.load_model(theirs)(rows).detach(), "said.pt")
        """,
        uri,
        info.model_uri,
    )
    assert (run.code, run.err) == (0, "")
    said = torch.load(tmp_path / "said.pt", weights_only=True)
    torch.testing.assert_close(said, expected_of(net, ROWS), rtol=0, atol=0)


def test_a_folder_that_is_no_model_is_named(tracker, tmp_path):
    with pytest.raises(NotFoundError, match="MLmodel"):
        tracker.load_model(tmp_path)
    with pytest.raises(NotFoundError, match="there is no folder"):
        tracker.load_model(tmp_path / "gone")
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {}}")
    with pytest.raises(NotFoundError, match="'sklearn'"):
        tracker.load_model(tmp_path)
    (tmp_path / "MLmodel").write_text("flavors: {pytorch: {model_data: ../..}}")
    with pytest.raises(InvalidInputError, match="outside the model's folder"):
        tracker.load_model(tmp_path)
    (tmp_path / "MLmodel").write_text("[")
    with pytest.raises(InvalidInputError, match="is no MLmodel file"):
        tracker.load_model(tmp_path)
