"""The trackers whose stores stock MLflow shares."""

from __future__ import annotations

import threading
import weakref

from .._uris import same_store

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_trackers: list[weakref.ref[Any]] = []
# Those of a store, by URI: MLflow asks at each of its calls.
_by_store: dict[str, list[weakref.ref[Any]]] = {}
# Those that their makers may let go: a tracker for each store, which MLflow has until the process ends.
_kept: list[Any] = []
_lock = threading.RLock()


def add(tracker: Any) -> None:
    """Share the stores of a tracker from now on."""
    with _lock:
        _trackers[:] = [known for known in _trackers if known() is not None]
        _trackers.append(weakref.ref(tracker))
        _by_store.clear()


def keep(tracker: Any) -> None:
    """Keep a bridged tracker, also where nobody else does, until there is another one for its store."""
    with _lock:
        uri = tracker._uris()[0]
        _kept[:] = [kept for kept in _kept if not same_store(uri, kept._uris()[0])]
        _kept.append(tracker)


def detach(tracker: Any) -> None:
    """Leave a tracker out of the bridge from now on."""
    with _lock:
        _kept[:] = [kept for kept in _kept if kept is not tracker]
        _trackers[:] = [known for known in _trackers if known() not in (None, tracker)]
        _by_store.clear()


def trackers() -> list[Any]:
    """Return the trackers of this process that are bridged, the newest first."""
    found = [known() for known in reversed(_trackers)]
    return [tracker for tracker in found if tracker is not None]


def trackers_of_store(uri: str) -> list[Any]:
    """Return the trackers that record into the store of a URI, the newest first."""
    known = _by_store.get(uri)
    if known is None:
        with _lock:
            found = [tracker for tracker in trackers() if same_store(uri, tracker._uris()[0])]
            known = _by_store[uri] = [weakref.ref(tracker) for tracker in found]
    return [tracker for reference in known if (tracker := reference()) is not None]


def trackers_of_registry(uri: str) -> list[Any]:
    """Return the trackers that register models in the registry of a URI, the newest first."""
    return [tracker for tracker in trackers() if same_store(uri, tracker._uris()[1])]
