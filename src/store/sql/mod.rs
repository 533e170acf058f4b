//! An MLflow database, written to directly.
//!
//! Statements name their columns and use only those that every supported revision of the schema has, or that
//! [`Layout`] has found, so that the database decides the revision and not the writer.

mod copy;
mod database;
mod fresh;
mod layout;
mod lifecycle;
mod locks;
mod query;
mod registry;
pub mod schema;
mod search;
mod write;

use super::StoreError;
use crate::config::{Destination, FreshSchema};
use database::{Database, Fault, Row, Statement, Transaction, is_misconfigured};
use layout::Layout;

/// A SQLite or PostgreSQL database with MLflow's schema.
#[derive(Debug)]
pub struct SqlStore {
    destination: Destination,
    database: Database,
    layout: Layout,
}

impl SqlStore {
    /// Opens the database; a fresh one gets the schema of an MLflow release.
    ///
    /// # Errors
    /// [`StoreError::Open`] when it cannot be opened, is no MLflow database or lacks what is written here;
    /// [`StoreError::Unavailable`] when its server does not answer.
    pub async fn open(
        destination: &Destination,
        fresh_schema: &FreshSchema,
    ) -> Result<Self, StoreError> {
        let database = match destination {
            Destination::Sqlite(path) => {
                if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
                    return Err(open_error(
                        destination,
                        format!("there is no folder {}", folder.display()),
                    ));
                }
                if path.is_dir() {
                    let reason = "it is a folder, not a database file".to_owned();
                    return Err(open_error(destination, reason));
                }
                Database::open_sqlite(path).await
            }
            Destination::Postgres(uri) => Database::open_postgres(uri).await,
            Destination::Server(_) => {
                let reason = "a tracking server is no database".to_owned();
                return Err(open_error(destination, reason));
            }
        }
        .map_err(|error| opening(destination, error))?;
        let failed = |error| opening(destination, error);
        let mut layout = Layout::read(&database).await.map_err(failed)?;
        if layout.is_fresh(database.dialect()) {
            fresh::create(destination, &database, fresh_schema).await?;
            layout = Layout::read(&database).await.map_err(failed)?;
        }
        layout
            .check(destination)
            .map_err(|reason| open_error(destination, reason))?;
        Ok(Self {
            destination: destination.clone(),
            database,
            layout,
        })
    }

    async fn begin(&self) -> Result<Transaction, StoreError> {
        let begun = self.database.begin().await;
        begun.map_err(|error| self.error(error))
    }

    async fn commit(&self, tx: Transaction) -> Result<(), StoreError> {
        tx.commit().await.map_err(|error| self.error(error))
    }

    /// Executes a statement and returns how many rows it has changed.
    async fn execute(&self, tx: &mut Transaction, statement: Statement) -> Result<u64, StoreError> {
        let executed = tx.execute(statement).await;
        executed.map_err(|error| self.error(error))
    }

    async fn fetch<T>(
        &self,
        tx: &mut Transaction,
        query: Statement,
        of_row: impl Fn(&Row) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, StoreError> {
        let found = tx.fetch(query, of_row).await;
        found.map_err(|error| self.error(error))
    }

    async fn fetch_one<T>(
        &self,
        tx: &mut Transaction,
        query: Statement,
        of_row: impl Fn(&Row) -> Result<T, sqlx::Error>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.fetch(tx, query, of_row).await?.into_iter().next())
    }

    /// Rows that a question finds, outside of a transaction.
    async fn ask<T>(
        &self,
        query: Statement,
        of_row: impl Fn(&Row) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, StoreError> {
        let found = self.database.fetch(query, of_row).await;
        found.map_err(|error| self.error(error))
    }

    /// Sorts a driver's error: at fault is the record, what we may do, or the database.
    fn error(&self, source: sqlx::Error) -> StoreError {
        store_error(&self.destination, source)
    }

    fn run_not_found(&self, run_id: &str) -> StoreError {
        StoreError::run_not_found(run_id, self.destination.uri())
    }

    fn not_found(&self, what: String) -> StoreError {
        StoreError::NotFound {
            what,
            destination: self.destination.uri(),
        }
    }
}

fn store_error(destination: &Destination, source: sqlx::Error) -> StoreError {
    let fault = Fault::of(&source);
    let destination = destination.uri();
    match fault {
        Fault::Unavailable => StoreError::Unavailable {
            destination,
            source: source.into(),
            retry_after: None,
        },
        Fault::Unauthenticated => StoreError::Unauthenticated {
            destination,
            reason: source.to_string(),
        },
        Fault::Forbidden => StoreError::Forbidden {
            destination,
            reason: source.to_string(),
        },
        Fault::Record => StoreError::Refused {
            destination,
            source: source.into(),
        },
    }
}

/// What an error means while the database is being opened.
fn opening(destination: &Destination, error: sqlx::Error) -> StoreError {
    if is_misconfigured(&error) || matches!(destination, Destination::Sqlite(_)) {
        open_error(destination, error.to_string())
    } else {
        store_error(destination, error)
    }
}

fn open_error(destination: &Destination, reason: String) -> StoreError {
    StoreError::Open {
        destination: destination.uri(),
        reason,
    }
}

#[cfg(test)]
mod tests;
