"""A real PostgreSQL server of the tests' own, started from the system's binaries."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg

USER = "heimdall"
# Everything that a URI must escape.
PASSWORD = "p@ss/w:rd?#%&+é"


def binary(name: str) -> str:
    """Return the path of one of PostgreSQL's programs; Debian keeps them out of PATH."""
    places = [shutil.which(name), *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)]
    for place in filter(None, places):
        # Below its own folder it finds its own libraries.
        return str(Path(place).resolve())
    raise FileNotFoundError(f"no {name}: install PostgreSQL (Debian: apt-get install postgresql)")


class PostgresServer:
    """A server on 127.0.0.1 (asks passwords) and on a socket (does not), with data in a temporary folder."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.options = options
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        (self.folder / "password").write_text(PASSWORD, encoding="utf-8")
        (self.folder / "password").chmod(0o644)
        self.call(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={USER}",
            f"--pwfile={self.folder / 'password'}",
            "--auth-host=scram-sha-256",
            "--auth-local=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        )

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def call(self, program: str, *arguments: str) -> None:
        command = [binary(program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            log = self.folder / "log"
            said = log.read_text() if log.exists() else ""
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}{said}")

    def start(self) -> None:
        settings = f"-p {self.port} -k {self.folder} -h 127.0.0.1 -c fsync=off"
        # Stock clients keep a pool of connections to every database that a test has had.
        settings += f" -c max_connections=500 {' '.join(self.options)}"
        arguments = [f"--pgdata={self.data}", f"--log={self.folder / 'log'}", f"--options={settings}"]
        self.call("pg_ctl", *arguments, "--wait", "start")

    def stop(self, mode: str = "fast") -> None:
        self.call("pg_ctl", f"--pgdata={self.data}", "--wait", f"--mode={mode}", "stop")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        with psycopg.connect(self.uri(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> str:
        """Create a database and return its URI."""
        self.execute(f'CREATE DATABASE "{name}"')
        return self.uri(name)

    def uri(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        """Return the URI of a database by TCP, as SQLAlchemy and libpq read it."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def socket_uri(self, database: str) -> str:
        """Return the URI of a database by the unix socket."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"


@contextlib.contextmanager
def running(*options: str) -> Iterator[PostgresServer]:
    """Run a server for a `with` block; `options` are settings such as `-c max_connections=20`."""
    server = PostgresServer(*options)
    try:
        server.start()
        yield server
    finally:
        with contextlib.suppress(RuntimeError):
            server.stop("immediate")
        shutil.rmtree(server.folder, ignore_errors=True)
