#!/usr/bin/env python3
"""Write the constants of src/store/sql/schema/ from the database that the installed mlflow makes.

    python scripts/schema_from_mlflow.py postgresql+psycopg2://user@host/empty_database

makes a fresh SQLite database with the stock release of this interpreter's environment, reads out of
it what that release put there and writes `mlflow_<version>.rs`, which `mod.rs` has to name. The
PostgreSQL database, which it fills too, is asked what SQLite does not know: how its keys are numbered.
What it meets and cannot describe is an error: nothing is left out silently.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlflow
import sqlalchemy
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

SCHEMA_FOLDER = Path(__file__).resolve().parents[1] / "src/store/sql/schema"

TYPES = {
    "TEXT": "text",
    "INTEGER": "integer",
    "BIGINT": "bigint",
    "FLOAT": "float",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "JSON": "json",
    "BLOB": "binary",
}
# How PostgreSQL numbers a column, by table and column, and what an index has in it alone; read from it.
NUMBERED: dict[tuple[str, str], str] = {}
INDEX_TAILS: dict[str, str] = {}
ACTIONS = {
    "ON DELETE CASCADE": "OnDeleteCascade",
    "ON DELETE SET NULL": "OnDeleteSetNull",
    "ON UPDATE CASCADE": "OnUpdateCascade",
}
# The database has the constraints of a table in no order that lasts.
CONSTRAINT_ORDER = ["primary_key", "unique", "foreign_key", "check", "zero_or_one"]
COLUMN = re.compile(
    r"(?P<name>\w+) (?P<type>\w+)(\((?P<length>\d+)\))?"
    r"( DEFAULT (?P<default>'[^']*'|\w+))?"
    r"( GENERATED ALWAYS AS \((?P<generated>.+)\) STORED)?"
    r"(?P<not_null> NOT NULL)?"
)
CONSTRAINT = re.compile(
    r"(CONSTRAINT (?P<name>\w+) )?(?P<kind>PRIMARY KEY|UNIQUE|FOREIGN KEY|CHECK) ?\((?P<body>.+?)\)"
    r"( REFERENCES (?P<table>\w+) \((?P<references>[^)]+)\)"
    r"(?P<actions>( ON \w+ (CASCADE|SET NULL))*))?",
    re.IGNORECASE,
)
INDEX = re.compile(r"CREATE (?P<unique>UNIQUE )?INDEX (?P<name>\w+) ON \w+ \((?P<columns>[^()]+)\)")
TRIGGER = re.compile(
    r"CREATE TRIGGER (?P<name>\w+) BEFORE UPDATE ON \w+ FOR EACH ROW "
    r"WHEN (?P<changed>OLD\.\w+ != NEW\.\w+( OR OLD\.\w+ != NEW\.\w+)*) "
    r"BEGIN SELECT RAISE\(ABORT, '(?P<message>[^']+)'\); END"
)


def main() -> None:
    """Make the databases, describe them, write the file."""
    (uri,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "mlflow.db")
        SqlAlchemyStore(f"sqlite:///{database}", folder)
        SqlAlchemyStore(uri, folder)
        NUMBERED.update(numbered_columns(uri))
        INDEX_TAILS.update(index_tails(uri))
        with sqlite3.connect(database) as connection:
            text = schema(connection)
    target = SCHEMA_FOLDER / f"mlflow_{mlflow.__version__.replace('.', '_')}.rs"
    target.write_text(text, encoding="utf-8")


def numbered_columns(uri: str) -> dict[tuple[str, str], str]:
    """Return the word of `mod.rs` for each column that PostgreSQL numbers."""
    query = """
        SELECT table_name, column_name, is_identity = 'YES' FROM information_schema.columns
        WHERE table_schema = 'public' AND (is_identity = 'YES' OR column_default LIKE 'nextval%')
    """
    with sqlalchemy.create_engine(uri).connect() as connection:
        rows = connection.exec_driver_sql(query.replace("%", "%%")).fetchall()
    return {(table, column): "identity" if identity else "serial" for table, column, identity in rows}


def index_tails(uri: str) -> dict[str, str]:
    """Return what stands behind the columns of an index, by the index."""
    query = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    with sqlalchemy.create_engine(uri).connect() as connection:
        rows = connection.exec_driver_sql(query).fetchall()
    tails = ((name, re.sub(r"^.*? USING btree \([^()]*\)", "", definition)) for name, definition in rows)
    return {name: tail for name, tail in tails if tail}


def schema(connection: sqlite3.Connection) -> str:
    """Return the Rust source of the schema."""
    (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    described = lines(1, (table(connection, name) for name in tables(connection)))
    actions = ", ".join(action for action in ACTIONS.values() if action in described)
    return f"""//! The schema of MLflow {mlflow.__version__}.
