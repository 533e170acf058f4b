"""Models in the artifacts of a run: what is in their folders, and what loads from there."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import heimdall_tracking
from heimdall_tracking import (
    ArtifactNotFoundError,
    InvalidInputError,
    MissingPackageError,
    MLflowTracker,
    NotFoundError,
    PermissionDeniedError,
    RunStateError,
    WrongTypeError,
)
from heimdall_tracking.models import folder as model_folder
from heimdall_tracking.models import pytorch, safetensors
from support.helpers import clean_environment

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings(
        "ignore:.*deprecated.*:DeprecationWarning", "ignore:.*deprecated:FutureWarning"
    ),
]


class Net(nn.Module):
    """Dropout and batch statistics: it says something else while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        )

    def forward(self, rows):
        return self.layers(rows)

    def twice(self, rows):
        return 2 * self(rows)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Linear(4, 2)
        self.sigma = nn.Linear(4, 2)

    def forward(self, rows):
        return self.position(rows), nn.functional.softplus(self.sigma(rows))


class Sum(nn.Module):
    def forward(self, left, right):
        return {"sum": left + right}


ROWS = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(5)
    return Net()


def expected_of(model, *inputs):
    """What a module says in evaluation mode; the module itself is not touched."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(*inputs)


@pytest.fixture
def log(tracker, tmp_path):
    """Log a model in a run of its own, and return what was logged and its folder."""

    def log(model, *arguments, **options):
        with tracker.run():
            info = tracker.log_model(model, *arguments, **options)
        tracker.flush()
        return info, Path(
            tracker.get_run(info.run_id).artifact_uri.removeprefix("file://")
        ) / info.artifact_path

    return log


def mlmodel(folder: Path) -> dict:
    return yaml.safe_load((folder / "MLmodel").read_text())


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


@pytest.mark.parametrize("training", [True, False])
def test_a_loaded_module_predicts_the_same_and_the_logged_one_is_as_it_was(tracker, log, net, training):
    net.train(training)
    net.layers[3].eval()
    net(ROWS).sum().backward()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    grads = [parameter.grad.clone() for parameter in net.parameters()]
    random_before = torch.get_rng_state()

    info, _ = log(net, input_example=ROWS)

    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_before)
    loaded = tracker.load_model(info.model_uri)
    assert not loaded.training
    torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS), rtol=0, atol=0)
    torch.testing.assert_close(loaded.twice(ROWS), 2 * expected_of(net, ROWS), rtol=0, atol=0)


def test_the_weights_need_no_pickle(log, net):
    _, folder = log(net)
    from safetensors.torch import load_file

    for state in (
        torch.load(folder / "state_dict.pth", weights_only=True),
        load_file(folder / "state_dict.safetensors"),
        safetensors.load(folder / "state_dict.safetensors"),
    ):
        assert state.keys() == net.state_dict().keys()
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


def test_a_module_of_the_same_layers_gets_the_weights_without_unpickling(tracker, log, net):
    info, folder = log(net)
    (folder / "data" / "model.pth").write_bytes(b"nobody reads this")
    other = Net()
    loaded = tracker.load_model(info.model_uri, module=other)
    assert loaded is other
    torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS), rtol=0, atol=0)
    (folder / "state_dict.safetensors").unlink()
    again = tracker.load_model(info.model_uri, module=Net())
    torch.testing.assert_close(again(ROWS), expected_of(net, ROWS), rtol=0, atol=0)
    with pytest.raises(InvalidInputError, match="not those of Heads"):
        tracker.load_model(info.model_uri, module=Heads())


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_pickle_is_refused_where_pickles_are_not_allowed(tracker, log, net, how, monkeypatch):
    pickled, _ = log(net)
    traced, _ = log(net, input_example=ROWS, serialization="torchscript")
    options = {"allow_pickle": False} if how == "argument" else {}
    if how == "variable":
        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.raises(PermissionDeniedError, match="module="):
        tracker.load_model(pickled.model_uri, **options)
    loaded = tracker.load_model(traced.model_uri, **options)
    torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS))


# A class of a script, one of a module beside it, and one that is made in a function.
SCRIPT = """
import sys, torch
from heimdall_tracking import MLflowTracker
from beside import Scaled

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scaled = Scaled()
        self.act = lambda it: it.tanh()
    def forward(self, rows):
        return self.act(self.scaled(rows))

