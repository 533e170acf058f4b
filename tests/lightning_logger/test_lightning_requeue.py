"""A training that is started again goes on in its run, and another training does not."""

from __future__ import annotations

import logging
import signal
import sys
from importlib import import_module
from typing import Any

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.lightning import HeimdallLogger, job
from support.helpers import rows
from support.lightning_networks import network

pytestmark = pytest.mark.training

# Trains for as long as it lives, but for five epochs where it goes on from a checkpoint.
TRAINING = """
    import os, sys, time
    sys.path.insert(0, sys.argv[2])
    import torch
    torch.set_num_threads(1)
    import lightning.pytorch as pl
    from heimdall_tracking import MLflowTracker
    from heimdall_tracking.lightning import HeimdallLogger
    from support.lightning_networks import network

    class Slow(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            print("epoch", flush=True)
            if not os.path.exists("again"):
                time.sleep(0.2 if trainer.current_epoch < 3 else 600)

    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
    logger = HeimdallLogger(tracker=tracker, log_model="best")
    best = pl.callbacks.ModelCheckpoint(dirpath="files", save_last=True, monitor="val/loss", save_top_k=2)
    trainer = pl.Trainer(
        max_epochs=6, logger=logger, callbacks=[best, Slow()], log_every_n_steps=1, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    last = "files/last.ckpt"
    trainer.fit(network(), ckpt_path=last if os.path.exists(last) else None, weights_only=False)
    """


@pytest.mark.parametrize("by", ["checkpoint", "job"])
def test_a_killed_training_goes_on_in_its_run_and_loses_nothing(by, tracker, db, uri, start_script, tmp_path):
    tests = import_module("support").__path__[0].rpartition("/")[0]
    variables = {"SLURM_JOB_ID": 4242, "SLURM_JOB_NAME": "train"} if by == "job" else {}
    first = start_script(TRAINING, uri, tests, **variables)
    for _ in range(4):
        assert first.stdout.readline() == "epoch\n", first.stderr.read()
    first.send_signal(signal.SIGKILL)
    first.wait()
    (tmp_path / "again").touch()
    if by == "job":
        # The machine is another one, without the checkpoints.
        (tmp_path / "files").rename(tmp_path / "gone")
    second = start_script(TRAINING, uri, tests, **variables)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    ((run_id, status),) = rows(db, "SELECT run_uuid, status FROM runs")
    assert status == "FINISHED"
    steps = [step for (step,) in rows(db, "SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step")]
    assert set(steps) == set(range(18))
    if by == "checkpoint":
        # The kill came behind the checkpoint of the third epoch: the fourth is recorded anew.
        assert steps == [*range(18)]
        # The fourth epoch was the best, so none of those behind it was written.
        assert job.read_mark(tmp_path / "files" / "last.ckpt") == (run_id, 12)
    tags = dict(rows(db, "SELECT key, value FROM tags"))
    assert tags.get("heimdall.job") == ("slurm:4242" if by == "job" else None)


