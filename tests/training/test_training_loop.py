"""The loop is the one of PyTorch, repeatable, and stops when told."""

from __future__ import annotations

import logging
import signal

import pytest
import torch

from heimdall_tracking import HeimdallError
from heimdall_tracking.errors import ConfigurationError, InvalidInputError
from heimdall_tracking.training import RssLocalizationNet, TrainingError
from support.torch_twin import TorchTwin, epoch_order, gaussian_nll

CHANCE = {"drop_receivers": 0.1, "noise_db": 1.0, "gain_db": 1.0}


def weights(model: RssLocalizationNet) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]


def test_the_same_seed_gives_the_same_training_bit_by_bit(dataset, make_trainer):
    def train(seed: int):
        model = RssLocalizationNet(dataset.receivers, seed=seed)
        torch.rand(seed + 7)  # what was drawn before must not matter
        result = make_trainer(seed=seed, **CHANCE).fit(model, dataset)
        return weights(model), result.history

    first, second, other = train(1), train(1), train(2)
    assert first == second
    assert first[1] != other[1]


def test_the_losses_are_those_of_a_plain_pytorch_loop(dataset, make_trainer):
    settings = {"hidden": (32,), "dropout": 0.0, "head_dropout": (0.0, 0.0)}
    model = RssLocalizationNet(dataset.receivers, **settings)
    twin = TorchTwin(dataset.receivers, **settings)
    twin.load_state_dict(model.state_dict())
    epochs, batch, lr, seed = 3, 256, 1e-2, 5
    trainer = make_trainer(
        max_epochs=epochs, batch_size=batch, lr=lr, warmup_steps=0, seed=seed, drop_receivers=0.0
    )
    ours = [epoch["train/loss"] for epoch in trainer.fit(model, dataset).history]

    rss = torch.from_numpy(dataset.rss("train"))
    truth = twin.to_local(torch.from_numpy(dataset.positions("train")))
    matrices = [p for p in twin.parameters() if p.ndim > 1]
    vectors = [p for p in twin.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    steps = len(rss) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    theirs = []
    for epoch in range(epochs):
        order, losses = epoch_order(len(rss), seed, epoch), []
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            loss = gaussian_nll(twin(rss[rows]), truth[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        theirs.append(sum(losses) / steps)
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4)


def test_the_number_of_threads_is_put_back(dataset, model, make_trainer):
    before = torch.get_num_threads()
    make_trainer(max_epochs=1, num_threads=before + 1).fit(model, dataset)
    assert torch.get_num_threads() == before


def test_training_stops_when_it_no_longer_gets_better(dataset, model, make_trainer):
    result = make_trainer(max_epochs=40, patience=1, lr=0.05, warmup_steps=0).fit(model, dataset)
    assert len(result.history) < 40
    assert result.history[-1]["val/loss"] >= result.best_model_score
    assert "val/loss has not improved" in result.stopped


def test_each_epoch_prints_a_line(dataset, model, make_trainer, capsys):
    make_trainer(enable_progress_bar=True).fit(model, dataset)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line[:11] for line in lines] == ["epoch   1/2", "epoch   2/2"]
    assert captured.err == ""


def test_a_loss_that_is_no_number_ends_training_with_epoch_and_step(dataset, model, make_trainer):
    trainer = make_trainer(lr=1e30, warmup_steps=0, gradient_clip_val=None)
    with pytest.raises(TrainingError, match=r"loss is (NaN|-?inf) in epoch 0 at step \d+") as caught:
        trainer.fit(model, dataset)
    assert isinstance(caught.value, HeimdallError)
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("min_lr", 1.0),
        ("warmup_steps", 10**9),
        ("weight_decay", -1.0),
        ("gradient_clip_val", -1.0),
        ("drop_receivers", -0.1),
        ("patience", 0),
        ("save_top_k", 0),
        ("num_threads", 0),
    ],
)
def test_a_setting_that_cannot_work_is_named(dataset, model, make_trainer, setting, value):
    with pytest.raises(ConfigurationError, match=f"^{setting}="):
        make_trainer(**{setting: value}).fit(model, dataset)


def test_a_network_of_other_receivers_is_refused(dataset, make_trainer):
    with pytest.raises(InvalidInputError, match="receivers"):
        make_trainer().fit(RssLocalizationNet(dataset.receivers[:5]), dataset)


def test_a_tracker_that_fails_is_reported_once_and_training_goes_on(
    dataset, model, make_trainer, tracker, caplog, monkeypatch
):
    def fails(*arguments, **named):
        raise RuntimeError("the disk is gone")

    # No run can be started, so that every call fails.
    monkeypatch.setattr(type(tracker), "run", fails)
    with caplog.at_level(logging.WARNING, logger="heimdall_training"):
        trainer = make_trainer(tracker=tracker)
        assert len(trainer.fit(model, dataset).history) == 2
        trainer.test()
    reports = [record.getMessage() for record in caplog.records]
    assert len(reports) == 1
    assert "the disk is gone" in reports[0]


def test_ctrl_c_ends_training_and_the_run_as_killed_with_its_checkpoints(start_script, recordings, uri):
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        from heimdall_tracking.training import RssDataset, RssLocalizationNet, Trainer

        dataset = RssDataset.load(sys.argv[1])
        model = RssLocalizationNet(dataset.receivers)
        tracker = MLflowTracker(sys.argv[2], experiment_name="interrupted")
        trainer = Trainer(tracker=tracker, max_epochs=10**6, patience=None)
        try:
            with tracker.run("stopped") as run:
                print(run.run_id, flush=True)
                trainer.fit(model, dataset)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            model.predict(dataset.rss("test"))  # free for use again
            print("predicted", flush=True)
        """,
        recordings,
        uri,
        PYTHONUNBUFFERED=1,
    )
    run_id = process.stdout.readline().strip()
    assert process.stdout.readline().startswith("epoch   1/")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    *epochs, interrupted, predicted = out.splitlines()
    assert all(line.startswith("epoch") for line in epochs)
    assert (interrupted, predicted) == ("interrupted", "predicted")

    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    assert client.get_run(run_id).info.status == "KILLED"
    checkpoints = [file.path for file in client.list_artifacts(run_id, "checkpoints")]
    assert "checkpoints/last.ckpt" in checkpoints


def test_a_network_is_not_used_while_it_is_trained(dataset, model, make_trainer, caplog):
    class Meddler:
        def log_params(self, params):
            pass

        def log_metrics(self, metrics, step):
            model.predict(dataset.rss("test"))

        log_artifact = log_artifacts_dir = log_params

    trainer = make_trainer(tracker=Meddler())
    with caplog.at_level(logging.WARNING, logger="heimdall_training"):
        trainer.fit(model, dataset)
    assert "the model is being trained" in caplog.text
    model.predict(dataset.rss("test"))


def test_there_is_nothing_to_test_before_fit(make_trainer):
    with pytest.raises(TrainingError, match=r"call fit\(\) first"):
        make_trainer().test()
