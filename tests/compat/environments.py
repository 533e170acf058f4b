"""Releases of stock MLflow, each in a virtual environment of its own that is made once and kept."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import psycopg

from support.helpers import clean_environment, free_port
from support.stock import interpreter, server_command, serving

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heimdall-tracking" / "mlflow"
INSTALLED = installed_version("mlflow")
ALL = ["2.8.1", "2.22.4", "3.1.4", INSTALLED, "3.18.0"]
# One old and one new release tell of most mistakes; `make test-compat` takes all of them.
CHOSEN = ALL if os.environ.get("HEIMDALL_COMPAT") == "all" else ["2.22.4", INSTALLED]
# The packages that 3.18.0 asks for are not all there: it goes over those of the release before.
OVER = {"3.18.0": "3.17.2"}


class Stock:
    """A release of MLflow: its client, its server, its interpreter."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.python = sys.executable if version == INSTALLED else environment(version)
        self.folder = Path(tempfile.mkdtemp(prefix="stock"))

    def run(self, script: str, *arguments: object, imports: Sequence[str] = (), **variables: object):
        """Run a script in a process of the release's and return what it prints, as JSON.

        What takes long to import is named in `imports`: the next script finds it there.
        """
        said = interpreter(self.python, str(variables.get("PYTHONPATH", ""))).run(
            textwrap.dedent(script),
            [*map(str, arguments)],
            clean_environment(**variables),
            ["mlflow", "mlflow.store.tracking.sqlalchemy_store", *imports],
        )
        return json.loads(said.splitlines()[-1])

    def stop(self) -> None:
        """Leave no file."""
        shutil.rmtree(self.folder)

    def lend_packages(self) -> dict[str, str]:
        """Return the variables with which `run` finds torch and what else is installed here and not there.

        Links in a folder, as another torch for each release would be gigabytes.
        """
        if self.python == sys.executable:
            return {}
        folder = self.folder / "lent"
        if folder.exists():
            return {"PYTHONPATH": str(folder)}
        folder.mkdir()
        theirs = Path(self.python).parents[1] / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        has = {_package(path) for path in theirs.iterdir()}
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            name = _package(path)
            ours = name.startswith(("heimdall", "mlflow", "__", "_distutils", "pip", "setuptools"))
            if name not in has and not ours and path.suffix != ".pth":
                (folder / path.name).symlink_to(path)
        return {"PYTHONPATH": str(folder)}

    def make_database(self, uri: str) -> None:
        """Put the tables that the release creates into an empty database, as a copy of what it did once."""
        if uri.startswith("sqlite:///"):
            template = self.folder / "mlflow.db"
            if not template.exists():
                self._create_tables(f"sqlite:///{template}")
            shutil.copy(template, uri.removeprefix("sqlite:///"))
            return
        server, _, name = uri.rpartition("/")
        template = f"mlflow_{self.version}"
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [template])
            if not known.fetchone():
                connection.execute(f'CREATE DATABASE "{template}"'.encode())
                self._create_tables(f"{server}/{template}")
            connection.execute(f'DROP DATABASE "{name}"'.encode())
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())

    def _create_tables(self, uri: str) -> None:
        script = """
            import sys
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
            SqlAlchemyStore(sys.argv[1], sys.argv[2])
            print("null")
        """
        self.run(script, driver(uri), self.folder / "artifacts")

    def walk(self, uri: str, oldest: str) -> Iterator[str]:
        """Bring an empty database to each revision of the release in turn, and yield it there."""
        script = """
            import sys
            from alembic import command
            from alembic.script import ScriptDirectory
            from mlflow.store.db import utils
            from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

            uri, oldest = sys.argv[1:]
            engine = utils.create_sqlalchemy_engine(uri)
            InitialBase.metadata.create_all(engine)
            config = utils._get_alembic_config(uri)
            known = ScriptDirectory.from_config(config).walk_revisions(oldest, "heads")
            for revision in reversed([it.revision for it in known]):
                with engine.begin() as connection:
                    config.attributes["connection"] = connection
                    command.upgrade(config, revision)
                engine.dispose()
                print("at", revision, flush=True)
                sys.stdin.readline()
        """
        command = [self.python, "-c", textwrap.dedent(script), driver(uri), oldest]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment()
        ) as process:
            try:
                for line in process.stdout:
                    if line.startswith("at "):
                        yield line.split()[1]
                        process.stdin.write("\n")
                        process.stdin.flush()
                assert process.wait() == 0
            finally:
                process.kill()

    @contextlib.contextmanager
    def server(self, uri: str, folder: Path, proxied: bool = False) -> Iterator[str]:
        """Run the release's server on a database; the URL it answers at.

        Clients reach the artifacts in `folder` themselves, or through the server if they are `proxied`.
        """
        port = free_port()
        place = "--artifacts-destination" if proxied else "--default-artifact-root"
        options = [place, str(folder / "artifacts")]
        command = server_command(port, driver(uri), *options, python=self.python)
        with serving(command, f"http://127.0.0.1:{port}", folder / f"server-{self.version}.log"):
            yield f"http://127.0.0.1:{port}"


def _package(path: Path) -> str:
    """The name of a package by that of its folder, file or metadata, as pip compares names."""
    return path.name.partition(".")[0].partition("-")[0].lower()


def driver(uri: str) -> str:
    """Return the URI as every release's SQLAlchemy takes it: the default driver has changed."""
    return uri.replace("postgresql://", "postgresql+psycopg2://")


def environment(version: str) -> str:
    """Return the interpreter of a release's environment, which is made if it is not there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / version
    with (CACHE / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
            whole = f"mlflow=={OVER.get(version, version)}"
            subprocess.run([*pip, whole, "sqlalchemy<2.1", "setuptools<81", "psycopg2-binary"], check=True)
            if version in OVER:
                subprocess.run([*pip, "--no-deps", f"mlflow=={version}"], check=True)
            (folder / "complete").touch()
    return str(folder / "bin/python")
