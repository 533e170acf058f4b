"""Our models predict the same as before in each release of stock MLflow that loads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heimdall_tracking import MLflowTracker
from heimdall_tracking.training import RssDataset, RssLocalizationNet

from .environments import Stock, driver

RECORDINGS = Path(__file__).parents[2] / "examples" / "powder_rss_462mhz"
# Loads each model in each way, and prints what it says of the rows.
LOAD = """
    import json, sys, warnings
    import numpy as np
    import mlflow, torch

    rows, asked = np.load(sys.argv[1]), json.loads(sys.argv[2])

    def listed(output):
        if isinstance(output, dict):
            return [np.asarray(it).tolist() for it in output.values()]
        several = output if isinstance(output, (tuple, list)) else [output]
        return [np.asarray(it.detach() if hasattr(it, "detach") else it).tolist() for it in several]

    said = {}
    for uri, flavor, source in asked:
        mlflow.set_tracking_uri(uri)
        way = f" {source} {uri}"
        said["pyfunc" + way] = listed(mlflow.pyfunc.load_model(source).predict(rows))
        if flavor == "pytorch":
            said["pytorch" + way] = listed(mlflow.pytorch.load_model(source)(torch.from_numpy(rows)))
        else:
            import onnxruntime
            proto = mlflow.onnx.load_model(source)
            session = onnxruntime.InferenceSession(
                proto.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            said["onnx" + way] = listed(session.run(None, {session.get_inputs()[0].name: rows}))
    print(json.dumps(said))
"""


@pytest.fixture(autouse=True)
def loads_models(stock: Stock) -> None:
    """Leave out a release whose pyfunc refuses the configuration that models of later ones have."""
    if stock.version == "2.8.1":
        pytest.skip("models of today are loaded by MLflow 2.22 and later")


class Own(nn.Module):
    """Of this file, which the other interpreter does not have."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(outputs))

    def forward(self, rows):
        outputs = [head(self.trunk(rows)) for head in self.heads]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


@pytest.fixture
def empty_database(tmp_path) -> str:
    """Models are files: one kind of database will do."""
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def tracker(stock, empty_database, tmp_path, monkeypatch) -> MLflowTracker:
    """A tracker on a database of the release."""
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", stock.version)
    monkeypatch.chdir(tmp_path)
    return MLflowTracker(empty_database, str(tmp_path / "artifacts"), experiment_name="models")


@pytest.fixture
def said_by(stock, tmp_path):
    """Return what the release predicts for rows, by the way that a model of a store is loaded."""
    variables = stock.lend_packages()

    def said_by(rows, asked, **more):
        np.save(tmp_path / "rows.npy", rows)
        models = json.dumps([(driver(uri), flavor, source) for uri, flavor, source in asked])
        imports = ["mlflow.pyfunc", "mlflow.pytorch", "mlflow.onnx", "onnxruntime"]
        return stock.run(LOAD, tmp_path / "rows.npy", models, imports=imports, **variables, **more)

    return said_by


def every_uri(tracker, stock, empty_database, info) -> list[str]:
    """Every way to name a version, which gets an alias by the release's own client."""
    name, version = info.registered_model_name, info.registered_model_version
    tracker.transition_model_stage(name, version, "Production")
    script = """
        import sys
        from mlflow import MlflowClient
        uri, name, version = sys.argv[1:]
        MlflowClient(uri, uri).set_registered_model_alias(name, "champion", version)
        print("null")
    """
    stock.run(script, driver(empty_database), name, version)
    return [
        f"models:/{name}/{version}",
        f"models:/{name}/Production",
        f"models:/{name}@champion",
        info.model_uri,
    ]


def check(said, expected, ways):
    assert len(said) == ways
    for way, outputs in said.items():
        assert len(outputs) == len(expected), way
        for found, output in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(np.array(found), output, rtol=0, atol=1e-6, err_msg=way)


@pytest.mark.parametrize(("serialization", "outputs"), [("pickle", 1), ("pickle", 2), ("torchscript", 1)])
def test_a_module_says_the_same_however_it_is_named(
    tracker, stock, empty_database, said_by, serialization, outputs
):
    torch.manual_seed(2)
    model = Own(outputs)
    rows = torch.randn(5, 4)
    with tracker.run():
        info = tracker.log_model(
            model,
            input_example=rows,
            registered_model_name="heimdall-localization",
            serialization=serialization,
        )
    asked = [(empty_database, "pytorch", it) for it in every_uri(tracker, stock, empty_database, info)]
    with torch.no_grad():
        said = model.eval()(rows)
    expected = [it.numpy() for it in (said if outputs > 1 else [said])]
    check(said_by(rows.numpy(), asked), expected, ways=2 * len(asked))


def test_the_network_of_the_training_wheel_needs_neither_wheel(tracker, stock, empty_database, said_by):
    dataset = RssDataset.load(RECORDINGS)
    model = RssLocalizationNet(dataset.receivers, seed=4)
    rss = dataset.rss("test")[:20]
    with tracker.run():
        info = tracker.log_model(model, registered_model_name="rss")
    asked = [(empty_database, "pytorch", it) for it in every_uri(tracker, stock, empty_database, info)]
    check(said_by(rss, asked), model.predict(rss), ways=2 * len(asked))


@pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")
def test_an_export_to_onnx_says_the_same_however_it_is_named(tracker, empty_database, said_by):
    torch.manual_seed(2)
    model = Own(2)
    rows = torch.randn(5, 4)
    done = tracker.export_onnx(model, input_example=rows, model_name="own-onnx")
    record = json.dumps(done.metadata)
    assert '"passed": true' in record
    with torch.no_grad():
        expected = [it.numpy() for it in model.eval()(rows)]
    sources = ["models:/own-onnx/1", "models:/own-onnx/Staging", done.model_uri]
    asked = [(empty_database, "onnx", it) for it in sources]
    check(said_by(rows.numpy(), asked), expected, ways=2 * len(asked))


@pytest.fixture
def far(stock, postgres_uri, s3_bucket, tmp_path, monkeypatch):
    """URIs of stores, the trackers on them, and the scheme of where those have their artifacts."""
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", stock.version)
    monkeypatch.chdir(tmp_path)
    with stock.server(f"sqlite:///{tmp_path / 'served.db'}", tmp_path, proxied=True) as url:
        in_s3 = MLflowTracker(postgres_uri, f"s3://{s3_bucket}/runs", experiment_name="models")
        behind = MLflowTracker(url, experiment_name="models")
        yield [(postgres_uri, in_s3, "s3"), (url, behind, "mlflow-artifacts")]


@pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")
def test_what_is_in_s3_or_behind_the_releases_server_says_the_same(far, said_by, s3_server):
    torch.manual_seed(2)
    model = Own(1)
    rows = torch.randn(5, 4)
    asked = []
    for uri, tracker, scheme in far:
        with tracker.run() as run:
            tracker.log_model(model, input_example=rows, registered_model_name="own")
        tracker.transition_model_stage("own", "1", "Staging")
        tracker.export_onnx(model, input_example=rows, model_name="own-onnx")
        assert tracker.get_run(run.run_id).artifact_uri.startswith(f"{scheme}:/")
        for name, flavor in (("own", "pytorch"), ("own-onnx", "onnx")):
            tracker.set_model_alias(name, "champion", "1")
            sources = [f"models:/{name}/1", f"models:/{name}/Staging", f"models:/{name}@champion"]
            asked += [(uri, flavor, it) for it in sources]
    with torch.no_grad():
        expected = [model.eval()(rows).numpy()]
    # boto3 is one of the packages that are lent.
    check(said_by(rows.numpy(), asked, **s3_server.variables), expected, ways=2 * len(asked))
