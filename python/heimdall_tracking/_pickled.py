"""Trackers out of a pickle, as spawned processes and checkpoints of Lightning have it."""

from __future__ import annotations

import os
import uuid
import weakref
from typing import Any

from ._native import without_credentials

# Trackers of this process by their tokens: a pickle that is read where it was made is the tracker itself.
_here: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
VARIABLES = {"tracking_uri": "MLFLOW_TRACKING_URI", "registry_uri": "MLFLOW_REGISTRY_URI"}


def token_of(tracker: Any) -> str:
    """Return the name of a tracker in pickles."""
    token: str = tracker.__dict__.setdefault("_token", uuid.uuid4().hex)
    _here[token] = tracker
    return token


def remade(kind: Any, token: str, arguments: dict[str, Any]) -> Any:
    """Return the tracker of a pickle: itself in its own process and the forks of that, elsewhere a new one.

    A password of a URI comes from the variable that stock MLflow reads, where that has the same URI.
    """
    tracker = _here.get(token)
    if tracker is not None:
        return tracker
    for name, variable in VARIABLES.items():
        whole = os.environ.get(variable, "")
        if whole and without_credentials(whole) == arguments[name]:
            arguments = {**arguments, name: whole}
    tracker = kind(**arguments)
    _here[token] = tracker
    return tracker
