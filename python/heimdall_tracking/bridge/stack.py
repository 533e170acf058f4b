"""MLflow's stack of active runs, which shows the active runs of the trackers.

MLflow keeps a list of active runs per thread (one for all threads before 2.12) and looks into it at each
call. Here the list is made up at each look: the runs of other stores, as MLflow has put them there, and then
the active runs of the tracker for MLflow's present tracking URI, as the calling thread or task has them.
"""

from __future__ import annotations

import threading
from typing import Any

from mlflow.tracking import get_tracking_uri

from .. import _context
from . import entities
from .attached import trackers, trackers_of_store


def replacement(fluent: Any, before: Any) -> Any:
    """Return the stack that takes the place of MLflow's own, with the runs that are on it."""
    shown = Shown(fluent)
    if isinstance(before, list):
        stack = _SharedStack(shown)
        list.extend(stack, before)
        return stack

    class Stacks(type(before)):  # type: ignore[misc]
        """The stacks of all threads."""

        def get(self) -> Any:
            stack = super().get()
            if late and threading.get_ident() == here:
                stack.extend_late(late)
            stack.look()
            return stack

        def set(self, value: Any) -> None:
            if not isinstance(value, _Stack):
                stack = _Stack(shown)
                list.extend(stack, value)
                value = stack
            super().set(value)

    stacks = Stacks(default_factory=lambda: _Stack(shown))
    own = before.get()
    if own:
        stacks.set(list(own))
    # A start of a run that opens the first store of a `heimdall+…` URI has looked up the old stack already,
    # and puts its run there.
    late, here = own, threading.get_ident()
    late.clear()
    return stacks


class Shown:
    """The trackers' active runs as objects of MLflow, one for each run for as long as it is active."""

    def __init__(self, fluent: Any) -> None:
        self._fluent = fluent
        self._runs: dict[str, Any] = {}
        self._lock = threading.Lock()

    def tracker(self) -> Any:
        """Return the tracker whose runs are shown: that of the thread's innermost run, else the newest.

        None where MLflow's tracking URI is the store of no tracker.
        """
        found = trackers_of_store(get_tracking_uri())
        if len(found) > 1:
            for run_id in reversed(_context.current()):
                for tracker in found:
                    if run_id in tracker.active_run_ids:
                        return tracker
            for tracker in found:
                if tracker.active_run_id is not None:
                    return tracker
        return found[0] if found else None

    def runs(self) -> list[Any]:
        """Return the active runs of the calling thread or task, from the outermost to the innermost."""
        tracker = self.tracker()
        path = tracker.active_run_ids if tracker is not None else []
        return [self._runs.get(run_id) or self._make(tracker, run_id) for run_id in path]

    def _make(self, tracker: Any, run_id: str) -> Any:
        run = self._fluent.ActiveRun(entities.active_run(tracker, run_id))
        with self._lock:
            return self._runs.setdefault(run_id, run)

    def entered(self, run: Any) -> None:
        """Make a run that MLflow has started the tracker's active run, where it is a run of a tracker."""
        run_id = run.info.run_id
        tracker = self.tracker()
        if tracker is None:
            return
        with self._lock:
            self._runs[run_id] = run
        tracker._enter(run_id)

    def left(self, run: Any) -> None:
        """Take a run that MLflow is about to end from the tracker's active runs."""
        run_id = run.info.run_id
        for tracker in trackers_of_store(get_tracking_uri()):
            if run_id in tracker.active_run_ids:
                tracker._leave(run_id)
        self.forget(run_id)

    def is_shown(self, run: Any) -> bool:
        """Return true for a run that is on the stack because a tracker has it."""
        return run.info.run_id in self._runs

    def forget(self, run_id: str) -> None:
        """Forget a run that is no longer active."""
        with self._lock:
            self._runs.pop(run_id, None)

    def ended(self, run_id: str) -> None:
        """Note a run that the tracker has ended: `mlflow.last_active_run` returns it."""
        last: Any = getattr(self._fluent, "_last_active_run_id", None)
        if hasattr(last, "set"):
            last.set(run_id)


class _Stack(list):  # type: ignore[type-arg]
    """The active runs of one thread."""

    def __init__(self, shown: Shown) -> None:
        super().__init__()
        self._shown = shown

    def look(self) -> None:
        """Show the trackers' runs as they are now."""
        shown = self._shown.runs()
        own = list.copy(self)
        if own == shown:
            return
        for run in own:
            if run not in shown and self._shown.is_shown(run) and not _is_active(run.info.run_id):
                self._shown.ended(run.info.run_id)
                self._shown.forget(run.info.run_id)
        foreign = [run for run in own if run not in shown and not self._is_bridged(run)]
        self[:] = foreign + shown

    def _is_bridged(self, run: Any) -> bool:
        return self._shown.is_shown(run) or any(it._has_run(run.info.run_id) for it in trackers())

    def extend_late(self, late: list[Any]) -> None:
        """Add runs that MLflow has started on the stack that was there before."""
        while late:
            self.append(late.pop(0))

    def append(self, run: Any) -> None:
        """Add a run that MLflow has started."""
        super().append(run)
        self._shown.entered(run)

    def pop(self, index: Any = -1) -> Any:
        """Take a run that MLflow is about to end."""
        run = super().pop(index)
        self._shown.left(run)
        return run


class _SharedStack(_Stack):
    """The active runs of all threads, before MLflow 2.12."""

    def __len__(self) -> int:
        self.look()
        return super().__len__()

    def __getitem__(self, index: Any) -> Any:
        self.look()
        return super().__getitem__(index)

    def __iter__(self) -> Any:
        self.look()
        return super().__iter__()

    def pop(self, index: Any = -1) -> Any:
        """Take a run that MLflow is about to end."""
        self.look()
        return super().pop(index)


def _is_active(run_id: str) -> bool:
    return any(run_id in tracker.active_run_ids for tracker in trackers())
