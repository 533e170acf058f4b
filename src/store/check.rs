//! Examination of a store for `heimdall doctor`. Nothing is created or changed.

use std::sync::Arc;

use super::{
    error::StoreError,
    open,
    sql::{
        database::Database,
        layout::Layout,
        schema::Dialect,
        statement::Statement,
        store::{SqlStore, open_error, opening},
    },
    tracking::TrackingStore,
};
use crate::config::{tracker::FreshSchema, uri::Destination};

/// A store as it was found.
#[derive(Debug, Default)]
pub(crate) struct StoreCheck {
    /// False for a database without tables, which the first tracker creates.
    pub has_tables: bool,
    /// The alembic revision of a database.
    pub revision: Option<String>,
    /// False where the user of a database may read but not write.
    pub is_writable: bool,
    /// Artifact location of the experiment, and true where the experiment is deleted; `None` where there is no such
    /// experiment.
    pub experiment: Option<(String, bool)>,
    /// Time of the database server, milliseconds since 1970.
    pub clock: Option<i64>,
}

/// Looks at a store and at the experiment of this name in it.
///
/// # Errors
/// The errors of [`open::open`].
pub(crate) async fn check(
    destination: &Destination,
    experiment: &str,
) -> Result<StoreCheck, StoreError> {
    let (store, mut found): (Arc<dyn TrackingStore>, _) = match destination {
        Destination::Server(_) => {
            let (store, _) = open::open(destination, &FreshSchema::default()).await?;
            let found = StoreCheck {
                has_tables: true,
                is_writable: true,
                ..StoreCheck::default()
            };
            (store, found)
        }
        Destination::Sqlite(path) if !path.exists() => {
            return match path.parent().filter(|folder| !folder.is_dir()) {
                Some(folder) => Err(open_error(
                    destination,
                    format!("there is no folder {}", folder.display()),
                )),
                None => Ok(StoreCheck {
                    is_writable: true,
                    ..StoreCheck::default()
                }),
            };
        }
        Destination::Sqlite(path) => {
            let database = Database::open_sqlite(path).await;
            let database = database.map_err(|error| opening(destination, error))?;
            let (store, found) = of_database(destination, database).await?;
            match store {
                Some(store) => (store, found),
                None => return Ok(found),
            }
        }
        Destination::Postgres(uri) => {
            let database = Database::open_postgres(uri).await;
            let database = database.map_err(|error| opening(destination, error))?;
            let (store, found) = of_database(destination, database).await?;
            match store {
                Some(store) => (store, found),
                None => return Ok(found),
            }
        }
    };
    found.experiment = match store.experiment_by_name(experiment).await {
        Ok(known) => Some((known.artifact_location, known.lifecycle_stage == "deleted")),
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(found)
}

async fn of_database(
    destination: &Destination,
    database: Database,
) -> Result<(Option<Arc<SqlStore>>, StoreCheck), StoreError> {
    let failed = |error| opening(destination, error);
    // The lock is tried, and released without a change: a file system without locks, or a read-only one, fails here.
    database.begin().await.map_err(failed)?.rollback().await;
    let mut found = StoreCheck {
        is_writable: true,
        ..StoreCheck::default()
    };
    let dialect = database.dialect();
    if dialect == Dialect::Postgres {
        let now = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
        let rows = database.fetch(Statement::new(now), |row| row.int(0)).await;
        found.clock = rows.map_err(failed)?.into_iter().next().flatten();
    }
    let layout = Layout::read(&database).await.map_err(failed)?;
    if layout.is_fresh(dialect) {
        return Ok((None, found));
    }
    let checked = layout.check(destination);
    checked.map_err(|reason| open_error(destination, reason))?;
    found.has_tables = true;
    let revision = Statement::new("SELECT version_num FROM alembic_version");
    let rows = database.fetch(revision, |row| row.text(0)).await;
    found.revision = rows.map_err(failed)?.into_iter().next().flatten();
    if dialect == Dialect::Postgres {
        let may_write = "SELECT has_table_privilege('runs', 'INSERT') AND \
                         has_table_privilege('metrics', 'INSERT')";
        let rows = database.fetch(Statement::new(may_write), |row| row.bool(0));
        let rows = rows.await.map_err(failed)?;
        found.is_writable = rows.into_iter().next().unwrap_or_default();
    }
    let store = SqlStore {
        destination: destination.clone(),
        database,
        layout,
    };
    Ok((Some(Arc::new(store)), found))
}
