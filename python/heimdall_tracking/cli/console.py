"""The console of a command: shown as it comes, and kept as artifacts of its run while it goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import ConfigurationError, HeimdallError
from ..tracker import MLflowTracker
from ..uploads import Upload

FOLDER = "console"
LIMIT_VARIABLE = "HEIMDALL_CONSOLE_LIMIT"
DEFAULT_LIMIT = 64 << 20
# Pauses between two snapshots, in seconds.
FIRST_S, LONGEST_S, GROWTH = 2.0, 60.0, 1.5
BLOCK = 1 << 16

Streams: TypeAlias = dict[str, Any]


class Console:
    """The two streams of a command, for a `with` block.

    Args:
        tracker: Tracker of the run.
        run_id: Run that gets the artifacts.
    """

    def __init__(self, tracker: MLflowTracker, run_id: str) -> None:
        limit = _limit()
        self._tracker = tracker
        self._run_id = run_id
        self._folder = tempfile.TemporaryDirectory(prefix="heimdall-console-")
        folder = Path(self._folder.name)
        self._streams = [
            _Stream("stdout", sys.stdout.fileno(), Kept(folder, "stdout", limit)),
            _Stream("stderr", sys.stderr.fileno(), Kept(folder, "stderr", limit)),
        ]
        self._stop = threading.Event()
        self._uploads: list[Upload] = []
        self._threads: list[threading.Thread] = []
        self._snapshots = threading.Thread(target=self._take_snapshots, name="heimdall-console", daemon=True)
        self.terminal: Terminal | None = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for stream in self._streams:
            stream.kept.close()
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def streams(self) -> Streams:
        """Return the streams that the command is to be started with: terminals where ours are terminals."""
        given: Streams = {}
        for stream in self._streams:
            if os.isatty(stream.shown):
                terminal = Terminal(stream.shown)
                stream.source, stream.given = terminal.source, terminal.given
                self.terminal = self.terminal or terminal
                if terminal is not self.terminal:
                    self.terminal.others.append(terminal)
            else:
                stream.source, stream.given = os.pipe()
            given[stream.name] = stream.given
        return given

    def pump(self) -> None:
        """Begin to show and to keep the output; called once the command has its ends of the streams."""
        for stream in self._streams:
            os.close(stream.given)
            thread = threading.Thread(target=stream.pump, name=f"heimdall-{stream.name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._snapshots.start()

    def say(self, message: bytes) -> None:
        """Show a message of our own, and keep it as the command's would be."""
        self._streams[1].put(message)

    def finish(self, patience: float) -> None:
        """Wait for the rest of the output, and keep all of it in the run.

        Args:
            patience: Seconds to wait for programs that the command has left behind with its streams.
        """
        give_up = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(give_up - time.monotonic(), 0))
        self._stop.set()
        if self._snapshots.is_alive():
            self._snapshots.join()
        self._snapshot()

    def _take_snapshots(self) -> None:
        pause = FIRST_S
        while not self._stop.wait(pause):
            # While a store is away, one snapshot waits for it and not a hundred.
            if all(upload.done for upload in self._uploads) and self._snapshot():
                pause = min(pause * GROWTH, LONGEST_S)

    def _snapshot(self) -> bool:
        taken = False
        for stream in self._streams:
            file = stream.kept.snapshot()
            if file is None:
                continue
            taken = True
            try:
                upload = self._tracker.log_artifact(file, FOLDER, run_id=self._run_id)
                self._uploads = [known for known in self._uploads if not known.done] + [upload]
            except HeimdallError as error:
                logging.getLogger("heimdall_tracking").warning("the console is not recorded: %s", error)
        return taken


