"""The settings of `heimdall train` and of `TrainingPipeline`, and their file. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ArtifactNotFoundError, ConfigurationError

SCHEDULES = ("cosine", "constant", "plateau")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
DEVICES = ("auto", "cpu", "cuda", "mps")
NORMALISATIONS = ("per_channel", "joint", "none")
COMPILERS = ("inductor", "aot_eager", "eager", "cudagraphs")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
# The largest seed that NumPy takes.
LARGEST_SEED = 2**32 - 1
# Names that these settings have elsewhere, which no spelling resembles.
ELSEWHERE = {
    "lr": "learning_rate",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "patience": "early_stopping_patience",
    "data_dir": "data",
    "accelerator": "device",
    "gradient_clip_val": "clip_norm",
    "accumulate_grad_batches": "accumulate",
    "validation_split": "val_split",
}
# Settings of `ModelConfig` and of the command.
NOT_HERE = ("backbone", "pretrained", "freeze_backbone", "output_dir", "run_name", "resume")


class Range(NamedTuple):
    """The values that a setting may have.

    Args:
        kind: `whole`, `number`, `choice`, `text`, `device`, `limit` or `compile`.
        words: The range for a message.
        least: Smallest value.
        above: Bound below all values.
        most: Largest value.
        below: Bound above all values.
        choices: The values of a choice.
        none: True where the setting may be left out by None.
    """

    kind: str
    words: str
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    none: bool = False

    def has(self, value: Any) -> bool:
        """Return True for a value in the range."""
        if value is None:
            return self.none
        if self.kind in ("whole", "number"):
            return _is_number(value, self.kind) and self._bounds(value)
        if self.kind == "limit":
            is_share = isinstance(value, float) and 0 < value <= 1
            return is_share or (_is_number(value, "whole") and value >= 1)
        if self.kind == "compile":
            return isinstance(value, bool) or value in self.choices
        if self.kind == "device":
            name, colon, number = str(value).partition(":")
            return name in DEVICES and (not colon or (name == "cuda" and number.isdecimal()))
        if self.kind == "choice":
            return value in self.choices
        return isinstance(value, str) and bool(value)

    def parse(self, text: str) -> Any:
        """Return the value that a text of the command line means.

        Raises:
            ValueError: It is out of the range, or means nothing.
        """
        value: Any = text
        if self.none and text.lower() == "none":
            return None
        if self.kind == "whole":
            value = int(text)
        elif self.kind == "number":
            value = float(text)
        elif self.kind == "limit":
            value = int(text) if text.isdecimal() else float(text)
        elif self.kind == "compile" and text.lower() in (*TRUE, *FALSE):
            value = text.lower() in TRUE
        if not self.has(value):
            raise ValueError
        return value

    def _bounds(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below


def _is_number(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind == "whole" else (int, float)):
        return False
    return math.isfinite(value)


def _whole(least: int, none: bool = False, most: float = math.inf) -> Range:
    words = f"a whole number from {least} on" if most == math.inf else f"a whole number, {least}…{most:.0f}"
    return Range("whole", words, least=least, most=most, none=none)


def _choice(choices: tuple[str, ...]) -> Range:
    return Range("choice", _one_of(choices), choices=choices)


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


RANGES: Mapping[str, Range] = {
    "learning_rate": Range("number", "a number above 0", above=0),
    "batch_size": _whole(2),
    "epochs": _whole(1),
    "weight_decay": Range("number", "a number from 0 on", least=0),
    "early_stopping_patience": _whole(1, none=True),
    "num_workers": _whole(0),
    "data": Range("text", "a folder of recordings", none=True),
    "val_split": Range("number", "a share between 0 and 1", above=0, below=1),
    "test_split": Range("number", "a share from 0 on and below 1", least=0, below=1),
    "site_radius_m": Range("number", "a length in metres from 0 on", least=0),
    "sample_rate": Range("number", "samples per second, above 0", above=0, none=True),
    "normalisation": _choice(NORMALISATIONS),
    "cache_dir": Range("text", "a folder", none=True),
    "schedule": _choice(SCHEDULES),
    "min_learning_rate": Range("number", "a number from 0 on, at most learning_rate", least=0),
    "warmup_steps": _whole(0, none=True),
    "accumulate": _whole(1),
    "clip_norm": Range("number", "a number above 0", above=0, none=True),
    "device": Range("device", "auto, cpu, cuda, cuda:<n> or mps"),
    "precision": _choice(PRECISIONS),
    "compile": Range("compile", f"true, false or {_one_of(COMPILERS)}", choices=COMPILERS),
    "seed": _whole(0, most=LARGEST_SEED),
    "limit_batches": Range("limit", "a number of batches from 1 on, or a share, 0…1", none=True),
    "save_top_k": _whole(1),
}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training, in a file and as flags of `heimdall train`.

    A setting can be read as an attribute and, as in the original's dict, by its key.

    Args:
        learning_rate: Highest learning rate of AdamW.
        batch_size: Recordings in a batch of one process, at least 2.
        epochs: Times the training recordings are gone through, at most.
        weight_decay: Weight decay.
        early_stopping_patience: Epochs without a better `val/loss` after which training stops; None never
            stops.
        num_workers: Threads that read recordings; 0 reads in the thread of the loop.
        data: Folder of the recordings.
        val_split: Share of the recordings that validates, 0…1 exclusive.
        test_split: Share of the recordings that tests, from 0 on and below 1.
        site_radius_m: Recordings of transmitters that are this close, in metres, are of one site and stay
            together.
        sample_rate: Samples per second of recordings whose metadata has none.
        normalisation: That of `mel_spectrogram`.
        cache_dir: Folder that keeps the features; None computes them anew in each epoch.
        schedule: `cosine` falls to `min_learning_rate` over all steps, `constant` stays, `plateau` takes a
            tenth after 10 epochs without a better `val/loss`.
        min_learning_rate: Learning rate at the end of the cosine.
        warmup_steps: Steps in which the learning rate rises; None is that of the model's settings, at most
            5 % of all steps.
        accumulate: Batches whose gradients are averaged for one step.
        clip_norm: Bound on the norm of the whole gradient; None is no bound.
        device: `auto` (CUDA, else Apple's GPU, else the CPU), `cpu`, `cuda`, `cuda:<n>` or `mps`.
        precision: `32-true`, `64-true`, `bf16-mixed` or `16-mixed`.
        compile: True compiles the network by `torch.compile`; a text names the backend.
        seed: Decides the split, the first weights, the order of the recordings and dropout.
        limit_batches: Batches of an epoch, as a number or, as a float, as a share; None is all. Also of a
            validation and of the test.
        save_top_k: Checkpoints to keep besides the last one.

    Raises:
        ConfigurationError: A value is out of range, or two contradict each other; the message has the
            setting, the value and the range.
    """

    learning_rate: float = 1e-3
    batch_size: int = 32
    epochs: int = 100
    weight_decay: float = 1e-5
    early_stopping_patience: int | None = 5
    num_workers: int = 4
    data: str | None = None
    val_split: float = 0.2
    test_split: float = 0.1
    site_radius_m: float = 50.0
    sample_rate: float | None = None
    normalisation: str = "per_channel"
    cache_dir: str | None = None
    schedule: str = "cosine"
    min_learning_rate: float = 1e-6
    warmup_steps: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    device: str = "auto"
    precision: str = "32-true"
    compile: bool | str = False
    seed: int = 0
    limit_batches: int | float | None = None
    save_top_k: int = 3

    def __post_init__(self) -> None:
        for name in ("data", "cache_dir"):
            value = getattr(self, name)
            if isinstance(value, PathLike):
                object.__setattr__(self, name, str(Path(value)))
        for name in RANGES:
            check_setting(name, getattr(self, name))
        if self.min_learning_rate > self.learning_rate:
            raise ConfigurationError(
                f"min_learning_rate={self.min_learning_rate!r} contradicts "
                f"learning_rate={self.learning_rate!r}: it must be at most that"
            )
        if self.val_split + self.test_split >= 1:
            raise ConfigurationError(
                f"val_split={self.val_split!r} and test_split={self.test_split!r} contradict each other: "
                "together they must be below 1, as the rest is for training"
            )
        if self.precision == "64-true" and self.device == "mps":
            raise ConfigurationError("precision='64-true' contradicts device='mps', which has no 64 bits")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """Read settings; those that are missing have their defaults.

        Raises:
            ConfigurationError: There is no setting of a name, or a value is out of range.
        """
        for name in settings:
            if name not in RANGES:
                raise _unknown(name)
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for `from_dict`, JSON or `log_params`."""
        return dataclasses.asdict(self)

    def replace(self, **settings: Any) -> TrainingConfig:
        """Return the settings with some of them changed.

        Raises:
            ConfigurationError: There is no setting of a name, or a value is out of range.
        """
        return self.from_dict({**self.to_dict(), **settings})

    def __getitem__(self, name: str) -> Any:
        if name not in RANGES:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(RANGES)

    def keys(self) -> Iterable[str]:
        """Return the names of the settings."""
        return RANGES.keys()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, or the default where there is none of that name."""
        return getattr(self, name) if name in RANGES else default


