//! Layout of a database: the tables and columns that it has, as far as statements depend on its revision.

use std::collections::HashMap;

use super::{
    database::{Database, Transaction},
    row::Row,
    schema::Dialect,
    statement::Statement,
};
use crate::config::uri::Destination;

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

/// Columns that every database must have: they are written or read in all revisions.
const NEEDED: [(&str, &[&str]); 16] = [
    ("alembic_version", &["version_num"]),
    (
        "experiments",
        &[
            "experiment_id",
            "name",
            "artifact_location",
            "lifecycle_stage",
            "creation_time",
            "last_update_time",
        ],
    ),
    ("experiment_tags", &["key", "value", "experiment_id"]),
    (
        "runs",
        &[
            "run_uuid",
            "name",
            "source_type",
            "source_name",
            "entry_point_name",
            "source_version",
            "user_id",
            "status",
            "start_time",
            "end_time",
            "deleted_time",
            "lifecycle_stage",
            "artifact_uri",
            "experiment_id",
        ],
    ),
    (
        "metrics",
        &["key", "value", "timestamp", "run_uuid", "step", "is_nan"],
    ),
    (
        "latest_metrics",
        &["key", "value", "timestamp", "run_uuid", "step", "is_nan"],
    ),
    ("params", &["key", "value", "run_uuid"]),
    ("tags", &["key", "value", "run_uuid"]),
    (
        "datasets",
        &[
            "dataset_uuid",
            "experiment_id",
            "name",
            "digest",
            "dataset_source_type",
            "dataset_source",
            "dataset_schema",
            "dataset_profile",
        ],
    ),
    (
        "inputs",
        &[
            "input_uuid",
            "source_type",
            "source_id",
            "destination_type",
            "destination_id",
        ],
    ),
    ("input_tags", &["input_uuid", "name", "value"]),
    (
        "registered_models",
        &["name", "creation_time", "last_updated_time", "description"],
    ),
    ("registered_model_tags", &["key", "value", "name"]),
    ("registered_model_aliases", &["alias", "version", "name"]),
    (
        "model_versions",
        &[
            "name",
            "version",
            "creation_time",
            "last_updated_time",
            "description",
            "user_id",
            "current_stage",
            "source",
            "run_id",
            "run_link",
            "status",
            "status_message",
        ],
    ),
    ("model_version_tags", &["key", "value", "name", "version"]),
];

/// The columns of each table, with the greatest number of characters that each column can hold.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    tables: HashMap<String, HashMap<String, Option<usize>>>,
}

/// Returns the query for the table, name and width of every column that the search path reaches.
fn columns(dialect: Dialect) -> Statement {
    Statement::new(match dialect {
        Dialect::Sqlite => {
            "SELECT m.name, p.name, CASE WHEN p.type LIKE 'VARCHAR(%)' \
             THEN CAST(substr(p.type, 9) AS INTEGER) END \
             FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"
        }
        Dialect::Postgres => {
            "SELECT table_name::text, column_name::text, character_maximum_length::bigint \
             FROM information_schema.columns WHERE table_schema = ANY (current_schemas(false))"
        }
    })
}

fn column(row: &Row) -> Result<(String, String, Option<usize>)> {
    let width = row.int(2)?.and_then(|width| usize::try_from(width).ok());
    Ok((row.string(0)?, row.string(1)?, width))
}

impl Layout {
    pub(crate) async fn read(database: &Database) -> Result<Self> {
        let found = database.fetch(columns(database.dialect()), column).await?;
        Ok(Self::of(found))
    }

    pub(crate) async fn read_within(tx: &mut Transaction) -> Result<Self> {
        let found = tx.fetch(columns(tx.dialect()), column).await?;
        Ok(Self::of(found))
    }

    fn of(columns: Vec<(String, String, Option<usize>)>) -> Self {
        let mut layout = Self::default();
        for (table, column, width) in columns {
            let table = layout.tables.entry(table).or_default();
            table.insert(column, width);
        }
        layout
    }

    /// Returns true for a database in which the tables are to be created: an empty one, or a PostgreSQL database that
    /// has tables of other programs only.
    pub(crate) fn is_fresh(&self, dialect: Dialect) -> bool {
        let ours = ["alembic_version", "experiments", "runs", "metrics"];
        match dialect {
            Dialect::Sqlite => self.tables.is_empty(),
            Dialect::Postgres => !ours.iter().any(|table| self.tables.contains_key(*table)),
        }
    }

    pub(crate) fn has(&self, table: &str, column: &str) -> bool {
        self.tables
            .get(table)
            .is_some_and(|columns| columns.contains_key(column))
    }

    /// Returns the greatest number of characters that a column can hold and that a reader of this revision expects.
    pub(crate) fn width(&self, table: &str, column: &str) -> usize {
        self.tables
            .get(table)
            .and_then(|columns| columns.get(column).copied().flatten())
            .unwrap_or(usize::MAX)
    }

    /// Returns a condition, beginning with AND, for the default workspace; an empty text where the revision has none.
    pub(crate) fn in_default_workspace(&self, table: &str) -> &'static str {
        if self.has(table, "workspace") {
            " AND workspace = 'default'"
        } else {
            ""
        }
    }

    /// Returns a table that every database of MLflow has and that is missing here.
    fn missing_table(&self) -> Option<&'static str> {
        let tables = ["alembic_version", "experiments", "runs", "metrics"];
        let mut tables = tables.into_iter();
        tables.find(|table| !self.tables.contains_key(*table))
    }

    /// Checks that the database has the needed columns; the error says what is missing and what to do.
    pub(crate) fn check(&self, destination: &Destination) -> Result<(), String> {
        // Other programs have a table alembic_version too.
        if let Some(table) = self.missing_table() {
            return Err(format!(
                "it is no MLflow database (no table {table}); name another one"
            ));
        }
        for (table, columns) in NEEDED {
            let missing = columns.iter().find(|column| !self.has(table, column));
            let reason = match missing {
                None => continue,
                Some(column) => format!(
                    "its MLflow schema has no column {table}.{column}; upgrade it with \
                     `mlflow db upgrade {}`",
                    destination.uri()
                ),
            };
            return Err(reason);
        }
        Ok(())
    }
}
