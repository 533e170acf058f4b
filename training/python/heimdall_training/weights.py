"""Weights of networks in files: of torchvision and of ours, as safetensors or as pickles of torch."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from heimdall_tracking.models import safetensors

from .errors import ArtifactNotFoundError, InvalidInputError, PretrainedWeightsNotFoundError
from .model_config import BackboneArchitecture, get_backbone_info

_URL = "https://download.pytorch.org/models/"
_SAFETENSORS = ".safetensors"
_BACKBONE = "backbone."


class Network(Protocol):
    """A network with a state dict, such as `LocalizationNet`, `RssLocalizationNet` and `torch.nn.Module`."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return all tensors by name."""

    def load_state_dict(self, state_dict: dict[str, Tensor], /) -> object:
        """Take over all tensors."""


def save_weights(net: Network, path: str | Path, *, backbone_only: bool = False) -> Path:
    """Write the weights of a network into a file.

    Args:
        net: The network.
        path: The file; it is written as safetensors if its name ends so, else by `torch.save`.
        backbone_only: Write the backbone alone, under torchvision's names, for
            `torchvision.models.convnext_tiny().load_state_dict(…, strict=False)`.

    Returns:
        The file.

    Raises:
        InvalidInputError: `backbone_only` of a network that has none.
    """
    tensors = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    if backbone_only:
        tensors = {
            name.removeprefix(_BACKBONE): it for name, it in tensors.items() if name.startswith(_BACKBONE)
        }
        if not tensors:
            raise InvalidInputError(f"the network must have a backbone, and {type(net).__name__} has none")
    file = Path(path)
    if file.suffix == _SAFETENSORS:
        safetensors.save(tensors, file)
    else:
        torch.save(tensors, file)
    return file


def load_weights(net: Network, path: str | Path) -> None:
    """Give a network the weights of a file.

    Args:
        net: The network.
        path: A file of safetensors, or of torch (read with `weights_only=True`): the state dict of this
            network, a checkpoint with it under `state_dict`, or the state dict of torchvision's network,
            whose layer for the classes of ImageNet is left out. The last changes the backbone alone.

    Raises:
        ArtifactNotFoundError: There is no such file.
        InvalidInputError: The file cannot be read, or a tensor is missing, strange or of another shape;
            nothing was changed in a native network.
    """
    file = Path(path)
    tensors = _read(file)
    try:
        if any(name.startswith(_BACKBONE) for name in tensors) or not _has_backbone(net):
            net.load_state_dict(tensors)
        else:
            _load_backbone(net, tensors)
    except (InvalidInputError, RuntimeError) as error:
        raise InvalidInputError(f"{file} does not fit {type(net).__name__}: {error}") from error


def find_pretrained(backbone: str | BackboneArchitecture, *, download: bool = False) -> Path:
    """Find torchvision's ImageNet weights in torch's cache, and check them.

    Args:
        backbone: The architecture or its name.
        download: Download what is not there.

    Raises:
        PretrainedWeightsNotFoundError: The file is not there, or cannot be downloaded.
        InvalidInputError: The file is another one: its SHA-256 does not begin as its name says.
    """
    name = BackboneArchitecture.of(backbone).value
    checkpoint = get_backbone_info(name).checkpoint
    file = Path(torch.hub.get_dir()) / "checkpoints" / checkpoint
    expected = file.stem.rpartition("-")[2]
    if not file.is_file():
        if not download:
            raise PretrainedWeightsNotFoundError(_missing(name, file))
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(_URL + checkpoint, str(file), expected, progress=False)
        except (OSError, RuntimeError) as error:
            raise PretrainedWeightsNotFoundError(f"{_missing(name, file)} (it failed: {error})") from error
        return file
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if not digest.hexdigest().startswith(expected):
        raise InvalidInputError(
            f"{file} is another file: its SHA-256 begins with {digest.hexdigest()[:8]} and must begin with "
            f"{expected}; delete it and get {_URL + checkpoint} again"
        )
    return file


def first_weights(
    name: str | None, pretrained: bool, weights: str | Path | None, download: bool
) -> Path | None:
    """Return the file that the arguments of a network name; None where it begins with random weights."""
    if pretrained and weights is not None:
        raise InvalidInputError("pretrained=True and weights=… exclude each other: both begin the network")
    if pretrained and name is not None:
        return find_pretrained(name, download=download)
    return None if weights is None else Path(weights)


def _missing(name: str, file: Path) -> str:
    return (
        f"the ImageNet weights of {name} are not at {file}: download {_URL + file.name} to this place, or "
        "give the path of the file by weights=…, or let download=True fetch it"
    )


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ArtifactNotFoundError(f"there is no file {file} to read weights from")
    if file.suffix == _SAFETENSORS:
        return safetensors.load(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read as weights of torch: {error}") from error
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(it, Tensor) for it in tensors.values()):
        raise InvalidInputError(f"{file} must hold a state dict, tensors by name")
    return dict(tensors)


def _has_backbone(net: Network) -> bool:
    return any(name.startswith(_BACKBONE) for name in net.state_dict())


def _load_backbone(net: Any, tensors: dict[str, Tensor]) -> None:
    if net.backbone_name is not None:
        head = get_backbone_info(net.backbone_name).head
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}
    if isinstance(net, nn.Module):
        # Modules of torch rename what older releases of torchvision have written.
        net.get_submodule("backbone").load_state_dict(tensors)
        return
    heads = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(_BACKBONE)}
    net.load_state_dict({**{_BACKBONE + name: tensor for name, tensor in tensors.items()}, **heads})
