//! The arguments of a tracker, and the checks that need no store.

use std::path::PathBuf;

use super::{
    options::Options,
    s3::S3Config,
    uri::{ArtifactUri, Destination, absolute},
    variables::switch,
};
use crate::{
    mlflow::{invalid::Invalid, limits},
    system_metrics::sampler,
};

/// Folder of the journals, in the working directory, where `HEIMDALL_DIR` is not set.
pub(crate) const DEFAULT_HEIMDALL_DIR: &str = ".heimdall";

/// Returns the folder of the journals: `HEIMDALL_DIR`, else the default.
pub fn heimdall_dir() -> PathBuf {
    std::env::var_os("HEIMDALL_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_HEIMDALL_DIR), PathBuf::from)
}

/// Arguments of a tracker, as the user gave them.
#[derive(Clone, Debug, Default)]
pub struct TrackerConfig {
    /// URI of the store of runs.
    pub tracking_uri: String,
    /// URI for the artifacts of a new experiment; beside the database by default.
    pub artifact_uri: Option<String>,
    /// Database behind the tracking server; only its agreement with `tracking_uri` is checked.
    pub backend_store_uri: Option<String>,
    /// URI of the model registry; the tracking store by default.
    pub registry_uri: Option<String>,
    /// S3 endpoint, access key and secret key, for `s3://` artifacts.
    pub s3: S3Config,
    /// Name of the experiment.
    pub experiment_name: String,
    /// Folder of the journals.
    pub heimdall_dir: PathBuf,
    /// Schema of a database that does not exist yet.
    pub fresh_schema: FreshSchema,
    /// Options of the tracker.
    pub options: Options,
    /// True where system metrics of active runs are recorded; `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` decides where it
    /// is `None`.
    pub system_metrics: Option<bool>,
    /// True where the environment of runs is recorded; `HEIMDALL_LOG_ENVIRONMENT` decides where it is `None`.
    pub environment: Option<bool>,
    /// Tags of every run; a tag of the run replaces the one with the same key.
    pub default_tags: Vec<(String, String)>,
}

/// The MLflow release whose schema a fresh database gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FreshSchema {
    /// The newest schema in this package of a release whose packages install completely.
    #[default]
    Newest,
    /// The schema of the release that the user names, for example `2.22.4`.
    Named(String),
    /// The schema of the mlflow in the user's environment, which must be able to open the database.
    Installed {
        /// Version of that mlflow.
        version: String,
        /// Python interpreter in which that mlflow is installed.
        python: PathBuf,
    },
}

/// [`TrackerConfig`] after its rules have been checked.
#[derive(Clone, Debug)]
pub(crate) struct ValidConfig {
    pub tracking: Destination,
    pub registry: Destination,
    pub artifacts: Option<ArtifactUri>,
    /// Artifact location of a new experiment, as the user has spelt it.
    pub artifact_location: Option<String>,
    pub s3: S3Config,
    pub experiment_name: String,
    pub heimdall_dir: PathBuf,
    /// Working directory in which the tracker was made; empty where the system does not tell.
    pub working_dir: PathBuf,
    pub fresh_schema: FreshSchema,
    pub mirrors: Vec<Destination>,
    pub options: Options,
    pub system_metrics: Option<sampler::Config>,
    pub default_tags: Vec<(String, String)>,
}

impl TrackerConfig {
    /// Returns true where the environment of runs is to be recorded.
    ///
    /// # Errors
    /// [`Invalid::Setting`] when `HEIMDALL_LOG_ENVIRONMENT` is neither true nor false.
    pub fn wants_environment(&self) -> Result<bool, Invalid> {
        switch(self.environment, "HEIMDALL_LOG_ENVIRONMENT", false)
    }

    /// Checks everything that can be checked without touching a store.
    pub(crate) fn validate(&self) -> Result<ValidConfig, Invalid> {
        let given = |uri: &Option<String>| uri.clone().filter(|uri| !uri.is_empty());
        let tracking = Destination::parse("tracking URI", &self.tracking_uri)?;
        if let Some(uri) = given(&self.backend_store_uri) {
            let backend = Destination::parse("backend store URI", &uri)?;
            // The server alone knows the database behind it, so this is not compared.
            if backend.uri() != tracking.uri() && !matches!(tracking, Destination::Server(_)) {
                return Err(Invalid::setting(
                    "backend store URI",
                    &backend.uri(),
                    format!(
                        "runs are written to the tracking URI {}; leave it out or make both the same",
                        tracking.uri()
                    ),
                ));
            }
        }
        let registry = match given(&self.registry_uri) {
            Some(uri) => Destination::parse("registry URI", &uri)?,
            None => tracking.clone(),
        };
        let mut mirrors: Vec<Destination> = Vec::new();
        for uri in &self.options.mirrors {
            let mirror = Destination::parse("mirror URI", uri)?;
            // A mirror that is named twice is used once.
            let is_known = mirrors.iter().any(|known| known.uri() == mirror.uri());
            if mirror.uri() != tracking.uri() && !is_known {
                mirrors.push(mirror);
            }
        }
        let location = given(&self.artifact_uri);
        let artifacts = location.as_deref().map(ArtifactUri::parse).transpose()?;
        let location = location.as_deref().map(ArtifactUri::location).transpose()?;
        let system_metrics = switch(
            self.system_metrics,
            "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
            false,
        )?
        .then(sampler::Config::from_env)
        .transpose()?;
        limits::tags(self.default_tags.clone())?;
        Ok(ValidConfig {
            tracking,
            registry,
            artifacts,
            artifact_location: location,
            s3: self.s3.clone(),
            experiment_name: limits::experiment_name(&self.experiment_name)?,
            heimdall_dir: absolute("HEIMDALL_DIR", &self.heimdall_dir)?,
            working_dir: std::env::current_dir().unwrap_or_default(),
            fresh_schema: self.fresh_schema.clone(),
            mirrors,
            options: self.options.clone(),
            system_metrics,
            default_tags: self.default_tags.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_store_other_than_the_tracking_store_is_refused() {
        let config = TrackerConfig {
            tracking_uri: "sqlite:////a.db".into(),
            backend_store_uri: Some("sqlite:////b.db".into()),
            experiment_name: "e".into(),
            heimdall_dir: "h".into(),
            ..TrackerConfig::default()
        };
        assert!(config.validate().unwrap_err().to_string().contains("/b.db"));
        let same = TrackerConfig {
            backend_store_uri: Some("sqlite:////a.db".into()),
            ..config
        };
        assert!(same.validate().is_ok());
    }
}
