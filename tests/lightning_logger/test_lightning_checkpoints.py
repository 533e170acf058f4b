"""Checkpoints go into the store as they are written, and the best of them is a model at the end."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from heimdall_tracking.lightning import HeimdallLogger
from support.lightning_networks import network

pytestmark = pytest.mark.training


def names(tracker, run_id, folder="checkpoints"):
    return {info.path.removeprefix(f"{folder}/") for info in tracker.list_artifacts(folder, run_id=run_id)}


def callback(pl, **settings):
    return import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(monitor="val/loss", **settings)


def test_the_best_are_kept_in_the_store_and_the_others_leave_it(pl, tracker, trainer_of):
    logger = HeimdallLogger(tracker=tracker, log_model="best")
    best = callback(pl, save_top_k=2, save_last=True)
    trainer_of(pl.__name__, logger, max_epochs=5, callbacks=[best]).fit(network(pl.__name__))
    local = {Path(path).name for path in best.best_k_models} | {"last.ckpt"}
    assert local == {"epoch=1-step=6.ckpt", "epoch=3-step=12.ckpt", "last.ckpt"}
    assert names(tracker, logger.run_id) == local
    folder = Path(tracker.download_artifacts(logger.run_id, "checkpoints"))
    for path in (*best.best_k_models, best.last_model_path):
        assert (folder / Path(path).name).read_bytes() == Path(path).read_bytes()


def test_a_checkpoint_is_in_the_store_before_the_training_ends(tracker, trainer_of):
    pl: Any = import_module("lightning.pytorch")
    seen = []

    class Looks(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(names(tracker, logger.run_id))

    logger = HeimdallLogger(tracker=tracker, log_model="best")
    trainer_of("lightning.pytorch", logger, callbacks=[callback(pl), Looks()]).fit(network())
    assert seen == [set(), {"epoch=0-step=3.ckpt"}]


def test_all_that_were_written_are_kept_where_all_are_asked_for(pl, tracker, trainer_of):
    logger = HeimdallLogger(tracker=tracker, log_model="all", checkpoint_path_prefix="some/where")
    trainer = trainer_of(pl.__name__, logger, max_epochs=4, callbacks=[callback(pl, save_top_k=1)])
    trainer.fit(network(pl.__name__))
    kept = names(tracker, logger.run_id, "some/where")
    # The third epoch was worse than the second, so nothing was written.
    assert kept == {"epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt", "epoch=3-step=12.ckpt"}


def test_a_file_that_is_written_again_is_logged_again(tracker, trainer_of):
    pl = import_module("lightning.pytorch")
    best = callback(pl, filename="best", enable_version_counter=False, dirpath="files")
    logger = HeimdallLogger(tracker=tracker, log_model=True)
    trainer_of("lightning.pytorch", logger, max_epochs=4, callbacks=[best]).fit(network())
    folder = Path(tracker.download_artifacts(logger.run_id, "checkpoints"))
    assert [path.name for path in folder.iterdir()] == ["best.ckpt"]
    assert (folder / "best.ckpt").read_bytes() == Path("files/best.ckpt").read_bytes()


def test_two_callbacks_keep_their_own(tracker, trainer_of):
    pl = import_module("lightning.pytorch")
    kept = [
        callback(pl, save_top_k=1, dirpath="files", filename="low-{epoch}"),
        callback(pl, save_top_k=1, dirpath="files", filename="high-{epoch}", mode="max"),
    ]
    logger = HeimdallLogger(tracker=tracker, log_model="best")
    trainer_of("lightning.pytorch", logger, max_epochs=5, callbacks=kept).fit(network())
    expected = {"low-epoch=3.ckpt", "high-epoch=4.ckpt"}
    assert names(tracker, logger.run_id) == expected


def test_nothing_is_logged_where_nothing_is_asked_for(tracker, trainer_of):
    logger = HeimdallLogger(tracker=tracker)
    trainer_of("lightning.pytorch", logger).fit(network())
    assert tracker.list_artifacts(run_id=logger.run_id) == []


def test_the_best_is_a_model_that_stock_mlflow_loads(pl, tracker, uri, trainer_of, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    logger = HeimdallLogger(tracker=tracker, log_model="best", registered_model_name="net")
    trainer = trainer_of(pl.__name__, logger, max_epochs=5, callbacks=[callback(pl)])
    net = network(pl.__name__)
    net.example_input_array = torch.ones(1, 4)
    trainer.fit(net)
    last = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)
    assert best["epoch"] == 3
    loaded = mlflow.pytorch.load_model(f"runs:/{logger.run_id}/model")
    for name, tensor in best["state_dict"].items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert torch.equal(net.state_dict()[name], last[name])
    version = tracker.get_model_version("net", 1)
    assert version.run_id == logger.run_id
    registered = mlflow.pytorch.load_model("models:/net/1")
    assert torch.equal(registered(torch.ones(1, 4)), loaded(torch.ones(1, 4)))


def test_without_a_checkpoint_the_model_is_the_last_one(tracker, trainer_of):
    logger, net = HeimdallLogger(tracker=tracker, log_model="best"), network()
    trainer_of("lightning.pytorch", logger, enable_checkpointing=False).fit(net)
    loaded = tracker.load_model(f"runs:/{logger.run_id}/model")
    assert torch.equal(loaded.layer.weight, net.layer.weight)


@pytest.fixture
def far(s3_server, proxy, bucket, s3_tracker) -> SimpleNamespace:
    """A tracker whose files go to S3, through a proxy that can fail."""
    tracker = s3_tracker(bucket, s3_endpoint_url=proxy.url)

    def names(run_id: str) -> set[str]:
        place = f"runs/{run_id}/artifacts/checkpoints"
        return {key.rpartition("/")[2] for key in s3_server.keys(bucket, place)}

    return SimpleNamespace(tracker=tracker, proxy=proxy, names=names)


def test_the_best_are_kept_in_s3_and_the_others_leave_it(pl, far, trainer_of):
    logger = HeimdallLogger(tracker=far.tracker, log_model="best")
    best = callback(pl, save_top_k=2, save_last=True)
    trainer_of(pl.__name__, logger, max_epochs=5, callbacks=[best]).fit(network(pl.__name__))
    local = {Path(path).name for path in best.best_k_models} | {"last.ckpt"}
    assert local == {"epoch=1-step=6.ckpt", "epoch=3-step=12.ckpt", "last.ckpt"}
    far.tracker.flush()
    assert far.names(logger.run_id) == local


def test_checkpoints_leave_s3_after_an_outage_of_the_whole_training(far, trainer_of):
    pl = import_module("lightning.pytorch")
    far.proxy.strike("refuse", status=503, code="SlowDown")
    logger = HeimdallLogger(tracker=far.tracker, log_model="best")
    trainer = trainer_of("lightning.pytorch", logger, max_epochs=5, callbacks=[callback(pl)])
    trainer.fit(network())
    assert far.names(logger.run_id) == set()
    far.proxy.heal()
    far.tracker.flush()
    assert far.names(logger.run_id) == {"epoch=3-step=12.ckpt"}


def test_a_store_that_keeps_its_files_is_told_of_once(far, trainer_of, caplog):
    def deletes(request: Any) -> bool:
        return request.method == "DELETE" or "delete" in request.query

    far.proxy.strike("refuse", deletes, status=403, code="AccessDenied")
    logger = HeimdallLogger(tracker=far.tracker, log_model="best")
    pl = import_module("lightning.pytorch")
    trainer_of("lightning.pytorch", logger, max_epochs=4, callbacks=[callback(pl)]).fit(network())
    far.tracker.flush()
    told = [record.message for record in caplog.records if "deletion of artifact" in record.message]
    assert len(told) == 1
    # Deletions run side by side: which one is refused first is not said.
    assert "checkpoints/epoch=" in told[0]
    assert far.tracker.get_run(logger.run_id).status == "FINISHED"
    assert "epoch=0-step=3.ckpt" in far.names(logger.run_id)


def test_a_file_of_one_callback_is_not_deleted_for_another_of_the_same_name(tracker, trainer_of):
    pl = import_module("lightning.pytorch")
    kept = [
        callback(pl, save_top_k=1, dirpath="low", filename="{epoch}"),
        callback(pl, save_top_k=1, dirpath="high", filename="{epoch}", mode="max"),
    ]
    logger = HeimdallLogger(tracker=tracker, log_model="best")
    trainer_of("lightning.pytorch", logger, max_epochs=4, callbacks=kept).fit(network())
    tracker.flush()
    # Both have written the first epoch, and the second of them has kept it.
    assert Path(kept[1].best_model_path).name == "epoch=0.ckpt"
    assert names(tracker, logger.run_id) == {"epoch=0.ckpt", "epoch=3.ckpt"}
