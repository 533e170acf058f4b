"""`heimdall train`: a training on recordings as a run. Torch is imported once the flags are read."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactNotFoundError, ConfigurationError, HeimdallError, MissingPackageError
from ..training.config import RANGES, Range, TrainingConfig, check_setting, close_to, read_settings, truth_of

if TYPE_CHECKING:
    from heimdall_training.pipeline import TrainingPipeline

    from ..tracker import MLflowTracker

BACKBONE, PRETRAINED, FROZEN = "CONVNEXT_LARGE", True, False
OUTPUTS = "./outputs"
STOPPED = 128 + signal.SIGTERM
# File beside the checkpoints with the settings of their training.
SETTINGS_FILE = "training.json"
# Settings that a training that goes on cannot change: it would be another one.
FIXED = (
    "batch_size",
    "learning_rate",
    "weight_decay",
    "min_learning_rate",
    "warmup_steps",
    "accumulate",
    "seed",
    "schedule",
    "precision",
    "val_split",
    "test_split",
    "site_radius_m",
    "normalisation",
)
# Flag, setting and help. The order is that of the help.
FLAGS = (
    ("--data", "data", "folder of the recordings: <split>/<session>_iq.npy, or sessions to be split"),
    ("--learning-rate", "learning_rate", "highest learning rate"),
    ("--batch-size", "batch_size", "recordings in a batch of one process"),
    ("--epochs", "epochs", "times the recordings are gone through, at most"),
    ("--weight-decay", "weight_decay", "weight decay"),
    ("--early-stopping-patience", "early_stopping_patience", "epochs without a better val/loss, or none"),
    ("--warmup-steps", "warmup_steps", "steps in which the learning rate rises"),
    ("--schedule", "schedule", "learning rate"),
    ("--min-learning-rate", "min_learning_rate", "learning rate at the end of the cosine"),
    ("--accumulate", "accumulate", "batches whose gradients are averaged for one step"),
    ("--clip-norm", "clip_norm", "bound on the norm of the gradient"),
    ("--device", "device", "auto, cpu, cuda, cuda:<n> or mps"),
    ("--precision", "precision", "numbers of the network"),
    ("--seed", "seed", "seed of split, weights, order and dropout"),
    ("--limit-batches", "limit_batches", "batches of an epoch, as a number or as a share such as 0.1"),
    ("--num-workers", "num_workers", "threads that read recordings"),
    ("--sample-rate", "sample_rate", "samples per second of recordings whose metadata has none"),
    ("--cache-dir", "cache_dir", "folder that keeps the features"),
    ("--val-split", "val_split", "share of the recordings that validates"),
    ("--test-split", "test_split", "share of the recordings that tests"),
    ("--site-radius-m", "site_radius_m", "metres within which recordings are of one site"),
    ("--normalisation", "normalisation", "what the spectrograms keep of levels"),
    ("--save-top-k", "save_top_k", "best checkpoints that are kept"),
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        description=(
            "Train the network for positions on recordings, test its best checkpoint, and record both as one "
            "run. Flags win over the file of --config, which wins over the defaults. In several processes: "
            "torchrun --nproc-per-node 2 -m heimdall_tracking.train ..."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="CONVNEXT_TINY/SMALL/MEDIUM/LARGE, RESNET_50/101, VIT_BASE/LARGE, EFFICIENTNET_B3/B4, or "
        f"package.module:function that makes a module of torch; default {BACKBONE}",
    )
    _add_truth(parser, "--pretrained", "begin with ImageNet's weights; default true, of a module false")
    _add_truth(parser, "--freeze-backbone", "train the heads alone; default false")
    parser.add_argument("--weights", metavar="FILE", help="begin with the weights of a file, not ImageNet's")
    parser.add_argument(
        "--download", action="store_true", help="download ImageNet's weights that are not in torch's cache"
    )
    defaults = TrainingConfig()
    for flag, name, text in FLAGS:
        default = defaults[name]
        text += "" if default is None else f"; default {default}"
        parser.add_argument(
            flag,
            dest=name,
            type=_parser_of(RANGES[name]),
            metavar=_metavar(name),
            help=text,
            default=argparse.SUPPRESS,
        )
    parser.add_argument(
        "--compile",
        nargs="?",
        const=True,
        type=_parser_of(RANGES["compile"]),
        metavar="BACKEND",
        default=argparse.SUPPRESS,
        help="compile the network by torch.compile; a backend, or true or false",
    )
    parser.add_argument("--config", metavar="FILE", help="settings as JSON, such as training_config.json")
    parser.add_argument("--output-dir", metavar="FOLDER", help=f"folder of checkpoints; default {OUTPUTS}")
    parser.add_argument("--run-name", metavar="NAME", help="name of the run; default the prefix and the time")
    parser.add_argument(
        "--resume",
        metavar="PATH",
        help="checkpoint to go on from, in its run and with its settings; last is the newest of --output-dir",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and record and write nothing")
    options = [option for action in parser._actions for option in action.option_strings]
    parser.set_defaults(run=run, stays="--resume last goes on from the last checkpoint", options=options)


def run(given: argparse.Namespace) -> int:
    """Train, and return the exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    with _sigterm_ends_the_run():
        try:
            return _train(given)
        except SystemExit as end:
            if end.code != STOPPED:
                raise
            print(f"heimdall: terminated; {given.stays}", file=sys.stderr)
            return STOPPED
        except OSError as error:
            if isinstance(error, (HeimdallError, BrokenPipeError)):
                raise
            print(f"heimdall: {error}", file=sys.stderr)
            return 1


