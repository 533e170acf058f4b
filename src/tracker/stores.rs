//! The stores of a tracker for queries: each query waits for the records before it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::session::Session;
use crate::{
    artifacts::store::ArtifactStore,
    config::{options::Mode, tracker::ValidConfig},
    delivery::{destination::Traffic, notices::Notices},
    environment::run_tags::RunContext,
    error::{Error, Result},
    mlflow::run::RunId,
    store::{
        deferred::DeferredStore,
        error::StoreError,
        registry::ModelRegistry,
        tracking::{Experiment, TrackingStore},
    },
};

/// The stores of a tracker and the session whose records go there, shared with the delivery thread. All queries to the
/// stores are methods of this type.
#[derive(Debug)]
pub struct Stores {
    pub(crate) config: ValidConfig,
    pub(crate) context: RunContext,
    /// The experiment, once the store has been reached.
    pub(crate) experiment: OnceLock<Experiment>,
    pub(crate) store: Arc<DeferredStore>,
    pub(crate) registry: Arc<DeferredStore>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) session: Arc<Session>,
}

impl Stores {
    /// Returns the store of runs, open.
    ///
    /// # Errors
    /// [`Error::Store`] where it cannot be opened.
    pub async fn tracking(&self) -> Result<&dyn TrackingStore> {
        Ok(self.store.tracking().await?)
    }

    /// Returns the model registry, open.
    ///
    /// # Errors
    /// [`Error::Store`] where it cannot be opened.
    pub async fn registry(&self) -> Result<&dyn ModelRegistry> {
        Ok(self.registry.registry().await?)
    }

    /// Returns the id of the experiment. Waits on the store where it has not been reached yet.
    ///
    /// # Errors
    /// [`Error::Store`] when the store cannot be reached or the experiment is deleted.
    pub async fn experiment_id(&self) -> Result<String> {
        if let Some(experiment) = self.experiment.get() {
            return Ok(experiment.id.clone());
        }
        let name = &self.config.experiment_name;
        let location = self.config.artifact_location();
        let store = self.tracking().await?;
        let experiment = store
            .get_or_create_experiment(name, location.as_deref())
            .await?;
        Ok(self.experiment.get_or_init(|| experiment).id.clone())
    }

    /// Returns the id of the given run or, without one, of the active run.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`] where neither exists.
    pub(crate) fn run_or_active(
        &self,
        run: Option<String>,
        action: &'static str,
    ) -> Result<String> {
        let active = || self.session.active_run().map(|run: RunId| run.to_string());
        run.or_else(active).ok_or(Error::NoActiveRun { action })
    }

    /// Returns the artifact store that a URI names.
    ///
    /// # Errors
    /// [`Error::Artifact`] where there is no such store.
    pub(crate) async fn artifacts(&self, uri: &str) -> Result<Box<dyn ArtifactStore>> {
        match self.tracking().await?.artifacts(uri) {
            Some(store) => Ok(store),
            None => Ok(self.config.access().open(uri)?),
        }
    }

    /// Waits, before a query, until everything recorded so far is delivered: only records, or artifacts as well.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the store of records or of artifacts has accepted nothing for the time that a
    /// start waits for it.
    pub(crate) async fn deliver_first(&self, traffic: Traffic) -> Result<()> {
        let Some(delivery) = self.session.delivery.as_ref() else {
            return Ok(());
        };
        if self.config.options.mode == Mode::Offline {
            // The query itself reports that nothing is sent.
            return Ok(());
        }
        let patience = self.config.options.connect_timeout;
        let goal = delivery.goal_of(traffic);
        loop {
            let waited = tokio::time::timeout(patience, delivery.reached(goal)).await;
            let Err(undelivered) = delivery.check(goal) else {
                return Ok(());
            };
            if let Some((traffic, reason)) = delivery.troubled_for(patience) {
                return Err(self.takes_nothing(traffic, reason));
            }
            // The worker has ended; nothing more will be delivered.
            if waited.is_ok() {
                return Err(undelivered);
            }
            // With a patience of zero nothing above waits, so this pause lets other tasks run.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn takes_nothing(&self, traffic: Traffic, reason: String) -> Error {
        let uri = self.config.tracking.uri();
        Error::Store(StoreError::Unavailable {
            destination: match traffic {
                Traffic::Records => uri,
                Traffic::Artifacts => format!("the artifact store of {uri}"),
            },
            source: reason.into(),
            retry_after: None,
        })
    }
}
