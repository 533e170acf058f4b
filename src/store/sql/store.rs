//! An open database, and its errors as errors of a store.

use super::fresh;
use super::layout::Layout;
use super::{
    database::{Database, Transaction},
    fault::{Fault, is_misconfigured},
    row::Row,
    statement::Statement,
};
use crate::{
    config::{tracker::FreshSchema, uri::Destination},
    store::error::StoreError,
};

/// A SQLite or PostgreSQL database with MLflow's schema.
#[derive(Debug)]
pub(crate) struct SqlStore {
    pub(crate) destination: Destination,
    pub(crate) database: Database,
    pub(crate) layout: Layout,
}

impl SqlStore {
    /// Opens the database; a fresh one gets the schema of an MLflow release.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the database cannot be opened, is no MLflow database or lacks a table or column that
    /// is written; [`StoreError::Unavailable`] when its server does not answer.
    pub(crate) async fn open(
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

    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        let begun = self.database.begin().await;
        begun.map_err(|error| self.error(error))
    }

    pub(crate) async fn commit(&self, tx: Transaction) -> Result<(), StoreError> {
        tx.commit().await.map_err(|error| self.error(error))
    }

    /// Executes a statement and returns the number of rows that it has changed.
    pub(crate) async fn execute(
        &self,
        tx: &mut Transaction,
        statement: Statement,
    ) -> Result<u64, StoreError> {
        let executed = tx.execute(statement).await;
        executed.map_err(|error| self.error(error))
    }

    pub(crate) async fn fetch<T>(
        &self,
        tx: &mut Transaction,
        query: Statement,
        of_row: impl Fn(&Row) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, StoreError> {
        let found = tx.fetch(query, of_row).await;
        found.map_err(|error| self.error(error))
    }

    pub(crate) async fn fetch_one<T>(
        &self,
        tx: &mut Transaction,
        query: Statement,
        of_row: impl Fn(&Row) -> Result<T, sqlx::Error>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.fetch(tx, query, of_row).await?.into_iter().next())
    }

    /// Returns the rows that a query finds, outside of a transaction.
    pub(crate) async fn ask<T>(
        &self,
        query: Statement,
        of_row: impl Fn(&Row) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, StoreError> {
        let found = self.database.fetch(query, of_row).await;
        found.map_err(|error| self.error(error))
    }

    /// Converts an error of the driver: the cause is the record, our permissions, or the database.
    pub(crate) fn error(&self, source: sqlx::Error) -> StoreError {
        store_error(&self.destination, source)
    }

    pub(crate) fn run_not_found(&self, run_id: &str) -> StoreError {
        StoreError::run_not_found(run_id, self.destination.uri())
    }

    pub(crate) fn not_found(&self, what: String) -> StoreError {
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

/// Converts an error of the driver while the database is being opened.
pub(crate) fn opening(destination: &Destination, error: sqlx::Error) -> StoreError {
    if is_misconfigured(&error) {
        open_error(destination, error.to_string())
    } else {
        store_error(destination, error)
    }
}

pub(crate) fn open_error(destination: &Destination, reason: String) -> StoreError {
    StoreError::Open {
        destination: destination.uri(),
        reason,
    }
}
