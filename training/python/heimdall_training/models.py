"""A trained network as a folder that can be registered, moved and used again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ._native import NOT_HEARD_DBM, RssLocalizationNet
from .errors import ArtifactNotFoundError, InvalidInputError

_CONFIG = "config.json"
_WEIGHTS = "weights.pt"
_FORMAT = "heimdall-rss-localization"


def save_model(model: RssLocalizationNet, path: str | Path) -> Path:
    """Write a network into a folder.

    Args:
        model: The network.
        path: The folder; made if it is not there, files of the same name are replaced.

    Returns:
        The folder, with `weights.pt` (the state dict, for `torch.load(weights_only=True)`) and
        `config.json`: the receivers in the order of the inputs, the origin of the map, the scales
        that inputs and outputs are divided by, and the layers.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    latitude, longitude = model.origin
    config: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": 1,
        "not_heard_dbm": NOT_HEARD_DBM,
        "origin": {"lat": latitude, "lon": longitude},
        **model.hyper_parameters,
        "receivers": [{"id": id, "lat": lat, "lon": lon} for id, lat, lon in model.receivers],
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    torch.save(model.state_dict(), folder / _WEIGHTS)
    return folder


def load_model(path: str | Path) -> RssLocalizationNet:
    """Read a network that `save_model` or `Trainer.test` wrote, for example the `model` artifact of a run.

    Args:
        path: The folder.

    Returns:
        The network, ready to `predict`.

    Raises:
        ArtifactNotFoundError: The folder, or one of its two files, does not exist.
        InvalidInputError: The folder holds something else.
    """
    folder = Path(path)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactNotFoundError(f"{folder} is no saved model: it has no {name}")
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if config.get("format") != _FORMAT or config.get("format_version") != 1:
        found = f"{config.get('format')!r} version {config.get('format_version')!r}"
        raise InvalidInputError(f"{folder / _CONFIG} describes {found}, not {_FORMAT!r} version 1")
    receivers = [(receiver["id"], receiver["lat"], receiver["lon"]) for receiver in config["receivers"]]
    settings = (
        "hidden",
        "dropout",
        "head_dropout",
        "rss_scale_db",
        "position_scale_m",
        "sigma_floor_m",
        "sigma_init_m",
        "seed",
    )
    model = RssLocalizationNet(receivers, **{name: config[name] for name in settings})
    model.load_state_dict(torch.load(folder / _WEIGHTS, weights_only=True, map_location="cpu"))
    return model
