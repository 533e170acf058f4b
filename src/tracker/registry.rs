//! Registration of models, and registry queries that take more than one step.

use std::time::{Duration, Instant};

use super::{downloads::parent_and_name, model_source::Origin, stores::Stores};
use crate::{
    artifacts::{error::ArtifactError, store::ArtifactStore},
    config::uri::ArtifactUri,
    delivery::destination::Traffic,
    error::{Error, Result},
    mlflow::{
        artifact_path::ArtifactPath,
        key::Key,
        model::{ModelName, TagValue},
        model_uri::{self, ModelSource, ModelUri},
        run::RunInfo,
        search::models::{VersionFilter, VersionQuery},
    },
    net::secret::without_credentials,
    store::{
        error::StoreError,
        registry::{ModelVersion, NewVersion, PENDING, READY},
    },
};

/// Pause before a pending version is queried again; each further pause is longer, up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A version to register.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The registered model, which is created if needed.
    pub name: ModelName,
    /// URI of the model.
    pub uri: String,
    /// Description of the version.
    pub description: String,
    /// Tags of the version.
    pub tags: Vec<(Key, TagValue)>,
    /// Longest wait until the version is ready; zero does not wait.
    pub timeout: Duration,
}

impl Stores {
    /// Registers a version of a model and waits until it is ready. Delivers first, so that the model's files are at
    /// their place.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URI that MLflow would refuse; [`Error::NoModelFiles`] for a path of a run or of this
    /// disk that has no files; [`Error::Refused`] where the store has refused a file of the model; [`Error::Store`] when the run, the version or the logged model that the URI names does not exist, the
    /// registry fails or the version does not become ready.
    pub async fn register_model(&self, new: Registration) -> Result<ModelVersion> {
        let source = ModelSource::parse(&new.uri)?;
        if let ModelSource::Model(ModelUri::Version { path, .. }) = &source
            && !path.as_str().is_empty()
        {
            let reason = "a version is registered whole: leave out the path behind it";
            return Err(Error::invalid("model URI", &new.uri, reason));
        }
        self.deliver_first(Traffic::Artifacts).await?;
        let refused = match &source {
            ModelSource::Run { run_id, path } => self.refused_below(run_id, path),
            _ => None,
        };
        let is_version = matches!(source, ModelSource::Model(_));
        let origin = self.origin(source).await?;
        // A version and a logged model are models already, whatever is known here of their files.
        let is_model = is_version || origin.model_id.is_some();
        if let Some(refused) = refused
            && !is_model
        {
            return Err(refused);
        }
        model_uri::check_location(origin.files())?;
        if !is_model {
            self.check_files(&new.uri, &origin).await?;
        }
        let (name, timeout) = (new.name.clone(), new.timeout);
        let created = self.create_version(new, origin).await?;
        self.await_ready(&name, created, timeout).await
    }

    /// Checks that there are files at the origin of a version, as stock MLflow does for runs. A location that the user
    /// names is checked on this disk only: its credentials may be those of others.
    async fn check_files(&self, uri: &str, origin: &Origin) -> Result<()> {
        let location = origin.files();
        let is_local = matches!(ArtifactUri::parse(location), Ok(ArtifactUri::Local(_)));
        if origin.run_id.is_none() && !is_local {
            return Ok(());
        }
        if has_files(&*self.artifacts(location).await?).await? {
            return Ok(());
        }
        let (folder, name) = parent_and_name(location)?;
        match self.artifacts(&folder).await?.head(&name).await {
            Err(ArtifactError::NotFound { .. }) => Err(Error::NoModelFiles {
                uri: without_credentials(uri),
                location: without_credentials(location),
            }),
            found => Ok(found.map(drop)?),
        }
    }

