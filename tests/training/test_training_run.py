"""A training is recorded so that a stock MLflow client finds all of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow import MlflowClient

from heimdall_tracking import MLflowTracker
from heimdall_tracking.training import (
    RssLocalizationNet,
    TestResult,
    Trainer,
    baselines,
    load_model,
)

EPOCHS = 4
# Files that `save_model` writes, and those by which MLflow loads them.
MODEL = [
    *("config.json", "weights.pt", "state_dict.pth", "state_dict.safetensors"),
    *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"),
    *("input_example.json", "serving_input_example.json", "code/heimdall_pyfunc_1.py"),
    *("data/model.pth", "data/pickle_module_info.txt", "data/interface.json"),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, dataset):
    """A short training, recorded and registered by the real tracker."""
    folder = tmp_path_factory.mktemp("recorded")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEIMDALL_DIR", str(folder / "heimdall"))
        tracker = MLflowTracker(uri, experiment_name="training")
        trainer = Trainer(
            tracker=tracker,
            max_epochs=EPOCHS,
            save_top_k=2,
            default_root_dir=folder / "out",
            enable_progress_bar=False,
        )
        model = RssLocalizationNet(dataset.receivers, seed=3)
        with tracker.run("short") as run:
            fitted = trainer.fit(model, dataset)
            tested = trainer.test()
            version = tracker.register_model(
                "heimdall-localization",
                f"runs:/{run.run_id}/model",
                description="a network",
                tags={"split": tested.split},
            )
        tracker.flush()
        client = MlflowClient(uri, uri)
        yield SimpleNamespace(
            client=client,
            run=client.get_run(run.run_id),
            artifacts=folder / "mlruns" / tracker.experiment_id / run.run_id / "artifacts",
            version=version,
            model=model,
            fitted=fitted,
            tested=tested,
        )


def history(recorded, key: str) -> list[tuple[int, float]]:
    points = recorded.client.get_metric_history(recorded.run.info.run_id, key)
    return [(point.step, point.value) for point in points]


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    "name", ["loss", "mae", "position_error_mean", "position_error_median", "sigma_mean"]
)
def test_every_epoch_has_its_metrics_under_its_step(recorded, part, name):
    expected = [(epoch["step"], epoch[f"{part}/{name}"]) for epoch in recorded.fitted.history]
    assert len(expected) == EPOCHS
    assert history(recorded, f"{part}/{name}") == expected


def test_the_learning_rate_falls_to_the_end_of_the_cosine(recorded):
    rates = [value for _, value in history(recorded, "lr-AdamW")]
    assert len(rates) == EPOCHS
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-5


def test_all_settings_are_params(recorded):
    params = recorded.run.data.params
    assert params["lr"] == "0.002"
    assert params["max_epochs"] == str(EPOCHS)
    assert params["weight_decay"] == "0.01"
    assert params["model/hidden"] == "[128, 128]"
    assert params["model/seed"] == "3"
    assert params["data/test"] == "grid_test"
    assert params["data/test_rows"] == "666"


def test_the_test_and_the_baselines_are_metrics(recorded):
    metrics = recorded.run.data.metrics
    assert metrics["final_test_loss"] == metrics["test/loss"]
    assert metrics["final_test_mae"] == metrics["test/mae"]
    assert metrics["best_val_loss"] == min(epoch["val/loss"] for epoch in recorded.fitted.history)
    assert metrics["test/position_error_std"] > 0
    assert 0 < metrics["test/within_1_sigma"] < metrics["test/within_2_sigma"] <= 1
    assert round(metrics["test/baseline_nearest_neighbours_median"]) == 137


def test_the_run_says_where_it_came_from(recorded):
    tags = recorded.run.data.tags
    assert recorded.run.info.status == "FINISHED"
    assert tags["mlflow.runName"] == "short"
    assert tags["mlflow.user"]
    assert tags["mlflow.source.name"]


def test_the_files_are_artifacts(recorded):
    files = {
        path.relative_to(recorded.artifacts).as_posix()
        for path in recorded.artifacts.rglob("*")
        if path.is_file()
    }
    kept = {f"checkpoints/{path.name}" for path in recorded.fitted.best_k_models}
    assert len(kept) == 2
    assert files == kept | {
        "checkpoints/last.ckpt",
        *(f"model/{name}" for name in MODEL),
        "plots/loss.png",
        "plots/map.png",
        "predictions/predictions.csv",
    }
    for picture in ("loss.png", "map.png"):
        assert (recorded.artifacts / "plots" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_predictions_are_those_of_the_result(recorded, dataset):
    with (recorded.artifacts / "predictions" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["timestamp"] for row in rows] == dataset.timestamps("test")
    errors = [float(row["error_m"]) for row in rows]
    np.testing.assert_allclose(errors, recorded.tested.errors, atol=0.01)


def test_the_model_is_registered_with_description_and_tags(recorded):
    version = recorded.client.get_model_version("heimdall-localization", recorded.version)
    assert version.description == "a network"
    assert version.tags == {"split": "grid_test"}
    assert version.run_id == recorded.run.info.run_id


def test_the_registered_model_predicts_again(recorded, dataset):
    uri = recorded.client.get_model_version_download_uri("heimdall-localization", recorded.version)
    again = load_model(Path(uri))
    positions, sigmas = again.predict(dataset.rss("test"))
    np.testing.assert_array_equal(positions, recorded.tested.positions)
    np.testing.assert_array_equal(sigmas, recorded.tested.sigmas)
    config = json.loads((Path(uri) / "config.json").read_text())
    assert len(config["receivers"]) == 29
    assert config["origin"] == dict(zip(("lat", "lon"), again.origin, strict=True))


def test_four_epochs_beat_the_centroid(recorded, dataset):
    centroid = next(b for b in baselines(dataset) if b.name == "power_centroid")
    assert recorded.tested.metrics["test/position_error_median"] < centroid.median_m


def test_the_table_names_the_baselines(recorded):
    table = str(recorded.tested)
    assert isinstance(recorded.tested, TestResult)
    for line in ("mean position", "power-weighted centroid", "5 nearest neighbours", "this network"):
        assert line in table
    assert "482 m     537 m" in table
