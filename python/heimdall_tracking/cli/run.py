"""`heimdall run`: a command as a run, with its console, ended by its exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import _environment, _finish, _start
from .._plain_settings import PlainSettings
from .._uris import PREFIX, without_prefix
from ..errors import HeimdallError, UndeliveredError
from ..settings import experiment_of_environment
from ..tracker import MLflowTracker
from .console import Console, Terminal

# Signals that end a command on purpose.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Ends by which a shell tells of them.
STOPPED = tuple(128 + number for number in STOPPING)
NOT_FOUND, NOT_EXECUTABLE = 127, 126
# Longest time between the end of the child and a look at it, where no signal tells of it.
LOOK_S = 0.5
# Longest time for which the output of the child's own children is waited for after its end.
OUTPUT_S = 2.0
GIT_S = 5.0


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        usage="heimdall run [--uri URI] [--name NAME] [--experiment NAME] [--tag KEY=VALUE] -- COMMAND ...",
        description=(
            "Run a command, any program, and record it as a run: its console as the artifacts "
            "console/stdout.log and console/stderr.log, while it runs, and its end by its exit status. The "
            "command finds the run in MLFLOW_RUN_ID, and MLflow in it records by the journal. The exit code "
            "is that of the command."
        ),
    )
    parser.add_argument("--uri", help="store of the run; default the settings, see `heimdall config`")
    parser.add_argument("--name", help="name of the run; default a random one")
    parser.add_argument("--experiment", metavar="NAME", help="experiment; default that of the settings")
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help="a tag of the run")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND", help="command with arguments")
    parser.set_defaults(run=run, stays="the run is ended by the next start", parser=parser)


def run(given: argparse.Namespace) -> int:
    """Run the command, and return its exit code: 128 and the number for a signal."""
    command: list[str] = given.program[1:] if given.program[:1] == ["--"] else given.program
    if not command:
        given.parser.error("name a command: heimdall run -- python train.py")
    tags = dict(_tag(tag, given.parser) for tag in given.tag)
    settings = PlainSettings()
    uri = _start.store(without_prefix(given.uri or settings.mlflow_tracking_uri))
    is_of_settings = not given.uri
    with _signals_for_the_child():
        # Threads of the tracker are started with these signals blocked, as they are the child's.
        tracker = MLflowTracker(
            uri,
            artifact_uri=settings.mlflow_artifact_uri if is_of_settings else None,
            registry_uri=settings.mlflow_registry_uri if is_of_settings else None,
            s3_endpoint_url=settings.mlflow_s3_endpoint_url,
            experiment_name=given.experiment or _experiment(uri, settings),
            ranks="zero",
            # The command records the metrics of the system, where it is told to.
            system_metrics=False,
            set_environment=False,
            bridge=False,
        )
        outer = os.environ.pop("MLFLOW_RUN_ID", None)
        run_id = tracker.start_run(given.name, tags=_source(command) | tags, parent_run_id=outer)
        code = _run(tracker, run_id, command, _child_environment(tracker, run_id, uri))
    return code


def _tag(text: str, parser: argparse.ArgumentParser) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        parser.error(f"--tag must be KEY=VALUE, not {text!r}")
    return key, value


def _source(command: list[str]) -> dict[str, str]:
    """Return MLflow's tags for the source of a run: the script in a command, else its program.

    Other words may be secrets.
    """
    scripts = [word for word in command[1:] if _is_file(word)]
    modules = [word for flag, word in pairwise(command) if flag == "-m"]
    tags = {"mlflow.source.name": [*scripts, *modules, command[0]][0], "mlflow.source.type": "LOCAL"}
    folder = str(Path(scripts[0]).parent) if scripts else "."
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", folder, "rev-parse", "HEAD", "--abbrev-ref", "HEAD"]
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=GIT_S).stdout.split()
        if len(lines) == 2:
            tags["mlflow.source.git.commit"] = lines[0]
            if lines[1] != "HEAD":
                tags["mlflow.source.git.branch"] = lines[1]
    return tags


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        # A program in one word is too long for a name.
        return False


def _experiment(uri: str, settings: PlainSettings) -> str:
    return experiment_of_environment(uri) or settings.mlflow_experiment_name


def _child_environment(tracker: MLflowTracker, run_id: str, uri: str) -> dict[str, str]:
    environment = dict(os.environ)
    environment["MLFLOW_TRACKING_URI"] = PREFIX + uri
    registry = _environment.get("MLFLOW_REGISTRY_URI")
    if registry:
        environment["MLFLOW_REGISTRY_URI"] = PREFIX + _start.store(without_prefix(registry))
    environment["HEIMDALL_DIR"] = _start.path(os.environ.get("HEIMDALL_DIR") or ".heimdall")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    # A name would contradict the id as soon as the command chooses another experiment.
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        environment.pop(name, None)
    if tracker.status().mode == "silent":
        return environment | {"MLFLOW_EXPERIMENT_NAME": tracker.experiment_name}
    try:
        found = tracker.get_run(run_id)
    except HeimdallError as error:
        # Another journal than ours must not be delivered before the run is there.
        print(
            f"heimdall: the command records runs of its own beside {run_id}, as the store is away: {error}",
            file=sys.stderr,
        )
        return environment | {"MLFLOW_EXPERIMENT_NAME": tracker.experiment_name}
    environment |= {"MLFLOW_RUN_ID": run_id, "MLFLOW_EXPERIMENT_ID": found.experiment_id}
    return environment


def _run(tracker: MLflowTracker, run_id: str, command: list[str], environment: dict[str, str]) -> int:
    with Console(tracker, run_id) as console:
        try:
            streams = console.streams()
            with _signals_unblocked():
                child = subprocess.Popen(command, env=environment, **streams)
        except OSError as error:
            code = NOT_EXECUTABLE if isinstance(error, PermissionError) else NOT_FOUND
            console.say(f"heimdall: {command[0]}: {error.strerror or error}\n".encode())
            console.finish(0)
            _end(tracker, "FAILED")
            return code
        console.pump()
        code = _wait(child, console.terminal)
        console.finish(OUTPUT_S)
    is_stopped = (code < 0 and -code in STOPPING) or code in STOPPED
    _end(tracker, "FINISHED" if code == 0 else "KILLED" if is_stopped else "FAILED")
    return code if code >= 0 else 128 - code


def _end(tracker: MLflowTracker, status: str) -> None:
    """End the run once everything that the command has recorded is in the store; its own end comes before."""
    with _ctrl_c_ends_the_wait():
        # The journal of a command that was killed is adopted by the flush.
        with contextlib.suppress(UndeliveredError, KeyboardInterrupt):
            tracker.flush(_finish._timeout())
        tracker.end_run(status)


# Signals


@contextlib.contextmanager
def _signals_for_the_child() -> Iterator[None]:
    """Keep signals waiting in a `with` block; the block asks for them and hands them on."""
    _pending.clear()
    before = {number: signal.signal(number, _note) for number in _heard()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _asked_for())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_unblocked() -> Iterator[None]:
    """Let a program that is started in a `with` block have the signals: it inherits the mask."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _asked_for())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _asked_for())


