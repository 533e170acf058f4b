"""The logger does for both packages of Lightning what their own loggers do, and joins the tracker's run."""

from __future__ import annotations

import inspect
import pickle
from argparse import Namespace
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger

from heimdall_tracking import InvalidInputError, MLflowTracker
from heimdall_tracking.lightning import HeimdallLogger
from support.lightning_networks import network

pytestmark = pytest.mark.training


def steps(tracker: MLflowTracker, run_id: str, key: str) -> list[int]:
    return [point.step for point in tracker.get_metric_history(run_id, key)]


def test_a_training_and_a_test_are_logged_whole_by_either_package(pl, tracker, trainer_of):
    class Remembers(HeimdallLogger):
        history: list = []  # noqa: RUF012

        def log_metrics(self, metrics, step=None):
            super().log_metrics(metrics, step)
            self.history.append((step, metrics))

    logger = Remembers(tracker=tracker)
    logger.history = []
    trainer = trainer_of(pl.__name__, logger)
    trainer.fit(network(pl.__name__))
    trainer.test(network(pl.__name__))
    keys = [(step, sorted(metrics)) for step, metrics in logger.history]
    train, val = ["epoch", "train/loss"], ["epoch", "val/loss"]
    assert keys == [
        *[(0, train), (1, train), (2, train), (2, val)],
        *[(3, train), (4, train), (5, train), (5, val)],
        (6, ["epoch", "test/loss"]),
    ]
    run = tracker.get_run(logger.run_id)
    assert run.status == "FINISHED"
    for key in ("train/loss", "val/loss", "test/loss", "epoch"):
        points = {(point.step, point.value) for point in tracker.get_metric_history(run.run_id, key)}
        # Equal points of the same millisecond are one point for MLflow.
        assert points == {(step, metrics[key]) for step, metrics in logger.history if key in metrics}


def test_both_packages_know_the_logger_as_one_of_theirs(pl, tracker):
    logger = HeimdallLogger(tracker=tracker)
    assert isinstance(logger, pl.loggers.Logger)
    assert isinstance(logger, pl.loggers.MLFlowLogger)
    assert pl.Trainer(logger=logger, accelerator="cpu").logger is logger


def test_the_arguments_of_the_stock_logger_come_first_and_in_its_order():
    ours = list(inspect.signature(HeimdallLogger.__init__).parameters)
    theirs = list(inspect.signature(MLFlowLogger.__init__).parameters)
    assert ours[: len(theirs)] == theirs
    assert MLFlowLogger.LOGGER_JOIN_CHAR == HeimdallLogger.LOGGER_JOIN_CHAR


def test_the_active_run_is_joined_and_left_open(tracker, trainer_of):
    with tracker.run("mine") as run:
        logger = HeimdallLogger(tracker=tracker, tags={"team": "rf"})
        trainer_of("lightning.pytorch", logger).fit(network())
        assert logger.run_id == logger.version == run.run_id
        tracker.log_metric("after", 1.0)
        assert tracker.get_run(run.run_id).status == "RUNNING"
    stored = tracker.get_run(run.run_id)
    assert stored.tags["team"] == "rf"
    assert {"after", "val/loss"} <= stored.metrics.keys()
    assert len(tracker.search_runs()) == 1


def test_a_run_begins_when_it_is_first_needed_and_is_the_active_one(tracker):
    logger = HeimdallLogger(tracker=tracker, run_name="named", tags={"mlflow.runName": "other", "a": 1})
    logger.finalize("success")
    assert len(tracker.search_runs()) == 0
    logger.log_metrics({"loss": 1.0}, step=3)
    assert tracker.active_run_id == logger.run_id
    tracker.log_param("by", "tracker")
    logger.finalize("success")
    run = tracker.get_run(logger.run_id)
    assert (run.run_name, run.tags["a"], run.params) == ("named", "1", {"by": "tracker"})
    assert steps(tracker, run.run_id, "loss") == [3]
    assert tracker.active_run_id is None
    assert logger.experiment_id == logger.name == tracker.experiment_id


@pytest.mark.parametrize(
    ("status", "stored"),
    [("success", "FINISHED"), ("finished", "FINISHED"), ("failed", "FAILED"), ("aborted", "KILLED")],
)
def test_each_status_of_lightning_is_one_of_mlflow(tracker, status, stored):
    logger = HeimdallLogger(tracker=tracker)
    logger.log_metrics({"loss": 1.0})
    logger.finalize(status)
    assert tracker.get_run(logger.run_id).status == stored


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [(RuntimeError("broken"), RuntimeError, "FAILED"), (KeyboardInterrupt(), SystemExit, "KILLED")],
)
def test_a_training_that_stops_early_says_why(pl, tracker, trainer_of, error, raised, status):
    logger, net = HeimdallLogger(tracker=tracker), network(pl.__name__)
    net.fails_in, net.error = 1, error
    with pytest.raises(raised):
        trainer_of(pl.__name__, logger).fit(net)
    run = tracker.get_run(logger.run_id)
    assert run.status == status
    assert steps(tracker, run.run_id, "train/loss") == [0, 1, 2]