torch.manual_seed(1)
model = Mine()
tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
with tracker.run():
    for path in ("first", "second"):
        info = tracker.log_model(model, path, torch.ones(1, 4))
print(info.model_uri)
print(model(torch.ones(1, 4)).item())
"""
BESIDE = """
import math, torch
FACTOR = 3.0
def scaled(rows):
    return rows * FACTOR * math.pi
class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
    def forward(self, rows):
        return scaled(self.linear(rows))
"""


@pytest.mark.parametrize("packages", ["site-packages", "packages", "."])
def test_a_class_of_a_script_and_of_a_file_beside_it_loads_elsewhere(tracker, uri, tmp_path, packages):
    project = tmp_path / "project"
    project.mkdir()
    if packages != "site-packages":
        # As by `pip install --target`: each with a record of its files, some of them outside.
        for part in {file.parts[0] for file in metadata.distribution("cloudpickle").files}:
            shutil.copytree(Path(cloudpickle.__file__).parents[1] / part, project / packages / part)
        for record in (project / packages).glob("*.dist-info/RECORD"):
            record.write_text(record.read_text() + "../../bin/program,,\n")
    (project / "train.py").write_text(SCRIPT)
    (project / "beside.py").write_text(BESIDE)
    done = subprocess.run(
        [sys.executable, "train.py", uri],
        cwd=project,
        env=clean_environment(HEIMDALL_DIR=tmp_path / "other", PYTHONPATH=project / packages),
        capture_output=True,
        text=True,
        check=True,
    )
    model_uri, said = done.stdout.split()
    for file in project.glob("*.py"):
        file.unlink()
    loaded = tracker.load_model(model_uri)
    assert loaded(torch.ones(1, 4)).item() == pytest.approx(float(said), abs=1e-6)
    assert "beside" not in sys.modules


class Locked(nn.Module):
    """Has what no pickle takes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.lock = threading.Lock()

    def forward(self, rows):
        with self.lock:
            return self.linear(rows)


def test_what_cannot_be_pickled_is_traced(tracker, log, caplog):
    model = Locked()
    info, _ = log(model, input_example=ROWS)
    assert "cannot be pickled" in caplog.text
    loaded = tracker.load_model(info.model_uri, allow_pickle=False)
    torch.testing.assert_close(loaded(ROWS), model(ROWS).detach())


def test_what_can_be_written_in_no_form_says_why_and_logs_nothing(tracker):
    with tracker.run() as run:
        with pytest.raises(InvalidInputError, match=r"(?s)cannot pickle.*input_example it would be traced"):
            tracker.log_model(Locked())
        with pytest.raises(InvalidInputError, match="Locked cannot be pickled"):
            tracker.log_model(Locked(), input_example=ROWS, serialization="pickle")
    assert tracker.get_run(run.run_id).tags.keys().isdisjoint({"mlflow.log-model.history"})
    assert not list(Path(tracker.get_run(run.run_id).artifact_uri).rglob("*"))


class Noisy(nn.Module):
    def forward(self, rows):
        return rows + torch.tensor([random.random()])


def test_a_trace_that_says_something_else_is_refused(tracker):
    with tracker.run(), pytest.raises(InvalidInputError, match="gives another 'output'"):
        tracker.log_model(Noisy(), input_example=ROWS, serialization="torchscript")


def test_a_scripted_module_stays_one(tracker, log, net):
    script = torch.jit.script(net.layers.eval())
    info, _ = log(script, input_example=ROWS)
    loaded = tracker.load_model(info.model_uri, allow_pickle=False)
    torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS))
    with tracker.run(), pytest.raises(InvalidInputError, match="scripted"):
        tracker.log_model(script, serialization="pickle")


