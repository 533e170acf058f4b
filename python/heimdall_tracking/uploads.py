"""Files on their way to the artifact store."""

from __future__ import annotations

from . import _native
from ._progress import waited


class Upload:
    """Files that one call has logged, on their way to the artifact store.

    They are kept in the journal: nothing needs to be waited for. What is not there at the end of the process
    goes out with the next start.
    """

    __slots__ = ("_logged",)

    def __init__(self, logged: _native.Upload) -> None:
        self._logged = logged

    @property
    def paths(self) -> list[str]:
        """Their paths among the run's artifacts."""
        return self._logged.paths

    @property
    def done(self) -> bool:
        """Whether they, and all that was recorded before them, have arrived or were refused."""
        return self._logged.done

    def wait(self, timeout: float | None = None) -> None:
        """Wait until they have arrived. After 2 s a terminal shows a bar, a log one line.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Raises:
            ArtifactError: The store has refused one of them for good; it is kept in
                `HEIMDALL_DIR/dead_letter`.
            UndeliveredError: They have not arrived in time; they stay in the journal.
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
        waited(self._logged.wait, timeout)

    def __repr__(self) -> str:
        return repr(self._logged)


# Where users import it from.
Upload.__module__ = "heimdall_tracking"
