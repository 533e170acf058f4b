"""A database that heimdall_tracking has made is the one that the stock release makes."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from mlflow import MlflowClient
from mlflow.store.db import utils as stock
from mlflow.store.db.base_sql_model import Base

from heimdall_tracking import ConfigurationError, MLflowTracker


@pytest.fixture(scope="module")
def our_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEIMDALL_DIR", str(folder / "heimdall"))
        MLflowTracker(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def our_engine(our_database: Path) -> Iterator[sqlalchemy.Engine]:
    yield from engine(our_database)


@pytest.fixture(scope="module")
def stock_engine(stock_database: Path) -> Iterator[sqlalchemy.Engine]:
    yield from engine(stock_database)


def engine(database: Path) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    yield engine
    engine.dispose()


def columns(connection: sqlite3.Connection, table: str) -> list[tuple]:
    """Position, name, type, not null, default, position in the primary key, generated or not."""
    return connection.execute("SELECT * FROM pragma_table_xinfo(?)", [table]).fetchall()


def foreign_keys(connection: sqlite3.Connection, table: str) -> list[list[tuple]]:
    """Of each its columns: other table, column, other column, ON UPDATE, ON DELETE, MATCH."""
    keys: dict[int, list[tuple]] = {}
    for number, _, *key in connection.execute(
        "SELECT * FROM pragma_foreign_key_list(?) ORDER BY id, seq", [table]
    ):
        keys.setdefault(number, []).append(tuple(key))
    return sorted(keys.values())


def indexes(connection: sqlite3.Connection, table: str) -> list[tuple]:
    """Name (but of a key's), unique, origin, partial; per column: name, descending, collation."""
    return sorted(
        (
            "" if origin in ("pk", "u") else name,
            unique,
            origin,
            partial,
            connection.execute(
                'SELECT name, "desc", coll FROM pragma_index_xinfo(?) WHERE "key"', [name]
            ).fetchall(),
        )
        for _, name, unique, origin, partial in connection.execute(
            "SELECT * FROM pragma_index_list(?)", [table]
        )
    )


def statements(connection: sqlite3.Connection, table: str) -> list[str]:
    """The texts of its indexes and triggers: they say what no PRAGMA does."""
    found = connection.execute(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type <> 'table' AND sql IS NOT NULL",
        [table],
    )
    return sorted(re.sub(r"\s+", " ", sql).replace('"', "") for (sql,) in found)


def by_table(database: Path, read) -> dict[str, list]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {table: read(connection, table) for (table,) in tables}


@pytest.mark.parametrize("read", [columns, foreign_keys, indexes, statements])
def test_sqlite_finds_the_same_in_every_table(our_database: Path, stock_database: Path, read):
    assert by_table(our_database, read) == by_table(stock_database, read)


@pytest.mark.parametrize(
    "aspect",
    [
        "columns",
        "pk_constraint",
        "unique_constraints",
        "foreign_keys",
        "check_constraints",
        "indexes",
    ],
)
def test_sqlalchemy_reads_the_same_out_of_every_table(
    our_engine: sqlalchemy.Engine, stock_engine: sqlalchemy.Engine, aspect: str
):
    ours, theirs = (
        {table: reflected(details) for (_, table), details in read().items()}
        for read in (
            getattr(sqlalchemy.inspect(engine), f"get_multi_{aspect}")
            for engine in (our_engine, stock_engine)
        )
    )

    assert ours == theirs


def reflected(details: list[dict] | dict) -> list[str]:
    """As text, since types compare as objects; the order of columns is SQLite's to tell."""
    return sorted(map(repr, details if isinstance(details, list) else [details]))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM alembic_version",
        "SELECT * FROM workspaces",
        "SELECT name, lifecycle_stage, workspace FROM experiments WHERE experiment_id = 0",
    ],
)
def test_a_fresh_database_has_the_rows_of_the_stock_one(
    our_engine: sqlalchemy.Engine, stock_engine: sqlalchemy.Engine, query: str
):
    def rows(engine: sqlalchemy.Engine) -> list[tuple]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    assert rows(our_engine) == rows(stock_engine)


def test_the_stock_release_finds_nothing_to_create_or_to_upgrade(our_engine: sqlalchemy.Engine):
    assert stock._all_tables_exist(our_engine)
    stock._verify_schema(our_engine)


def test_alembic_sees_no_difference_that_a_stock_database_has_not(
    our_engine: sqlalchemy.Engine, stock_engine: sqlalchemy.Engine
):
    def migration(engine: sqlalchemy.Engine) -> list[str]:
        with engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            context = MigrationContext.configure(connection, opts=options)
            operations = produce_migrations(context, Base.metadata).upgrade_ops
            return sorted(render_python_code(operations).splitlines())

    assert migration(our_engine) == migration(stock_engine)


def test_the_stock_client_opens_a_fresh_database(our_database: Path):
    client = MlflowClient(f"sqlite:///{our_database}")

    assert client.get_experiment("0").name == "Default"


@pytest.fixture
def another_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed mlflow whose schema is not shipped, as far as its version tells."""
    (tmp_path / "site" / "mlflow-99.1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("another_release")
def test_an_mlflow_whose_schema_is_not_shipped_makes_its_tables_itself(uri, stock_database):
    tracker = MLflowTracker(uri, experiment_name="e")
    with tracker.run() as run:
        pass
    tracker.flush()
    for read in (columns, statements):
        assert by_table(Path(uri.removeprefix("sqlite:///")), read) == by_table(stock_database, read)
    assert MlflowClient(uri, uri).get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("another_release")
def test_an_mlflow_that_does_not_make_its_tables_is_named_with_what_to_do(uri, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: no sqlalchemy' >&2; exit 1")
    broken.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(broken))
    with pytest.raises(ConfigurationError, match=r"99\.1\.0.*no sqlalchemy.*HEIMDALL_MLFLOW_VERSION"):
        MLflowTracker(uri)
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", "3.1.4")
    assert MLflowTracker(uri).experiment_id == "1"