class _Stream:
    """One of the streams."""

    source: int
    given: int

    def __init__(self, name: str, shown: int, kept: Kept) -> None:
        self.name = name
        self.shown = shown
        self.kept = kept
        self._is_shown = True

    def pump(self) -> None:
        """Show and keep what comes, until nobody can write any more."""
        while True:
            try:
                data = os.read(self.source, BLOCK)
            except OSError:
                # The other end of a terminal is closed.
                data = b""
            if not data:
                return
            self.put(data)

    def put(self, data: bytes) -> None:
        """Show and keep some bytes."""
        self.kept.write(data)
        while data and self._is_shown:
            try:
                data = data[os.write(self.shown, data) :]
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                # The reader of our output has gone. The run goes on, and so does its record.
                self._is_shown = False


class Kept:
    """The output of a stream on the disk: all of it, or its head and its tail.

    Args:
        folder: Folder for the files.
        name: Name of the stream.
        limit: Bytes to keep at most.
    """

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self._log = folder / f"{name}.log"
        self._lock = threading.Lock()
        self._head_limit = max(limit // 2, 1)
        self._part_limit = max(limit // 4, 1)
        self._head = (self._folder / "head").open("wb", buffering=0)
        # The tail has two parts: the newer one takes the place of the older one when it is full.
        self._newer: Any = None
        self._sizes = [0, 0, 0]
        self._written = 0
        self._taken = 0

    def write(self, data: bytes) -> None:
        """Keep some bytes. A disk that is full loses them, and the command goes on."""
        with self._lock, contextlib.suppress(OSError):
            self._written += len(data)
            room = self._head_limit - self._sizes[0]
            if room > 0 and self._newer is None:
                self._head.write(data[:room])
                self._sizes[0] += len(data[:room])
                data = data[room:]
            while data:
                if self._newer is None or self._sizes[2] >= self._part_limit:
                    self._next_part()
                part = data[: self._part_limit - self._sizes[2]]
                self._newer.write(part)
                self._sizes[2] += len(part)
                data = data[len(part) :]

    def _next_part(self) -> None:
        if self._newer is not None:
            self._newer.close()
            (self._folder / "newer").replace(self._folder / "older")
        self._sizes[1:] = [self._sizes[2], 0]
        self._newer = (self._folder / "newer").open("wb", buffering=0)

    def snapshot(self) -> Path | None:
        """Write the file of all that is kept by now; None where nothing came since the last one."""
        with self._lock:
            if self._written == self._taken:
                return None
            try:
                with self._log.open("wb") as log:
                    self._copy("head", log)
                    left_out = self._written - sum(self._sizes)
                    if left_out > 0:
                        line = (
                            f"\n[heimdall: {left_out:,} bytes are left out here; "
                            f"{LIMIT_VARIABLE} sets how many are kept]\n"
                        )
                        log.write(line.encode())
                    if self._newer is not None:
                        self._copy("older", log)
                        self._copy("newer", log)
            except OSError as error:
                logging.getLogger("heimdall_tracking").warning("the console is not recorded: %s", error)
                return None
            self._taken = self._written
        return self._log

    def _copy(self, name: str, log: Any) -> None:
        import shutil

        with contextlib.suppress(FileNotFoundError), (self._folder / name).open("rb") as part:
            shutil.copyfileobj(part, log, 1 << 20)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._head.close()
            if self._newer is not None:
                self._newer.close()


class Terminal:
    """A terminal for the command, of the size of ours: programs show there what they show to people."""

    def __init__(self, ours: int) -> None:
        import pty
        import termios

        self._ours = ours
        self.others: list[Terminal] = []
        self.source, self.given = pty.openpty()
        attributes = termios.tcgetattr(self.given)
        # Our own terminal makes a line feed of the end of a line.
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(self.given, termios.TCSANOW, attributes)
        self._size_to(self.given)

    def resize(self) -> None:
        """Take over the size that our terminal has now."""
        for terminal in (self, *self.others):
            terminal._size_to(terminal.source)

    def _size_to(self, descriptor: int) -> None:
        import fcntl
        import termios

        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._ours, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return DEFAULT_LIMIT
    try:
        limit = int(text)
    except ValueError:
        limit = -1
    if limit < 1:
        raise ConfigurationError(f"{LIMIT_VARIABLE}={text!r} must be a number of bytes from 1 on")
    return limit
