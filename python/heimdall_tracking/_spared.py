"""Artifacts and inputs that cannot be logged: they cost themselves alone, or raise in a strict tracker."""

from __future__ import annotations

import contextlib
from typing import Any

from . import _native
from .errors import (
    ConfigurationError,
    HeimdallError,
    InvalidInputError,
    MissingPackageError,
    NotFoundError,
    PermissionDeniedError,
    RunStateError,
    StoreUnavailableError,
    WrongTypeError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

# These are no matter of the data that a call was given.
RAISED = (
    ConfigurationError,
    MissingPackageError,
    NotFoundError,
    PermissionDeniedError,
    RunStateError,
    StoreUnavailableError,
)
SHOWN_LENGTH = 2000


class Spared:
    """A block that logs one thing. An error of the data ends it, is told once and kept as a dead letter.

    In a strict tracker the error is raised, as one of this package.
    """

    def __init__(self, tracker: Any, kind: str, key: Any, run_id: str, value: Any) -> None:
        self._tracker = tracker
        self._kind = kind
        self._key = shown(key)
        self._run_id = run_id
        self._value = value
        self.error: HeimdallError | None = None

    def __enter__(self) -> Spared:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, RAISED):
            return False
        if isinstance(error, HeimdallError):
            self.error = error
        else:
            self.error = InvalidInputError(f"{self._key!r} cannot be logged: {type(error).__name__}: {error}")
            self.error.__cause__ = error
        if self._tracker._is_strict:
            if self.error is error:
                return False
            raise self.error from error
        lost = (self._key, shown(self._value), str(self.error))
        self._tracker._note_unrecorded(self._kind, _encodable(lost), self._run_id)
        return True


def shown(value: Any) -> str:
    """Return a value as a short text, whatever its `repr` does."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
    return text[:SHOWN_LENGTH].encode("utf-8", "replace").decode()


def _encodable(texts: tuple[str, str, str]) -> tuple[str, ...]:
    return tuple(text.encode("utf-8", "replace").decode() for text in texts)


def path(tracker: Any, given: Any, needs_name: bool = True) -> str:
    """Return a path among the artifacts that MLflow takes; another spelling than the given one is told once.

    Raises:
        WrongTypeError: It is no path.
        InvalidInputError: There is nothing left of it, and a file is needed.
    """
    import os

    text: Any = None
    with contextlib.suppress(TypeError):
        text = os.fspath("" if given is None else given)
    if not isinstance(text, str):
        raise WrongTypeError(f"a path among the artifacts must be a str, not {type(given).__name__}")
    if tracker._is_strict:
        return text
    mended = _native.mended_path(text.encode("utf-8", "replace").decode())
    if mended != text and (mended or not needs_name):
        tracker._tell_once(
            shown(text),
            f"artifact path {shown(text)!r} is none that MLflow takes: it is recorded as "
            f"{mended!r}. This is told once per path",
        )
    return mended
