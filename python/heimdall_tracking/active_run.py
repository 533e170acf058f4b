"""A run that lasts for a `with` block."""

from __future__ import annotations

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Protocol

    class Tracker(Protocol):
        """An object that starts and ends runs."""

        @property
        def active_run_ids(self) -> list[str]:
            """Ids of the active runs, the innermost last."""

        def start_run(self, *arguments: Any, **named: Any) -> str:
            """Start a run and return its id."""

        def end_run(self, status: str = "FINISHED") -> None:
            """End the innermost active run."""


class ActiveRun:
    """A run that lasts for a `with` block."""

    __slots__ = ("_arguments", "_run_id", "_tracker")

    def __init__(self, tracker: Tracker, arguments: dict[str, Any]) -> None:
        self._tracker = tracker
        self._arguments = arguments
        self._run_id: str | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the run; None before the block is entered."""
        return self._run_id

    def __enter__(self) -> ActiveRun:
        # Only the given arguments are passed, so that a subclass of the user's is called as always.
        self._run_id = self._tracker.start_run(**self._arguments)
        return self

    def __exit__(
        self,
        exception: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = "FINISHED"
        if exception is not None:
            status = "KILLED" if issubclass(exception, KeyboardInterrupt) else "FAILED"
        # The block may have ended the run already, and started another one; or have left runs open that are
        # nested in this one.
        active = self._tracker.active_run_ids
        if self._run_id in active:
            for _ in active[active.index(self._run_id) :]:
                self._tracker.end_run(status)

    def __repr__(self) -> str:
        return f"ActiveRun(run_id={self._run_id or 'not started'!r})"


# Users import the class from the package itself.
ActiveRun.__module__ = "heimdall_tracking"
