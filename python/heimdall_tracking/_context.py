"""The runs that a thread or an asyncio task has started, and those that it has from where it was started.

A context variable keeps them: asyncio gives each task a copy of it. Threads begin with an empty one, so the
start of a thread and the submission to a pool of threads hand the runs over.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from . import _native

# Runs of other trackers that are remembered; those that have ended are among them.
OTHERS = 64

_RUNS: ContextVar[tuple[str, ...] | None] = ContextVar("heimdall_runs", default=None)
# Name of the attribute by which a thread has the runs of the place that started it.
_INHERITED = "_heimdall_runs"
_lock = threading.Lock()
_hands_over = False


def current() -> tuple[str, ...]:
    """Return the ids of the runs of this place, the innermost last. Some of them may have ended."""
    runs = _RUNS.get()
    if runs is None:
        runs = getattr(threading.current_thread(), _INHERITED, ())
    return runs


def is_active(tracker: _native.MLflowTracker, run_id: str) -> bool:
    """Return true where a run is active in a tracker, whoever has started it."""
    # A tracker tells the runs of its caller, so the question is asked as one who has started the run.
    token = _RUNS.set((run_id,))
    try:
        return run_id in tracker.active_run_ids
    finally:
        _RUNS.reset(token)


def started(path: list[str]) -> None:
    """Remember that this place has started a run.

    Args:
        path: The active runs of the tracker as this place has them, the new one last.
    """
    _hand_over_to_threads()
    others = [run for run in current() if run not in path]
    _RUNS.set((*others[-OTHERS:], *path))


def _hand_over_to_threads() -> None:
    """Let threads that start from now on, and calls of pools, have the runs of the place that starts them."""
    global _hands_over
    with _lock:
        if _hands_over:
            return
        _hands_over = True
    from concurrent.futures import ThreadPoolExecutor

    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    def start_with_runs(self: threading.Thread) -> None:
        if runs := current():
            setattr(self, _INHERITED, runs)
        start(self)

    def submit_with_runs(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        # A call of a place without runs is handed that as well: its thread may have been started in a run.
        return submit(self, _call, current(), fn, *args, **kwargs)

    start_with_runs.__doc__, submit_with_runs.__doc__ = start.__doc__, submit.__doc__
    threading.Thread.start = start_with_runs  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_with_runs  # type: ignore[method-assign]


def _call(runs: tuple[str, ...], fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = _RUNS.set(runs)
    try:
        return fn(*args, **kwargs)
    finally:
        _RUNS.reset(token)
