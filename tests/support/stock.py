"""Stock MLflow in processes of its own: scripts and servers, by interpreters that have imported it once.

To import it takes seconds, and the tests run a hundred of them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from support.helpers import PATIENCE_S, clean_environment, wait_until

# A server's own modules are imported anew in the fork, as they read the environment; what they import is not.
# The command of `mlflow server` starts another program in the end, which runs in the fork as well.
CODE = """
import contextlib, importlib, json, os, runpy, sys, traceback

def script(code, arguments):
    sys.argv = ["-c", *arguments]
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})

def forget_server():
    for name in [name for name in sys.modules if name.startswith("mlflow.server")]:
        del sys.modules[name]

def server(arguments):
    from mlflow.cli import cli
    from mlflow.utils import process

    def run_here(command, extra_env=None, **options):
        forget_server()
        os.environ.update(extra_env or {})
        sys.argv = command[2:] if command[1] == "-m" else command
        sys.exit(runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True))

    forget_server()
    process._exec_cmd = run_here
    cli(["server", *arguments])

def in_fork(asked):
    os.setsid()
    streams = [os.open(os.devnull, os.O_RDONLY)]
    for name in ("said", "errors"):
        streams.append(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    status = 0
    try:
        script(asked["script"], asked["arguments"]) if asked["script"] else server(asked["arguments"])
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # The handlers of the exit belong to the interpreter, and may wait for its threads.
    os._exit(status if isinstance(status, int) else 1)

for line in sys.stdin:
    asked = json.loads(line)
    for name in asked["imports"]:
        # What an import prints is no answer.
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(name)
    if not (child := os.fork()):
        in_fork(asked)
    print(child, flush=True)
    if asked["script"]:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """A process that is a child of another one: what `subprocess.Popen` has of it that the tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def _has_ended(self, timeout: float) -> bool:
        return bool(select.select([self._handle], [], [], timeout)[0])

    def poll(self) -> int | None:
        return 0 if self._has_ended(0) else None

    def wait(self, timeout: float) -> None:
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)


class Interpreter:
    """One Python, with what it has imported, that forks on request."""

    def __init__(self, python: str, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [python, "-c", CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(**variables),
        )

    def _fork(self, said: Path, errors: Path, **asked: object) -> int:
        asked |= {"said": str(said), "errors": str(errors)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        """Return the next line of the interpreter; one that hangs is ended, and the next test has another."""
        timer = threading.Timer(PATIENCE_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            for key in [key for key, it in _interpreters.items() if it is self]:
                del _interpreters[key]
            raise TimeoutError(f"the interpreter {self.process.pid} has not answered within {PATIENCE_S} s")
        return line

    def run(self, script: str, arguments: list[str], environment: dict[str, str], imports: list[str]) -> str:
        """Run a script to its end and return what it prints."""
        with tempfile.TemporaryDirectory(prefix="fork") as folder:
            said, errors = Path(folder, "said"), Path(folder, "errors")
            self._fork(
                said,
                errors,
                script=script,
                arguments=arguments,
                environment=environment,
                imports=imports,
                cwd=str(Path.cwd()),
            )
            assert self._line() == "0\n", errors.read_text()
            return said.read_text()

    def serve(self, arguments: list[str], environment: dict[str, str], log: Path) -> Forked:
        """Start `mlflow server` in a session of its own."""
        imports = [
            "mlflow.cli",
            "mlflow.server",
            "mlflow.server.fastapi_app",
            "uvicorn",
            "gunicorn.app.wsgiapp",
        ]
        pid = self._fork(
            log,
            log,
            script="",
            arguments=arguments,
            environment=environment,
            imports=imports,
            cwd=str(log.parent),
        )
        return Forked(pid)

    def stop(self) -> None:
        self.process.communicate(timeout=PATIENCE_S)


_interpreters: dict[tuple[object, ...], Interpreter] = {}


def interpreter(python: str = sys.executable, path: str = "", **variables: str) -> Interpreter:
    """The interpreter that imports from `path` as well; it is started when it is asked for first.

    The variables are those that count when something is imported.
    """
    key = (python, path, *sorted(variables.items()))
    if key not in _interpreters:
        if not _interpreters:
            atexit.register(stop)
        _interpreters[key] = Interpreter(python, {"PYTHONPATH": path, **variables})
    return _interpreters[key]


def stop() -> None:
    """End them all."""
    while _interpreters:
        _interpreters.popitem()[1].stop()


def server_command(
    port: int, uri: str | None, *options: str, workers: int = 1, python: str = sys.executable
) -> list[str]:
    """Return the command of a `mlflow server` on this machine; without a URI its environment has one."""
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", uri] if uri else []
    return [*command, "--workers", str(workers), *store, *options]


@contextlib.contextmanager
def serving(
    command: list[str], url: str, log: Path, **variables: object
) -> Iterator[subprocess.Popen | Forked]:
    """Run a `mlflow server` for a `with` block, which it enters as soon as the server answers."""
    environment = clean_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **variables)

    def is_healthy() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(urllib.error.URLError, OSError):
            return urllib.request.urlopen(f"{url}/health").status == 200
        return False

    if sys.platform == "linux" and command[1:4] == ["-m", "mlflow", "server"]:
        process = interpreter(command[0]).serve(command[4:], environment, log)
    else:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=log.parent, env=environment, start_new_session=True
            )
    try:
        wait_until(is_healthy, "the server answers")
        yield process
    finally:
        # The server has workers, and a group of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)
