//! Where the files of a model are, by any model URI.

use std::sync::Arc;

use super::open::Tracker;
use crate::{
    delivery::runtime::KeepWaiting,
    error::{Error, Result},
    mlflow::{
        artifact_path::ArtifactPath,
        model::{ModelName, Stage},
        model_uri::{ModelSource, ModelUri, Pick},
    },
    store::{
        error::StoreError,
        registry::{ModelRegistry, ModelVersion},
    },
};

/// URIs that lead to each other on the way to a model's files; MLflow's own lead over one or two.
const MAX_HOPS: usize = 8;

/// What a version is registered from: the source that is noted, where its files are if elsewhere, and who made it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub(crate) source: String,
    pub(crate) location: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) model_id: Option<String>,
}

impl Tracker {
    /// Where a model is, by any model URI: a run's artifact URI and the path below it, the location of a version's
    /// or a logged model's files, or the location itself. Delivers first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no model URI; [`Error::Store`] where what it names does not exist.
    pub fn model_location(&self, uri: &str, keep_waiting: KeepWaiting<'_>) -> Result<String> {
        let (location, path) = self.located(uri, keep_waiting)?;
        Ok(below(&location, &path))
    }

    /// As above, with what a model's URI names below its version on its own.
    pub(crate) fn located(
        &self,
        uri: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<(String, ArtifactPath)> {
        let source = ModelSource::parse(uri)?;
        self.settle(keep_waiting)?;
        let path = match &source {
            ModelSource::Model(ModelUri::Version { path, .. }) => path.clone(),
            _ => ArtifactPath::root(),
        };
        let origin = self.origin(source, keep_waiting)?;
        Ok((origin.location.unwrap_or(origin.source), path))
    }

    /// What a version of this source is registered from.
    pub(crate) fn origin(
        &self,
        source: ModelSource,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Origin> {
        match source {
            ModelSource::Location(source) => Ok(Origin {
                source,
                ..Origin::default()
            }),
            ModelSource::Run { run_id, path } => self.origin_in_run(&run_id, &path, keep_waiting),
            ModelSource::Model(ModelUri::Logged(model_id)) => {
                let store = Arc::clone(&self.store);
                let asked = async move { store.logged_model(&model_id).await };
                let model = self.ask(asked, keep_waiting)?;
                Ok(Origin {
                    source: format!("models:/{}", model.model_id),
                    location: Some(model.artifact_uri),
                    run_id: model.run_id,
                    model_id: Some(model.model_id),
                })
            }
            ModelSource::Model(ModelUri::Version { name, pick, .. }) => {
                let version = self.pick(&name, &pick, keep_waiting)?;
                let number = version.version;
                let location = self.ask_registry(keep_waiting, |registry| async move {
                    registry.download_uri(&name, number).await
                })?;
                Ok(Origin {
                    source: format!("models:/{}/{}", version.name, version.version),
                    location: Some(self.at_last(location, keep_waiting)?),
                    run_id: version.run_id,
                    model_id: None,
                })
            }
        }
    }

    /// A version's location may be a URI that the stock client has registered as it was given.
    fn at_last(&self, mut location: String, keep_waiting: KeepWaiting<'_>) -> Result<String> {
        for _ in 0..MAX_HOPS {
            let path = match ModelSource::parse(&location)? {
                // As the registry has it: what it calls a path is none of this folder.
                ModelSource::Location(_) => return Ok(location),
                ModelSource::Run { run_id, path } => {
                    let origin = self.origin_in_run(&run_id, &path, keep_waiting)?;
                    return Ok(origin.location.unwrap_or(origin.source));
                }
                source @ ModelSource::Model(ModelUri::Logged(_)) => {
                    let origin = self.origin(source, keep_waiting)?;
                    return Ok(origin.location.unwrap_or(origin.source));
                }
                ModelSource::Model(ModelUri::Version { name, pick, path }) => {
                    let number = self.pick(&name, &pick, keep_waiting)?.version;
                    location = self.ask_registry(keep_waiting, |registry| async move {
                        registry.download_uri(&name, number).await
                    })?;
                    path
                }
            };
            location = below(&location, &path);
        }
        let reason = "the versions that it leads to lead to each other";
        Err(Error::invalid("model URI", &location, reason))
    }

    /// Artifacts of a run or, where a model was logged by it under that name, the model: MLflow 3 keeps those apart.
    fn origin_in_run(
        &self,
        run_id: &str,
        path: &ArtifactPath,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Origin> {
        let (store, id) = (Arc::clone(&self.store), run_id.to_owned());
        let (name, of) = (path.clone(), path.clone());
        let asked = async move {
            use crate::store::tracking::TrackingStore as _;
            let run = store.run(&id).await?;
            let model = match name.as_str() {
                "" => None,
                name => store.logged_model_of(&run, name).await?,
            };
            Ok((run, model))
        };
        let (run, model) = self.ask(asked, keep_waiting)?;
        Ok(match model {
            Some(model) => Origin {
                source: format!("models:/{}", model.model_id),
                location: Some(model.artifact_uri),
                run_id: Some(run.run_id),
                model_id: Some(model.model_id),
            },
            None => Origin {
                source: below(&run.artifact_uri, &of),
                run_id: Some(run.run_id),
                ..Origin::default()
            },
        })
    }

    pub(crate) fn pick(
        &self,
        name: &ModelName,
        pick: &Pick,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<ModelVersion> {
        let stages: &[Stage] = match pick {
            Pick::Number(version) => {
                let (name, version) = (name.clone(), *version);
                return self.ask_registry(keep_waiting, |registry| async move {
                    registry.version(&name, version).await
                });
            }
            Pick::Alias(alias) => {
                let (name, alias) = (name.clone(), alias.clone());
                return self.ask_registry(keep_waiting, |registry| async move {
                    registry.version_by_alias(&name, &alias).await
                });
            }
            Pick::Stage(stage) => std::slice::from_ref(stage),
            Pick::Latest => &Stage::ALL,
        };
        let (of, wanted) = (name.clone(), stages.to_vec());
        let latest = self.ask_registry(keep_waiting, |registry| async move {
            registry.latest_versions(&of, &wanted).await
        })?;
        let newest = latest.into_iter().max_by_key(|version| version.version);
        newest.ok_or_else(|| {
            let name = name.as_str();
            Error::Store(StoreError::NotFound {
                what: match pick {
                    Pick::Stage(stage) => {
                        format!("a version of model {name:?} in stage {}", stage.as_str())
                    }
                    _ => format!("a version of model {name:?}"),
                },
                destination: self.registry_destination().uri(),
            })
        })
    }
}

/// A path below an artifact URI.
fn below(uri: &str, path: &ArtifactPath) -> String {
    match path.as_str() {
        "" => uri.to_owned(),
        path => format!("{}/{path}", uri.trim_end_matches('/')),
    }
}
