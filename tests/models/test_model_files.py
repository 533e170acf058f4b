"""The folder of a model: what stock MLflow writes, and two state dicts."""

from __future__ import annotations

import json
from collections import namedtuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heimdall_tracking.models import folder as model_folder
from support.models import ROWS, Heads, Sum, expected_of, mlmodel


def test_the_folder_has_what_stock_mlflow_writes_and_two_state_dicts(log, net):
    info, folder = log(net, "models/net", input_example=ROWS)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "MLmodel",
        "conda.yaml",
        "data/model.pth",
        "data/pickle_module_info.txt",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
        "state_dict.pth",
        "state_dict.safetensors",
    }
    assert info.artifact_path == "models/net"
    assert info.model_uri == f"runs:/{info.run_id}/models/net"


def test_every_file_but_the_weights_says_what_stock_mlflow_s_says(log, net, tmp_path):
    import mlflow

    theirs = tmp_path / "theirs"
    mlflow.pytorch.save_model(net, theirs, input_example=ROWS.numpy(), serialization_format="pickle")
    info, ours = log(net, input_example=ROWS.numpy())
    model, stock = mlmodel(ours), mlmodel(theirs)
    for name in ("flavors", "saved_input_example_info", "signature", "mlflow_version"):
        assert model[name] == stock[name], name
    assert model["run_id"] == info.run_id
    assert model["model_size_bytes"] > 0
    for name in ("input_example.json", "serving_input_example.json"):
        assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())
    assert (ours / "data/pickle_module_info.txt").read_text() == "mlflow.pytorch.pickle_module"
    lines = (ours / "requirements.txt").read_text().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in lines
    assert f"mlflow=={mlflow.__version__}" in lines
    conda = yaml.safe_load((ours / "conda.yaml").read_text())
    assert conda["dependencies"][2] == {"pip": lines}
    assert yaml.safe_load((ours / "python_env.yaml").read_text())["dependencies"] == ["-r requirements.txt"]


def test_the_stock_library_reads_the_folder_and_its_example(log, net):
    from mlflow.models import Model

    info, folder = log(net, input_example=ROWS, metadata={"accuracy": 1e-05, "note": 'a "b"\n é'})
    model = Model.load(folder)
    assert model.signature.to_dict() == info.signature
    assert model.metadata == {"accuracy": 1e-05, "note": 'a "b"\n é'}
    assert model.model_uuid == info.model_uuid
    np.testing.assert_array_equal(model.load_input_example(folder), ROWS.numpy())


Pair = namedtuple("Pair", "mean spread")


class Named(nn.Module):
    def forward(self, rows):
        return Pair(rows.mean(1), rows.std(1))


@pytest.mark.parametrize(
    ("model", "names", "expected"),
    [
        (Heads(), None, ["output_0", "output_1"]),
        (Heads(), ["positions", "uncertainties"], ["positions", "uncertainties"]),
        (Named(), None, ["mean", "spread"]),
    ],
)
def test_several_outputs_are_served_by_their_names(log, model, names, expected):
    import mlflow

    info, folder = log(model, input_example=ROWS, output_names=names)
    assert [it["name"] for it in json.loads(info.signature["outputs"])] == expected
    served = mlflow.pyfunc.load_model(str(folder)).predict(ROWS.numpy())
    for name, output in zip(expected, expected_of(model, ROWS), strict=True):
        np.testing.assert_allclose(served[name], output.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("by_name", [True, False])
def test_several_inputs_are_served_by_their_names(tracker, log, by_name):
    import mlflow

    example = {"right": ROWS, "left": 2 * ROWS} if by_name else (2 * ROWS, ROWS)
    info, folder = log(Sum(), input_example=example)
    names = [it["name"] for it in json.loads(info.signature["inputs"])]
    assert names == (["right", "left"] if by_name else ["left", "right"])
    served = mlflow.pyfunc.load_model(str(folder)).predict({"left": ROWS.numpy(), "right": ROWS.numpy()})
    np.testing.assert_allclose(served["sum"], 2 * ROWS.numpy())
    loaded = mlflow.models.Model.load(folder).load_input_example(folder)
    np.testing.assert_array_equal(loaded["left"], 2 * ROWS.numpy())


def test_the_signature_may_be_given_or_left_out(log, net):
    from mlflow.models import infer_signature

    stock = infer_signature(ROWS.numpy(), np.zeros((3, 2), np.float32))
    assert log(net, signature=stock)[0].signature == stock.to_dict()
    assert log(net, signature={"inputs": [{"name": "x", "type": "double"}]})[0].signature == {
        "inputs": '[{"name": "x", "type": "double"}]',
        "outputs": None,
        "params": None,
    }
    info, folder = log(net, input_example=ROWS, signature=False)
    assert info.signature is None
    assert "signature" not in mlmodel(folder)


def test_requirements_may_be_given(log, net):
    _, folder = log(net, pip_requirements=["torch", "mine==1"])
    assert (folder / "requirements.txt").read_text() == "torch\nmine==1\n"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=5))
def test_what_is_written_as_yaml_is_read_as_it_was(value):
    assert yaml.safe_load(model_folder.yaml_text({"some": value}))["some"] == value
