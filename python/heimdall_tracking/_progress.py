"""The display of a long wait: a bar on a terminal, a line elsewhere."""

import os
import sys

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

# A longer wait tells its reason, as an exit does.
QUIET_S = 2.0
INTERVAL_S = 0.1

# The process in which a thread draws; a fork has no such thread.
_drawing = 0
_is_told = False


def waited(wait: "Callable[[float | None], None]", timeout: float | None) -> None:
    """Wait, and show how far the delivery is where that takes long."""
    end = begin(timeout, until_delivered=False)
    try:
        wait(timeout)
    finally:
        end()


def begin(timeout: float | None = None, until_delivered: bool = True) -> "Callable[[], None]":
    """Begin to show the progress of the delivery, and return a function that ends the display.

    With `until_delivered` the display ends by itself when there is nothing to deliver: the caller then waits
    for another thing.
    """
    try:
        from threading import Event, Thread
    except ImportError:
        # There is no bar so late in the interpreter's end.
        return lambda: None
    over = Event()
    arguments = (timeout, over, until_delivered)
    thread = Thread(target=_show, args=arguments, name="heimdall-progress", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # There is no bar either where no thread can start.
        pass
    except BaseException:
        over.set()
        raise

    def end() -> None:
        over.set()
        if thread.is_alive():
            # A logger or a terminal that blocks must not keep the caller.
            thread.join(1)

    return end


def _show(timeout: float | None, over: "Event", until_delivered: bool) -> None:
    global _drawing, _is_told
    from . import _native

    def is_over() -> bool:
        return until_delivered and not _native.progress()[0]

    if over.wait(QUIET_S) or is_over():
        return
    # One of several waiting threads draws. Its wait may have ended because everything is delivered; then the
    # other waits are about to end as well, and no other bar begins.
    while _drawing == os.getpid():
        while True:
            if over.wait(INTERVAL_S) or is_over():
                return
            if _native.progress()[0]:
                break
    _drawing = os.getpid()
    hint = "Ctrl-C ends the wait"
    if timeout is not None and timeout < float("inf"):
        hint = f"at most {timeout:.0f} s; {hint}"
    # A loop that waits for each of its checkpoints would fill a log or notebook.
    bar = Bar(hint, is_told=_is_told)
    _is_told = True
    try:
        while True:
            bar.show(*_native.progress())
            if over.wait(INTERVAL_S) or is_over():
                break
        bar.close()
    except Exception:
        # A bar that fails must not disturb the caller.
        pass
    finally:
        _drawing = 0


class Bar:
    """A bar on a terminal; elsewhere one line, unless that `is_told` already."""

    def __init__(self, hint: str, is_told: bool = False) -> None:
        self.hint = hint
        self.is_told = is_told
        self.most = 0
        self.shown = ""

    def show(self, pending: int, uploading: int, uploaded: int) -> None:
        """Show how many records wait, and how far the files are that are on their way, in bytes."""
        self.most = max(self.most, pending)
        if not _is_terminal():
            if not self.is_told:
                import logging

                self.is_told = True
                logger = logging.getLogger("heimdall_tracking")
                logger.warning("delivering what is recorded, %s", self.hint)
            return
        done = 1 - pending / self.most if self.most else 1.0
        left = f"{pending:,} left"
        if uploading:
            # Few records take long only with files: their bytes show the progress.
            done = uploaded / uploading
            left = f"{uploaded / 2**20:,.0f} of {uploading / 2**20:,.0f} MiB uploaded, {left}"
        filled = round(20 * done)
        text = f"delivering [{'#' * filled}{'.' * (20 - filled)}] {left}, {self.hint}"
        self.shown = draw(text, self.shown)

    def close(self) -> None:
        """Leave the terminal with a line of its own."""
        if self.shown and _is_terminal():
            sys.stderr.write("\n")


def draw(text: str, shown: str) -> str:
    """Draw a line over the one that is `shown`, and return the shown text."""
    # A line that is wrapped could not be drawn over.
    text = text[: _columns() - 1]
    sys.stderr.write(f"\r{text:<{len(shown)}}")
    sys.stderr.flush()
    return text


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
