"""The original's script: recordings are divided, a network is trained, tested and recorded."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from heimdall_tracking.training.config import TrainingConfig

from . import _display, _sessions
from ._devices import Place, check, device_of
from ._distributed import World
from ._modules import _length
from ._plan import Plan
from ._session_loader import make_loader
from ._supervised import gaussian_nll
from .errors import CheckpointNotFoundError, ConfigurationError, InvalidInputError
from .localization_net import LocalizationNet
from .model_config import ModelConfig
from .module_training import bare, load_weights, run_of
from .results import ModuleFitResult
from .torch_net import TorchLocalizationNet
from .tracking import Recorder
from .trainer import Trainer, begun, ending

# File beside the checkpoints of a training with its settings.
SETTINGS_FILE = "training.json"
# Longest warm-up by default, as a share of all steps.
WARMUP_SHARE = 0.05
MONITOR = "val/loss"

Loader = Any


class TrainingResult(TypedDict):
    """Result of `TrainingPipeline.train`.

    Attributes:
        run_id: The run; None without a tracker.
        model_path: Checkpoint with the least `val/loss`, else the last one.
        metrics: `test/…` of that checkpoint, `final_test_loss`, `final_test_mae` and `best_val_loss`.
        status: `FINISHED`, as MLflow says it.
    """

    run_id: str | None
    model_path: Path
    metrics: dict[str, float]
    status: str


@dataclasses.dataclass(frozen=True)
class ModelCheckpoint:
    """The checkpoints that are kept: the best ones by a metric, and always the last one.

    Args:
        save_top_k: Number of the best ones.
        monitor: The metric.
        mode: `min` where less of it is better, `max` where more is.
    """

    save_top_k: int = 3
    monitor: str = MONITOR
    mode: str = "min"


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The end of a training that no longer gets better by the metric of its checkpoints.

    Args:
        patience: Epochs without a better value.
    """

    patience: int = 5


