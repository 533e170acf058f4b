//! The model registry, as a user asks for it: names and URIs are read here, and the registry is waited for.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use super::open::Tracker;
use crate::{
    delivery::runtime::KeepWaiting,
    error::{Error, Result},
    mlflow::{
        artifact_path::ArtifactPath,
        invalid::Invalid,
        key::Key,
        model::{self, Alias, ModelName, Stage, TagValue},
        model_uri::{self, ModelSource, ModelUri, Pick},
        run::RunInfo,
        search::models::{
            ModelFilter, ModelOrder, ModelQuery, VersionFilter, VersionOrder, VersionQuery,
        },
    },
    store::{
        error::StoreError,
        registry::{
            ModelRegistry, ModelVersion, NewModel, NewVersion, PENDING, READY, RegisteredModel,
        },
    },
};

/// Pause before a version that is pending is asked for again; it doubles up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A search in the registry, as the caller gives it.
#[derive(Clone, Debug, Default)]
pub struct RegistrySearch {
    /// Filter in MLflow's language; empty finds all.
    pub filter: String,
    /// Orders, the first one first.
    pub order_by: Vec<String>,
    /// At most so many results; all where it is not given.
    pub max_results: Option<usize>,
}

impl Tracker {
    /// Registers a version of a model, which is created if needed, and waits up to `patience` until it is ready.
    /// Delivers first, so that its files are where it says.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name, URI, description or tag MLflow would refuse; [`Error::Refused`] where the store has
    /// refused a file of the model; [`Error::Store`] when the run, the version or the logged model that the URI names
    /// does not exist, the registry fails or the version does not become ready.
    pub fn register_model(
        &self,
        name: &str,
        uri: &str,
        description: &str,
        tags: Vec<(String, String)>,
        patience: Duration,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<ModelVersion> {
        self.check_process()?;
        let name: ModelName = name.parse()?;
        let source = ModelSource::parse(uri)?;
        let description = model::parse_description(description)?;
        let tags = registry_tags("model version tag key", tags)?;
        if let ModelSource::Model(ModelUri::Version { path, .. }) = &source
            && !path.as_str().is_empty()
        {
            let reason = "a version is registered whole: leave out the path behind it";
            return Err(Error::invalid("model URI", uri, reason));
        }
        self.settle_artifacts(keep_waiting)?;
        let refused = match &source {
            ModelSource::Run { run_id, path } => self.refused_below(run_id, path),
            _ => None,
        };
        let origin = self.origin(source, keep_waiting)?;
        if let Some(refused) = refused
            && origin.model_id.is_none()
        {
            return Err(refused);
        }
        model_uri::check_location(origin.location.as_deref().unwrap_or(&origin.source))?;
        let new = NewVersion {
            name: name.clone(),
            source: origin.source,
            location: origin.location,
            run_id: origin.run_id,
            model_id: origin.model_id,
            description,
            tags,
        };
        let model_id = new.model_id.clone();
        let created = self.ask_registry(keep_waiting, |registry| async move {
            registry.create_version(&new).await
        })?;
        if let Some(model_id) = model_id {
            let (store, of) = (Arc::clone(&self.store), created.clone());
            let linked = async move {
                store
                    .link_logged_model(&model_id, &of.name, of.version)
                    .await
            };
            // The version is there, and its model does not need the note.
            match self.ask(linked, keep_waiting) {
                Err(error @ Error::Store(_)) => self.notices.tell(format!(
                    "version {} of model {:?} is registered, and not noted at its logged model: {error}",
                    created.version, created.name
                )),
                linked => linked?,
            }
        }
        self.await_ready(&name, created, patience, keep_waiting)
    }

    /// That a file of a model in a run was refused, and is not there.
    fn refused_below(&self, run_id: &str, folder: &ArtifactPath) -> Option<Error> {
        let delivery = self.session.delivery.as_ref()?;
        let mut refused = delivery.refused_below(run_id.parse().ok()?, folder)?;
        refused.reason +=
            "; nothing is registered: log the whole model under another path, and register that";
        Some(refused.into())
    }

    /// Waits until a version is ready.
    fn await_ready(
        &self,
        name: &ModelName,
        mut version: ModelVersion,
        patience: Duration,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<ModelVersion> {
        if patience.is_zero() {
            return Ok(version);
        }
        let begin = Instant::now();
        let mut pause = FIRST_PAUSE;
        while version.status == PENDING && begin.elapsed() < patience {
            let (of, number) = (name.clone(), version.version);
            let wait = pause.min(patience.saturating_sub(begin.elapsed()));
            version = self.ask_registry(keep_waiting, |registry| async move {
                tokio::time::sleep(wait).await;
                registry.version(&of, number).await
            })?;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        if version.status == READY {
            return Ok(version);
        }
        let said = version.status_message.unwrap_or_default();
        let reason = match version.status == PENDING {
            true => format!(
                "it is still {PENDING} after {} s; get_model_version() tells when it is ready {said}",
                patience.as_secs_f64()
            ),
            false => format!("its status is {} {said}", version.status),
        };
        Err(Error::Store(StoreError::NotReady {
            name: version.name,
            version: version.version,
            reason: reason.trim_end().to_owned(),
        }))
    }

    /// Where the registry says that the files of a version are.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such version.
    pub fn download_uri(
        &self,
        name: &str,
        version: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<String> {
        let (name, version) = (name.parse()?, model::parse_version(version)?);
        self.ask_registry(keep_waiting, |registry| async move {
            registry.download_uri(&name, version).await
        })
    }

    /// Puts a model version into a stage and, where `archive` says so, those that were there into the archive.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown stage or version number, and for a stage that others are not archived from;
    /// [`Error::Store`] when the version does not exist.
    pub fn transition_model_stage(
        &self,
        name: &str,
        version: &str,
        stage: &str,
        archive: bool,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let (name, parsed): (ModelName, Stage) = (name.parse()?, stage.parse()?);
        let version = model::parse_version(version)?;
        if archive && !parsed.is_active() {
            let reason = "existing versions are archived when one comes to Staging or Production";
            return Err(Error::invalid("stage", stage, reason));
        }
        self.ask_registry(keep_waiting, |registry| async move {
            registry.set_stage(&name, version, parsed, archive).await
        })
    }

    /// Creates a registered model without versions.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what MLflow would refuse; [`Error::Store`] when there is one of that name.
    pub fn create_registered_model(
        &self,
        name: &str,
        tags: Vec<(String, String)>,
        description: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<RegisteredModel> {
        let new = NewModel {
            name: name.parse()?,
            description: model::parse_description(description)?,
            tags: registry_tags("registered model tag key", tags)?,
        };
        self.ask_registry(keep_waiting, |registry| async move {
            registry.create_model(&new).await
        })
    }

    /// A registered model.
    ///
    /// # Errors
    /// [`Error::Store`] when there is none of that name.
    pub fn registered_model(
        &self,
        name: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<RegisteredModel> {
        let name = name.parse()?;
        self.ask_registry(keep_waiting, |registry| async move {
            registry.model(&name).await
        })
    }

    /// Renames a registered model with its versions.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name MLflow would refuse; [`Error::Store`] when there is no such model, or one of the
    /// new name.
    pub fn rename_registered_model(
        &self,
        name: &str,
        new_name: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<RegisteredModel> {
        let (name, new_name) = (name.parse()?, new_name.parse()?);
        self.ask_registry(keep_waiting, |registry| async move {
            registry.rename_model(&name, &new_name).await
        })
    }

    /// Gives a registered model another description.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that is too long; [`Error::Store`] when there is no such model.
    pub fn update_registered_model(
        &self,
        name: &str,
        description: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<RegisteredModel> {
        let name = name.parse()?;
        let description = model::parse_description(description)?;
        self.ask_registry(keep_waiting, |registry| async move {
            registry.describe_model(&name, &description).await
        })
    }

    /// Deletes a registered model with all of its versions.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such model.
    pub fn delete_registered_model(&self, name: &str, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        let name = name.parse()?;
        self.ask_registry(keep_waiting, |registry| async move {
            registry.delete_model(&name).await
        })
    }

    /// Sets a tag of a registered model or removes it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key or value MLflow would refuse; [`Error::Store`] when there is no such model.
    pub fn set_registered_model_tag(
        &self,
        name: &str,
        key: &str,
        value: Option<String>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let name = name.parse()?;
        let (key, value) = registry_tag("registered model tag key", key, value)?;
        self.ask_registry(keep_waiting, |registry| async move {
            match value {
                Some(value) => registry.set_model_tag(&name, &key, &value).await,
                None => registry.delete_model_tag(&name, &key).await,
            }
        })
    }

    /// The registered models that a filter finds.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a filter or an order that MLflow would refuse.
    pub fn search_registered_models(
        &self,
        search: &RegistrySearch,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<RegisteredModel>> {
        let query = ModelQuery {
            filter: ModelFilter::parse(&search.filter)?,
            order_by: ModelOrder::parse_all(&search.order_by)?,
            max_results: search.max_results.unwrap_or(usize::MAX),
        };
        if query.max_results == 0 {
            return Ok(Vec::new());
        }
        self.ask_registry(keep_waiting, |registry| async move {
            registry.search_models(&query).await
        })
    }

    /// A version of a model.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such version.
    pub fn model_version(
        &self,
        name: &str,
        version: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<ModelVersion> {
        let pick = Pick::Number(model::parse_version(version)?);
        self.check_process()?;
        self.pick(&name.parse()?, &pick, keep_waiting)
    }

    /// The version that an alias is of; `latest` is of the newest.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such alias.
    pub fn model_version_by_alias(
        &self,
        name: &str,
        alias: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<ModelVersion> {
        let alias: Alias = alias.parse()?;
        let pick = match alias.is_latest() {
            true => Pick::Latest,
            false => Pick::Alias(alias),
        };
        self.check_process()?;
        self.pick(&name.parse()?, &pick, keep_waiting)
    }

    /// The newest version of a model in each of some stages, or of all, by their numbers.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown stage; [`Error::Store`] when there is no such model.
    pub fn latest_versions(
        &self,
        name: &str,
        stages: &[String],
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<ModelVersion>> {
        let name = name.parse()?;
        let mut wanted = stages
            .iter()
            .map(|stage| stage.parse())
            .collect::<std::result::Result<Vec<Stage>, _>>()?;
        if wanted.is_empty() {
            wanted.extend(Stage::ALL);
        }
        self.ask_registry(keep_waiting, |registry| async move {
            registry.latest_versions(&name, &wanted).await
        })
    }

    /// The versions that a filter finds.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a filter or an order that MLflow would refuse.
    pub fn search_model_versions(
        &self,
        search: &RegistrySearch,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<ModelVersion>> {
        let query = VersionQuery {
            filter: VersionFilter::parse(&search.filter)?,
            order_by: VersionOrder::parse_all(&search.order_by)?,
            max_results: search.max_results.unwrap_or(usize::MAX),
        };
        if query.max_results == 0 {
            return Ok(Vec::new());
        }
        self.ask_registry(keep_waiting, |registry| async move {
            registry.search_versions(&query).await
        })
    }

    /// Versions of a model, all or those that are named, by their numbers, each with the run that made it, if the
    /// tracking store has that. Delivers first.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such model or version.
    pub fn versions_with_runs(
        &self,
        name: &str,
        versions: Option<&[String]>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<(ModelVersion, Option<RunInfo>)>> {
        let name: ModelName = name.parse()?;
        let numbers = versions
            .map(|versions| {
                let numbers = versions.iter().map(|it| model::parse_version(it));
                numbers.collect::<std::result::Result<Vec<i64>, Invalid>>()
            })
            .transpose()?;
        self.settle(keep_waiting)?;
        let mut found = self.ask_registry(keep_waiting, |registry| async move {
            let mut found = Vec::new();
            match numbers {
                Some(numbers) => {
                    for number in numbers {
                        found.push(registry.version(&name, number).await?);
                    }
                }
                None => {
                    // A model without versions is another matter than none at all.
                    registry.model(&name).await?;
                    let query = VersionQuery {
                        filter: VersionFilter::of_model(&name),
                        order_by: Vec::new(),
                        max_results: usize::MAX,
                    };
                    found = registry.search_versions(&query).await?;
                    found.retain(|version| version.name == name.as_str());
                }
            }
            Ok(found)
        })?;
        found.sort_by_key(|version| version.version);
        found.dedup_by_key(|version| version.version);
        let store = Arc::clone(&self.store);
        let with_runs = async move {
            use crate::store::tracking::TrackingStore as _;
            let mut all = Vec::with_capacity(found.len());
            for version in found {
                let run = match &version.run_id {
                    None => None,
                    Some(run_id) => match store.run(run_id).await {
                        Ok(run) => Some(run),
                        Err(StoreError::NotFound { .. }) => None,
                        Err(error) => return Err(error),
                    },
                };
                all.push((version, run));
            }
            Ok(all)
        };
        self.ask(with_runs, keep_waiting)
    }

    /// Gives a version another description.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that is too long; [`Error::Store`] when there is no such version.
    pub fn update_model_version(
        &self,
        name: &str,
        version: &str,
        description: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<ModelVersion> {
        let (name, version) = (name.parse()?, model::parse_version(version)?);
        let description = model::parse_description(description)?;
        self.ask_registry(keep_waiting, |registry| async move {
            registry
                .describe_version(&name, version, &description)
                .await
        })
    }

    /// Sets a tag of a version or removes it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key or value MLflow would refuse; [`Error::Store`] when there is no such version.
    pub fn set_model_version_tag(
        &self,
        name: &str,
        version: &str,
        key: &str,
        value: Option<String>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let (name, version) = (name.parse()?, model::parse_version(version)?);
        let (key, value) = registry_tag("model version tag key", key, value)?;
        self.ask_registry(keep_waiting, |registry| async move {
            match value {
                Some(value) => registry.set_version_tag(&name, version, &key, &value).await,
                None => registry.delete_version_tag(&name, version, &key).await,
            }
        })
    }

    /// Deletes a version, whose number is not given again.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such version.
    pub fn delete_model_version(
        &self,
        name: &str,
        version: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let (name, version) = (name.parse()?, model::parse_version(version)?);
        self.ask_registry(keep_waiting, |registry| async move {
            registry.delete_version(&name, version).await
        })
    }

    /// Makes an alias one of a version.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no alias or has a meaning already; [`Error::Store`] when there is no such
    /// version.
    pub fn set_model_alias(
        &self,
        name: &str,
        alias: &str,
        version: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let (name, version) = (name.parse()?, model::parse_version(version)?);
        let alias = Alias::parse_new(alias)?;
        self.ask_registry(keep_waiting, |registry| async move {
            registry.set_alias(&name, &alias, version).await
        })
    }

    /// Removes an alias; one that the model does not have is no error.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such model.
    pub fn delete_model_alias(
        &self,
        name: &str,
        alias: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let (name, alias) = (name.parse()?, alias.parse()?);
        self.ask_registry(keep_waiting, |registry| async move {
            registry.delete_alias(&name, &alias).await
        })
    }

    pub(crate) fn ask_registry<T, A>(
        &self,
        keep_waiting: KeepWaiting<'_>,
        question: impl FnOnce(Arc<dyn ModelRegistry>) -> A,
    ) -> Result<T>
    where
        T: Send + 'static,
        A: Future<Output = std::result::Result<T, StoreError>> + Send + 'static,
    {
        self.check_process()?;
        self.ask(question(Arc::clone(&self.registry)), keep_waiting)
    }
}

fn registry_tags(what: &'static str, tags: Vec<(String, String)>) -> Result<Vec<(Key, TagValue)>> {
    tags.into_iter()
        .map(|(key, value)| {
            let value = TagValue::parse(&key, value)?;
            Ok((Key::parse(what, &key)?, value))
        })
        .collect()
}

fn registry_tag(
    what: &'static str,
    key: &str,
    value: Option<String>,
) -> Result<(Key, Option<TagValue>)> {
    let value = value.map(|value| TagValue::parse(key, value)).transpose()?;
    Ok((Key::parse(what, key)?, value))
}
