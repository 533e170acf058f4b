"""Datasets as inputs of a run, without mlflow."""

from __future__ import annotations

import hashlib
import json
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from .errors import ArtifactNotFoundError, InvalidInputError, WrongTypeError

CONTEXT_TAG = "mlflow.data.context"
# Number of hexadecimal digits of a digest, as of MLflow's own.
DIGEST_LENGTH = 8
CHUNK = 1 << 20
TAG_KEY_LENGTH = 255
TAG_VALUE_LENGTH = 500


class Dataset:
    """A dataset that a run is given: its name, its source and its version.

    Args:
        source: Source of the dataset: a path, or a URI such as `s3://bucket/data.csv`.
        name: Name of the dataset, up to 500 characters; default the last part of `source`.
        data: Content that the digest is computed from: bytes, an array, or another object with a buffer.
            Without it, and without `digest`, the file or folder at `source` is read.
        digest: Text that tells versions of the dataset apart, up to 36 characters; default 8 digits of the
            MD5 of `data`.
        schema: Columns and types of the dataset, as anything that JSON has a form for.
        profile: Figures about the dataset, such as the number of rows, as anything that JSON has a form for.

    Raises:
        ArtifactNotFoundError: There is neither `data` nor `digest`, and no file at `source`.
        WrongTypeError: `data` has no bytes.

    Example:
        >>> dataset = Dataset("s3://measurements/july.csv", data=b"lat,lon,rss", profile={"rows": 0})
        >>> dataset
        Dataset(name='july.csv', digest='747a1232', source='s3://measurements/july.csv')
    """

    def __init__(
        self,
        source: str | PathLike[str],
        name: str | None = None,
        data: object = None,
        digest: str | None = None,
        schema: object = None,
        profile: object = None,
    ) -> None:
        self.source: str = fspath(source)
        self.name: str = name or Path(self.source).name or "dataset"
        self.digest: str = digest or _digest(self.source, data)
        self.schema = schema
        self.profile = profile

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that MLflow keeps, each a text; schema and profile only where they are given."""
        kind, place = _source(self.source)
        fields = {"name": self.name, "digest": self.digest, "source_type": kind, "source": json.dumps(place)}
        for field in ("schema", "profile"):
            value = getattr(self, field)
            if value is not None:
                fields[field] = value if isinstance(value, str) else json.dumps(value, default=str)
        return fields

    def __repr__(self) -> str:
        return f"Dataset(name={self.name!r}, digest={self.digest!r}, source={self.source!r})"


def _source(source: str) -> tuple[str, dict[str, str]]:
    """Type and content of a source, as MLflow's own sources of that type write them."""
    scheme, colon, rest = source.partition("://")
    if not colon:
        return "local", {"uri": str(Path(source).absolute())}
    if scheme in ("http", "https"):
        return "http", {"url": source}
    if scheme == "file":
        return "local", {"uri": rest}
    return scheme[:36], {"uri": source}


def _digest(source: str, data: object) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    if data is not None:
        digest.update(_buffer(data))
        return digest.hexdigest()[:DIGEST_LENGTH]
    path = Path(source.removeprefix("file://"))
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise ArtifactNotFoundError(
            f"dataset {source!r} is no file or folder here: give data or digest, so that its version is known"
        )
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _buffer(data: Any) -> bytes | memoryview:
    if isinstance(data, str):
        return data.encode()
    if hasattr(data, "detach"):
        data = data.detach().cpu().numpy()
    elif hasattr(data, "to_numpy"):
        data = data.to_numpy()
    # The same numbers in another shape or of another type are another dataset.
    label = f"{data.dtype}{data.shape}".encode() if hasattr(data, "dtype") else b""
    if label and data.dtype.kind == "O":
        return label + repr(data.tolist()).encode()
    try:
        return label + bytes(memoryview(data).cast("B")) if label else memoryview(data)
    except TypeError:
        if hasattr(data, "tobytes"):
            return label + bytes(data.tobytes())
        raise WrongTypeError(
            f"the digest of a dataset is computed from bytes or an array, not from {type(data).__name__}"
        ) from None


def fields(dataset: Any, context: str | None, tags: Any) -> dict[str, Any]:
    """Return the fields of an input, of a dataset of this package or of MLflow.

    Raises:
        WrongTypeError: `dataset` is no dataset.
    """
    if hasattr(dataset, "_to_mlflow_entity"):
        dataset = dataset._to_mlflow_entity()
    found = dataset.to_dict() if hasattr(dataset, "to_dict") else None
    if found is None:
        names = ("name", "digest", "source_type", "source", "schema", "profile")
        found = {name: getattr(dataset, name, None) for name in names}
    required = {field: found.get(field) for field in ("name", "digest", "source_type", "source")}
    if not all(isinstance(field, str) for field in required.values()):
        raise WrongTypeError(
            "a dataset must be a heimdall_tracking.Dataset or one of mlflow.data, not "
            f"{type(dataset).__name__}: it must have a name, a digest, a source type and a source"
        )
    all_tags = {CONTEXT_TAG: context} if context is not None else {}
    all_tags |= {key: value for key, value in dict(tags or {}).items() if key not in all_tags}
    optional = {field: found.get(field) or None for field in ("schema", "profile")}
    return {**required, **optional, "tags": all_tags}


def tags_with_room(tracker: Any, tags: Any, run_id: str) -> dict[str, str]:
    """Return the tags of an input that can be recorded; the others are noted. Long values are cut."""
    from ._data import pairs
    from ._spared import Spared

    found: dict[str, str] = {}
    with Spared(tracker, "input", "tags", run_id, tags):
        for key, value in pairs(tags or {}):
            with Spared(tracker, "input", key, run_id, value):
                text = str(value)[:TAG_VALUE_LENGTH]
                name = str(key)
                if len(name) > TAG_KEY_LENGTH or "\0" in name + text:
                    raise InvalidInputError(
                        f"the key {name[:100]!r} must have at most {TAG_KEY_LENGTH} characters, and no NUL"
                    )
                (name + text).encode()
                found[name] = text
    return found
