//! What a tracker is told at construction: where to write, with which credentials, under which experiment.

mod access;
mod options;
mod s3;
mod uri;

use std::{fmt, path::PathBuf};

use crate::{error::Error, record, system_metrics};
pub use access::{PartsAccess, ServerAccess};
pub use options::{GivenOptions, Mode, Options, Ranks};
pub use s3::{AwsKeys, S3Access};
use uri::absolute;
pub use uri::{
    ArtifactUri, Cloud, Destination, ObjectUri, PostgresUri, ServerUri, without_credentials,
};

/// Experiment that is used when none is named.
pub const DEFAULT_EXPERIMENT: &str = "heimdall-localization";
/// Folder, in the working directory, of the journals when `HEIMDALL_DIR` is not set.
pub const DEFAULT_HEIMDALL_DIR: &str = ".heimdall";

/// Folder of the journals: `HEIMDALL_DIR`, else the default.
pub fn heimdall_dir() -> PathBuf {
    std::env::var_os("HEIMDALL_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_HEIMDALL_DIR), PathBuf::from)
}

/// A credential. It has no way to be printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The credential itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Arguments of a tracker, as the user gave them.
#[derive(Clone, Debug, Default)]
pub struct TrackerConfig {
    /// Where runs are recorded.
    pub tracking_uri: String,
    /// Where artifacts of a new experiment go; beside the database by default.
    pub artifact_uri: Option<String>,
    /// Database behind the tracking server; only its agreement with `tracking_uri` is checked.
    pub backend_store_uri: Option<String>,
    /// Where models are registered; the tracking store by default.
    pub registry_uri: Option<String>,
    /// S3 endpoint, access key and secret key, for `s3://` artifacts.
    pub s3: S3Config,
    /// Name of the experiment.
    pub experiment_name: String,
    /// Folder of the journals.
    pub heimdall_dir: PathBuf,
    /// Schema of a database that does not exist yet.
    pub fresh_schema: FreshSchema,
    /// How the tracker works.
    pub options: Options,
    /// Whether active runs get system metrics; `None` is what `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` says.
    pub system_metrics: Option<bool>,
    /// Whether runs get what they were started with; `None` is what `HEIMDALL_LOG_ENVIRONMENT` says.
    pub environment: Option<bool>,
}

/// Which MLflow release's schema a fresh database gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FreshSchema {
    /// The newest that this package ships of a release whose packages install whole.
    #[default]
    Newest,
    /// That of the release which the user names, for example `2.22.4`.
    Named(String),
    /// That of the mlflow in the user's environment, which must be able to open the database.
    Installed {
        /// Its version.
        version: String,
        /// The interpreter that has it.
        python: PathBuf,
    },
}

/// Access to an S3 store.
#[derive(Clone, Debug, Default)]
pub struct S3Config {
    /// Endpoint for stores that are not AWS, for example `http://minio:9000`.
    pub endpoint_url: Option<String>,
    /// Access key.
    pub access_key_id: Option<Secret>,
    /// Secret key.
    pub secret_access_key: Option<Secret>,
}

/// [`TrackerConfig`] after its rules have been checked.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub tracking: Destination,
    pub registry: Destination,
    pub artifacts: Option<ArtifactUri>,
    pub s3: S3Config,
    pub experiment_name: String,
    pub heimdall_dir: PathBuf,
    pub fresh_schema: FreshSchema,
    pub mirrors: Vec<Destination>,
    pub options: Options,
    pub system_metrics: Option<system_metrics::Config>,
}

impl TrackerConfig {
    /// Whether a run's environment is to be recorded.
    ///
    /// # Errors
    /// [`Error::Configuration`] when `HEIMDALL_LOG_ENVIRONMENT` is neither true nor false.
    pub fn wants_environment(&self) -> Result<bool, Error> {
        switch(self.environment, "HEIMDALL_LOG_ENVIRONMENT", false)
    }

    /// Checks everything that can be checked without touching a store.
    pub(crate) fn settle(&self) -> Result<Settled, Error> {
        let given = |uri: &Option<String>| uri.clone().filter(|uri| !uri.is_empty());
        let tracking = Destination::parse("tracking URI", &self.tracking_uri)?;
        if let Some(uri) = given(&self.backend_store_uri) {
            let backend = Destination::parse("backend store URI", &uri)?;
            // What is behind a server is the server's business.
            if backend.uri() != tracking.uri() && !matches!(tracking, Destination::Server(_)) {
                return Err(Error::configuration(
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
            // Twice the same would be twice the work for nothing.
            let is_known = mirrors.iter().any(|known| known.uri() == mirror.uri());
            if mirror.uri() != tracking.uri() && !is_known {
                mirrors.push(mirror);
            }
        }
        let artifacts = given(&self.artifact_uri)
            .map(|uri| ArtifactUri::parse(&uri))
            .transpose()?;
        let system_metrics = switch(
            self.system_metrics,
            "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
            false,
        )?
        .then(system_metrics::Config::from_env)
        .transpose()?;
        Ok(Settled {
            tracking,
            registry,
            artifacts,
            s3: self.s3.clone(),
            experiment_name: record::experiment_name(&self.experiment_name)?,
            heimdall_dir: absolute("HEIMDALL_DIR", &self.heimdall_dir)?,
            fresh_schema: self.fresh_schema.clone(),
            mirrors,
            options: self.options.clone(),
            system_metrics,
        })
    }
}

/// What was given, else what the environment says in MLflow's words, else the default.
///
/// # Errors
/// [`Error::Configuration`] when the variable is neither true nor false.
pub fn switch(given: Option<bool>, variable: &'static str, default: bool) -> Result<bool, Error> {
    if let Some(given) = given {
        return Ok(given);
    }
    let text = std::env::var(variable).unwrap_or_default();
    Ok(truth(variable, &text)?.unwrap_or(default))
}

/// What the text of a variable says, in MLflow's words; nothing where it is empty.
fn truth(variable: &'static str, text: &str) -> Result<Option<bool>, Error> {
    match text.to_lowercase().as_str() {
        "" => Ok(None),
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        _ => Err(Error::configuration(variable, text, "it is true or false")),
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
        assert!(config.settle().unwrap_err().to_string().contains("/b.db"));
        let same = TrackerConfig {
            backend_store_uri: Some("sqlite:////a.db".into()),
            ..config
        };
        assert!(same.settle().is_ok());
    }
}