@dataclass
class Rates:
    lr: float = 0.1


def test_hyperparameters_are_flat_and_whole(tracker, caplog):
    logger = HeimdallLogger(tracker=tracker)
    long, longest = "x" * 5000, "y" * 9000
    nested = {"a": {"b": Namespace(c=[1, "2"]), 3: None}, "rates": Rates(), "long": long, "longest": longest}
    logger.log_hyperparams(Namespace(**nested))
    logger.log_hyperparams({"other": True})
    logger.log_hyperparams({"other": False, "new": 1})
    logger.finalize()
    params = tracker.get_run(logger.run_id).params
    assert params.pop("longest") == longest[:6000]
    assert params == {
        "a/b/c": "[1, '2']",
        "a/3": "None",
        "rates/lr": "0.1",
        "long": long,
        "other": "True",
        "new": "1",
    }
    assert tracker.load_dict(logger.run_id, "hyperparameters.json") == {"longest": longest}
    assert "other" in caplog.text


def test_metrics_have_the_prefix_and_keys_that_mlflow_takes(tracker):
    logger = HeimdallLogger(tracker=tracker, prefix="tmp")
    logger.log_metrics({"test": 1.0}, step=2)
    logger.log_metrics({"test": 2.0, "more": torch.tensor(3)}, step=3)
    logger.log_metrics({"[odd]": 10, "text": "left out", "flag": True})
    logger.finalize()
    found = tracker.get_run(logger.run_id).metrics
    assert found == {"tmp-test": 2.0, "tmp-more": 3.0, "tmp-_odd_": 10.0, "tmp-flag": 1.0}
    assert steps(tracker, logger.run_id, "tmp-_odd_") == [0]


def test_a_pickled_trainer_logs_to_the_same_run(pl, tracker, tmp_path):
    logger = HeimdallLogger(tracker=tracker, save_dir=tmp_path / "files")
    assert logger.experiment is not None
    logger.log_metrics({"a": 1})
    logger.save()
    copy = pickle.loads(pickle.dumps(pl.Trainer(max_epochs=1, logger=logger, accelerator="cpu"))).logger
    copy.log_metrics({"acc": 1.0})
    assert (copy.name, copy.version) == (logger.name, logger.version)
    assert copy.save_dir == logger.save_dir == str(tmp_path / "files")
    logger.finalize()
    assert tracker.get_run(logger.run_id).metrics == {"a": 1.0, "acc": 1.0}
    assert len(tracker.search_runs()) == 1


def test_a_pickle_has_no_password():
    logger = HeimdallLogger(tracking_uri="postgresql://user:secret@host/runs")
    assert b"secret" not in pickle.dumps(logger)


def test_checkpoints_are_written_below_the_folder_that_is_given(pl, tracker, trainer_of, tmp_path):
    logger = HeimdallLogger(tracker=tracker, save_dir=tmp_path / "files")
    trainer = trainer_of(pl.__name__, logger, max_epochs=1)
    assert trainer.log_dir == logger.save_dir
    trainer.fit(network(pl.__name__))
    folder = tmp_path / "files" / logger.name / logger.version / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["epoch=0-step=3.ckpt"]
    other = HeimdallLogger(tracker=tracker)
    trainer = trainer_of(pl.__name__, other, max_epochs=1, default_root_dir=tmp_path / "root")
    trainer.fit(network(pl.__name__))
    assert other.save_dir == str(tmp_path / "root")
    assert (tmp_path / "root" / other.name / other.version / "checkpoints").is_dir()


def test_the_client_is_the_stock_one_and_the_tracker_without_mlflow(tracker, monkeypatch):
    from mlflow import MlflowClient

    logger = HeimdallLogger(tracker=tracker)
    assert isinstance(logger.experiment, MlflowClient)
    logger.experiment.set_tag(logger.run_id, "by", "client")
    monkeypatch.setattr("heimdall_tracking.lightning.logger._has_mlflow", lambda: False)
    assert logger.experiment is tracker
    logger.finalize()
    assert tracker.get_run(logger.run_id).tags["by"] == "client"


