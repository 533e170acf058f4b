//! An MLflow database, written to directly.
//!
//! Statements name their columns and use only those that every supported revision of the schema has, so
//! that the database decides the revision and not the writer. They are kept to what SQLite and PostgreSQL
//! both understand.

mod locks;
mod query;
mod registry;
pub mod schema;
mod write;

use std::{collections::HashMap, path::Path, sync::Mutex, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use super::{Experiment, StoreError};
use crate::{config::Destination, run::now_ms};
use schema::Dialect;

/// How long SQLite itself waits for another writer before the delivery worker takes over waiting.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Columns that are written or read here, by table: what an existing database must have.
const NEEDED: [(&str, &[&str]); 10] = [
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
    (
        "runs",
        &[
            "run_uuid",
            "name",
            "source_type",
            "user_id",
            "status",
            "start_time",
            "end_time",
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
        "registered_models",
        &["name", "creation_time", "last_updated_time"],
    ),
    (
        "model_versions",
        &[
            "name",
            "version",
            "creation_time",
            "last_updated_time",
            "description",
            "current_stage",
            "source",
            "run_id",
            "status",
            "storage_location",
        ],
    ),
    ("model_version_tags", &["key", "value", "name", "version"]),
    ("alembic_version", &["version_num"]),
];

/// A SQLite database with MLflow's schema.
#[derive(Debug)]
pub struct SqlStore {
    destination: Destination,
    pool: SqlitePool,
    experiments: Mutex<HashMap<String, Experiment>>,
}

impl SqlStore {
    /// Opens the database; a fresh one gets the schema of the MLflow release that this package ships.
    ///
    /// # Errors
    /// [`StoreError::Open`] when it cannot be opened, is no MLflow database or lacks what is written here.
    pub async fn open(destination: &Destination) -> Result<Self, StoreError> {
        let Destination::Sqlite(path) = destination;
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            return Err(open_error(
                destination,
                format!("there is no folder {}", folder.display()),
            ));
        }
        locks::install();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        // One connection writes while another one answers questions. Where SQLite itself has rolled back (a
        // full disk, for example), the driver goes on counting a transaction that is gone: such a connection
        // is no longer used.
        let pool = SqlitePoolOptions::new()
            .max_connections(2)
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(options)
            .await
            .map_err(|error| open_error(destination, describe(path, &error)))?;
        let store = Self {
            destination: destination.clone(),
            pool,
            experiments: Mutex::default(),
        };
        store.prepare().await?;
        Ok(store)
    }

    /// Creates what a fresh database lacks, checks what an existing one has.
    async fn prepare(&self) -> Result<(), StoreError> {
        let failed = |error: &sqlx::Error| {
            let Destination::Sqlite(path) = &self.destination;
            open_error(&self.destination, describe(path, error))
        };
        let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table'";
        let count: i64 = sqlx::query_scalar(tables)
            .fetch_one(&self.pool)
            .await
            .map_err(|error| failed(&error))?;
        if count == 0 {
            // Immediate, so that of two processes that find it fresh the second one waits and looks again.
            let mut tx = self
                .pool
                .begin_with("BEGIN IMMEDIATE")
                .await
                .map_err(|error| failed(&error))?;
            let count: i64 = sqlx::query_scalar(tables)
                .fetch_one(&mut *tx)
                .await
                .map_err(|error| failed(&error))?;
            if count == 0 {
                let schema = schema::shipped();
                for statement in schema.statements(Dialect::Sqlite) {
                    sqlx::query(AssertSqlSafe(statement))
                        .execute(&mut *tx)
                        .await
                        .map_err(|error| failed(&error))?;
                }
                let root = self.destination.default_artifact_root();
                sqlx::query(
                    "INSERT INTO experiments (experiment_id, name, artifact_location, \
                     lifecycle_stage, creation_time, last_update_time) \
                     VALUES (0, 'Default', $1, 'active', $2, $2)",
                )
                .bind(format!("{root}/0"))
                .bind(now_ms())
                .execute(&mut *tx)
                .await
                .map_err(|error| failed(&error))?;
                tx.commit().await.map_err(|error| failed(&error))?;
                return Ok(());
            }
        }
        for (table, columns) in NEEDED {
            let found: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
                .bind(table)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| failed(&error))?;
            if let Some(missing) = columns
                .iter()
                .find(|column| !found.iter().any(|f| f == *column))
            {
                let reason = if table == "alembic_version" || found.is_empty() {
                    format!("it is no MLflow database (no table {table}); name another file")
                } else {
                    format!(
                        "its MLflow schema has no column {table}.{missing}; upgrade it with \
                         `mlflow db upgrade {}`",
                        self.destination.uri()
                    )
                };
                return Err(open_error(&self.destination, reason));
            }
        }
        Ok(())
    }

    /// Sorts a driver's error: at fault is the record (a constraint) or the store (everything else).
    fn error(&self, source: sqlx::Error) -> StoreError {
        use sqlx::error::ErrorKind::{
            CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation,
        };
        let destination = self.destination.uri();
        let kind = source.as_database_error().map(|error| error.kind());
        match kind {
            Some(CheckViolation | ForeignKeyViolation | NotNullViolation | UniqueViolation) => {
                StoreError::Refused {
                    destination,
                    source,
                }
            }
            _ => StoreError::Unavailable {
                destination,
                source,
            },
        }
    }

    fn run_not_found(&self, run_id: &str) -> StoreError {
        StoreError::RunNotFound {
            run_id: run_id.to_owned(),
            destination: self.destination.uri(),
        }
    }
}

fn open_error(destination: &Destination, reason: String) -> StoreError {
    StoreError::Open {
        destination: destination.uri(),
        reason,
    }
}

fn describe(path: &Path, error: &sqlx::Error) -> String {
    if path.is_dir() {
        "it is a folder, not a database file".to_owned()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests;
