"""The folder that MLflow calls a model: the files beside the weights."""

from __future__ import annotations

import json
import math
import re
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from .._optional import need
from ..errors import InvalidInputError, NotFoundError

MLMODEL = "MLmodel"
REQUIREMENTS = "requirements.txt"
CONDA = "conda.yaml"
PYTHON_ENV = "python_env.yaml"
INPUT_EXAMPLE = "input_example.json"
SERVING_EXAMPLE = "serving_input_example.json"
STATE_SAFETENSORS = "state_dict.safetensors"
STATE_PTH = "state_dict.pth"


@dataclass(frozen=True)
class ModelInfo:
    """A model as it was logged, under MLflow's names.

    Attributes:
        model_uri: URI to load the model from: `runs:/<run id>/<artifact path>`.
        run_id: Run that the model was logged in.
        artifact_path: Folder among the run's artifacts.
        flavors: Flavours that the model can be loaded as, each with its options.
        signature: Inputs and outputs of the model as MLflow keeps them, `inputs` and `outputs` each a text
            of JSON; None without a signature.
        model_uuid: Id of this logged model alone.
        utc_time_created: Time at which the model was logged.
        metadata: Metadata given to `log_model`.
        registered_model_name: Name that the model is registered under, if it is.
        registered_model_version: Version under that name.
    """

    model_uri: str
    run_id: str
    artifact_path: str
    flavors: Mapping[str, Mapping[str, Any]]
    signature: Mapping[str, str | None] | None
    model_uuid: str
    utc_time_created: str
    metadata: Mapping[str, Any] | None = None
    registered_model_name: str | None = None
    registered_model_version: str | None = None


def finish(
    folder: Path,
    *,
    flavors: Mapping[str, Mapping[str, Any]],
    requirements: Sequence[str],
    run_id: str,
    artifact_path: str,
    signature: Mapping[str, str | None] | None,
    example: Mapping[str, str] | None,
    metadata: Mapping[str, Any] | None,
) -> ModelInfo:
    """Write the files that stock MLflow wants beside the weights: MLmodel and the environments."""
    python = "{}.{}.{}".format(*sys.version_info[:3])
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    conda = {
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": list(requirements)}],
        "name": "mlflow-env",
    }
    (folder / CONDA).write_text(yaml_text(conda), encoding="utf-8")
    environment = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": [f"-r {REQUIREMENTS}"],
    }
    (folder / PYTHON_ENV).write_text(yaml_text(environment), encoding="utf-8")
    # MLflow writes the time without its zone.
    created = str(datetime.now(timezone.utc).replace(tzinfo=None))
    model: dict[str, Any] = {
        "artifact_path": artifact_path,
        "flavors": flavors,
        "model_size_bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "model_uuid": uuid.uuid4().hex,
        "run_id": run_id,
        "utc_time_created": created,
    }
    if (mlflow := version_of("mlflow")) is not None:
        model["mlflow_version"] = mlflow
    if metadata:
        model["metadata"] = metadata
    if signature is not None:
        model["signature"] = signature
    if example is not None:
        model["saved_input_example_info"] = example
    (folder / MLMODEL).write_text(yaml_text(dict(sorted(model.items()))), encoding="utf-8")
    return ModelInfo(
        model_uri=f"runs:/{run_id}/{artifact_path}",
        run_id=run_id,
        artifact_path=artifact_path,
        flavors=flavors,
        signature=signature,
        model_uuid=model["model_uuid"],
        utc_time_created=created,
        metadata=metadata,
    )


def python_function(loader_module: str, data: str, **more: Any) -> dict[str, Any]:
    """Return the flavour by which `mlflow.pyfunc` loads the model."""
    return {
        "loader_module": loader_module,
        "data": data,
        "env": {"conda": CONDA, "virtualenv": PYTHON_ENV},
        "python_version": "{}.{}.{}".format(*sys.version_info[:3]),
        **more,
    }


def read_mlmodel(folder: Path) -> dict[str, Any]:
    """Read the MLmodel file of a folder.

    Raises:
        NotFoundError: The folder has no such file.
        InvalidInputError: MLflow would not read the file.
        MissingPackageError: PyYAML is not installed.
    """
    file = folder / MLMODEL
    if not file.is_file():
        raise NotFoundError(f"{folder} is no model: it has no file {MLMODEL}")
    yaml = need("yaml", "reading an MLmodel file")
    try:
        model = yaml.safe_load(file.read_text(encoding="utf-8"))
        flavors = model["flavors"]
        if not isinstance(flavors, dict):
            raise TypeError(f"flavors is a {type(flavors).__name__}")
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{file} is no MLmodel file: {error}") from error
    return dict(model)


def inside(folder: Path, relative: str) -> Path:
    """Return a path of a folder that an MLmodel file names, which must not lead out of it."""
    root = folder.resolve()
    path = (root / relative).resolve()
    if path != root and root not in path.parents:
        raise InvalidInputError(f"{folder / MLMODEL} names {relative!r}, which is outside the model's folder")
    return path


def version_of(distribution: str) -> str | None:
    """Return the version of a package that is installed, else None."""
    try:
        return installed.version(distribution)
    except installed.PackageNotFoundError:
        return None


def requirement(distribution: str) -> str:
    """Return the line of `requirements.txt` for a package: pinned where the package is installed here.

    The part behind a `+`, such as the CUDA that a torch is built for, is on no index.
    """
    version = version_of(distribution)
    return distribution if version is None else f"{distribution}=={version.partition('+')[0]}"


def distributions_of(modules: Iterable[str]) -> list[str]:
    """List the installed packages that modules belong to, by the modules' dotted names."""
    tops = {name.partition(".")[0] for name in modules}
    packages = _packages()
    return sorted({packages[top][0] for top in tops if packages.get(top)})


@cache
def _packages() -> Mapping[str, Sequence[str]]:
    # The call reads the metadata of all packages, which takes a second.
    return installed.packages_distributions()


def yaml_text(value: Mapping[str, Any]) -> str:
    """Return a dict as YAML. This needs no package, so that no trained model is lost for lack of one."""
    return "".join(f"{line}\n" for line in _yaml_lines(value, ""))


def _yaml_lines(value: Any, indent: str) -> Iterable[str]:
    entries: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping):
        entries = ((f"{_yaml_key(key)}:", item) for key, item in value.items())
    else:
        entries = (("-", item) for item in value)
    for start, item in entries:
        if isinstance(item, (Mapping, list, tuple)) and len(item):
            yield f"{indent}{start}"
            yield from _yaml_lines(item, indent + "  ")
        else:
            yield f"{indent}{start} {_yaml_scalar(item)}"


def _yaml_key(key: object) -> str:
    text = str(key)
    is_plain = re.fullmatch(r"[a-z_]{4,}", text) and text not in ("null", "true", "false")
    return text if is_plain else _yaml_scalar(text)


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, (list, tuple)):
        return "[]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
        text = repr(float(value))
        # Without a point, YAML 1.1 takes 1e-05 for a text.
        return text if "." in text else text.replace("e", ".0e")
    text = json.dumps(str(value), ensure_ascii=False)
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
