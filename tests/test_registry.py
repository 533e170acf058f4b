"""The model registry: versions and stages that stock MLflow resolves."""

from __future__ import annotations

import pytest

from heimdall_tracking import InvalidInputError, NotFoundError
from support.helpers import contents

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


@pytest.fixture
def run_id(tracker, tmp_path) -> str:
    """A run with a model among its artifacts."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"onnx")
    with tracker.run() as run:
        tracker.log_artifacts_dir(tmp_path / "model", "models/m")
    tracker.flush()
    return run.run_id


@pytest.mark.parametrize("form", ["runs:/{}/models/m", "runs://{}/models/m", "runs:/{}/models/m/"])
def test_a_version_has_everything_that_was_said_of_it(tracker, client, run_id, form):
    version = tracker.register_model("m", form.format(run_id), "good", {"format": "onnx", "n": 2})
    found = client.get_model_version("m", version)
    assert (found.name, int(found.version), found.status) == ("m", 1, "READY")
    assert (found.run_id, found.description, found.current_stage) == (run_id, "good", "None")
    assert found.tags == {"format": "onnx", "n": "2"}
    assert found.source == f"{client.get_run(run_id).info.artifact_uri}/models/m"
    assert found.creation_timestamp == found.last_updated_timestamp > 0


def test_versions_of_a_model_count_up_as_text(tracker, run_id):
    versions = [tracker.register_model(name, f"runs:/{run_id}/models/m") for name in "aaba"]
    assert versions == ["1", "2", "1", "3"]


def test_numbers_go_on_where_the_stock_client_has_registered(tracker, client, run_id):
    client.create_registered_model("m", description="theirs")
    client.create_model_version("m", "/somewhere")
    assert tracker.register_model("m", f"runs:/{run_id}/models/m") == "2"
    assert client.get_registered_model("m").description == "theirs"


def test_a_folder_outside_any_run_can_be_registered(tracker, client, tmp_path):
    version = tracker.register_model("m", str(tmp_path))
    found = client.get_model_version("m", version)
    assert (found.source, found.run_id or None) == (str(tmp_path), None)


@pytest.mark.parametrize("stage", ["Staging", "production", "ARCHIVED", "none"])
@pytest.mark.parametrize("number", [str, int])
def test_a_version_moves_to_a_stage_in_any_case(tracker, client, run_id, stage, number):
    version = tracker.register_model("m", f"runs:/{run_id}/models/m")
    tracker.transition_model_stage("m", number(version), stage)
    found = client.get_model_version("m", version)
    assert found.current_stage == stage.capitalize()
    assert found.last_updated_timestamp >= found.creation_timestamp


def test_the_stock_client_finds_the_version_in_production(tracker, client, run_id):
    for _ in range(3):
        tracker.register_model("m", f"runs:/{run_id}/models/m")
    tracker.transition_model_stage("m", 2, "Production")
    tracker.transition_model_stage("m", 3, "Staging")
    stages = {found.current_stage: int(found.version) for found in client.get_latest_versions("m")}
    assert stages == {"None": 1, "Production": 2, "Staging": 3}


@pytest.mark.parametrize("version", ["1", "Production", "production", "latest"])
def test_a_stock_models_uri_downloads_what_was_logged(tracker, uri, run_id, tmp_path, monkeypatch, version):
    from mlflow.artifacts import download_artifacts

    tracker.register_model("m", f"runs:/{run_id}/models/m")
    tracker.transition_model_stage("m", 1, "Production")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    target = tmp_path / "downloaded"
    target.mkdir()
    download_artifacts(artifact_uri=f"models:/m/{version}", dst_path=str(target))
    assert contents(target)["model.onnx"] == b"onnx"


def test_what_was_logged_before_is_delivered_before_the_version_is_there(tracker, uri, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx" * 100_000)
    run_id = tracker.start_run()
    tracker.log_artifact(tmp_path / "model.onnx", "m")
    tracker.register_model("m", f"runs:/{run_id}/m")
    assert tracker.status()["pending"] == 0


@pytest.mark.parametrize(
    ("name", "model_uri", "error"),
    [
        ("m", "runs:/00000000000000000000000000000000/m", NotFoundError),
        ("m", "runs:/", InvalidInputError),
        ("m", "", InvalidInputError),
        ("m", "models:/other/1", NotFoundError),
        ("m", "models:/other", NotFoundError),
        ("m", "models://other/1", InvalidInputError),
        ("m", "s3://s3://bucket/m", InvalidInputError),
        ("m", "runs:/{run_id}/../other", InvalidInputError),
        ("", "/m", InvalidInputError),
        ("a/b", "/m", InvalidInputError),
        ("a:b", "/m", InvalidInputError),
        ("m" * 257, "/m", InvalidInputError),
    ],
)
def test_what_cannot_be_registered_leaves_no_model(tracker, client, run_id, name, model_uri, error):
    with pytest.raises(error):
        tracker.register_model(name, model_uri.format(run_id=run_id))
    assert client.search_registered_models() == []


@pytest.mark.parametrize(
    "extra", [{"description": "d" * 5001}, {"tags": {"bad//key": 1}}], ids=["description", "tag"]
)
def test_a_description_or_tag_against_the_rules_leaves_no_model(tracker, client, extra):
    with pytest.raises(InvalidInputError):
        tracker.register_model("m", "/m", **extra)
    assert client.search_registered_models() == []


@pytest.mark.parametrize(
    ("name", "version", "stage", "error"),
    [
        ("m", 1, "Live", InvalidInputError),
        ("m", 1, "", InvalidInputError),
        ("m", "latest", "Staging", InvalidInputError),
        ("m", 0, "Staging", InvalidInputError),
        ("m", 2, "Staging", NotFoundError),
        ("other", 1, "Staging", NotFoundError),
    ],
)
def test_a_transition_that_cannot_be_made_changes_nothing(tracker, client, name, version, stage, error):
    tracker.register_model("m", "s3://models/m")
    with pytest.raises(error):
        tracker.transition_model_stage(name, version, stage)
    assert client.get_model_version("m", "1").current_stage == "None"


def test_models_can_be_registered_in_another_database(tracker, uri, tmp_path):
    from mlflow import MlflowClient

    from heimdall_tracking import MLflowTracker

    registry = f"sqlite:///{tmp_path}/registry.db"
    apart = MLflowTracker(uri, registry_uri=registry, experiment_name="tests")
    with apart.run() as run:
        apart.log_text("weights", "m/weights.txt")
    apart.register_model("m", f"runs:/{run.run_id}/m")
    assert apart.registry_uri == registry
    assert MlflowClient(uri, registry).get_model_version("m", "1").run_id == run.run_id
    assert MlflowClient(uri, uri).search_registered_models() == []
