//! Locations of a model's files, for any model URI.

use super::stores::Stores;
use crate::{
    config::uri::{ArtifactUri, escaped},
    delivery::destination::Traffic,
    error::{Error, Result},
    mlflow::{
        artifact_path::ArtifactPath,
        model::{ModelName, Stage},
        model_uri::{ModelSource, ModelUri, Pick},
    },
    store::{
        error::StoreError,
        registry::{LoggedModel, ModelVersion},
    },
};

/// Most URIs that may refer to each other on the way to a model's files; MLflow's own URIs do so once or twice.
const MAX_HOPS: usize = 8;

/// The origin of a model version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// The source that the registry notes.
    pub source: String,
    /// Location of the files, if it is not the source.
    pub location: Option<String>,
    /// Id of the run that made the model.
    pub run_id: Option<String>,
    /// Id of the logged model, if the origin is one.
    pub model_id: Option<String>,
}

impl Origin {
    /// Returns the location of the files.
    pub(crate) fn files(&self) -> &str {
        self.location.as_deref().unwrap_or(&self.source)
    }

    fn of_logged_model(model: LoggedModel) -> Self {
        Self {
            source: format!("models:/{}", model.model_id),
            location: Some(model.artifact_uri),
            run_id: model.run_id,
            model_id: Some(model.model_id),
        }
    }
}

impl Stores {
    /// Returns the location of a model's files, for any model URI: a run's artifact URI and the path below it, the
    /// location of the files of a version or a logged model, or the location itself.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a text that is not a model URI; [`Error::Store`] where the target of the URI does not
    /// exist.
    pub async fn model_location(&self, uri: &str) -> Result<String> {
        let (location, path) = self.locate(uri).await?;
        Ok(below(&location, &path))
    }

    /// Returns the location of a model, and separately the path that a model URI has below its version.
    pub(crate) async fn locate(&self, uri: &str) -> Result<(String, ArtifactPath)> {
        let source = ModelSource::parse(uri)?;
        self.deliver_first(Traffic::Records).await?;
        let path = match &source {
            ModelSource::Model(ModelUri::Version { path, .. }) => path.clone(),
            _ => ArtifactPath::root(),
        };
        let origin = self.origin(source).await?;
        Ok((origin.files().to_owned(), path))
    }

    /// Returns the origin from which a version of this source is registered.
    pub(crate) async fn origin(&self, source: ModelSource) -> Result<Origin> {
        match source {
            ModelSource::Location(source) => Ok(Origin {
                source,
                ..Origin::default()
            }),
            ModelSource::Run { run_id, path } => self.origin_in_run(&run_id, &path).await,
            ModelSource::Model(ModelUri::Logged(model_id)) => {
                let model = self.store.registry().await?.logged_model(&model_id).await?;
                Ok(Origin::of_logged_model(model))
            }
            ModelSource::Model(ModelUri::Version { name, pick, .. }) => {
                let version = self.model_version(&name, &pick).await?;
                let registry = self.registry().await?;
                let location = registry.download_uri(&name, version.version).await?;
                Ok(Origin {
                    source: format!("models:/{}/{}", version.name, version.version),
                    location: Some(self.follow(location).await?),
                    run_id: version.run_id,
                    model_id: None,
                })
            }
        }
    }

    /// Follows the location of a version, which may be a URI that the stock client has registered unchanged.
    async fn follow(&self, mut location: String) -> Result<String> {
        for _ in 0..MAX_HOPS {
            let path = match ModelSource::parse(&location)? {
                // The location is returned unchanged: a relative path in the registry is not relative to our working
                // directory.
                ModelSource::Location(_) => return Ok(location),
                ModelSource::Run { run_id, path } => {
                    let origin = self.origin_in_run(&run_id, &path).await?;
                    return Ok(origin.files().to_owned());
                }
                ModelSource::Model(ModelUri::Logged(model_id)) => {
                    let registry = self.store.registry().await?;
                    return Ok(registry.logged_model(&model_id).await?.artifact_uri);
                }
                ModelSource::Model(ModelUri::Version { name, pick, path }) => {
                    let number = self.model_version(&name, &pick).await?.version;
                    location = self.registry().await?.download_uri(&name, number).await?;
                    path
                }
            };
            location = below(&location, &path);
        }
        let reason = "the versions that it leads to lead to each other";
        Err(Error::invalid("model URI", &location, reason))
    }

    /// Returns the artifacts of a run or, where the run logged a model under that name, the model: MLflow 3 keeps the
    /// two apart.
    async fn origin_in_run(&self, run_id: &str, path: &ArtifactPath) -> Result<Origin> {
        let run = self.tracking().await?.run(run_id).await?;
        let model = match path.as_str() {
            "" => None,
            name => {
                let registry = self.store.registry().await?;
                registry.logged_model_of(&run, name).await?
            }
        };
        Ok(match model {
            Some(model) => Origin {
                run_id: Some(run.run_id),
                ..Origin::of_logged_model(model)
            },
            None => Origin {
                source: below(&run.artifact_uri, path),
                run_id: Some(run.run_id),
                ..Origin::default()
            },
        })
    }

    /// Returns the picked version of a model.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such version.
    pub async fn model_version(&self, name: &ModelName, pick: &Pick) -> Result<ModelVersion> {
        let registry = self.registry().await?;
        let stages: &[Stage] = match pick {
            Pick::Number(version) => return Ok(registry.version(name, *version).await?),
            Pick::Alias(alias) => return Ok(registry.version_by_alias(name, alias).await?),
            Pick::Stage(stage) => std::slice::from_ref(stage),
            Pick::Latest => &Stage::ALL,
        };
        let latest = registry.latest_versions(name, stages).await?;
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
                destination: self.config.registry.uri(),
            })
        })
    }
}

/// Returns the location of a path below an artifact URI.
fn below(uri: &str, path: &ArtifactPath) -> String {
    let uri = match path.as_str() {
        "" => return uri.to_owned(),
        _ => uri.trim_end_matches('/'),
    };
    match ArtifactUri::parse(uri) {
        // The URI of a local folder is read with percent-escapes, and the path is not.
        Ok(ArtifactUri::Local(_)) => format!("{uri}/{}", escaped(path.as_str())),
        _ => format!("{uri}/{}", path.as_str()),
    }
}
