"""The original's pipeline: recordings are divided by site, trained on, tested, and recorded as one run."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heimdall_tracking import MLflowTracker
from heimdall_tracking.cli.train import FLAGS
from heimdall_tracking.errors import ArtifactNotFoundError, ConfigurationError, InvalidInputError
from heimdall_tracking.training import (
    DatasetError,
    DatasetNotFoundError,
    EarlyStopping,
    ModelCheckpoint,
    ModelConfig,
    TrainingConfig,
    TrainingError,
    TrainingPipeline,
    load_training_config,
)
from heimdall_tracking.training.config import PRECISIONS, RANGES, SCHEDULES
from heimdall_training import _devices, _plan
from support.recorded import save_session, save_sessions

SETTINGS = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "num_workers": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of 24 sessions at 8 sites."""
    return save_sessions(tmp_path_factory.mktemp("data") / "sessions")


@pytest.fixture
def tracker(uri, tmp_path):
    return MLflowTracker(uri, experiment_name="pipeline", bridge=False, set_environment=False)


@pytest.fixture
def make(data, tmp_path):
    """A pipeline with a small backbone."""

    def make(tracker=None, cls=TrainingPipeline, model=None, backbone=None, **settings):
        if backbone is None:
            torch.manual_seed(0)
            backbone = nn.Sequential(nn.AdaptiveAvgPool2d((8, 2)), nn.Flatten(), nn.Linear(48, 16), nn.ReLU())
        config = {**SETTINGS, "data": str(data), **settings}
        model = model or ModelConfig(pretrained=False)
        return cls(tracker, model, config, tmp_path / "out", backbone=backbone, enable_progress_bar=False)

    return make


# The division


def site_of(name):
    return name.partition("-")[0]


def test_sessions_of_a_site_stay_together(make, data):
    pipeline = make()
    train, val, test = pipeline.setup_data_loaders(None, val_split=0.25, test_split=0.125)
    parts = pipeline.sessions
    assert [len(parts[part]) for part in ("train", "val", "test")] == [15, 6, 3]
    sites = [{site_of(name) for name in names} for names in parts.values()]
    assert sum(map(len, sites)) == len(set.union(*sites)) == 8
    assert len({name for names in parts.values() for name in names}) == 24
    features, positions, names = next(iter(train))
    assert (features.shape, positions.shape, len(names)) == ((4, 3, 128, 32), (4, 2), 4)
    assert {name for _, _, names in train for name in names} <= set(parts["train"])
    assert sorted(name for _, _, names in val for name in names) == sorted(parts["val"])
    assert [name for _, _, names in test for name in names] == parts["test"]
    latitudes = [np.load(data / f"{name}_label.npy")[0] for name in parts["train"]]
    assert pipeline.origin[0] == pytest.approx(np.mean(latitudes), abs=1e-6)


def test_the_seed_decides_the_division(make):
    def parts(seed):
        pipeline = make(seed=seed)
        pipeline.setup_data_loaders()
        return pipeline.sessions

    assert parts(1) == parts(1)
    assert len({json.dumps(parts(seed)) for seed in range(5)}) > 1


def test_a_chain_of_close_sessions_and_shared_metadata_are_one_site(make, tmp_path):
    folder = tmp_path / "moving"
    for number in range(4):
        # 33 m from each to the next: the ends are 100 m apart.
        save_session(folder, f"drive{number}", number, (45.0 + 3e-4 * number, 8.0))
    save_session(folder, "far0", 10, (46.0, 8.0), session_id="one")
    save_session(folder, "far1", 11, (47.0, 8.0), session_id="one")
    save_session(folder, "alone0", 12, (48.0, 8.0))
    save_session(folder, "alone1", 13, (48.0, 179.9999999))
    save_session(folder, "alone2", 14, (48.0, -179.9999999))
    pipeline = make(data=str(folder))
    pipeline.setup_data_loaders(val_split=0.3, test_split=0.3)
    together = [{part for part, names in pipeline.sessions.items() if name in names} for name in (
        "drive0", "drive1", "drive2", "drive3", "far0", "far1", "alone1", "alone2")]  # fmt: skip
    assert len({*map(tuple, together[:4])}) == 1
    assert together[4] == together[5]
    assert together[6] == together[7]


def test_too_few_sites_are_said_in_words(make, tmp_path):
    few = save_sessions(tmp_path / "few", sites=2)
    pipeline = make(data=str(few))
    with pytest.raises(
        DatasetError, match=r"6 sessions at 2 sites are too few: .* at least 3 \(sessions within"
    ):
        pipeline.setup_data_loaders()
    train, val, test = pipeline.setup_data_loaders(test_split=0)
    assert (len(train), len(val), test) == (1, 1, None)
    with pytest.raises(ConfigurationError, match=r"val_split=0\.9 and test_split=0\.1 are not valid"):
        pipeline.setup_data_loaders(None, 0.9, 0.1)