def load_training_config(path: str | PathLike[str] | None = None) -> TrainingConfig:
    """Read the settings of a training from a file of JSON or, by its name .yaml or .yml, of YAML.

    Args:
        path: The file; None is the defaults.

    Raises:
        ArtifactNotFoundError: There is no such file.
        ConfigurationError: It is no object of JSON, has a setting twice or one that does not exist, or a
            value is out of range.
        MissingPackageError: It is one of YAML, and PyYAML is not installed.

    Example:
        >>> from heimdall_tracking.training import load_training_config
        >>> load_training_config().early_stopping_patience
        5
    """
    if path is None:
        return TrainingConfig()
    settings = read_settings(path)
    try:
        return TrainingConfig.from_dict(settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"{Path(path)}: {error}") from error


def read_settings(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the settings of a file, as they are written there.

    Raises:
        ArtifactNotFoundError: There is no such file.
        ConfigurationError: It is no object of JSON, or has a setting twice.
        MissingPackageError: It is one of YAML, and PyYAML is not installed.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ArtifactNotFoundError(
            f"there is no file {file}: it must be one of settings, as JSON"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    found = _of_yaml(file, text) if file.suffix in (".yaml", ".yml") else _of_json(file, text)
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} must be an object of settings, not {type(found).__name__}")
    return found


def _of_json(file: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"{file} has the setting {name!r} twice: it must be there once")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{file} is no JSON: {error}") from error


def _of_yaml(file: Path, text: str) -> Any:
    from .._optional import need

    yaml = need("yaml", "a configuration file of YAML")
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file} is no YAML: {error}") from error
    if not isinstance(found, dict):
        return found
    # YAML takes 1e-3 for a text, as it has no dot.
    return {name: _number_of(value) if _is_numeric(name) else value for name, value in found.items()}


