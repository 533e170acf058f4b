//! Creation of the tables in a fresh database: from a schema that is shipped here, or, where the user's own mlflow is
//! of another release, by that mlflow itself.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    database::Database,
    layout::Layout,
    schema::{self, Dialect, Schema},
    statement::Statement,
    store::{open_error, opening},
};
use crate::{
    config::{tracker::FreshSchema, uri::Destination},
    os::clock::now_ms,
    store::error::StoreError,
};

/// Program that opens a database for the first time with a stock mlflow. It reads the URI from standard input, as other
/// users can read the arguments of a process.
const INITIALISE: &str = "import sys\n\
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore\n\
uri, root = sys.stdin.read().splitlines()\n\
SqlAlchemyStore(uri, root)\n";

/// Longest time that another process may take to create the tables, in seconds.
const TABLES_TIMEOUT_S: u32 = 60;

/// Creates the tables and experiment 0. Where several processes find the same database fresh, one of them does so.
pub(crate) async fn create(
    destination: &Destination,
    database: &Database,
    fresh: &FreshSchema,
) -> Result<(), StoreError> {
    let schema = match fresh {
        FreshSchema::Newest => schema::newest(),
        FreshSchema::Named(version) => schema::of_version(version).ok_or_else(|| {
            let known: Vec<&str> = schema::all().map(|schema| schema.mlflow_version).to_vec();
            open_error(
                destination,
                format!(
                    "the schema of MLflow {version} is not known here, but those of {}; or let \
                     `mlflow db upgrade` of that release create the tables",
                    known.join(", ")
                ),
            )
        })?,
        FreshSchema::Installed { version, python } => match schema::of_version(version) {
            Some(schema) => schema,
            None => return by_mlflow(destination, database, version, python.clone()).await,
        },
    };
    by_statements(destination, database, schema)
        .await
        .map_err(|error| opening(destination, error))
}

async fn by_statements(
    destination: &Destination,
    database: &Database,
    schema: &Schema,
) -> Result<(), sqlx::Error> {
    let mut tx = database.begin().await?;
    // SQLite's transaction excludes other writers already. The number of the lock is arbitrary; nobody else uses it.
    if tx.dialect() == Dialect::Postgres {
        tx.execute(Statement::new("SELECT pg_advisory_xact_lock(7310579621)"))
            .await?;
    }
    if !Layout::read_within(&mut tx).await?.is_fresh(tx.dialect()) {
        return Ok(());
    }
    for statement in schema.statements(tx.dialect()) {
        tx.execute(Statement::new(statement)).await?;
    }
    let root = destination.default_artifact_root().unwrap_or_default();
    let now = now_ms();
    tx.execute(
        Statement::new(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, \
             creation_time, last_update_time) VALUES (0, 'Default', $1, 'active', $2, $3)",
        )
        .bind(format!("{root}/0"))
        .bind(now)
        .bind(now),
    )
    .await?;
    tx.commit().await
}

/// Lets the user's own mlflow create the tables. This takes seconds, as mlflow itself does.
async fn by_mlflow(
    destination: &Destination,
    database: &Database,
    version: &str,
    python: PathBuf,
) -> Result<(), StoreError> {
    let uri = match destination {
        Destination::Sqlite(path) => format!("sqlite:///{}", path.display()),
        Destination::Postgres(uri) => {
            let connect = uri.connects().first();
            connect.map_or_else(String::new, |it| it.reveal().to_owned())
        }
        Destination::Server(_) => return Ok(()),
    };
    let root = destination.default_artifact_root().unwrap_or_default();
    let input = format!("{uri}\n{root}\n");
    let initialised = tokio::task::spawn_blocking(move || initialise(&python, &input)).await;
    let reason = match initialised {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(reason)) => reason,
        Err(error) => error.to_string(),
    };
    // Another process may have begun first and be creating the tables now.
    for _ in 0..TABLES_TIMEOUT_S {
        let layout = Layout::read(database).await;
        let layout = layout.map_err(|error| opening(destination, error))?;
        if layout.is_fresh(database.dialect()) {
            break;
        }
        if layout.check(destination).is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(open_error(
        destination,
        format!(
            "the installed mlflow {version} could not create its tables ({reason}); create them with its \
             `mlflow db upgrade`, or set HEIMDALL_MLFLOW_VERSION to {} to have them created here",
            schema::all().map(|schema| schema.mlflow_version).join(", ")
        ),
    ))
}

fn initialise(python: &Path, input: &str) -> Result<(), String> {
    let mut child = Command::new(python)
        .args(["-c", INITIALISE])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{} does not start: {error}", python.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // The exit status tells of a child that dies before it reads.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The last line is that of the exception; the line may quote the URI, which has a password.
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let secret = input.lines().next().unwrap_or_default();
    Err(match last {
        Some(line) if !line.contains(secret) && !line.contains("://") => line.trim().to_owned(),
        _ => format!("it ended with {}", output.status),
    })
}