def test_a_compiled_module_and_one_of_data_parallel_are_logged_as_what_they_wrap(tracker, log, net):
    for wrapper in (torch.compile(net, backend="eager"), nn.DataParallel(net)):
        info, _ = log(wrapper, input_example=ROWS)
        assert type(tracker.load_model(info.model_uri)).__name__ == "Net"


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_stay_of_it(tracker, log, dtype):
    import mlflow

    model = nn.Linear(4, 2).to(dtype)
    rows = ROWS.to(dtype)
    info, folder = log(model, input_example=rows)
    kind = {torch.bfloat16: "float32", torch.float16: "float16", torch.float64: "float64"}[dtype]
    assert json.loads(info.signature["inputs"])[0]["tensor-spec"]["dtype"] == kind
    loaded = tracker.load_model(info.model_uri)
    assert loaded.weight.dtype == dtype
    assert torch.equal(loaded(rows), model(rows))
    assert torch.equal(safetensors.load(folder / "state_dict.safetensors")["weight"], model.weight)
    served = mlflow.pyfunc.load_model(str(folder)).predict(rows.to(getattr(torch, kind)).numpy())
    np.testing.assert_allclose(served, model(rows).detach().to(getattr(torch, kind)).numpy(), rtol=0, atol=0)


class Tied(nn.Module):
    """One weight in two places, a frozen one, a buffer, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.out.weight = self.into.weight
        self.into.bias.requires_grad_(False)
        self.register_buffer("offset", torch.ones(4))
        self.scale = torch.full((4,), 2.0)

    def forward(self, rows):
        return self.out(self.into(rows) * self.scale + self.offset)


def test_a_copy_for_the_cpu_is_the_same_module_without_gradients():
    model = Tied()
    model(ROWS).sum().backward()
    copied = pytorch.copied_to_cpu(model)
    assert copied.out.weight is copied.into.weight
    assert copied.into.weight is not model.into.weight
    assert [it.requires_grad for it in copied.parameters()] == [it.requires_grad for it in model.parameters()]
    assert all(parameter.grad is None for parameter in copied.parameters())
    assert model.into.weight.grad is not None
    torch.testing.assert_close(copied(ROWS), model(ROWS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("serialization", ["pickle", "torchscript"])
def test_a_model_on_a_gpu_stays_there_and_is_written_for_the_cpu(tracker, log, serialization):
    model = Tied().cuda()
    model.scale = model.scale.cuda()
    info, folder = log(model, input_example=ROWS, serialization=serialization)
    assert {it.device.type for it in (*model.parameters(), *model.buffers(), model.scale)} == {"cuda"}
    assert all(it.device.type == "cpu" for it in safetensors.load(folder / "state_dict.safetensors").values())
    loaded = tracker.load_model(info.model_uri)
    torch.testing.assert_close(loaded(ROWS), model(ROWS.cuda()).cpu(), rtol=1e-5, atol=1e-6)


def test_a_lightning_module_is_logged_without_its_trainer(tracker, log, tmp_path):
    lightning: Any = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, rows):
            return self.net(rows)

        def training_step(self, batch, _):
            return self(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Module()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ROWS), batch_size=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **quiet
    )
    trainer.fit(model, data)
    info, folder = log(model, input_example=ROWS)
    assert any(line.startswith("lightning==") for line in (folder / "requirements.txt").read_text().split())
    torch.testing.assert_close(tracker.load_model(info.model_uri)(ROWS), expected_of(model.net, ROWS))


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


def test_what_stock_mlflow_has_logged_loads_too(tracker, net, tmp_path):
    import mlflow

    net.eval()
    for form in ("pickle", "pt2"):
        mlflow.pytorch.save_model(net, tmp_path / form, input_example=ROWS.numpy(), serialization_format=form)
        loaded = tracker.load_model(tmp_path / form)
        torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS), rtol=0, atol=1e-6)


def test_code_that_stock_mlflow_has_put_beside_a_model_is_found(tracker, tmp_path, run_script):
    (tmp_path / "beside_the_model.py").write_text(BESIDE)
    run = run_script(
        """
        import sys, torch, mlflow
        sys.path.insert(0, ".")
        from beside_the_model import Scaled
        mlflow.pytorch.save_model(
            Scaled(), "model", code_paths=["beside_the_model.py"], serialization_format="pickle"
        )
        """
    )
    assert run.code == 0, run.err
    (tmp_path / "beside_the_model.py").unlink()
    loaded = tracker.load_model(tmp_path / "model")
    assert type(loaded).__name__ == "Scaled"
    sys.path.pop(0)


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


def test_without_cloudpickle_a_class_of_a_script_is_traced_and_one_of_a_package_pickled(
    tracker, log, net, monkeypatch
):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    info, _ = log(net, input_example=ROWS)
    loaded = tracker.load_model(info.model_uri)
    assert isinstance(loaded, torch.jit.ScriptModule)
    info, _ = log(nn.Linear(4, 2))
    assert isinstance(tracker.load_model(info.model_uri), nn.Linear)
    with tracker.run(), pytest.raises(MissingPackageError, match="pip install cloudpickle"):
        tracker.log_model(net, serialization="pickle")


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


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=5))
def test_what_is_written_as_yaml_is_read_as_it_was(value):
    assert yaml.safe_load(model_folder.yaml_text({"some": value}))["some"] == value


TENSORS = st.sampled_from(sorted(safetensors.NAMES)).flatmap(
    lambda name: st.tuples(st.just(name), st.lists(st.integers(0, 4), max_size=3))
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), TENSORS, max_size=5))
def test_safetensors_are_those_of_the_package(tmp_path_factory, described):
    from safetensors.torch import load_file, save_file

    tensors = {
        name: torch.randint(0, 2, shape).to(getattr(torch, dtype))
        for name, (dtype, shape) in described.items()
        if name != "__metadata__"
    }
    folder = tmp_path_factory.mktemp("safetensors")
    safetensors.save(tensors, folder / "ours", {"format": "pt"})
    save_file(tensors, folder / "theirs")
    for read in (load_file(folder / "ours"), safetensors.load(folder / "theirs")):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert read[name].shape == tensor.shape
            assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_tensors_that_share_their_numbers_or_have_strides_are_written_each(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "turned": whole.T, "part": whole[:, 1]}
    safetensors.save(tensors, tmp_path / "f")
    read = safetensors.load(tmp_path / "f")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(InvalidInputError, match="tensor 'sparse' cannot be written"):
        safetensors.save({"sparse": torch.eye(2).to_sparse()}, tmp_path / "f")


def broken_files() -> list[bytes]:
    def file(header: object) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(16)

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return [
        b"",
        b"123",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (5).to_bytes(8, "little") + b"[1,2]",
        file([1]),
        file({"a": 1}),
        file({"a": {**entry, "dtype": "F33"}}),
        file({"a": {**entry, "shape": [3]}}),
        file({"a": {**entry, "shape": [-2]}}),
        file({"a": {**entry, "shape": [1 << 61], "data_offsets": [0, 1 << 63]}}),
        file({"a": {**entry, "data_offsets": [16, 24]}}),
        file({"a": {**entry, "data_offsets": [-8, 0]}}),
    ]


@pytest.mark.parametrize("content", broken_files())
def test_a_broken_file_of_safetensors_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InvalidInputError, match="is no file of safetensors"):
        safetensors.load(tmp_path / "f")


class Remembering(nn.Linear):
    """State that is no tensor."""

    def __init__(self, state: object) -> None:
        super().__init__(4, 2)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_state_that_is_no_tensor_is_kept_where_no_code_is_needed_for_it(log, caplog):
    _, folder = log(Remembering({"seen": 3}))
    assert torch.load(folder / "state_dict.pth", weights_only=True)["_extra_state"] == {"seen": 3}
    _, folder = log(Remembering(Path("/")))
    assert torch.load(folder / "state_dict.pth", weights_only=True).keys() == {"weight", "bias"}
    assert "no tensor is left out" in caplog.text


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
