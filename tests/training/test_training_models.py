"""The trained network as a module of torch and as a model that MLflow loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heimdall_tracking.training import RssLocalizationNet, as_module, load_model
from support.torch_twin import TorchTwin

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")


@pytest.fixture
def other(dataset) -> RssLocalizationNet:
    """A network with no setting that is the default."""
    return RssLocalizationNet(
        dataset.receivers,
        hidden=(16, 8),
        rss_scale_db=20.0,
        position_scale_m=500.0,
        sigma_floor_m=5.0,
        sigma_init_m=100.0,
        seed=9,
    )


@pytest.mark.parametrize("name", ["model", "other"])
def test_the_module_says_what_the_network_says(request, dataset, name):
    network = request.getfixturevalue(name)
    module = as_module(network)
    rss = np.where(dataset.rss("test") <= -101, np.nan, dataset.rss("test"))
    rss[0] = np.nan
    rss[1] = -200.0
    with torch.no_grad():
        positions, sigmas = module(torch.from_numpy(rss).float())
    expected = network.predict(rss)
    np.testing.assert_allclose(positions, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(sigmas, expected[1], rtol=1e-6)
    assert module.state_dict().keys() == network.state_dict().keys()
    assert not module.training


def test_the_module_has_the_layers_of_the_twin(dataset, model):
    twin = TorchTwin(dataset.receivers)
    assert twin.load_state_dict(as_module(model).state_dict(), strict=True)


def test_a_test_records_a_model_that_stock_mlflow_and_both_wheels_load(
    tracker, client, dataset, model, make_trainer
):
    import mlflow

    trainer = make_trainer(tracker=tracker)
    with tracker.run() as run:
        trainer.fit(model, dataset)
        trainer.test()
    tracker.flush()
    folder = Path(client.get_run(run.run_id).info.artifact_uri.removeprefix("file://")) / "model"
    rss = dataset.rss("test")
    expected = model.predict(rss)
    served = mlflow.pyfunc.load_model(str(folder)).predict(rss)
    again = load_model(folder).predict(rss)
    with torch.no_grad():
        loaded = tracker.load_model(folder)(torch.from_numpy(rss))
    for index, name in enumerate(("positions", "uncertainties")):
        np.testing.assert_allclose(served[name], expected[index], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(again[index], expected[index])
        np.testing.assert_allclose(loaded[index], expected[index], rtol=0, atol=1e-6)
    listed = json.loads(client.get_run(run.run_id).data.tags["mlflow.log-model.history"])
    assert [entry["artifact_path"] for entry in listed] == ["model"]


def test_a_recorder_that_knows_no_models_gets_the_folder(dataset, model, make_trainer):
    class Plain:
        def __init__(self) -> None:
            self.folders = []

        def log_params(self, params): ...
        def log_metrics(self, metrics, step): ...
        def log_artifact(self, path, artifact_path): ...
        def log_artifacts_dir(self, path, artifact_path):
            self.folders.append((artifact_path, sorted(file.name for file in path.iterdir())))

    plain = Plain()
    trainer = make_trainer(tracker=plain)
    trainer.fit(model, dataset)
    trainer.test()
    assert plain.folders == [("model", ["config.json", "weights.pt"])]