//! Written by `scripts/schema_from_mlflow.py`.

use super::{{Action::{{{actions}}}, *}};

pub(super) static SCHEMA: Schema = Schema {{
    mlflow_version: {quoted(mlflow.__version__)},
    revision: {quoted(revision)},
    tables: {described},
    seeds: {lines(1, seeds(connection))},
}};
"""


def tables(connection: sqlite3.Connection) -> list[str]:
    """Return the tables in alphabetical order, but each after those that it refers to."""
    found = [name for (name,) in definitions(connection, "name", "table")]
    ordered: list[str] = []

    def add(name: str) -> None:
        if name not in ordered:
            for row in connection.execute("SELECT [table] FROM pragma_foreign_key_list(?)", [name]):
                add(*row)
            ordered.append(name)

    for name in sorted(found):
        add(name)
    return ordered


def table(connection: sqlite3.Connection, name: str) -> str:
    """Return one `Table`."""
    ((sql,),) = definitions(connection, "sql", "table", name)
    _, _, body = plain(sql).partition("(")
    parts = list(split(body.removesuffix(")")))
    is_constraint = re.compile(r"CONSTRAINT |PRIMARY KEY|UNIQUE|FOREIGN KEY|CHECK")
    constraints = sorted(
        (constraint(part) for part in parts if is_constraint.match(part)),
        key=lambda text: (CONSTRAINT_ORDER.index(text.partition("(")[0]), text),
    )
    triggers = (trigger(sql) for (sql,) in definitions(connection, "sql", "trigger", name))
    # The indexes of primary keys and UNIQUE constraints have no text of their own.
    indexes = (index(sql) for (sql,) in definitions(connection, "sql", "index", name) if sql)
    return f"""Table {{
            name: {quoted(name)},
            columns: {lines(3, (column(name, part) for part in parts if not is_constraint.match(part)))},
            constraints: {lines(3, [*constraints, *triggers])},
            indexes: {lines(3, indexes)},
        }}"""


def column(table: str, definition: str) -> str:
    """Return one `Column`, in the words of `mod.rs`."""
    found = matched(COLUMN, definition)
    if found["length"]:
        text = f"string({quoted(found['name'])}, {found['length']})"
        expect(found["type"] == "VARCHAR", definition)
    else:
        expect(found["type"] in TYPES, definition)
        word = NUMBERED.get((table, found["name"]), TYPES[found["type"]])
        text = f"{word}({quoted(found['name'])})"
    if found["default"] == "0" and found["type"] == "BOOLEAN":
        text += ".default_false()"
    elif found["default"]:
        expect(found["default"].startswith("'"), definition)
        text += f".default({quoted(found['default'].strip(chr(39)))})"
    if found["generated"]:
        text += f".generated({quoted(found['generated'])})"
    return text + (".not_null()" if found["not_null"] else "")


def constraint(definition: str) -> str:
    """Return one `Constraint`, in the words of `mod.rs`."""
    if boolean := re.fullmatch(r"CHECK \((\w+) IN \(0, 1\)\)", definition):
        return f"zero_or_one({quoted(boolean[1])})"
    found = matched(CONSTRAINT, definition)
    body, name = found["body"], found["name"]
    optional_name = f"Some({quoted(name)})" if name else "None"
    match found["kind"]:
        case "CHECK":
            return f"check({optional_name}, {quoted(body)})"
        case "FOREIGN KEY":
            actions = re.findall(r"ON \w+ (?:CASCADE|SET NULL)", found["actions"].upper())
            words = ", ".join(ACTIONS[action] for action in actions)
            return (
                f"foreign_key({optional_name}, {names(body)}, {quoted(found['table'])}, "
                f"{names(found['references'])}, &[{words}])"
            )
        case "UNIQUE":
            return f"unique({optional_name}, {names(body)})"
        case _:
            expect(name is not None, definition)
            return f"primary_key({quoted(name)}, {names(body)})"


def trigger(definition: str) -> str:
    """Return the `Constraint::Immutable` that a trigger stands for."""
    found = matched(TRIGGER, plain(definition))
    columns = ", ".join(re.findall(r"OLD\.(\w+)", found["changed"]))
    return f"immutable({quoted(found['name'])}, {names(columns)}, {quoted(found['message'])})"


def index(definition: str) -> str:
    """Return one `Index`, in the words of `mod.rs`."""
    found = matched(INDEX, plain(definition))
    columns = [part.split() for part in found["columns"].split(", ")]
    expect(all(order in ([], ["DESC"]) for _, *order in columns), definition)
    word = "unique_index" if found["unique"] else "index"
    text = f"{word}({quoted(found['name'])}, {names(', '.join(name for name, *_ in columns))})"
    if tail := INDEX_TAILS.get(found["name"]):
        text += f".in_postgres({quoted(tail)})"
    if descending := ", ".join(name for name, *order in columns if order):
        text += f".descending({names(descending)})"
    return text


def seeds(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield a `Seed` for every row there is, but for experiment 0: the caller makes that."""
    for name in tables(connection):
        cursor = connection.execute(f'SELECT * FROM "{name}"')
        for row in cursor.fetchall() if name != "experiments" else ():
            values = {field[0]: value for field, value in zip(cursor.description, row, strict=True)}
            pairs = ", ".join(
                f"({quoted(field)}, {quoted(str(value))})"
                for field, value in values.items()
                if value is not None
            )
            yield f"Seed {{ table: {quoted(name)}, values: &[{pairs}] }}"