class TrainingPipeline:
    """Divides recordings, trains a network on them, tests the best checkpoint, and records it as one run.

    Args:
        mlflow_tracker: Tracker of the run; None records nothing.
        model_config: Network, as a `ModelConfig` or a mapping of its settings. Learning rate and weight
            decay are those of `training_config`.
        training_config: Settings of the training, as `load_training_config` returns them, or a mapping of
            them.
        output_dir: Folder in which each training makes a folder `version_0`, `version_1`, … of its own.
        backbone: Module of torch in place of the backbone that `model_config` names; it gives
            `[rows, features]`.
        weights: File of the first weights: see `load_weights`; `pretrained` must be False then.
        download: Let `pretrained` download what is not in torch's cache.
        enable_progress_bar: Show the progress.

    Raises:
        ConfigurationError: A setting does not exist or is out of its range, or two contradict each other.

    Example:
        >>> from heimdall_training import ModelConfig, TrainingPipeline, load_training_config
        >>> settings = load_training_config().replace(epochs=20)
        >>> pipeline = TrainingPipeline(None, ModelConfig(pretrained=False), settings, "outputs")
        >>> [type(it).__name__ for it in pipeline.setup_callbacks()]
        ['ModelCheckpoint', 'EarlyStopping']
    """

    def __init__(
        self,
        mlflow_tracker: Any,
        model_config: ModelConfig | Mapping[str, Any],
        training_config: TrainingConfig | Mapping[str, Any],
        output_dir: str | Path = "./outputs",
        *,
        backbone: nn.Module | None = None,
        weights: str | Path | None = None,
        download: bool = False,
        enable_progress_bar: bool = True,
    ) -> None:
        self.mlflow_tracker = mlflow_tracker
        self.model_config = (
            model_config if isinstance(model_config, ModelConfig) else ModelConfig.from_dict(model_config)
        )
        self.training_config = (
            training_config
            if isinstance(training_config, TrainingConfig)
            else TrainingConfig.from_dict(training_config)
        )
        self.output_dir = Path(output_dir)
        #: The name that the run and the settings beside the checkpoints have for the backbone.
        self.backbone_name = self.model_config.backbone.value if backbone is None else type(backbone).__name__
        #: Names of the recordings for `train`, `val` and `test`, once they are divided.
        self.sessions: dict[str, list[str]] = {}
        #: Latitude and longitude that the network counts from: the middle of the training recordings.
        self.origin: tuple[float, float] | None = None
        self._backbone = backbone
        self._begins: dict[str, Any] = {"weights": weights, "download": download}
        self._shows = enable_progress_bar
        self._world: World | None = None
        check(self.training_config.device, "auto", self.training_config.precision)

    @property
    def world(self) -> World:
        """The processes of the training."""
        if self._world is None:
            self._world = World(device_of(self.training_config.device))
        return self._world

    @property
    def is_first(self) -> bool:
        """True in the one process that records and writes."""
        return self.world.is_first

    def setup_data_loaders(
        self,
        approved_sessions: Sequence[str | Path] | str | Path | None = None,
        val_split: float = 0.2,
        test_split: float = 0.1,
    ) -> tuple[Loader, Loader, Loader | None]:
        """Divide recordings by session and by site, and return their batches.

        Recordings of transmitters within `site_radius_m` of each other, and those whose metadata has the same
        `site` or `session_id`, are in one part. A folder that has folders train, val and test is divided
        already and stays so.

        Args:
            approved_sessions: Names of sessions in the folder `data` of the settings, and folders of
                sessions; None is all sessions of that folder.
            val_split: Share of the recordings that validates, 0…1 exclusive.
            test_split: Share of the recordings that tests, from 0 on; both together below 1.

        Returns:
            Batches for training, validation and test: spectrograms `[rows, 3, n_mels, n_frames]`, positions
            `[rows, 2]` in degrees, and names. The last is None with `test_split=0`.

        Raises:
            ConfigurationError: A share is out of range.
            DatasetNotFoundError: A folder or a session does not exist.
            DatasetError: There are too few sites or recordings, or a file breaks its format.
        """
        config, model = self.training_config, self.model_config
        settings: dict[str, Any] = {
            "sample_rate": config.sample_rate,
            "cache_dir": config.cache_dir,
            "bands": model.n_mels,
            "frames": model.n_frames,
            "normalisation": config.normalisation,
        }
        found = _sessions.find(approved_sessions, config.data, settings)
        parts = _sessions.divide(found, val_split, test_split, config.site_radius_m, config.seed)
        self.sessions = {part: [session.name for session in parts[part]] for part in parts}
        self.origin = _sessions.middle(parts["train"])
        train, val, test = (
            make_loader(parts[part], config, part == "train", self.world.size) if parts[part] else None
            for part in _sessions.PARTS
        )
        return train, val, test

    def setup_callbacks(self) -> list[Any]:
        """Return the callbacks of a training.

        A subclass may return others: with another `ModelCheckpoint`, without an `EarlyStopping`, or with
        objects that have methods of Lightning's names, such as `on_train_epoch_end(trainer, module)`. The
        learning rate is always recorded.
        """
        config = self.training_config
        callbacks: list[Any] = [ModelCheckpoint(config.save_top_k)]
        if config.early_stopping_patience is not None:
            callbacks.append(EarlyStopping(config.early_stopping_patience))
        return callbacks

    def train(
        self,
        train_loader: Loader,
        val_loader: Loader | None,
        test_loader: Loader | None = None,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        *,
        ckpt_path: str | Path | None = None,
    ) -> TrainingResult:
        """Train, test the best checkpoint, and record both and the tested network as one run.

        An error ends the run as FAILED, and Ctrl-C ends it as KILLED; both are raised.

        Args:
            train_loader: Batches of spectrograms `[rows, 3, height, width]` and positions in degrees
                `[rows, 2]`, to iterate over once in each epoch.
            val_loader: The same for the validation; without it the last checkpoint counts as the best.
            test_loader: The same for the test, or None.
            run_name: Name of the run; default the tracker's prefix and the time.
            tags: Tags of the run.
            ckpt_path: Checkpoint to go on from, in its run.

        Raises:
            ConfigurationError: A setting cannot work, or the recordings are divided otherwise than in the
                training of the checkpoint.
            CheckpointNotFoundError: `ckpt_path` does not exist or is of another network.
            PretrainedWeightsNotFoundError: The ImageNet weights are not in torch's cache.
            TrainingError: The loss is not finite, or a checkpoint cannot be written.
        """
        if ckpt_path is not None:
            self._check_settings_of(Path(ckpt_path))
        net: Any = self._network(ckpt_path)
        with self._run(run_name, tags, ckpt_path) as run_id:
            run_id = self.world.agree(run_id)
            recorder = Recorder(self.mlflow_tracker if self.is_first else None)
            if ckpt_path is None:
                recorder.log_params(self._params())
            fitting = self._trainer(train_loader, val_loader, recorder)
            module, _ = bare(net, fitting.plan)
            if device_of(self.training_config.device).type != "cpu":
                # A native network stays on the CPU; its module moves.
                net = module
            fitted = fitting.fit(net, train_loader, val_loader, ckpt_path=ckpt_path)
            path = fitted.best_model_path or fitted.last_model_path
            if ckpt_path is not None and self.world.agree(not path.is_file()):
                # There was nothing left to train.
                path = Path(ckpt_path)
            if self.is_first:
                load_weights(module, path)
            # The files may be on the machine of the first process alone.
            self.world.share_weights(module)
            metrics: dict[str, float] = {}
            if test_loader is not None:
                metrics |= fitting.test(net, test_loader)[0]
            metrics |= _summary(metrics, fitted, fitting.plan.monitor)
            # The test has recorded its own.
            added = {name: value for name, value in metrics.items() if not name.startswith("test/")}
            recorder.log_metrics(added, fitting.global_step)
            recorder.log_model(net, path.parent.parent / "model", "model")
        return {"run_id": run_id, "model_path": path, "metrics": metrics, "status": "FINISHED"}

    def describe(
        self,
        train_loader: Loader,
        val_loader: Loader | None = None,
        test_loader: Loader | None = None,
        *,
        ckpt_path: str | Path | None = None,
    ) -> str:
        """Return what a training would do, in words. The first batch runs through the network.

        Nothing is written or recorded.

        Args:
            train_loader: As for `train`.
            val_loader: As for `train`.
            test_loader: As for `train`.
            ckpt_path: As for `train`.
        """
        config, world = self.training_config, self.world
        if ckpt_path is not None:
            self._check_settings_of(Path(ckpt_path))
        plan = self._trainer(train_loader, val_loader, None).plan
        module, _ = bare(self._network(ckpt_path), plan)
        place = Place(plan)
        batches, steps = self._steps(train_loader)
        lines = [
            f"network: {self.backbone_name}",
            _display.summary(module),
            f"device: {place.device}, {config.precision}, {_counted(world.size, 'process', 'es')}",
        ]
        if ckpt_path is not None:
            lines.append(f"goes on from: {ckpt_path}")
        for part, loader in zip(_sessions.PARTS, (train_loader, val_loader, test_loader), strict=True):
            rows = self.sessions.get(part)
            told = "" if rows is None else f"{_counted(len(rows), 'recording')}, "
            batches_of = 0 if loader is None else _length(loader, None)
            lines.append(f"{part}: {told}{_counted(batches_of, 'batch', 'es')}")
        lines.append(
            f"steps: {steps} in {config.epochs} epochs of {batches} batches of a process, "
            f"{self._warmup(steps)} of warm-up, learning rate {config.learning_rate:g} ({config.schedule})"
        )
        place.put(module)
        batch = place.move(next(iter(train_loader)))
        module.eval()
        with torch.no_grad(), place.autocast():
            mean, sigma = module(batch[0])
        loss = gaussian_nll(mean.float(), sigma.float(), module.targets(batch[1]))
        metres = float(sigma.float().mean()) * module.position_scale_m
        lines.append(
            f"first batch: {tuple(batch[0].shape)} gives {tuple(mean.shape)}, loss {float(loss):.4g}, "
            f"sigma {metres:.0f} m"
        )
        return "\n".join(lines)

    # The parts of a training

    def _network(self, ckpt_path: str | Path | None) -> LocalizationNet | TorchLocalizationNet:
        config, goes_on = self.model_config, ckpt_path is not None
        settings: dict[str, Any] = {"seed": self.training_config.seed}
        if not goes_on:
            settings |= self._begins
        if self.origin is not None:
            settings["origin"] = self.origin
        if self._backbone is not None:
            settings |= {"freeze_backbone": config.freeze_backbone, "sigma_floor_m": config.sigma_floor_m}
            # Another training begins with the same weights.
            backbone = copy.deepcopy(self._backbone)
            net: TorchLocalizationNet = LocalizationNet(
                backbone, features=self._width_of(backbone), **settings
            )
            return net
        has_weights = goes_on or config.pretrained or self._begins["weights"] is not None
        if config.freeze_backbone and not has_weights:
            raise ConfigurationError(
                "freeze_backbone=True contradicts pretrained=False: the backbone would keep random weights"
            )
        # The checkpoint has the weights.
        return LocalizationNet.from_config(
            config.replace(pretrained=False) if goes_on else config, **settings
        )

    def _width_of(self, backbone: nn.Module) -> int:
        shape = (2, 3, self.model_config.n_mels, self.model_config.n_frames)
        was_training = backbone.training
        backbone.eval()
        with torch.no_grad():
            features = backbone(torch.zeros(shape))
        backbone.train(was_training)
        if not isinstance(features, torch.Tensor) or features.dim() != 2 or len(features) != 2:
            form = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InvalidInputError(f"the backbone must make {shape} to [rows, features], not to {form}")
        return int(features.shape[1])

    def _trainer(self, train_loader: Loader, val_loader: Loader | None, recorder: Recorder | None) -> Trainer:
        config, callbacks = self.training_config, self.setup_callbacks()
        kept = next((it for it in callbacks if isinstance(it, ModelCheckpoint)), None)
        stops = next((it for it in callbacks if isinstance(it, EarlyStopping)), None)
        others = [it for it in callbacks if not isinstance(it, (ModelCheckpoint, EarlyStopping))]
        if recorder is not None:
            others.append(_Settings(self._settings(), recorder))
        _, steps = self._steps(train_loader)
        is_validated = val_loader is not None
        return Trainer(
            tracker=self.mlflow_tracker if self.is_first else None,
            max_epochs=config.epochs,
            lr=config.learning_rate,
            min_lr=0.0 if config.schedule == "constant" else config.min_learning_rate,
            warmup_steps=self._warmup(steps),
            weight_decay=config.weight_decay,
            gradient_clip_val=config.clip_norm,
            patience=stops.patience if stops is not None and is_validated else None,
            save_top_k=kept.save_top_k if kept is not None and is_validated else 0,
            monitor=kept.monitor if kept is not None and is_validated else None,
            mode="max" if kept is not None and kept.mode == "max" else "min",
            seed=config.seed,
            default_root_dir=self.output_dir,
            enable_progress_bar=self._shows,
            accumulate_grad_batches=config.accumulate,
            callbacks=others,
            limit_train_batches=config.limit_batches,
            limit_val_batches=config.limit_batches,
            limit_test_batches=config.limit_batches,
            accelerator=config.device,
            precision=config.precision,
            schedule=config.schedule,  # type: ignore[arg-type]
            compile=config.compile,
        )

    def _steps(self, train_loader: Loader) -> tuple[int | None, int | None]:
        """Return the batches of an epoch in one process and the steps of the training, where known."""
        config = self.training_config
        shard = self.world.shard("train_loader", train_loader, True)
        batches = _length(shard, config.limit_batches)
        if batches is None:
            return None, None
        if batches == 0:
            raise ConfigurationError(
                f"limit_batches={config.limit_batches!r} leaves no batch of "
                f"{_length(shard, None)} to train on"
            )
        return batches, -(-batches // config.accumulate) * config.epochs

    def _warmup(self, steps: int | None) -> int:
        """Return the steps in which the learning rate rises."""
        config = self.training_config
        if config.warmup_steps is None:
            # A plateau begins at the highest rate.
            usual = 0 if steps is None or config.schedule == "plateau" else int(steps * WARMUP_SHARE)
            return min(self.model_config.warmup_steps, usual)
        if config.schedule == "plateau" and config.warmup_steps:
            raise ConfigurationError(
                f"warmup_steps={config.warmup_steps} contradicts schedule='plateau': it must be 0, or the "
                "schedule cosine or constant"
            )
        if steps is not None and config.warmup_steps >= steps:
            raise ConfigurationError(
                f"warmup_steps={config.warmup_steps} is not valid: it must be below {steps}, the steps of "
                "the training"
            )
        return config.warmup_steps

    def _params(self) -> dict[str, Any]:
        """Return the params besides those that the trainer records."""
        of_trainer = {field.name for field in dataclasses.fields(Plan)}
        config = self.training_config.to_dict()
        return {
            **{name: value for name, value in config.items() if name not in of_trainer},
            "backbone": self.backbone_name,
            "pretrained": self.model_config.pretrained and self._backbone is None,
            "freeze_backbone": self.model_config.freeze_backbone,
            **{f"data/{part}_sessions": len(names) for part, names in self.sessions.items()},
        }

    def _settings(self) -> dict[str, Any]:
        return {
            "training": self.training_config.to_dict(),
            "model": {**self.model_config.to_dict(), "backbone": self.backbone_name},
            "origin": self.origin,
            "sessions": self.sessions,
        }

    def _check_settings_of(self, checkpoint: Path) -> None:
        """Refuse recordings that are divided otherwise than in the training of a checkpoint."""
        if not checkpoint.is_file():
            raise CheckpointNotFoundError(f"the checkpoint {checkpoint} does not exist")
        file = checkpoint.absolute().parent.parent / SETTINGS_FILE
        if not file.is_file():
            return
        try:
            stored = dict(json.loads(file.read_text(encoding="utf-8"))["sessions"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{file} cannot be read as the settings of a training: {error}"
            ) from error
        for part in _sessions.PARTS if self.sessions and stored else ():
            before, now = set(stored.get(part, ())), set(self.sessions[part])
            if before != now:
                other = sorted(before ^ now)[:3]
                raise ConfigurationError(
                    f"the {part} sessions are others than those of the training of {checkpoint}, such as "
                    f"{', '.join(other)}: it goes on with the same {len(before)} sessions"
                )

    @contextmanager
    def _run(
        self, run_name: str | None, tags: Mapping[str, Any] | None, ckpt_path: str | Path | None
    ) -> Iterator[str | None]:
        """Start a run, or go on with that of a checkpoint, and end it as the training ends."""
        tracker = self.mlflow_tracker
        if tracker is None or not self.is_first:
            yield None
            return
        of_checkpoint = None if ckpt_path is None else run_of(Path(ckpt_path))
        run = begun(tracker, of_checkpoint, run_name=run_name, tags=tags)
        with ending(run):
            try:
                yield run.run_id
            except Exception as error:
                # The tracker must not hide the reason.
                with suppress(Exception):
                    run.set_tag("failure", f"{type(error).__name__}: {error}")
                raise


class _Settings:
    """Keeps the settings of a training beside its checkpoints."""

    def __init__(self, settings: dict[str, Any], recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder

    def on_fit_start(self, steps: Any, module: nn.Module) -> None:
        """Write and record them."""
        if steps.world.is_first:
            file = steps.checkpoints.folder.parent / SETTINGS_FILE
            file.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")
            self._recorder.log_artifact(file, "config")


def _counted(number: int | None, noun: str, ending: str = "s") -> str:
    """Return a number of things in words."""
    told = "some" if number is None else "no" if number == 0 else str(number)
    return f"{told} {noun}{'' if number == 1 else ending}"


def _summary(metrics: Mapping[str, float], fitted: ModuleFitResult, monitor: str | None) -> dict[str, float]:
    named = {"final_test_loss": metrics.get("test/loss"), "final_test_mae": metrics.get("test/mae")}
    losses = [epoch[MONITOR] for epoch in fitted.history if MONITOR in epoch]
    if monitor == MONITOR and fitted.best_model_score is not None:
        # A training that goes on may have been better before.
        losses.append(fitted.best_model_score)
    named["best_val_loss"] = min(losses, default=None)
    return {name: value for name, value in named.items() if value is not None}


def made_by(name: str, seed: int) -> nn.Module:
    """Return the module of torch that a function of the user's makes.

    Args:
        name: `package.module:function`; the package may be in the working directory. A module of torch may
            stand in place of the function.
        seed: Seed of its weights.

    Raises:
        ConfigurationError: There is no such function, or it makes something else.
    """
    package, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        made: Any = importlib.import_module(package)
        for part in attribute.split("."):
            made = getattr(made, part)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"backbone={name!r} cannot be found: {error}") from error
    if not isinstance(made, nn.Module):
        torch.manual_seed(seed)
        made = made()
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"backbone={name!r} must make a torch.nn.Module, not {type(made).__name__}")
    return made