def _train(given: argparse.Namespace) -> int:
    checkpoint = _checkpoint(given)
    stored = None if checkpoint is None else _stored(checkpoint)
    config = _config(given, stored)
    backbone, pretrained, frozen = _network(given, stored)
    if config.data is None:
        raise ConfigurationError(
            "data is missing: name the folder of the recordings by --data, or in the file"
        )
    if not Path(config.data).is_dir():
        raise ArtifactNotFoundError(f"data={config.data!r} is no folder: it must be one of recordings")
    if given.dry_run:
        config = config.replace(cache_dir=None)
    pipeline = _pipeline(given, config, backbone, pretrained, frozen)
    loaders = pipeline.setup_data_loaders(None, config.val_split, config.test_split)
    if given.dry_run:
        if pipeline.is_first:
            print(pipeline.describe(*loaders, ckpt_path=checkpoint))
        return 0
    if pipeline.is_first:
        pipeline.mlflow_tracker = _tracker()
    result = pipeline.train(*loaders, run_name=given.run_name, ckpt_path=checkpoint)
    if pipeline.is_first:
        for name, value in result["metrics"].items():
            print(f"{name:<28} {value:.6g}")
        print(f"run {result['run_id']} {result['status']}, best checkpoint {result['model_path']}")
    return 0


def _pipeline(
    given: argparse.Namespace, config: TrainingConfig, backbone: str, pretrained: bool, frozen: bool
) -> TrainingPipeline:
    try:
        from ..training import ModelConfig, TrainingPipeline
    except ImportError as error:
        raise MissingPackageError(f"heimdall train: {error}") from error
    model: dict[str, Any] = {"pretrained": pretrained, "freeze_backbone": frozen}
    module = None
    if ":" in backbone:
        from heimdall_training.pipeline import made_by

        module = made_by(backbone, config.seed)
        model["pretrained"] = False
    else:
        model["backbone"] = backbone
    folder = given.output_dir or OUTPUTS
    pipeline = TrainingPipeline(
        None,
        ModelConfig.from_dict(model),
        config,
        folder,
        backbone=module,
        weights=given.weights,
        download=given.download,
    )
    pipeline.backbone_name = backbone
    return pipeline


def _tracker() -> MLflowTracker:
    """Make the tracker of the settings, and say where it records."""
    from .. import _environment, _native
    from .._plain_settings import DEFAULTS, found
    from ..settings import initialize_mlflow

    uri, names = found().get("mlflow_tracking_uri", (DEFAULTS["mlflow_tracking_uri"], ()))
    places = [place for name in names if (place := _environment.place(name))]
    source = ", ".join(dict.fromkeys(places)) or "the default; MLFLOW_TRACKING_URI names another store"
    print(f"heimdall: recording into {_native.without_credentials(uri)} ({source})", file=sys.stderr)
    return initialize_mlflow()


# Flags and files


def _config(given: argparse.Namespace, stored: dict[str, Any] | None) -> TrainingConfig:
    """Join defaults, settings of the checkpoint's training, those of the file, and flags."""
    before = {} if stored is None else dict(stored["training"])
    of_file = {} if given.config is None else read_settings(given.config)
    flags = {name: getattr(given, name) for name in RANGES if hasattr(given, name)}
    for name, value in of_file.items():
        try:
            check_setting(name, value)
        except ConfigurationError as error:
            raise ConfigurationError(f"{given.config}: {error}") from error
    config = TrainingConfig.from_dict({**before, **of_file, **flags})
    for name in FIXED:
        if name in before and config[name] != before[name]:
            raise ConfigurationError(
                f"{name}={config[name]!r} contradicts --resume: the training of the checkpoint has "
                f"{before[name]!r}, and goes on with it"
            )
    device = config.device
    if ":" in device and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigurationError(
            f"device={device!r} contradicts {os.environ['WORLD_SIZE']} processes of torchrun: "
            "each takes a device of its own with device='cuda'"
        )
    return config


