//! The model registry: registered models, their versions and stages.

use std::{fmt, str::FromStr};

use async_trait::async_trait;

use crate::{error::Error, record, record::Key, store::StoreError};

/// Longest description of a version: the width of the store's column.
const MAX_DESCRIPTION_LENGTH: usize = 5_000;
/// Longest registered model name: the width of the store's column.
const MAX_NAME_LENGTH: usize = 256;

/// A store of registered models.
#[async_trait]
pub trait ModelRegistry: fmt::Debug + Send + Sync {
    /// Adds a version to a model, which is created if it is not there, and returns its number.
    async fn create_version(&self, version: &NewVersion) -> Result<i64, StoreError>;

    /// Puts a version into a stage.
    async fn set_stage(
        &self,
        name: &ModelName,
        version: i64,
        stage: Stage,
    ) -> Result<(), StoreError>;

    /// Where the files of all versions of all models are: what no collection of garbage may touch.
    async fn version_files(&self) -> Result<Vec<VersionFiles>, StoreError>;
}

/// Where the files of a model version are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionFiles {
    /// The registered model.
    pub name: String,
    /// Number of the version.
    pub version: i64,
    /// What it was registered from.
    pub source: String,
    /// Where its files are to be read, if that is told and is not the source.
    pub location: Option<String>,
    /// The run that made it.
    pub run_id: Option<String>,
}

/// A model version to create.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// The registered model.
    pub name: ModelName,
    /// Where its files are: an artifact URI.
    pub source: String,
    /// The run that made it.
    pub run_id: Option<String>,
    /// What people should know of it.
    pub description: String,
    /// Tags of the version.
    pub tags: Vec<(Key, String)>,
}

/// Name of a registered model that MLflow takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName(String);

impl ModelName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Err(Error::invalid("model name", text, reason));
        if text.trim().is_empty() {
            return refuse("a registered model needs a name");
        }
        if text.contains(['/', ':']) || matches!(text, "." | "..") || text.starts_with("..") {
            return refuse("a model name has no '/' or ':' and is not '.' or '..'");
        }
        if text.chars().count() > MAX_NAME_LENGTH {
            return refuse("a model name has at most 256 characters");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Stage of a model version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// None yet.
    None,
    /// Being tried.
    Staging,
    /// In use.
    Production,
    /// No longer in use.
    Archived,
}

impl Stage {
    /// The word in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Staging => "Staging",
            Self::Production => "Production",
            Self::Archived => "Archived",
        }
    }
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::None, Self::Staging, Self::Production, Self::Archived]
            .into_iter()
            .find(|stage| stage.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                Error::invalid(
                    "stage",
                    text,
                    "a stage is None, Staging, Production or Archived",
                )
            })
    }
}

/// Number of a model version, given as text.
///
/// # Errors
/// [`Error::Invalid`] when it is not a whole number from 1 on.
pub fn parse_version(text: &str) -> Result<i64, Error> {
    text.parse()
        .ok()
        .filter(|version| *version >= 1)
        .ok_or_else(|| {
            Error::invalid(
                "model version",
                text,
                "a version is a whole number from 1 on",
            )
        })
}

/// A description that fits the store.
///
/// # Errors
/// [`Error::Invalid`] when it is too long.
pub fn parse_description(text: &str) -> Result<String, Error> {
    if text.chars().count() > MAX_DESCRIPTION_LENGTH {
        return Err(Error::invalid(
            "description",
            text,
            "it has at most 5000 characters",
        ));
    }
    Ok(text.to_owned())
}

/// What a model URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// Artifacts of a run.
    Run {
        /// The run.
        run_id: String,
        /// Folder or file below its artifact URI.
        path: record::ArtifactPath,
    },
    /// An artifact URI.
    Location(String),
}

impl ModelSource {
    /// Reads `runs:/<run id>/<path>` (also the mistaken `runs://<run id>/<path>`), a path or another
    /// artifact URI.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty, a run URI without a run, or climbs out of the run's artifacts.
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let what = "model URI";
        if uri.trim().is_empty() {
            return Err(Error::invalid(what, uri, "it must name where the model is"));
        }
        let Some(rest) = uri.strip_prefix("runs:") else {
            return if uri.starts_with("models:") {
                Err(Error::invalid(
                    what,
                    uri,
                    "give runs:/<run id>/<path> or the model's location",
                ))
            } else {
                Ok(Self::Location(uri.to_owned()))
            };
        };
        let rest = rest.trim_start_matches('/').trim_end_matches('/');
        let (run_id, path) = rest.split_once('/').unwrap_or((rest, ""));
        if run_id.is_empty() {
            return Err(Error::invalid(
                what,
                uri,
                "the form is runs:/<run id>/<path>",
            ));
        }
        Ok(Self::Run {
            run_id: run_id.to_owned(),
            path: record::ArtifactPath::parse(path)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_run_uri_name_the_run() {
        for uri in [
            "runs:/abc/models/m",
            "runs://abc/models/m",
            "runs:/abc/models/m/",
        ] {
            let ModelSource::Run { run_id, path } = ModelSource::parse(uri).unwrap() else {
                panic!("{uri}")
            };
            assert_eq!((run_id.as_str(), path.as_str()), ("abc", "models/m"));
        }
        for wrong in ["", "runs:/", "runs:/abc/../x", "models:/m/1"] {
            assert!(ModelSource::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn stages_are_read_in_any_case() {
        assert_eq!("production".parse::<Stage>().unwrap(), Stage::Production);
        assert_eq!("None".parse::<Stage>().unwrap(), Stage::None);
        assert!(
            "Live"
                .parse::<Stage>()
                .unwrap_err()
                .to_string()
                .contains("\"Live\"")
        );
    }

    #[test]
    fn model_names_that_mlflow_refuses_are_refused() {
        for wrong in ["", "  ", "a/b", "a:b", "..", "."] {
            assert!(wrong.parse::<ModelName>().is_err(), "{wrong}");
        }
        assert_eq!(
            "heimdall-localization"
                .parse::<ModelName>()
                .unwrap()
                .as_str(),
            "heimdall-localization"
        );
    }

    #[test]
    fn versions_are_whole_numbers_from_one_on() {
        assert_eq!(parse_version("12").unwrap(), 12);
        for wrong in ["", "0", "-1", "1.0", "latest"] {
            assert!(parse_version(wrong).is_err(), "{wrong}");
        }
    }
}