def test_sessions_are_approved_by_name_or_by_folder(make, data):
    pipeline = make()
    names = [f"s{site}-0" for site in range(8)]
    pipeline.setup_data_loaders([*names, names[0]])
    assert sorted(name for part in pipeline.sessions.values() for name in part) == names
    for folder in (data, str(data), [data]):
        make(data=None).setup_data_loaders(folder)
    with pytest.raises(DatasetNotFoundError, match=r"the approved session 's9-0' is neither a folder nor in"):
        pipeline.setup_data_loaders([*names, "s9-0"])
    with pytest.raises(DatasetNotFoundError, match=r"there are no approved sessions"):
        pipeline.setup_data_loaders([])
    with pytest.raises(DatasetNotFoundError, match=r"there are no approved sessions"):
        make(data=None).setup_data_loaders()


def test_folders_that_are_divided_already_stay_so(make, tmp_path, caplog):
    root = tmp_path / "divided"
    for site, part in enumerate(["train", "train", "val", "test"]):
        for number in range(2):
            save_session(root / part, f"s{site}-{number}", 10 * site + number, (45 + site, 8))
    pipeline = make(data=str(root))
    pipeline.setup_data_loaders()
    assert pipeline.sessions == {"train": ["s0-0", "s0-1", "s1-0", "s1-1"], "val": ["s2-0", "s2-1"],
                                 "test": ["s3-0", "s3-1"]}  # fmt: skip
    assert caplog.text == ""
    save_session(root / "val", "again", 0, (45, 8))
    with caplog.at_level(logging.WARNING, "heimdall_training"):
        pipeline.setup_data_loaders()
    assert "1 sites are in more than one of train, val and test" in caplog.text
    with pytest.raises(DatasetError, match=r"the folder test has no approved session"):
        pipeline.setup_data_loaders(["s0-0", "s0-1", "s2-0"])
    with pytest.raises(DatasetNotFoundError, match=r"has no recordings: it must have files"):
        make(data=str(tmp_path)).setup_data_loaders()


def test_a_last_batch_of_one_is_left_out(make):
    pipeline = make(batch_size=7)
    train, _, _ = pipeline.setup_data_loaders(None, 0.25, 0.125)
    assert [len(names) for _, _, names in train] == [7, 7]


# Training


def test_a_training_is_one_run_with_what_the_original_recorded(make, tracker):
    pipeline = make(tracker)
    loaders = pipeline.setup_data_loaders()
    result = pipeline.train(*loaders, run_name="mine", tags={"who": "me"})
    assert {*result} == {"run_id", "model_path", "metrics", "status"}
    assert result["status"] == "FINISHED"
    (run,) = tracker.search_runs()
    assert (run.run_id, run.run_name, run.status) == (result["run_id"], "mine", "FINISHED")
    assert run.tags["who"] == "me"
    expected = {"learning_rate": "0.01", "batch_size": "4", "epochs": "2", "backbone": "Sequential",
                "pretrained": "False", "freeze_backbone": "False", "weight_decay": "1e-05"}  # fmt: skip
    assert expected.items() <= run.params.items()
    assert run.metrics["final_test_loss"] == result["metrics"]["test/loss"] == run.metrics["test/loss"]
    assert run.metrics["final_test_mae"] == result["metrics"]["test/mae"]
    assert {"train/loss", "val/loss", "val/mae", "lr-AdamW", "test/position_error_mean"} <= run.metrics.keys()
    # The test is that of the best checkpoint.
    best = torch.load(result["model_path"], weights_only=True)
    losses = {point.step: point.value for point in tracker.get_metric_history(run.run_id, "val/loss")}
    assert min(losses.values()) == result["metrics"]["best_val_loss"] == losses[best["global_step"] - 1]
    positions, _ = tracker.load_model(f"runs:/{run.run_id}/model")(torch.zeros(2, 3, 128, 32))
    assert positions[0].tolist() == pytest.approx(pipeline.origin, abs=2)
    stored = json.loads(tracker.load_text(run.run_id, "config/training.json"))
    assert stored["sessions"] == pipeline.sessions
    assert stored["training"]["batch_size"] == 4


def test_a_failure_is_recorded_and_raised(make, tracker):
    pipeline = make(tracker)
    _, val, test = pipeline.setup_data_loaders()
    broken = [(torch.full((4, 3, 128, 32), float("nan")), torch.zeros(4, 2))]
    with pytest.raises(TrainingError):
        pipeline.train(broken, val, test)
    (run,) = tracker.search_runs()
    assert run.status == "FAILED"
    assert run.tags["failure"].startswith("TrainingError: ")
    assert tracker.active_run_id is None