# Signals that have come while the child was started.
_pending: list[int] = []


def _note(number: int, frame: Any) -> None:
    _pending.append(number)


def _heard() -> list[int]:
    """Return the signals that stop the command. It ignores those that we ignore, as under nohup."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def _asked_for() -> set[int]:
    return {*_heard(), signal.SIGCHLD, signal.SIGWINCH}


@contextlib.contextmanager
def _ctrl_c_ends_the_wait() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on Ctrl-C in a `with` block, but not for one that was the child's."""
    if signal.SIGINT not in _heard():
        yield
        return
    while waiting := signal.sigpending() & {signal.SIGINT}:
        signal.sigwait(waiting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)


def _wait(child: subprocess.Popen[Any], terminal: Terminal | None) -> int:
    """Wait for the child, and hand on the signals that are for it, each once."""
    while True:
        while _pending:
            child.send_signal(_pending.pop(0))
        code = child.poll()
        if code is not None:
            return code
        number, is_of_terminal = _next_signal()
        if number == signal.SIGWINCH and terminal is not None:
            terminal.resize()
        # Ctrl-C in a terminal reaches all programs of the foreground, the child as well.
        if number in _heard() and not is_of_terminal:
            child.send_signal(number)


# `si_code` of a signal that the kernel has sent.
_BY_KERNEL = 0x80


def _next_signal() -> tuple[int, bool]:
    """Wait for a signal; return its number, 0 for none, and True where the terminal has sent it."""
    if hasattr(signal, "sigtimedwait"):
        told = signal.sigtimedwait(_asked_for(), LOOK_S)
        return (0, False) if told is None else (told.si_signo, told.si_code == _BY_KERNEL)
    waiting = signal.sigpending() & _asked_for()
    if not waiting:
        time.sleep(LOOK_S / 10)
        return 0, False
    number = signal.sigwait(waiting)
    return number, number != signal.SIGTERM and sys.stdin.isatty()
