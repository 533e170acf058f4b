"""The README's snippets work as they stand, in a file and in a notebook cell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient

pytestmark = pytest.mark.training

README = Path(__file__).parent.parent / "README.md"


def snippet(with_call: str = "initialize_mlflow(settings)") -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if with_call in block]
    return block


def run_as_file(code: str, folder: Path) -> None:
    script = folder / "train.py"
    script.write_text(code)
    subprocess.run([sys.executable, script], cwd=folder, check=True, timeout=60)


def run_as_notebook_cell(code: str, folder: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}})
    client.execute()


@pytest.mark.parametrize("run", [run_as_file, run_as_notebook_cell])
def test_the_snippet_records_a_whole_run_that_stock_mlflow_reads(run, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HEIMDALL_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "predictions.csv").write_text("lat,lon\n")

    run(snippet(), tmp_path)

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("heimdall-localization")
    (found,) = client.search_runs([experiment.experiment_id])
    run_id = found.info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params == {
        "learning_rate": "0.001",
        "layers": "[1, 2]",
        "aug": '{"noise": 0.1}',
    }
    losses = client.get_metric_history(run_id, "val/loss")
    assert [(point.step, point.value) for point in losses] == [
        (epoch, 1.1 / (epoch + 1)) for epoch in range(3)
    ]
    assert found.data.tags["model"] == "ConvNeXt-Large"
    artifacts = [file.path for file in client.list_artifacts(run_id, "checkpoints")]
    assert artifacts == ["checkpoints/checkpoint.pt"]
    version = client.get_model_version("heimdall-localization", "1")
    assert version.source == f"{found.info.artifact_uri}/checkpoints"
    assert (version.run_id, version.current_stage) == (run_id, "Production")


def test_the_snippet_of_models_registers_what_stock_mlflow_loads(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HEIMDALL_"))]:
        monkeypatch.delenv(name)
    run_as_file(snippet("tracker.log_model("), tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    stages = {
        model.name: model.latest_versions[0].current_stage for model in client.search_registered_models()
    }
    assert stages == {"heimdall-localization": "Production", "heimdall-localization-onnx": "Staging"}


def test_the_snippet_of_a_search_records_a_run_for_each_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("HEIMDALL_DIR", str(tmp_path / "heimdall"))
    tracker = 'from heimdall_tracking import MLflowTracker\ntracker = MLflowTracker("sqlite:///mlflow.db")\n'
    run_as_file(tracker + snippet("ThreadPoolExecutor("), tmp_path)

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("heimdall-localization")
    runs = client.search_runs([experiment.experiment_id])
    trials = {run.info.run_name: run for run in runs if run.info.run_name != "search"}
    assert sorted(trials) == ["rate 0.1", "rate 0.2", "rate 0.3"]
    assert all(run.info.run_name == f"rate {run.data.params['rate']}" for run in trials.values())
    assert len({run.data.tags["mlflow.parentRunId"] for run in trials.values()}) == 1


def test_the_snippets_of_a_block_and_of_a_training_record_a_run_each(tmp_path, monkeypatch):
    monkeypatch.setenv("HEIMDALL_DIR", str(tmp_path / "heimdall"))
    (tmp_path / "examples").symlink_to(README.parent / "examples")
    tracker = 'from heimdall_tracking import MLflowTracker\ntracker = MLflowTracker("sqlite:///mlflow.db")\n'
    run_as_file(tracker + snippet("experiment-v2") + snippet("Trainer("), tmp_path)

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("heimdall-localization")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "experiment-v2": "FINISHED",
        "localizer": "FINISHED",
    }
    assert runs["experiment-v2"].data.metrics == {"val/loss": 0.3}
    assert runs["localizer"].data.metrics["test/position_error_median"] < 255