def definitions(
    connection: sqlite3.Connection, what: str, kind: str, table: str | None = None
) -> list[tuple[str]]:
    """Return the name or sql of the tables, or of a table's own entries of that kind, by name."""
    return connection.execute(
        f"SELECT {what} FROM sqlite_master WHERE type = ? AND tbl_name = ifnull(?, tbl_name) ORDER BY name",
        [kind, table],
    ).fetchall()


def plain(sql: str) -> str:
    """Return a statement on one line, without the quotes of identifiers."""
    return re.sub(r"\s+", " ", sql).replace('"', "").strip()


def split(body: str) -> Iterator[str]:
    """Yield the definitions of a CREATE TABLE: what stands between its own commas."""
    part, depth = "", 0
    for character in body:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += character
    yield part.strip()


def matched(pattern: re.Pattern[str], definition: str) -> re.Match[str]:
    """Return the match of a whole definition."""
    found = pattern.fullmatch(definition)
    if found is None:
        raise no_words(definition)
    return found


def expect(condition: bool, definition: str) -> None:
    """Stop at a definition that the schema's types cannot describe yet."""
    if not condition:
        raise no_words(definition)


def no_words(definition: str) -> SystemExit:
    """Return the end of the script at such a definition."""
    return SystemExit(f"src/store/sql/schema/mod.rs has no words for: {definition}")


def quoted(text: str) -> str:
    """Return a Rust string."""
    expect(not set(text) & {'"', "\\"}, text)
    return f'"{text}"'


def names(columns: str) -> str:
    """Return a Rust slice of a list of columns."""
    return f"&[{', '.join(quoted(column) for column in columns.split(', '))}]"


def lines(depth: int, items: Iterable[str]) -> str:
    """Return a Rust slice, an item to a line; `depth` is the indentation of its last line."""
    indent = "    " * depth
    text = "".join(f"\n{indent}    {item}," for item in items)
    return f"&[{text}\n{indent}]" if text else "&[]"


if __name__ == "__main__":
    main()