def test_ctrl_c_in_a_callback_kills_the_run(make, tracker):
    class Interrupted(TrainingPipeline):
        def setup_callbacks(self):
            return [*super().setup_callbacks(), self]

        def on_train_epoch_end(self, trainer, module):
            raise KeyboardInterrupt

    pipeline = make(tracker, Interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(*pipeline.setup_data_loaders())
    assert tracker.search_runs()[0].status == "KILLED"


def test_callbacks_decide_checkpoints_and_the_end(make, tmp_path):
    class Mine(TrainingPipeline):
        def setup_callbacks(self):
            return [ModelCheckpoint(2, "val/position_error_mean"), EarlyStopping(1)]

    assert make().setup_callbacks() == [ModelCheckpoint(3), EarlyStopping(5)]
    assert make(early_stopping_patience=None).setup_callbacks() == [ModelCheckpoint(3)]
    pipeline = make(cls=Mine, epochs=60, schedule="constant", learning_rate=1.0, min_learning_rate=0.0)
    result = pipeline.train(*pipeline.setup_data_loaders())
    assert result["run_id"] is None
    names = [path.name for path in (tmp_path / "out" / "version_0" / "checkpoints").iterdir()]
    assert len(names) == 3
    assert torch.load(result["model_path"].with_name("last.ckpt"), weights_only=True)["epoch"] < 59


def test_a_checkpoint_goes_on_in_its_run_and_as_if_nothing_had_been(make, tracker, tmp_path):
    class Ends(TrainingPipeline):
        def setup_callbacks(self):
            return [*super().setup_callbacks(), self]

        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    whole = make(epochs=3)
    expected = whole.train(*whole.setup_data_loaders())
    first = make(tracker, Ends, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        first.train(*first.setup_data_loaders())
    checkpoint = tmp_path / "out" / "version_1" / "checkpoints" / "last.ckpt"
    second = make(tracker, epochs=3)
    result = second.train(*second.setup_data_loaders(), ckpt_path=checkpoint)
    (run,) = tracker.search_runs()
    assert (run.run_id, run.status) == (result["run_id"], "FINISHED")
    # The best checkpoint may be one of before the interruption, in its folder.
    ours, theirs = (
        torch.load(tmp_path / "out" / version / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for version in ("version_2", "version_0")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert result["metrics"] == expected["metrics"]
    other = make(tracker, epochs=3, seed=1)
    with pytest.raises(ConfigurationError, match=r"sessions are others than those of the training of"):
        other.train(*other.setup_data_loaders(), ckpt_path=checkpoint)
    assert len(tracker.search_runs()) == 1


def test_the_settings_reach_the_trainer(make):
    settings = {"accumulate": 2, "clip_norm": 0.5, "precision": "bf16-mixed", "compile": True, "seed": 7}
    pipeline = make(**settings, limit_batches=3, epochs=30, warmup_steps=5, save_top_k=1)
    train, val, _ = pipeline.setup_data_loaders()
    plan = pipeline._trainer(train, val, None).plan
    assert (plan.accumulate_grad_batches, plan.gradient_clip_val, plan.precision) == (2, 0.5, "bf16-mixed")
    assert (plan.compile, plan.seed, plan.limit_train_batches, plan.limit_val_batches) == (True, 7, 3, 3)
    assert (plan.warmup_steps, plan.lr, plan.min_lr, plan.save_top_k) == (5, 1e-2, 1e-6, 1)
    # 3 batches of 2 are 2 steps; 5 % of 60.
    assert make(accumulate=2, limit_batches=3, epochs=30)._trainer(train, val, None).plan.warmup_steps == 3
    with pytest.raises(ConfigurationError, match=r"warmup_steps=60 is not valid: it must be below 60"):
        make(accumulate=2, limit_batches=3, epochs=30, warmup_steps=60)._trainer(train, val, None)
    with pytest.raises(ConfigurationError, match=r"warmup_steps=5 contradicts schedule='plateau'"):
        make(schedule="plateau", warmup_steps=5)._trainer(train, val, None)
    with pytest.raises(ConfigurationError, match=r"limit_batches=0\.01 leaves no batch of \d to train on"):
        make(limit_batches=0.01)._trainer(train, val, None)


def test_a_frozen_backbone_needs_weights_and_a_module_must_give_features(make, tmp_path):
    frozen = TrainingPipeline(None, {"pretrained": False, "freeze_backbone": True}, SETTINGS, tmp_path)
    batches = [(torch.zeros(2, 3, 128, 32), torch.zeros(2, 2))]
    with pytest.raises(ConfigurationError, match=r"freeze_backbone=True contradicts pretrained=False"):
        frozen.train(batches, None)
    with pytest.raises(InvalidInputError, match=r"the backbone must make .* to \[rows, features\]"):
        make(backbone=nn.Identity()).train(batches, None)
    with pytest.raises(ConfigurationError, match=r"there is no setting 'lr'; did you mean 'learning_rate'\?"):
        make(lr=1)


# Settings


def test_the_defaults_are_those_of_the_original():
    config = load_training_config()
    documented = {"learning_rate": 1e-3, "batch_size": 32, "epochs": 100, "weight_decay": 1e-5}
    documented |= {"early_stopping_patience": 5, "num_workers": 4, "val_split": 0.2, "test_split": 0.1}
    assert documented.items() <= dict(config).items()
    assert config["epochs"] == config.get("epochs") == 100
    assert config.get("nothing", 7) == 7
    assert {*RANGES} == {*config.to_dict()}
    assert {*PRECISIONS} == {*_devices.PRECISIONS.values()}
    assert {*SCHEDULES} == {*_plan.SCHEDULES}


@pytest.mark.parametrize("name", ["settings.json", "settings.yaml"])
def test_a_file_changes_what_it_names(tmp_path, name):
    file = tmp_path / name
    json_text, yaml_text = '{"epochs": 3, "learning_rate": 1e-4}', "epochs: 3\nlearning_rate: 1e-4\n"
    file.write_text(json_text if name.endswith("json") else yaml_text)
    assert load_training_config(file) == TrainingConfig(epochs=3, learning_rate=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"learning_rat": 1}', r"there is no setting 'learning_rat'; did you mean 'learning_rate'\?"),
        ('{"max_epochs": 1}', r"there is no setting 'max_epochs'; did you mean 'epochs'\?"),
        ('{"zzz": 1}', r"there is no setting 'zzz': it must be one of learning_rate, batch_size"),
        ('{"backbone": "x"}', r"'backbone' of a training: it is given by --backbone, or by ModelConfig"),
        ('{"epochs": 0}', r"epochs=0 is not valid: it must be a whole number from 1 on"),
        ('{"epochs": true}', r"epochs=True is not valid: it must be a whole number from 1 on"),
        ('{"epochs": 2.5}', r"epochs=2\.5 is not valid"),
        ('{"batch_size": 1}', r"batch_size=1 is not valid: it must be a whole number from 2 on"),
        ('{"learning_rate": NaN}', r"learning_rate=nan is not valid: it must be a number above 0"),
        ('{"learning_rate": "fast"}', r"learning_rate='fast' is not valid"),
        ('{"seed": 4294967296}', r"seed=4294967296 is not valid: it must be a whole number, 0…4294967295"),
        ('{"precision": "bf16"}', r"precision='bf16' is not valid.*did you mean 'bf16-mixed'\?"),
        (
            '{"device": "cuda:x"}',
            r"device='cuda:x' is not valid: it must be auto, cpu, cuda, cuda:<n> or mps",
        ),
        ('{"limit_batches": 1.5}', r"limit_batches=1\.5 is not valid"),
        ('{"compile": "gcc"}', r"compile='gcc' is not valid: it must be true, false or one of inductor"),
        (
            '{"val_split": 0.6, "test_split": 0.4}',
            r"val_split=0\.6 and test_split=0\.4 contradict each other",
        ),
        ('{"learning_rate": 1e-7}', r"min_learning_rate=1e-06 contradicts learning_rate=1e-07"),
        ('{"epochs": 1, "epochs": 2}', r"has the setting 'epochs' twice"),
        ("[1]", r"must be an object of settings, not list"),
        ("{", r"is no JSON"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_range(tmp_path, text, message):
    file = tmp_path / "training_config.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_training_config(file)
    assert "training_config.json" in str(caught.value)


def test_a_file_that_is_not_there_is_no_default(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match=r"there is no file .*gone\.json"):
        load_training_config(tmp_path / "gone.json")


def test_the_documented_settings_are_those_that_there_are():
    text = (Path(__file__).parents[2] / "docs" / "train-command.md").read_text()
    documented = re.findall(r"^\| `(--[a-z-]+)` \| `(\w+)` \|", text, re.M)
    assert {name for _, name in documented} == {*RANGES}
    assert all(flag == "--" + name.replace("_", "-") for flag, name in documented)
    assert {flag for flag, _ in documented} == {flag for flag, _, _ in FLAGS} | {"--compile"}
