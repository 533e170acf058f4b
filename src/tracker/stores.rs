//! The stores of a tracker for queries: each query waits for the records before it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::recorder::Recorder;
use crate::{
    artifacts::{open::Access, store::ArtifactStore},
    config::{
        options::Mode,
        tracker::ValidConfig,
        uri::{ArtifactUri, escaped},
    },
    delivery::{destination::Traffic, exit, notices::Notices, state::DeliveryState},
    environment::run_tags::RunContext,
    error::{Error, Result},
    store::{
        deferred::DeferredStore,
        error::StoreError,
        registry::ModelRegistry,
        tracking::{Experiment, TrackingStore},
    },
};

/// The stores of a tracker and the recorder whose records go there, shared with the delivery thread. All queries to the
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
    pub(crate) recorder: Arc<Recorder>,
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
        let location = self.config.artifact_location.clone();
        let store = self.tracking().await?;
        let experiment = store
            .get_or_create_experiment(name, location.as_deref())
            .await?;
        Ok(self.experiment.get_or_init(|| experiment).id.clone())
    }

    /// Returns the artifact store that a URI names.
    ///
    /// # Errors
    /// [`Error::Artifact`] where there is no such store.
    pub(crate) async fn artifacts(&self, uri: &str) -> Result<Box<dyn ArtifactStore>> {
        match self.tracking().await?.artifacts(uri) {
            Some(store) => Ok(store),
            // A path that a caller names begins in the working directory of the call.
            None => Ok(Access {
                working_dir: PathBuf::new(),
                ..self.config.access()
            }
            .open(uri)?),
        }
    }

    /// Returns the URI of a run's artifacts. A relative location of an experiment begins where the tracker was made.
    ///
    /// # Errors
    /// [`Error::Store`] where the run does not exist or the store cannot be asked.
    pub(crate) async fn run_artifact_uri(&self, run_id: &str) -> Result<String> {
        let uri = self.tracking().await?.artifact_uri(run_id).await?;
        if uri.starts_with('/') || uri.contains(':') {
            return Ok(uri);
        }
        match ArtifactUri::parse_in(&uri, &self.config.working_dir)? {
            ArtifactUri::Local(folder) => Ok(escaped(&folder.display().to_string())),
            _ => Ok(uri),
        }
    }

    /// Waits, before a query, until everything recorded so far is delivered: only records, or artifacts as well.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the store of records or of artifacts has accepted nothing for the time that a
    /// start waits for it.
    pub(crate) async fn deliver_first(&self, traffic: Traffic) -> Result<()> {
        let Some(delivery) = self.recorder.delivery.as_ref() else {
            return Ok(());
        };
        if self.config.options.mode == Mode::Offline {
            // The query itself reports that nothing is sent.
            return Ok(());
        }
        self.deliver(delivery.shared(), traffic).await?;
        // Other trackers of this process may hold records of the same runs.
        let others = exit::others_to(&self.config.tracking.uri(), delivery.shared());
        for other in others {
            self.deliver(&other, traffic).await?;
        }
        Ok(())
    }

    /// Waits until the store has everything that this process has recorded for it, files excepted. An artifact store
    /// that is away holds nobody up for longer than a start waits for a store.
    ///
    /// # Errors
    /// The errors of a query: [`StoreError::Unavailable`] where the store is away or the tracker is offline.
    pub async fn deliver_records(&self) -> Result<()> {
        let timeout = self.config.options.connect_timeout;
        let Ok(opened) = tokio::time::timeout(timeout, self.tracking()).await else {
            let reason = format!("no answer within {} s", timeout.as_secs_f64());
            return Err(self.takes_nothing(Traffic::Records, reason));
        };
        opened?;
        let delivered = self.deliver_first(Traffic::Records).await;
        let delivery = self.recorder.delivery.as_ref();
        match delivered {
            // The end of a run waits for its files; all that can be read is there.
            Err(_) if delivery.is_some_and(|delivery| !delivery.has_outage()) => Ok(()),
            delivered => delivered,
        }
    }

    async fn deliver(&self, delivery: &DeliveryState, traffic: Traffic) -> Result<()> {
        let timeout = self.config.options.connect_timeout;
        let goal = delivery.goal_of(traffic);
        loop {
            let waited = tokio::time::timeout(timeout, delivery.wait_for(goal)).await;
            let Err(undelivered) = delivery.check(goal) else {
                return Ok(());
            };
            if let Some((traffic, reason)) = delivery.outage_longer_than(timeout) {
                return Err(self.takes_nothing(traffic, reason));
            }
            // The worker has ended; nothing more will be delivered.
            if waited.is_ok() {
                return Err(undelivered);
            }
            // With a timeout of zero nothing above waits, so this pause lets other tasks run.
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
