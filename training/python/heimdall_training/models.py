"""A trained network as a folder that can be registered, moved and used again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ._native import NOT_HEARD_DBM, RssLocalizationNet
from .errors import ArtifactNotFoundError, InvalidInputError
from .localization_net import LocalizationNet
from .torch_net import TorchLocalizationNet
from .weights import load_weights

_CONFIG = "config.json"
_WEIGHTS = "weights.pt"
_FORMAT = "heimdall-rss-localization"
_OF_SPECTROGRAMS = "heimdall-localization"
# Files of weights, in the order in which they are looked for; a tracker writes the last.
_ALL_WEIGHTS = (_WEIGHTS, "state_dict.safetensors")
Network = RssLocalizationNet | LocalizationNet | TorchLocalizationNet


def save_model(model: Network, path: str | Path, *, weights: bool = True) -> Path:
    """Write a network into a folder.

    Args:
        model: The network.
        path: The folder; made if it is not there, files of the same name are replaced.
        weights: False writes `config.json` alone, for a folder that has the weights already.

    Returns:
        The folder, with `weights.pt` (the state dict, for `torch.load(weights_only=True)`) and
        `config.json`: the origin of the map, the scales that inputs and outputs are divided by, the layers or
        the backbone, and for powers the receivers in the order of the inputs.

    Raises:
        InvalidInputError: The backbone is a module of yours, of which a file can tell nothing.
    """
    config = _config(model)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if weights:
        torch.save(dict(model.state_dict()), folder / _WEIGHTS)
    return folder


def load_model(path: str | Path) -> Any:
    """Read a network that `save_model` or `Trainer.test` wrote, for example the `model` artifact of a run.

    Args:
        path: The folder.

    Returns:
        The network, ready to `predict`: an `RssLocalizationNet`, `LocalizationNet` or `TorchLocalizationNet`.

    Raises:
        ArtifactNotFoundError: The folder, or one of its two files, does not exist.
        InvalidInputError: The folder holds something else.
    """
    folder = Path(path)
    weights = next((folder / name for name in _ALL_WEIGHTS if (folder / name).is_file()), folder / _WEIGHTS)
    for file in (folder / _CONFIG, weights):
        if not file.is_file():
            raise ArtifactNotFoundError(f"{folder} is no saved model: it has no {file.name}")
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    kind, version = config.get("format"), config.get("format_version")
    if kind not in (_FORMAT, _OF_SPECTROGRAMS) or version != 1:
        found = f"{kind!r} version {version!r}"
        raise InvalidInputError(
            f"{folder / _CONFIG} describes {found}, not {_FORMAT!r} or {_OF_SPECTROGRAMS!r} version 1"
        )
    model = make_model(config)
    load_weights(model, weights)
    if isinstance(model, TorchLocalizationNet):
        model.eval()
    return model


def is_described(model: Network) -> bool:
    """Tell whether a file can describe the network: not where its backbone is a module of somebody else."""
    return not isinstance(model, TorchLocalizationNet) or model.backbone_name is not None


def make_model(config: Mapping[str, Any]) -> Any:
    """Make a network of the settings that `config.json` or a checkpoint has, with first weights."""
    given = dict(config)
    if isinstance(given.get("origin"), Mapping):
        given["origin"] = (given["origin"]["lat"], given["origin"]["lon"])
    if "receivers" not in given:
        return LocalizationNet(**{name: given[name] for name in _SETTINGS if name in given})
    receivers = [(receiver["id"], receiver["lat"], receiver["lon"]) for receiver in given["receivers"]]
    return RssLocalizationNet(receivers, **{name: given[name] for name in _RSS_SETTINGS})


_OUTPUT_SETTINGS = ("head_dropout", "position_scale_m", "sigma_floor_m", "sigma_init_m", "seed")
_RSS_SETTINGS = ("hidden", "dropout", "rss_scale_db", *_OUTPUT_SETTINGS)
_SETTINGS = ("backbone", "freeze_backbone", "stochastic_depth", "origin", *_OUTPUT_SETTINGS)


def _config(model: Network) -> dict[str, Any]:
    if not is_described(model):
        raise InvalidInputError(
            "a network on a module of yours cannot be saved so that it is made again: save its weights by "
            "save_weights"
        )
    settings = model.hyper_parameters
    if isinstance(model, RssLocalizationNet):
        latitude, longitude = model.origin
        settings = {"not_heard_dbm": NOT_HEARD_DBM, **settings}
        settings["receivers"] = [{"id": id, "lat": lat, "lon": lon} for id, lat, lon in model.receivers]
    else:
        latitude, longitude = settings["origin"]
    kind = _FORMAT if isinstance(model, RssLocalizationNet) else _OF_SPECTROGRAMS
    origin = {"lat": latitude, "lon": longitude}
    return {"format": kind, "format_version": 1, **settings, "origin": origin}
