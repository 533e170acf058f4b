"""The status of runs that are still open at the end: it comes from what happened since they began.

Nothing of the interpreter is replaced but `sys.exit`, whose code is not visible anywhere else before the
process exits; the function that was there is called as before. The frames that an exception has left tell
that it has ended the program, so that neither `sys.excepthook` nor a handler of signals has to be ours.
"""

from __future__ import annotations

import sys
from _thread import get_ident

from . import _native

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn


# Codes by which shells and programs say that Ctrl-C, SIGTERM or SIGHUP has ended them: 128 and the signal.
_STOPPED = (128 + 2, 128 + 15, 128 + 1)
# Translations of an exception that are followed back to Ctrl-C; more than that is a circle.
_MOST_CAUSES = 100

_previous_exit: Callable[[Any], NoReturn] | None = None
# Status by the last `sys.exit` of the main thread since a run began.
_exit: str | None = None
# The outermost frame of the main thread, as it was when the last run began.
_program: FrameType | None = None
# The last uncaught exception that is older than the last run, by its id: the exception itself would keep the
# memory of its frames.
_older: int = id(None)


def of(error: BaseException | None) -> str:
    """Return the status of a run that was ended by an exception, or by none.

    `sys.exit` with an error is what its reason was: Lightning and click catch Ctrl-C and leave with code 1.
    """
    if isinstance(error, SystemExit):
        if error.code is None or (isinstance(error.code, int) and error.code == 0):
            return "FINISHED"
        if error.code in _STOPPED:
            return "KILLED"
        while isinstance(error, SystemExit) and error.__context__ is not None:
            error = error.__context__
        if isinstance(error, SystemExit) and _native.was_interrupted():
            # Ctrl-C was caught, and the program left later.
            return "KILLED"
    status = "FINISHED" if error is None else "FAILED"
    # Ctrl-C cancels the tasks of asyncio before it is raised.
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and isinstance(error, asyncio.CancelledError) and _native.was_interrupted():
        return "KILLED"
    for _ in range(_MOST_CAUSES):
        if isinstance(error, KeyboardInterrupt):
            return "KILLED"
        error = error.__cause__ if error is not None else None
    return status


def last_error() -> BaseException | None:
    """Return the last exception that nobody has caught, as the interpreter keeps it."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def watch() -> None:
    """See from now on how the program goes; called for each tracker that is made."""
    global _previous_exit
    if _previous_exit is None:
        _previous_exit = sys.exit
        sys.exit = _noting_exit()
        begin()


def begin() -> None:
    """Forget what happened until now, as a run begins."""
    global _exit, _program, _older
    _exit = None
    _program = _outermost_frame()
    _older = id(last_error())
    if cells := sys.modules.get(f"{__package__}._cells"):
        cells.begin()


def status() -> tuple[str, bool]:
    """Return the status at the end of the process, and True where it is certain.

    It is not where a `SystemExit` has ended the program that `sys.exit` has not raised: its code is not
    visible before the process exits.
    """
    global _program
    # The frame keeps the objects of the program, whose destructors have yet to run.
    program, _program = _program, None
    error = last_error()
    is_new = error is not None and id(error) != _older
    if is_new and _has_ended_the_program(error):
        return of(error), True
    has_raised = program is not None and not _has_returned(program)
    if has_raised and _exit is not None:
        return _exit, True
    if cells := sys.modules.get(f"{__package__}._cells"):
        return cells.status(of(error) if is_new else "FINISHED"), not has_raised
    return "FINISHED", not has_raised


def _noting_exit() -> Callable[..., NoReturn]:
    from functools import update_wrapper

    previous: Any = _previous_exit

    def exit(*code: Any) -> NoReturn:
        try:
            previous(*code)
        except SystemExit as error:
            _note_exit(error)
            raise
        raise SystemExit(*code)

    return update_wrapper(exit, previous)


def _note_exit(error: SystemExit) -> None:
    global _exit
    # In another thread, `sys.exit` ends the thread.
    if _main_thread() == get_ident():
        # An error that an interactive session has shown before is older than this.
        begin()
        _exit = of(error)


def _main_thread() -> int | None:
    import threading

    return threading.main_thread().ident


def _outermost_frame() -> FrameType | None:
    """Return the frame of the main thread that the program ends with: its module, or what runs the module."""
    frame = sys._current_frames().get(_main_thread() or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _has_ended_the_program(error: BaseException | None) -> bool:
    """Return True where an exception has left the outermost frame, so that nothing came after it.

    Windows and shells show the exceptions of their callbacks and go on: such an exception stops further in.
    """
    traceback = error.__traceback__ if error is not None else None
    if traceback is None:
        return True
    frame = traceback.tb_frame
    return frame.f_back is None and not _has_returned(frame)


def _has_returned(frame: FrameType) -> bool:
    """Return True where a frame that is no longer executed has ended by a return, and not by an exception."""
    from opcode import opname

    return frame.f_lasti >= 0 and opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN_")
