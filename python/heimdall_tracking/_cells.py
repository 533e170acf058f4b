"""Cells of IPython: how they went, and the runs that a set-up cell leaves open when it runs again."""

from __future__ import annotations

import sys
import weakref

from . import _native, _outcome

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Made:
    """A tracker, and the cell that has made it."""

    __slots__ = ("_kept", "cell_id", "code", "execution", "reference")

    def __init__(self, tracker: _native.MLflowTracker) -> None:
        self.reference = weakref.ref(tracker)
        # The run stays open where nobody has the tracker any more, so it is kept until its run has ended.
        self._kept: _native.MLflowTracker | None = tracker
        self.execution, self.cell_id, self.code = _now.execution, _now.cell_id, _now.code

    def release(self) -> None:
        tracker = self.reference()
        has_run = tracker is not None and bool(tracker.active_run_ids)
        self._kept = tracker if has_run else None

    def is_of_this_cell(self) -> bool:
        """Return True where the cell that runs now is the same one, run again."""
        return (self.cell_id is not None and self.cell_id == _now.cell_id) or (
            self.code is not None and self.code == _now.code
        )


class _Now:
    """The cell that runs now, or has run last."""

    execution = 0
    cell_id: str | None = None
    code: str | None = None
    # The last uncaught exception before it, by its id.
    error_before = id(None)


_now = _Now()
_shell: Any = None
# Status by the last cell that has ended since a run began; None where none has.
_status: str | None = None
_made: list[_Made] = []
# Earlier trackers, with the names of their variables and the status of their runs when this cell made one.
_replaced: list[tuple[_Made, list[str], str]] = []


def watch(tracker: _native.MLflowTracker) -> None:
    """See how cells go from now on. End the runs of a tracker that this cell has made when it ran before."""
    global _shell
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get() if get is not None else None
    if shell is None:
        return
    if shell is not _shell:
        _shell = shell
        _now.cell_id, _now.code = _of_shell(shell)
        _now.error_before = id(_outcome.last_error())
        shell.events.register("pre_run_cell", _on_begin)
        shell.events.register("post_run_cell", _on_end)
    for made in list(_made):
        earlier = made.reference()
        if earlier is None:
            _made.remove(made)
        elif made.execution != _now.execution and earlier is not tracker and _record_alike(earlier, tracker):
            if made.is_of_this_cell():
                _end_runs(earlier, status("FINISHED"))
            else:
                _replaced.append((made, _names_of(earlier), status("FINISHED")))
    _made.append(_Made(tracker))


def begin() -> None:
    """Forget how cells went until now, as a run begins."""
    global _status
    _status = None
    _now.error_before = id(_outcome.last_error())


def status(otherwise: str) -> str:
    """Return the status by the cells since the run began; `otherwise` where no cell has ended since."""
    return otherwise if _status is None else _status


def _of_shell(shell: Any) -> tuple[str | None, str | None]:
    """Return id and code of the cell that runs already."""
    try:
        codes = shell.history_manager.input_hist_raw
        code = codes[-1] if len(codes) > 1 else None
        parent: dict[str, Any] = getattr(shell, "parent_header", None) or {}
        return (parent.get("metadata") or {}).get("cellId"), code
    except (AttributeError, IndexError):
        return None, None


def _on_begin(info: Any) -> None:
    _now.execution += 1
    _now.cell_id = getattr(info, "cell_id", None)
    _now.code = getattr(info, "raw_cell", None)
    _now.error_before = id(_outcome.last_error())


def _on_end(result: Any) -> None:
    global _status
    # A cell that waits for a coroutine has no result when it is interrupted.
    if result is None:
        ended = "KILLED"
    else:
        error = result.error_before_exec or result.error_in_exec
        last = _outcome.last_error()
        if error is None and id(last) != _now.error_before:
            # `%run` shows the exception of its script itself.
            error = last
        ended = _outcome.of(error)
    # Runs of trackers that this cell has replaced are of the cells before it.
    for made, names, ended_before in _replaced:
        earlier = made.reference()
        if earlier is not None and names and _are_rebound(names, earlier):
            _end_runs(earlier, ended_before)
    _replaced.clear()
    _status = ended
    for made in _made:
        made.release()


def _record_alike(one: _native.MLflowTracker, other: _native.MLflowTracker) -> bool:
    return (one.tracking_uri, one.experiment_name) == (other.tracking_uri, other.experiment_name)


def _names_of(tracker: _native.MLflowTracker) -> list[str]:
    return [name for name, value in _shell.user_ns.items() if value is tracker and not name.startswith("_")]


def _are_rebound(names: list[str], earlier: _native.MLflowTracker) -> bool:
    """Return True where a tracker of the cell that has just run has the name of an earlier one."""
    now = [_shell.user_ns.get(name) for name in names]
    of_this_cell = [made.reference() for made in _made if made.execution == _now.execution]
    is_new = [any(it is tracker for tracker in of_this_cell) for it in now if it is not None]
    return all(it is not earlier for it in now) and any(is_new)


def _end_runs(tracker: _native.MLflowTracker, ended: str) -> None:
    """End the open runs of a tracker that another one has replaced, and say so."""
    runs = tracker.active_run_ids
    if not runs:
        return
    import logging

    for _ in runs:
        tracker.end_run(ended)
    which = f"run {runs[0]} is" if len(runs) == 1 else f"runs {', '.join(runs)} are"
    logging.getLogger("heimdall_tracking").warning(
        "%s", f"{which} ended as {ended}: the cell that made its tracker has made another one"
    )
