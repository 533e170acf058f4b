"""The end of the process: active runs are ended, and what is journaled is delivered."""

import atexit
import os
import sys
import warnings

# Enough for a slow database to take what a training run has left; a dead one keeps nobody waiting longer.
DEFAULT_TIMEOUT_S = 30.0


def register() -> None:
    """Arrange for `finish` to run when the interpreter exits, in the process that made the trackers."""
    from . import _native

    atexit.register(_finish)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_native.forget_parent)


def _finish() -> None:
    from . import _native

    timeout = _timeout()
    bar = _Bar(timeout)
    _native.finish(_status(), timeout, bar.show)
    bar.close()


class _Bar:
    """What is shown while the exit waits: a bar on a terminal, a line elsewhere."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.most = 0
        self.shown = ""

    def show(self, pending: int, uploading: int, uploaded: int) -> None:
        """Show how many records wait, and how far the files are that are on their way, in bytes."""
        import logging

        first = not self.shown
        self.most = max(self.most, pending)
        done = 1 - pending / self.most if self.most else 1.0
        left = f"{pending:,} left"
        if uploading:
            # Few records, and yet long: a file says how long.
            done = uploaded / uploading
            left += f", {uploaded / 2**20:,.0f} of {uploading / 2**20:,.0f} MiB uploaded"
        filled = round(30 * done)
        hint = f"at most {self.timeout:.0f} s; Ctrl-C leaves the rest to the next start"
        self.shown = f"delivering what is recorded [{'#' * filled}{'.' * (30 - filled)}] {left}, {hint}"
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(f"\r{self.shown}")
            sys.stderr.flush()
        elif first:
            logging.getLogger("heimdall_tracking").warning("delivering what is recorded, %s", hint)

    def close(self) -> None:
        """Leave the terminal with a line of its own."""
        if self.shown and sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write("\n")


def _status() -> str:
    """How the process ends: `sys.last_value` is what an uncaught exception leaves behind."""
    last = getattr(sys, "last_value", None)
    if last is None:
        return "FINISHED"
    return "KILLED" if isinstance(last, KeyboardInterrupt) else "FAILED"


def _timeout() -> float:
    text = os.environ.get("HEIMDALL_EXIT_TIMEOUT", "")
    try:
        return float(text) if text else DEFAULT_TIMEOUT_S
    except ValueError:
        warnings.warn(
            f"HEIMDALL_EXIT_TIMEOUT={text!r} is no number of seconds; {DEFAULT_TIMEOUT_S} is used",
            stacklevel=1,
        )
        return DEFAULT_TIMEOUT_S
