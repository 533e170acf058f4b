//! One database behind two drivers: statements and rows that are the same for both.
//!
//! SQL is written once, in the syntax that SQLite and PostgreSQL share, with `$1`-style parameters. Values are passed
//! as parameters only, never in the text. [`Dialect`] tells the two apart where they differ.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{
    Connection, Executor, Postgres, Sqlite, SqlitePool,
    pool::PoolConnection,
    postgres::PgConnection,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use super::{
    copy, locks, postgres_hosts::PostgresHosts, row::Row, schema::Dialect, statement::Statement,
};
use crate::config::uri::PostgresUri;

/// Longest time that SQLite itself waits for another writer; after it the delivery worker waits and tries again.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a server may be silent while a statement waits for the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of connections: one for writing, one for queries.
const CONNECTIONS: u32 = 2;

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

/// A pool of connections.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    Sqlite(SqlitePool),
    Postgres(PostgresHosts),
}

impl Database {
    pub(crate) async fn open_sqlite(path: &std::path::Path) -> Result<Self> {
        locks::install();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            // LIKE distinguishes the case and ILIKE does not, as in stock MLflow and in PostgreSQL.
            .pragma("case_sensitive_like", "true");
        // After SQLite itself has rolled back (on a full disk, for example), the driver still counts a transaction
        // that no longer exists: such a connection is not used again.
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(options)
            .await?;
        Ok(Self::Sqlite(pool))
    }

    pub(crate) async fn open_postgres(uri: &PostgresUri) -> Result<Self> {
        Ok(Self::Postgres(PostgresHosts::open(uri).await?))
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Begins a transaction that writes.
    pub(crate) async fn begin(&self) -> Result<Transaction> {
        Ok(match self {
            // IMMEDIATE, as another writer could come between the first read and the first write of a transaction.
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(hosts) => {
                let mut session = PostgresSession::new(hosts.acquire().await?);
                session.run("BEGIN").await?;
                Transaction::Postgres(session)
            }
        })
    }

    pub(crate) async fn execute(&self, statement: Statement) -> Result<u64> {
        match self {
            Self::Sqlite(pool) => Ok(pool.execute(statement.sqlite()).await?.rows_affected()),
            Self::Postgres(hosts) => {
                let mut session = PostgresSession::new(hosts.acquire().await?);
                let executed = session.execute(statement).await?;
                session.release();
                Ok(executed)
            }
        }
    }

    /// Returns all rows, each converted by `of_row` when it arrives.
    pub(crate) async fn fetch<T>(
        &self,
        statement: Statement,
        of_row: impl Fn(&Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        match self {
            Self::Sqlite(pool) => {
                let mut rows = pool.fetch(statement.sqlite());
                while let Some(row) = rows.try_next().await? {
                    found.push(of_row(&Row::Sqlite(row))?);
                }
            }
            Self::Postgres(hosts) => {
                let mut session = PostgresSession::new(hosts.acquire().await?);
                session
                    .fetch(statement, |row| {
                        found.push(of_row(&row)?);
                        Ok(())
                    })
                    .await?;
                session.release();
            }
        }
        Ok(found)
    }
}

/// A connection to PostgreSQL for some statements. The connection is closed where the server is silent for too long,
/// and where the session ends before its [release](PostgresSession::release): the server rolls back then.
#[derive(Debug)]
pub(crate) struct PostgresSession(Option<PoolConnection<Postgres>>);

impl PostgresSession {
    fn new(connection: PoolConnection<Postgres>) -> Self {
        Self(Some(connection))
    }

    fn connection(&mut self) -> Result<&mut PgConnection> {
        let connection = self.0.as_deref_mut();
        connection.ok_or(sqlx::Error::PoolClosed)
    }

    async fn run(&mut self, sql: &'static str) -> Result<()> {
        answered(self.connection()?.execute(sql)).await.map(|_| ())
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64> {
        let executed = answered(self.connection()?.execute(statement.postgres())).await?;
        Ok(executed.rows_affected())
    }

    async fn fetch(
        &mut self,
        statement: Statement,
        mut each: impl FnMut(Row) -> Result<()>,
    ) -> Result<()> {
        let mut rows = self.connection()?.fetch(statement.postgres());
        while let Some(row) = answered(rows.try_next()).await? {
            each(Row::Postgres(row))?;
        }
        Ok(())
    }

    /// Returns the connection to the pool.
    fn release(mut self) {
        drop(self.0.take());
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        // The connection is not returned to the pool: its next user would wait for the answer that this session has
        // not read.
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// Waits for an answer of a server, for at most [`ANSWER_TIMEOUT`].
async fn answered<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let in_time = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    in_time.unwrap_or_else(|_| {
        let seconds = ANSWER_TIMEOUT.as_secs();
        let reason = format!("the server has not answered for {seconds} s");
        Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            reason,
        )))
    })
}

/// A transaction; one that is dropped without [`Transaction::commit`] has changed nothing.
#[derive(Debug)]
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(PostgresSession),
}

impl Transaction {
    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    pub(crate) async fn execute(&mut self, statement: Statement) -> Result<u64> {
        match self {
            Self::Sqlite(tx) => Ok(tx.execute(statement.sqlite()).await?.rows_affected()),
            Self::Postgres(session) => session.execute(statement).await,
        }
    }

    pub(crate) async fn fetch<T>(
        &mut self,
        statement: Statement,
        of_row: impl Fn(&Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        match self {
            Self::Sqlite(tx) => {
                let rows = tx.fetch_all(statement.sqlite()).await?;
                rows.into_iter()
                    .map(|row| of_row(&Row::Sqlite(row)))
                    .collect()
            }
            Self::Postgres(session) => {
                let mut found = Vec::new();
                session
                    .fetch(statement, |row| {
                        found.push(of_row(&row)?);
                        Ok(())
                    })
                    .await?;
                Ok(found)
            }
        }
    }

    /// Copies rows into a table of PostgreSQL. Returns false, and copies nothing, where one of the rows exists already.
    pub(crate) async fn copy(&mut self, copy: &str, rows: copy::CopyRows) -> Result<bool> {
        let Self::Postgres(session) = self else {
            return Ok(false);
        };
        // A COPY that fails would abort the transaction.
        session.run("SAVEPOINT points").await?;
        let mut copying = answered(session.connection()?.copy_in_raw(copy)).await?;
        answered(copying.send(rows.finish())).await?;
        match answered(copying.finish()).await {
            Ok(_) => {
                session.run("RELEASE SAVEPOINT points").await?;
                Ok(true)
            }
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                session.run("ROLLBACK TO SAVEPOINT points").await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Rolls the transaction back, and keeps the connection where that works.
    pub(crate) async fn rollback(self) {
        match self {
            Self::Sqlite(tx) => {
                let _ = tx.rollback().await;
            }
            Self::Postgres(mut session) => {
                if session.run("ROLLBACK").await.is_ok() {
                    session.release();
                }
            }
        }
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(mut session) => {
                session.run("COMMIT").await?;
                session.release();
                Ok(())
            }
        }
    }
}
