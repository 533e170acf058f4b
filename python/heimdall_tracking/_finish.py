"""The end of the process: active runs are ended, and the journal is delivered."""

import atexit
import os
import warnings

# A slow database can take the rest of a training run in this time; a dead one keeps nobody waiting longer.
DEFAULT_TIMEOUT_S = 30.0


def register() -> None:
    """Arrange for `finish` to run when the interpreter exits, in the process that made the trackers."""
    from . import _native

    atexit.register(_finish)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_native.forget_parent)


def before_others() -> None:
    """Let the trackers' runs end before all that was registered so far for the end of the process."""
    atexit.unregister(_finish)
    atexit.register(_finish)


def _finish() -> None:
    from . import _native, _outcome
    from ._progress import Bar

    timeout = _timeout()
    bar = Bar(f"at most {timeout:.0f} s; Ctrl-C leaves the rest to the next start")
    _native.finish(*_outcome.status(), timeout, bar.show)
    bar.close()


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
