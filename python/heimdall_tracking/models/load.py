"""A model from its folder, without mlflow."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from .._optional import need
from ..errors import InvalidInputError, NotFoundError, PermissionDeniedError
from . import onnx, pytorch, safetensors
from .folder import MLMODEL, STATE_PTH, STATE_SAFETENSORS, inside, read_mlmodel
from .protocol import Downloader

Flavor = Literal["pytorch", "onnx"]
# One slash, as `mlflow-artifacts:` has it, is enough; a colon further back is part of a file's name.
URI = re.compile(r"(models|runs|mlflow-artifacts):|[A-Za-z][A-Za-z0-9+.-]+:/")


def load_source(
    source: str | PathLike[str],
    tracker: Callable[[], Downloader],
    module: Any,
    flavor: Flavor | None,
    device: Any,
    allow_pickle: bool | None,
) -> Any:
    """Load a model from a local folder, or from a URI by the tracker that `tracker` returns."""
    local = local_path(source)
    if local is not None:
        return load_folder(local, module, flavor, device, allow_pickle)
    with tempfile.TemporaryDirectory(prefix="heimdall-model-") as name:
        folder = Path(tracker().download_artifacts(fspath(source), dst=name))
        return load_folder(folder, module, flavor, device, allow_pickle)


def local_path(source: str | PathLike[str]) -> Path | None:
    """Return the path that a source is or that its `file:` URI names, or None where it has to be downloaded.

    Raises:
        InvalidInputError: A `file:` URI has no absolute path, or is of another host.
    """
    text = fspath(source)
    if text.startswith("file:"):
        path = text.removeprefix("file:").removeprefix("//").removeprefix("localhost")
        if not path.startswith("/"):
            raise InvalidInputError(f"{text!r} is not valid: write file:// and an absolute path")
        return Path(os.fsdecode(unquote_to_bytes(path)))
    return None if URI.match(text) else Path(text)


def load_folder(
    folder: Path, module: Any, flavor: Flavor | None, device: Any, allow_pickle: bool | None
) -> Any:
    """Load the model of a local folder: see `load_model`."""
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}")
    if module is not None:
        return _filled(module, load_state(folder), device)
    if not (folder / MLMODEL).is_file() and (folder / onnx.WEIGHTS).is_file():
        # The folder has the ONNX file alone, as an export without MLmodel leaves it.
        known: dict[str, Any] = {"onnx": {"data": onnx.WEIGHTS}}
    else:
        known = read_mlmodel(folder)["flavors"]
    chosen = flavor or next((name for name in ("pytorch", "onnx") if name in known), None)
    if chosen is None or chosen not in known:
        wanted = f"flavour {flavor!r}" if flavor else "flavour 'pytorch' or 'onnx'"
        raise NotFoundError(f"the model has no {wanted}; it has {', '.join(map(repr, known)) or 'none'}")
    if chosen == "onnx":
        return _load_onnx(inside(folder, known["onnx"]["data"]))
    config = known["pytorch"]
    if config.get("code"):
        _add_code(inside(folder, config["code"]), allow_pickle)
    return _load_pytorch(inside(folder, config["model_data"]), device, allow_pickle)


def _add_code(code: Path, allow_pickle: bool | None) -> None:
    """Make modules known that come with the model, as stock MLflow does."""
    _check_allowed(code, allow_pickle)
    # The copy stays to the end of the process: a later import reads it later.
    kept = tempfile.mkdtemp(prefix="heimdall-code-")
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    shutil.copytree(code, kept, dirs_exist_ok=True)
    sys.path.insert(0, kept)


def has_state(folder: Path) -> bool:
    """Return True where a model's folder has a state dict."""
    return any((folder / name).is_file() for name in (STATE_SAFETENSORS, STATE_PTH))


def load_state(folder: Path) -> dict[str, Any]:
    """Read the state dict of a model's folder; no code runs.

    Raises:
        NotFoundError: The folder has none.
    """
    if (folder / STATE_SAFETENSORS).is_file():
        return safetensors.load(folder / STATE_SAFETENSORS)
    if (folder / STATE_PTH).is_file():
        torch = need("torch", "load_model")
        state: dict[str, Any] = torch.load(folder / STATE_PTH, map_location="cpu", weights_only=True)
        return state
    raise NotFoundError(f"{folder} has no state dict: neither {STATE_SAFETENSORS} nor {STATE_PTH}")


def fill(module: Any, state: dict[str, Any]) -> None:
    """Give a module a state dict, whose names may have a prefix, as those of a Lightning checkpoint have.

    Raises:
        InvalidInputError: The module has other layers.
    """
    wanted = module.state_dict().keys()
    for prefix in _prefixes(state.keys(), wanted):
        named = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if named.keys() == wanted:
            state = named
            break
    try:
        module.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        raise InvalidInputError(f"the weights are not those of {type(module).__name__}: {error}") from error


def _prefixes(found: Any, wanted: Any) -> list[str]:
    """Return the prefixes that all the names may have: none, or that of one of them."""
    first = next(iter(wanted), "")
    ends = [name.removesuffix(first) for name in found if first and name.endswith(f".{first}")]
    return ["", *ends]


def _filled(module: Any, state: dict[str, Any], device: Any) -> Any:
    fill(module, state)
    return module.to(device).eval()


def _load_pytorch(data: Path, device: Any, allow_pickle: bool | None) -> Any:
    torch = need("torch", "load_model")
    file = data / pytorch.WEIGHTS
    exported = data / "model.pt2"
    if not file.is_file() and exported.is_file():
        # Stock MLflow 3 writes this file. Its parts are read by `torch.load`.
        _check_allowed(exported, allow_pickle)
        return torch.export.load(exported).module()
    if not file.is_file():
        raise NotFoundError(f"the model has no weights: there is no {file}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if _is_script(file):
            return torch.jit.load(str(file), map_location=device).eval()
    _check_allowed(file, allow_pickle)
    try:
        return torch.load(file, map_location=device, weights_only=False).eval()
    except ModuleNotFoundError as error:
        if error.name == "cloudpickle":
            need("cloudpickle", "loading this model")
        raise InvalidInputError(
            f"the model's class is in the module {error.name!r}, which is not installed: install it, or "
            "give a module of the same layers by load_model(…, module=…)"
        ) from error
    except (pickle.UnpicklingError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{file} cannot be unpickled: {error}") from error


def _is_script(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_allowed(file: Path, allow_pickle: bool | None) -> None:
    if allow_pickle is None:
        said = os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "")
        allow_pickle = said.lower() not in ("false", "0")
    if not allow_pickle:
        raise PermissionDeniedError(
            f"{file.name} runs code of the model, as pickles do, and they are not allowed: give a module of "
            "the same layers by load_model(…, module=…), which gets the weights alone"
        )


def _load_onnx(file: Path) -> Any:
    runtime = need("onnxruntime", "load_model of an ONNX network")
    if not file.is_file():
        raise NotFoundError(f"the model has no weights: there is no {file}")
    known = runtime.get_available_providers()
    return runtime.InferenceSession(str(file), providers=[name for name in onnx.PROVIDERS if name in known])


def config_of(folder: Path) -> dict[str, Any] | None:
    """Return the config that `heimdall_training.save_model` writes beside the weights; None without one."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return config if isinstance(config, dict) and {"receivers", "backbone"} & {*config} else None
