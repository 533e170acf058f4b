"""Files on their way to the artifact store."""

from __future__ import annotations

from ._progress import waited

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import _native
    from .errors import HeimdallError


class Upload:
    """Files that one call has logged, on their way to the artifact store.

    They are kept in the journal: nothing needs to be waited for. What is not there at the end of the process
    goes out with the next start.
    """

    __slots__ = ("_end", "_error", "_paths", "_start", "_tracker")

    def __init__(
        self,
        tracker: _native.MLflowTracker,
        paths: list[str],
        start: int,
        end: int,
        error: HeimdallError | None = None,
    ) -> None:
        self._error = error
        self._tracker = tracker
        self._paths = paths
        # Numbers of the uploads' entries in the journal: the first one, and the one behind the last.
        self._start = start
        self._end = end

    @property
    def paths(self) -> list[str]:
        """Paths of the files among the run's artifacts."""
        return list(self._paths)

    @property
    def error(self) -> HeimdallError | None:
        """Error of what the call was given, for which nothing was logged; else None."""
        return self._error

    @property
    def done(self) -> bool:
        """True once the files, and all that was recorded before them, have arrived or were refused."""
        return self._error is not None or self._tracker._has_arrived(self._end)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the files have arrived. After 2 s a terminal shows a bar, a log one line.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Raises:
            HeimdallError: Nothing was logged, for the reason that `error` is.
            ArtifactError: The store has refused a file for good; the file is kept in
                `HEIMDALL_DIR/dead_letter`.
            UndeliveredError: The files have not arrived in time; they stay in the journal.
            InvalidInputError: `timeout` is no number of seconds from 0 on.

        Example:
            >>> from pathlib import Path
            >>> _ = Path("weights.ckpt").write_bytes(b"...")
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run():
            ...     upload = tracker.log_artifact("weights.ckpt", "checkpoints")
            ...     upload.wait()
            >>> upload.paths, upload.done
            (['checkpoints/weights.ckpt'], True)
        """
        if self._error is not None:
            raise self._error
        waited(lambda limit: self._tracker._wait_for(self._start, self._end, limit), timeout)

    def __repr__(self) -> str:
        if self._error is not None:
            return f"Upload(nothing, {self._error})"
        state = "done" if self.done else "on its way"
        if len(self.paths) == 1:
            return f'Upload("{self.paths[0]}", {state})'
        return f"Upload({len(self.paths)} files, {state})"


# Users import the class from the package itself.
Upload.__module__ = "heimdall_tracking"
