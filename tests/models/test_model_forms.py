"""Modules as pickles and as TorchScript: the form that each of them takes, and what loads it."""

from __future__ import annotations

import copy
import random
import shutil
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

from heimdall_tracking import (
    InvalidInputError,
    MissingPackageError,
    PermissionDeniedError,
)
from support.helpers import run_program
from support.models import BESIDE, ROWS, Heads, Net, expected_of


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
    done = run_program(
        [sys.executable, "train.py", uri],
        cwd=project,
        HEIMDALL_DIR=tmp_path / "other",
        PYTHONPATH=project / packages,
    )
    assert done.returncode == 0, done.stderr
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