def test_other_ranks_have_a_dummy_and_log_nothing(tracker, monkeypatch):
    from lightning.pytorch.loggers.logger import DummyExperiment
    from lightning_utilities.core.rank_zero import rank_zero_only

    logger = HeimdallLogger(tracker=tracker, log_model="all")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert isinstance(logger.experiment, DummyExperiment)
    assert logger.experiment.anything(at="all") is None
    logger.log_metrics({"loss": 1.0})
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")
    assert (logger.run_id, logger.version, logger.name) == (None, None, None)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert len(tracker.search_runs()) == 0


def test_a_tracker_of_this_process_is_found_by_its_store(tracker, uri, tmp_path):
    run_id = tracker.start_run("mine")
    assert HeimdallLogger(tracking_uri=uri).run_id == run_id
    assert HeimdallLogger("tests", tracking_uri=uri).tracker is tracker
    assert (
        HeimdallLogger(settings={"mlflow_tracking_uri": uri, "mlflow_experiment_name": "tests"}).run_id
        == run_id
    )
    other = HeimdallLogger("another", tracking_uri=uri)
    assert other.tracker is not tracker
    assert other.run_id != run_id
    other.finalize()
    tracker.end_run()


def test_a_tracker_is_made_from_what_is_given(tmp_path, monkeypatch):
    by_folder = HeimdallLogger(save_dir=tmp_path / "folder", artifact_location=str(tmp_path / "files"))
    assert by_folder.tracker.experiment_name == "lightning_logs"
    assert by_folder.tracker.tracking_uri == f"sqlite:///{tmp_path}/folder/mlflow.db"
    assert by_folder.run_id is not None
    by_folder.tracker.log_text("here", "file.txt")
    by_folder.finalize()
    assert list((tmp_path / "files").rglob("file.txt"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/variable.db")
    by_variable = HeimdallLogger("named", save_dir=tmp_path / "folder", synchronous=True)
    assert by_variable.tracker.tracking_uri == f"sqlite:///{tmp_path}/variable.db"
    assert by_variable.tracker.experiment_name == "named"
    values = {"mlflow_tracking_uri": f"sqlite:///{tmp_path}/settings.db", "mlflow_experiment_name": "set"}
    by_settings = HeimdallLogger(settings=values)
    assert by_settings.tracker.experiment_name == "set"
    by_settings.log_metrics({"loss": 1})
    by_settings.finalize()
    assert by_settings.tracker.get_run(by_settings.run_id).tags["phase"] == "training"


def test_a_run_that_is_named_is_gone_on_with(tracker, trainer_of):
    with tracker.run("first") as run:
        pass
    logger = HeimdallLogger(tracker=tracker, run_id=run.run_id)
    trainer_of("lightning.pytorch", logger).fit(network())
    assert logger.run_id == run.run_id
    assert logger.experiment_id == tracker.experiment_id
    found = tracker.get_run(run.run_id)
    assert (found.status, found.metrics["val/loss"]) == ("FINISHED", 2.0)


def test_wrong_arguments_are_refused(tracker):
    with pytest.raises(InvalidInputError, match="log_model='some'"):
        HeimdallLogger(log_model="some")
    with pytest.raises(InvalidInputError, match="either tracker or settings"):
        HeimdallLogger(tracker=tracker, settings={})


def test_tuners_leave_the_logger_in_its_place(tracker, trainer_of):
    tuning = import_module("lightning.pytorch.tuner.tuning")
    logger = HeimdallLogger(tracker=tracker)
    trainer, net = trainer_of("lightning.pytorch", logger), network(batch_size=1)
    tuning.Tuner(trainer).scale_batch_size(net, max_trials=1, steps_per_trial=1)
    assert trainer.logger is net.logger is logger


IMPORT = """
    import sys
    first = sys.argv[1]
    if first:
        __import__(first)
    import heimdall_tracking
    loaded = {name.split(".")[0] for name in sys.modules}
    assert first or not loaded & {"lightning", "pytorch_lightning", "torch"}
    from heimdall_tracking.lightning import HeimdallLogger
    print([base.__module__ for base in HeimdallLogger.__mro__][2], "lightning.pytorch" in sys.modules,
          "pytorch_lightning" in sys.modules, "mlflow" in sys.modules)
    """


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("", "lightning.pytorch.loggers.logger True False False"),
        ("pytorch_lightning", "pytorch_lightning.loggers.logger False True False"),
    ],
)
def test_only_the_package_that_is_used_is_imported(run_script, first, told):
    script = run_script(IMPORT, first)
    assert script.code == 0, script.err
    assert script.out.strip() == told