    /// Creates a version, and notes the version in its logged model.
    async fn create_version(&self, new: Registration, origin: Origin) -> Result<ModelVersion> {
        let version = NewVersion {
            name: new.name,
            source: origin.source,
            location: origin.location,
            run_id: origin.run_id,
            model_id: origin.model_id,
            description: new.description,
            tags: new.tags,
        };
        let created = self.registry().await?.create_version(&version).await?;
        if let Some(model_id) = &version.model_id {
            let link = async {
                let models = self.store.registry().await?;
                models
                    .link_logged_model(model_id, &created.name, created.version)
                    .await
            };
            // The version exists, and its model does not depend on the note.
            if let Err(error) = link.await {
                self.notices.tell(format!(
                    "version {} of model {:?} is registered, and not noted at its logged model: {error}",
                    created.version, created.name
                ));
            }
        }
        Ok(created)
    }

    /// Returns the error for a file of a model in a run that was refused and is not in the store.
    fn refused_below(&self, run_id: &str, folder: &ArtifactPath) -> Option<Error> {
        let delivery = self.recorder.delivery.as_ref()?;
        let mut refused = delivery.refused_below(run_id.parse().ok()?, folder)?;
        refused.reason +=
            "; nothing is registered: log the whole model under another path, and register that";
        Some(refused.into())
    }

    /// Waits until a version is ready.
    async fn await_ready(
        &self,
        name: &ModelName,
        mut version: ModelVersion,
        timeout: Duration,
    ) -> Result<ModelVersion> {
        if timeout.is_zero() {
            return Ok(version);
        }
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        while version.status == PENDING && begun.elapsed() < timeout {
            let wait = pause.min(timeout.saturating_sub(begun.elapsed()));
            tokio::time::sleep(wait).await;
            let registry = self.registry().await?;
            version = registry.version(name, version.version).await?;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        if version.status == READY {
            return Ok(version);
        }
        let said = version.status_message.unwrap_or_default();
        let reason = if version.status == PENDING {
            format!(
                "it is still {PENDING} after {} s; get_model_version() tells when it is ready {said}",
                timeout.as_secs_f64()
            )
        } else {
            format!("its status is {} {said}", version.status)
        };
        Err(Error::Store(StoreError::NotReady {
            name: version.name,
            version: version.version,
            reason: reason.trim_end().to_owned(),
        }))
    }

    /// Returns versions of a model, all or the named ones, by their numbers, each with the run that made it, if the
    /// tracking store has that run.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such model or version.
    pub async fn versions_with_runs(
        &self,
        name: &ModelName,
        versions: Option<Vec<i64>>,
    ) -> Result<Vec<(ModelVersion, Option<RunInfo>)>> {
        self.deliver_first(Traffic::Records).await?;
        let mut found = self.versions(name, versions).await?;
        found.sort_by_key(|version| version.version);
        found.dedup_by_key(|version| version.version);
        let store = self.tracking().await?;
        let mut all = Vec::with_capacity(found.len());
        for version in found {
            let run = match &version.run_id {
                None => None,
                Some(run_id) => match store.run(run_id).await {
                    Err(StoreError::NotFound { .. }) => None,
                    run => Some(run?),
                },
            };
            all.push((version, run));
        }
        Ok(all)
    }

    async fn versions(
        &self,
        name: &ModelName,
        versions: Option<Vec<i64>>,
    ) -> Result<Vec<ModelVersion>> {
        let registry = self.registry().await?;
        if let Some(numbers) = versions {
            let mut found = Vec::with_capacity(numbers.len());
            for number in numbers {
                found.push(registry.version(name, number).await?);
            }
            return Ok(found);
        }
        // A model without versions is not an error, but a missing model is one.
        registry.model(name).await?;
        let query = VersionQuery {
            filter: VersionFilter::of_model(name),
            order_by: Vec::new(),
            max_results: usize::MAX,
        };
        let mut found = registry.search_versions(&query).await?;
        found.retain(|version| version.name == name.as_str());
        Ok(found)
    }
}

/// Returns true where a store has a file.
async fn has_files(store: &dyn ArtifactStore) -> Result<bool> {
    let mut folders = vec![ArtifactPath::root()];
    while let Some(folder) = folders.pop() {
        for info in store.list(&folder).await? {
            if info.size.is_some() {
                return Ok(true);
            }
            folders.push(info.path);
        }
    }
    Ok(false)
}