def _network(given: argparse.Namespace, stored: dict[str, Any] | None) -> tuple[str, bool, bool]:
    """Return backbone, whether it begins with ImageNet's weights, and whether it is frozen."""
    before = {} if stored is None else stored["model"]
    backbone = given.backbone or before.get("backbone", BACKBONE)
    frozen = before.get("freeze_backbone", FROZEN) if given.freeze_backbone is None else given.freeze_backbone
    is_module = ":" in backbone
    if is_module and given.pretrained:
        raise ConfigurationError(
            f"--pretrained true contradicts --backbone {backbone}: ImageNet's weights are of named backbones"
        )
    if stored is not None:
        for name, now in (("backbone", backbone), ("freeze_backbone", frozen)):
            if _plain(now) != _plain(before[name]):
                raise ConfigurationError(
                    f"{name}={now!r} contradicts --resume: the network of the checkpoint has {before[name]!r}"
                )
        if given.pretrained or given.weights is not None:
            raise ConfigurationError(
                f"{'--pretrained true' if given.pretrained else '--weights'} contradicts --resume: "
                "the checkpoint has the weights"
            )
        return before["backbone"], False, frozen
    if given.weights is not None:
        if given.pretrained:
            raise ConfigurationError("--weights contradicts --pretrained true: both begin the network")
        return backbone, False, frozen
    pretrained = not is_module and (PRETRAINED if given.pretrained is None else given.pretrained)
    if given.download and not pretrained:
        raise ConfigurationError("--download contradicts --pretrained false: ImageNet's weights are not used")
    if frozen and not pretrained and not is_module:
        raise ConfigurationError(
            "--freeze-backbone true contradicts --pretrained false: the backbone would keep random weights"
        )
    return backbone, pretrained, frozen


def _plain(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _checkpoint(given: argparse.Namespace) -> Path | None:
    """Return the checkpoint to go on from."""
    if given.resume is None:
        return None
    if given.run_name is not None:
        raise ConfigurationError("--run-name contradicts --resume: the run of the checkpoint goes on")
    if given.resume != "last":
        path = Path(given.resume)
        if not path.is_file():
            raise ArtifactNotFoundError(f"--resume {path}: there is no such checkpoint")
        return path
    folder = Path(given.output_dir or OUTPUTS)
    found = sorted(folder.glob("version_*/checkpoints/last.ckpt"), key=lambda it: it.stat().st_mtime_ns)
    if not found:
        raise ArtifactNotFoundError(
            f"--resume last: there is no checkpoint {folder}/version_*/checkpoints/last.ckpt"
        )
    return found[-1]


def _stored(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of the training of a checkpoint."""
    file = checkpoint.absolute().parent.parent / SETTINGS_FILE
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {"training": dict(stored["training"]), "model": dict(stored["model"])}
    except FileNotFoundError as error:
        raise ArtifactNotFoundError(
            f"--resume {checkpoint}: there is no {file}, in which heimdall train keeps the settings"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file} cannot be read as the settings of a training: {error}") from error


def _parser_of(allowed: Range) -> Any:
    def parse(text: str) -> Any:
        try:
            return allowed.parse(text)
        except ValueError:
            or_none = " or none" if allowed.none else ""
            meant = close_to(text, allowed.choices) if allowed.choices else None
            hint = "" if meant is None else f"; did you mean {meant}?"
            raise argparse.ArgumentTypeError(
                f"it must be {allowed.words}{or_none}, not {text!r}{hint}"
            ) from None

    return parse


def _add_truth(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    def parse(given: str) -> bool:
        try:
            return truth_of(given)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"it must be true, yes or 1, or false, no or 0, not {given!r}"
            ) from None

    parser.add_argument(flag, type=parse, metavar="true|false", help=text)


def _metavar(name: str) -> str:
    allowed = RANGES[name]
    names = {"whole": "N", "number": "X", "limit": "N", "device": "NAME", "text": "FOLDER"}
    return names.get(allowed.kind) or "|".join(allowed.choices)


@contextmanager
def _sigterm_ends_the_run() -> Iterator[None]:
    """Turn SIGTERM into an exit that run and checkpoint see; a program that is deaf to it stays so."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(STOPPED)

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