def _is_numeric(name: Any) -> bool:
    return name in RANGES and RANGES[name].kind == "number"


def _number_of(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def truth_of(text: str) -> bool:
    """Return the truth value that a text means.

    Raises:
        ValueError: It is neither true, yes and 1 nor false, no and 0.
    """
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError(text)


def close_to(name: str, names: Iterable[str]) -> str | None:
    """Return the name that a mistyped one resembles, or None."""
    from difflib import get_close_matches

    names = [*names]
    begun = [it for it in names if len(name) > 1 and it.startswith(name)]
    return next(iter(get_close_matches(name, names, n=1) or begun), None)


def check_setting(name: str, value: Any) -> None:
    """Refuse a setting that does not exist, or a value out of its range.

    Raises:
        ConfigurationError: The message has the setting, the value and the range.
    """
    if name not in RANGES:
        raise _unknown(name)
    allowed = RANGES[name]
    if allowed.has(value):
        return
    meant = close_to(value, allowed.choices) if isinstance(value, str) and allowed.choices else None
    or_none = " or None" if allowed.none else ""
    hint = "" if meant is None else f"; did you mean {meant!r}?"
    range_of = allowed.words + or_none + hint
    raise ConfigurationError(f"{name}={value!r} is not valid: it must be {range_of}")


def _unknown(name: Any) -> ConfigurationError:
    begin = f"there is no setting {name!r}"
    if name in NOT_HERE:
        return ConfigurationError(
            f"{begin} of a training: it is given by --{name.replace('_', '-')}, or by ModelConfig"
        )
    meant = ELSEWHERE.get(name) or close_to(str(name), RANGES)
    if meant is not None:
        return ConfigurationError(f"{begin}; did you mean {meant!r}?")
    return ConfigurationError(f"{begin}: it must be {_one_of(RANGES)}")
