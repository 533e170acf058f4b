"""Tables as MLflow's UI compares them: a file of JSON or Parquet that rows are appended to."""

from __future__ import annotations

import io
import json
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from . import _images
from ._context import is_active
from ._optional import need
from ._places import local_folder
from .errors import (
    ArtifactError,
    ArtifactNotFoundError,
    InvalidInputError,
    StoreUnavailableError,
    WrongTypeError,
)

LOGGED_ARTIFACTS = "mlflow.loggedArtifacts"
FORBIDDEN = "\"',:[]{}"


class Tables:
    """The tables of a tracker's runs, as they were last logged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._content: dict[tuple[str, str], bytes] = {}
        # Tables of runs that have ended, which are in the store.
        self._forgotten: set[tuple[str, str]] = set()
        self._listed: dict[str, list[dict[str, str]]] = {}

    def _forget_ended(self, tracker: Any, but: str) -> None:
        """Forget the content of the tables of runs that are not active, except one run."""
        ended = {run_id for run_id, _ in self._content if run_id != but and not is_active(tracker, run_id)}
        gone = {key for key in self._content if key[0] in ended}
        for key in gone:
            del self._content[key]
        self._forgotten |= gone

    def _earlier(self, tracker: Any, run_id: str, artifact_file: str, before: Any) -> bytes | None:
        """Return the table that new rows are appended to."""
        key = (run_id, artifact_file)
        if key in self._content:
            return self._content[key]
        if key in self._forgotten or (before is not None and not is_active(tracker, run_id)):
            return _downloaded(tracker, run_id, artifact_file)
        if before is None:
            return None
        if local_folder(before.artifact_uri) is not None:
            return _artifact(before.artifact_uri, artifact_file)
        try:
            return _downloaded(tracker, run_id, artifact_file)
        except StoreUnavailableError as error:
            # The rows alone would replace those that are there. The training goes on without them.
            raise ArtifactError(f"the table {artifact_file!r} of the run cannot be read: {error}") from error

    def log(self, tracker: Any, run_id: str, data: Any, artifact_file: str) -> None:
        """Log rows: see `MLflowTracker.log_table`."""
        kind = PurePosixPath(artifact_file).suffix
        if kind not in (".json", ".parquet") or set(FORBIDDEN) & set(artifact_file):
            raise InvalidInputError(
                f"artifact file {artifact_file!r} cannot hold a table: it must end with .json or .parquet "
                f"and have none of {' '.join(FORBIDDEN)}"
            )
        tracker._check_artifact_file(artifact_file)
        frame = _frame(data)
        with self._lock:
            self._forget_ended(tracker, run_id)
            before = tracker._before(run_id)
            files: dict[str, bytes] = {}
            frame = _with_images(frame, artifact_file, files.__setitem__)
            earlier = self._earlier(tracker, run_id, artifact_file, before)
            if earlier is not None:
                rows = [_read(earlier, kind), frame]
                frame = need("pandas", "log_table").concat(rows, ignore_index=True)
            files[artifact_file] = content = _written(frame, kind)
            for path, file in files.items():
                tracker._log_bytes(file, path, run_id)
            self._content[run_id, artifact_file] = content
            if run_id not in self._listed:
                listed = before.tags.get(LOGGED_ARTIFACTS, "[]") if before else "[]"
                self._listed[run_id] = json.loads(listed)
            entry = {"path": artifact_file, "type": "table"}
            if entry not in self._listed[run_id]:
                self._listed[run_id].append(entry)
                tracker.set_tag(LOGGED_ARTIFACTS, json.dumps(self._listed[run_id]), run_id=run_id)


def _frame(data: Any) -> Any:
    pandas = need("pandas", "log_table")
    if isinstance(data, pandas.DataFrame):
        return data.copy(deep=False)
    if not isinstance(data, dict):
        raise WrongTypeError(f"a table must be a dict or a DataFrame of pandas, not {type(data).__name__}")
    try:
        return pandas.DataFrame(data)
    except ValueError:
        # The dict is one row, of values that are no lists.
        return pandas.DataFrame([data])


def _with_images(frame: Any, artifact_file: str, store: Callable[[str, bytes], None]) -> Any:
    """Replace images by entries that MLflow's UI finds them by; `store` gets their files."""
    folder = PurePosixPath("table_images", artifact_file).with_suffix("")

    def is_image(cell: Any) -> bool:
        parts = (getattr(cell, "save", None), getattr(cell, "resize", None))
        return all(map(callable, parts)) and hasattr(cell, "size")

    def stored(cell: Any) -> dict[str, str]:
        image = _images.as_pil(cell)
        path, small = (str(folder / f"{name}{end}") for name in [uuid.uuid4()] for end in (".png", ".webp"))
        store(path, _images.encoded(image, path))
        store(small, _images.encoded(_images.small(image), small))
        return {"type": "image", "filepath": path, "compressed_filepath": small}

    for column in frame.columns:
        if frame[column].dtype != object:
            continue
        images = [is_image(cell) for cell in frame[column]]
        if any(images) and not all(images):
            raise InvalidInputError(
                f"column {column!r} of the table has images and other things: separate them"
            )
        if any(images):
            frame[column] = frame[column].map(stored)
    return frame


def _written(frame: Any, kind: str) -> bytes:
    try:
        if kind == ".json":
            text: str = frame.to_json(orient="split", index=False, date_format="iso")
            return text.encode()
        need("pyarrow", "log_table to a .parquet file")
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue()
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInputError(f"the table cannot be written as {kind}: {error}") from error


def _read(content: bytes, kind: str) -> Any:
    pandas = need("pandas", "log_table")
    if kind == ".json":
        return pandas.read_json(io.BytesIO(content), orient="split")
    return pandas.read_parquet(io.BytesIO(content))


def _downloaded(tracker: Any, run_id: str, artifact_file: str) -> bytes | None:
    """Return a file of a run as the artifact store has it; None where there is none."""
    with tempfile.TemporaryDirectory(prefix="heimdall-") as folder:
        try:
            return Path(tracker.download_artifacts(run_id, artifact_file, folder)).read_bytes()
        except ArtifactNotFoundError:
            return None


def _artifact(artifact_uri: str, artifact_file: str) -> bytes | None:
    """Read a file of a run whose artifacts are in a local folder; None where there is no such file."""
    folder = local_folder(artifact_uri)
    file = folder and folder / artifact_file
    return file.read_bytes() if file and file.is_file() else None