@pytest.fixture
def slurm(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")


def left_behind(tracker: Any, status: str, **tags: str) -> str:
    """A run of a process that is gone."""
    told = job.tags() | {job.PROCESS_TAG: "elsewhere/1/1/0"} | tags
    run_id = tracker.start_run("left", tags=told)
    if status == "RUNNING":
        # As if the process had died: the tracker has the run no longer.
        tracker._leave(run_id)
    else:
        tracker.end_run(status)
    return run_id


def begun(tracker: MLflowTracker, **settings) -> str:
    logger = HeimdallLogger(tracker=tracker, **settings)
    run_id = logger.run_id
    logger.finalize()
    return run_id


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_the_run_of_the_job_goes_on(tracker, slurm, status):
    run_id = left_behind(tracker, status)
    assert begun(tracker) == run_id
    run = tracker.get_run(run_id)
    assert run.status == "FINISHED"
    assert run.tags[job.PROCESS_TAG] == job.process()


def test_the_run_of_a_machine_that_is_gone_goes_on(tracker, slurm, monkeypatch):
    run_id = left_behind(tracker, "RUNNING")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert begun(tracker) == run_id


def test_a_run_that_lightning_has_ended_before_slurm_starts_the_job_again_goes_on(tracker, slurm):
    run_id = left_behind(tracker, "FINISHED", **{job.REQUEUED_TAG: "true"})
    assert begun(tracker) == run_id
    assert job.REQUEUED_TAG not in tracker.get_run(run_id).tags


def test_lightning_says_so_before_slurm_starts_the_job_again(tracker, slurm):
    logger = HeimdallLogger(tracker=tracker)
    logger.log_metrics({"loss": 1.0})
    logger.finalize("finished")
    run = tracker.get_run(logger.run_id)
    assert (run.status, run.tags[job.REQUEUED_TAG]) == ("FINISHED", "true")


@pytest.mark.parametrize(
    ("left", "settings"),
    [
        ({"status": "FINISHED"}, {}),
        ({"status": "FAILED", job.JOB_TAG: "slurm:7"}, {}),
        ({"status": "FAILED", job.PROCESS_TAG: job.process()}, {}),
        ({"status": "FAILED", job.COMMAND_TAG: "other"}, {}),
        ({"status": "RUNNING"}, {}),
        ({"status": "FAILED"}, {"resume": False}),
        ({"status": "FAILED"}, {"run_name": "another"}),
    ],
    ids=["finished", "other job", "lives", "other command", "lives elsewhere", "not wanted", "other name"],
)
def test_other_runs_stay_as_they_are(tracker, slurm, left, settings):
    status = left.pop("status")
    run_id = left_behind(tracker, status, **left)
    assert begun(tracker, **settings) != run_id
    assert tracker.get_run(run_id).status == status


def test_jobs_that_nobody_starts_again_have_no_name(monkeypatch):
    assert job.job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert job.job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert job.job() == "torchelastic:abc"
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert job.job() == "torchelastic:abc"
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert job.job() == "slurm:5"


def trained(tracker, trainer_of, package, folder, **settings):
    logger = HeimdallLogger(tracker=tracker)
    best = import_module(f"{package}.callbacks").ModelCheckpoint(dirpath=folder, save_last=True)
    trainer = trainer_of(package, logger, callbacks=[best], **settings)
    return logger, trainer


def test_a_checkpoint_names_its_run(pl, tracker, trainer_of, tmp_path):
    logger, trainer = trained(tracker, trainer_of, pl.__name__, tmp_path)
    trainer.fit(network(pl.__name__))
    assert job.read_mark(tmp_path / "last.ckpt") == (logger.run_id, 6)
    assert job.read_mark(str(tmp_path / "none.ckpt")) is None
    (tmp_path / "text.ckpt").write_text("no archive")
    assert job.read_mark(tmp_path / "text.ckpt") is None


@pytest.mark.parametrize("status", ["FAILED", "FINISHED"])
def test_only_a_run_that_has_not_finished_is_gone_on_with(pl, tracker, trainer_of, tmp_path, status):
    logger, trainer = trained(tracker, trainer_of, pl.__name__, tmp_path)
    trainer.fit(network(pl.__name__))
    tracker.start_run(run_id=logger.run_id)
    tracker.end_run(status)
    again, trainer = trained(tracker, trainer_of, pl.__name__, tmp_path, max_epochs=3)
    trainer.fit(network(pl.__name__), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=False)
    assert (again.run_id == logger.run_id) is (status == "FAILED")
    assert len(tracker.search_runs()) == (1 if status == "FAILED" else 2)
    points = [point.step for point in tracker.get_metric_history(again.run_id, "train/loss")]
    assert points == (list(range(9)) if status == "FAILED" else [6, 7, 8])


def gone_on_with(tracker, trainer_of, folder):
    """Train for three epochs, stop behind the checkpoint of the second, and go on from it; return the run."""
    logger, trainer = trained(tracker, trainer_of, "lightning.pytorch", folder)
    trainer.fit(network())
    run_id = tracker.start_run(run_id=logger.run_id)
    for step in (6, 7):
        tracker.log_metric("train/loss", 9.0, step=step)
    tracker.end_run("KILLED")
    again, trainer = trained(tracker, trainer_of, "lightning.pytorch", folder, max_epochs=3)
    trainer.fit(network(), ckpt_path=str(folder / "last.ckpt"), weights_only=False)
    assert again.run_id == run_id
    return sorted((point.step, point.value) for point in tracker.get_metric_history(run_id, "train/loss"))


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_run_that_goes_on_from_a_checkpoint_has_each_step_once(store, uri, trainer_of, tmp_path, request):
    uri = uri if store == "sqlite" else request.getfixturevalue("postgres_uri")
    tracker = MLflowTracker(uri, experiment_name="tests")
    points = gone_on_with(tracker, trainer_of, tmp_path)
    assert [step for step, _ in points] == list(range(9))
    assert 9.0 not in [value for _, value in points]


def test_a_server_keeps_the_points_behind_the_checkpoint_which_is_told_once(
    mlflow_server, trainer_of, tmp_path, caplog
):
    tracker = MLflowTracker(mlflow_server.url, experiment_name="tests")
    with caplog.at_level(logging.WARNING, "heimdall_tracking"):
        points = gone_on_with(tracker, trainer_of, tmp_path)
        tracker.flush()
    assert [step for step, _ in points] == [*range(6), 6, 6, 7, 7, 8]
    told = [record.getMessage() for record in caplog.records if "keeps the points" in record.getMessage()]
    assert len(told) == 1


def test_a_run_that_a_script_has_resumed_itself_is_rewound_as_well(tracker, trainer_of, tmp_path):
    logger, trainer = trained(tracker, trainer_of, "lightning.pytorch", tmp_path)
    trainer.fit(network())
    run_id = logger.run_id
    with tracker.run(run_id=run_id):
        for step in (6, 7):
            tracker.log_metric("train/loss", 9.0, step=step)
        joined, trainer = trained(tracker, trainer_of, "lightning.pytorch", tmp_path, max_epochs=3)
        trainer.fit(network(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=False)
        assert joined.run_id == run_id == tracker.active_run_id
    assert [point.step for point in tracker.get_metric_history(run_id, "train/loss")] == list(range(9))


def test_a_run_of_another_process_that_works_is_not_taken(tracker, uri, start_script, slurm, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c", uri])
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        from heimdall_tracking.lightning import HeimdallLogger
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        print(HeimdallLogger(tracker=tracker).run_id, flush=True)
        sys.stdin.read()
        """,
        uri,
        SLURM_JOB_ID=77,
        SLURM_JOB_NAME="train",
    )
    theirs = process.stdout.readline().strip()
    assert begun(tracker) != theirs
    process.kill()
    process.wait()
    assert begun(tracker) == theirs
