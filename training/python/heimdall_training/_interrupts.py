"""Ctrl-C and SIGTERM during a training: the step under way is finished, and a checkpoint written."""

from __future__ import annotations

import signal
import threading
from types import TracebackType

from . import _native


class Interrupts:
    """Notes the first signal, and hands SIGTERM on at the end.

    A second Ctrl-C ends the training at once. In a thread that is not the main one, signals are left alone.
    """

    def __init__(self) -> None:
        self._watch: _native.SignalWatch | None = None
        self._told = 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._watch = _native.SignalWatch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is None:
            return
        received = self.received
        self._watch.stop()
        if received == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)

    @property
    def received(self) -> int:
        """Number of the noted signal, or 0."""
        return self._told or (0 if self._watch is None else self._watch.received())

    def tell(self, number: int) -> None:
        """Note a signal that another process of the training has received; 0 is none."""
        self._told = self._told or number

    def end(self) -> None:
        """End the training by the exception of the noted signal.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            Terminated: The process is to end.
        """
        received = self.received
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        if received:
            raise Terminated(f"{signal.Signals(received).name} was received")


class Terminated(BaseException):
    """Ends a training of a process that is to end; its handler of SIGTERM runs behind it."""
