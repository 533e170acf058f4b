//! Experiments that are found by name or created.

use super::{
    database::Transaction, schema::Dialect, statement::Statement, store::SqlStore,
    write::artifact_uri,
};
use crate::{
    mlflow::run::RunId,
    os::clock::now_ms,
    store::{error::StoreError, tracking::Experiment},
};

impl SqlStore {
    /// Returns the experiment of this name; creates it if there is none.
    pub(crate) async fn get_or_create_experiment_in(
        &self,
        tx: &mut Transaction,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError> {
        if let Some(found) = self.experiment_named(tx, name).await? {
            return found;
        }
        if let Some(location) = artifact_location {
            self.check_location(location)?;
        }
        let now = now_ms();
        let created = self
            .fetch_one(
                tx,
                Statement::new(
                    "INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, \
                     last_update_time) VALUES ($1, $2, 'active', $3, $4) ON CONFLICT DO NOTHING \
                     RETURNING experiment_id",
                )
                .bind(name)
                .bind(artifact_location.unwrap_or_default())
                .bind(now)
                .bind(now),
                |row| row.int(0),
            )
            .await?
            .flatten();
        if let (Some(id), None) = (created, artifact_location) {
            let root = self.destination.default_artifact_root().unwrap_or_default();
            let update = Statement::new(
                "UPDATE experiments SET artifact_location = $1 WHERE experiment_id = $2",
            )
            .bind(format!("{root}/{id}"))
            .bind(id);
            self.execute(tx, update).await?;
        }
        // The experiment was created here, or by another process since the first query.
        match self.experiment_named(tx, name).await? {
            Some(found) => found,
            None => Err(self.not_found(format!("experiment {name:?}"))),
        }
    }

    async fn experiment_named(
        &self,
        tx: &mut Transaction,
        name: &str,
    ) -> Result<Option<Result<Experiment, StoreError>>, StoreError> {
        let mut query = Statement::new(
            "SELECT experiment_id, name, artifact_location, lifecycle_stage, creation_time, \
             last_update_time FROM experiments WHERE name = $1",
        )
        .bind(name);
        query.push(self.layout.in_default_workspace("experiments"));
        let found = self.fetch_one(tx, query, super::rows::experiment).await?;
        Ok(found.map(|experiment| {
            if experiment.lifecycle_stage == "deleted" {
                Err(StoreError::ExperimentDeleted {
                    name: name.to_owned(),
                })
            } else {
                Ok(experiment)
            }
        }))
    }

    /// Checks that the artifact URIs of runs below a location fit into their column, whose width PostgreSQL enforces.
    pub(crate) fn check_location(&self, location: &str) -> Result<(), StoreError> {
        let longest = artifact_uri(location, &RunId::random().to_string());
        let (length, width) = (
            longest.chars().count(),
            self.layout.width("runs", "artifact_uri"),
        );
        if length <= width || self.database.dialect() == Dialect::Sqlite {
            return Ok(());
        }
        Err(StoreError::Refused {
            destination: self.destination.uri(),
            source: format!(
                "the artifact location {location:?} is too long: the artifact URIs of its runs would have \
                 {length} characters, and this database has room for {width}; use an experiment with a \
                 shorter artifact URI"
            )
            .into(),
        })
    }
}
