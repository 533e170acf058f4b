"""Everything that a database's own catalog says of its tables, to be compared with another's."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator

import psycopg

POSTGRES = {
    "columns": """
        SELECT table_name, row_number() OVER (PARTITION BY table_name ORDER BY ordinal_position),
               column_name, data_type, character_maximum_length, is_nullable,
               column_default, is_identity, identity_generation, is_generated, generation_expression
        FROM information_schema.columns WHERE table_schema = 'public'
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "sequences": """
        SELECT sequencename, data_type::text, start_value, increment_by, last_value
        FROM pg_sequences WHERE schemaname = 'public'
    """,
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    """,
    "functions": """
        SELECT proname, regexp_replace(prosrc, '\\s+', ' ', 'g')
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    """,
    "revision": "SELECT version_num FROM alembic_version",
    "experiments": "SELECT experiment_id, name, lifecycle_stage FROM experiments",
}
SQLITE = {
    # Position, name, type, not null, default, position in the primary key, generated or not.
    "columns": "SELECT m.name, p.* FROM tables m JOIN pragma_table_xinfo(m.name) p",
    "foreign keys": """
        SELECT m.name, "table", "from", "to", on_update, on_delete, "match"
        FROM tables m JOIN pragma_foreign_key_list(m.name)
    """,
    "indexes": """
        SELECT m.name, CASE WHEN i.origin IN ('pk', 'u') THEN '' ELSE i.name END, "unique", origin, partial,
               (SELECT group_concat(x.name || x."desc" || x.coll)
                FROM pragma_index_xinfo(i.name) x WHERE x.key)
        FROM tables m JOIN pragma_index_list(m.name) i
    """,
    "revision": "SELECT version_num FROM alembic_version",
    "experiments": "SELECT experiment_id, name, lifecycle_stage FROM experiments",
}


def catalog(uri: str) -> dict[str, list]:
    """Return what the catalog says, by aspect."""
    return dict(sqlite_catalog(uri) if uri.startswith("sqlite") else postgres_catalog(uri))


def rows(uri: str, query: str) -> list[tuple]:
    """Return what a database answers; what SQLite calls 0 and 1 equals PostgreSQL's booleans."""
    if uri.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
            return connection.execute(query).fetchall()
    with psycopg.connect(uri) as connection:
        return connection.execute(query.encode()).fetchall()


def postgres_catalog(uri: str) -> Iterator[tuple[str, list]]:
    with psycopg.connect(uri) as connection:
        for aspect, query in POSTGRES.items():
            yield aspect, sorted(connection.execute(query).fetchall(), key=repr)


def sqlite_catalog(uri: str) -> Iterator[tuple[str, list]]:
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        connection.execute(
            "CREATE TEMP VIEW tables AS SELECT name FROM main.sqlite_master WHERE type = 'table'"
        )
        for aspect, query in SQLITE.items():
            yield aspect, sorted(connection.execute(query).fetchall(), key=repr)
        # No PRAGMA tells of checks and of constraints' names: definitions, one by one, in any order.
        for name, sql in connection.execute("SELECT name, sql FROM main.sqlite_master WHERE sql IS NOT NULL"):
            text = re.sub(r"\s+", " ", sql).replace('"', "").lower()
            yield f"definition of {name}", sorted(part.strip(" )") for part in text.split(", "))
