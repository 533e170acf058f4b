//! The checks of `heimdall doctor` that need the stores.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use pyo3::{prelude::*, types::PyDict};

use super::{arguments::Named, calls};
use crate::{
    artifacts::{error::ArtifactError, open::Access, probe},
    config::{
        s3::S3Config,
        tracker::FreshSchema,
        uri::{ArtifactUri, Destination},
    },
    delivery::runtime::Runtime,
    error::Error,
    mlflow::artifact_path::ArtifactPath,
    net::secret::Secret,
    store::{check, open},
};

/// Looks at a store without changing it. Returns `None` where it does not answer within `timeout` seconds.
#[pyfunction]
pub(crate) fn check_store<'py>(
    py: Python<'py>,
    uri: &str,
    experiment: String,
    timeout: f64,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let destination = Destination::parse("tracking URI", uri)?;
    let (shown, artifacts) = (destination.uri(), destination.default_artifact_root());
    let deadline = deadline(timeout);
    let found = calls::waiting(py, |keep_waiting| {
        let checking = async move { check::check(&destination, &experiment).await };
        let found = Runtime::start()?.wait_until(deadline, checking, keep_waiting)?;
        found.transpose().map_err(Error::from)
    })?;
    let Some(found) = found else {
        return Ok(None);
    };
    let (location, is_deleted) = found.experiment.unzip();
    let answer = PyDict::new(py);
    answer.set_item("uri", shown)?;
    answer.set_item("has_tables", found.has_tables)?;
    answer.set_item("revision", found.revision)?;
    answer.set_item("is_writable", found.is_writable)?;
    answer.set_item("artifact_location", location)?;
    answer.set_item("is_deleted", is_deleted.unwrap_or_default())?;
    answer.set_item("default_location", artifacts)?;
    answer.set_item("clock", found.clock)?;
    Ok(Some(answer))
}

/// Arguments of `check_artifacts`.
pub(crate) struct ProbeArguments {
    tracking: Destination,
    location: String,
    path: ArtifactPath,
    file: PathBuf,
    s3: S3Config,
    timeout: f64,
}

impl<'py> FromPyObject<'_, 'py> for ProbeArguments {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = Named::of(given)?;
        let secret = |name| Ok::<_, PyErr>(given.get::<Option<String>>(name)?.map(Secret::from));
        Ok(Self {
            tracking: Destination::parse("tracking URI", &given.get::<String>("tracking_uri")?)?,
            location: given.get("location")?,
            path: ArtifactPath::parse(&given.get::<String>("path")?)?,
            file: given.get("file")?,
            s3: S3Config {
                endpoint_url: given.get("s3_endpoint_url")?,
                access_key_id: secret("s3_access_key_id")?,
                secret_access_key: secret("s3_secret_access_key")?,
            },
            timeout: given.get("timeout")?,
        })
    }
}

/// Puts a small file below an artifact location, reads it and deletes it. Returns `None` where the store does not
/// answer in time.
#[pyfunction]
pub(crate) fn check_artifacts(
    py: Python<'_>,
    config: ProbeArguments,
) -> PyResult<Option<Bound<'_, PyDict>>> {
    let deadline = deadline(config.timeout);
    let probed = calls::waiting(py, |keep_waiting| {
        Runtime::start()?
            .wait_until(deadline, probed(config), keep_waiting)?
            .transpose()
    })?;
    let Some(probe) = probed else {
        return Ok(None);
    };
    let answer = PyDict::new(py);
    answer.set_item("done", probe.done)?;
    answer.set_item("modified", probe.modified)?;
    answer.set_item("written", probe.written)?;
    answer.set_item("error", probe.error.map(|error| error.to_string()))?;
    Ok(Some(answer))
}

async fn probed(config: ProbeArguments) -> Result<probe::Probe, Error> {
    let content = std::fs::read(&config.file).map_err(|source| ArtifactError::Io {
        artifact: config.path.as_str().to_owned(),
        target: config.file.clone(),
        source,
    })?;
    let access = Access {
        s3: config.s3,
        ..Access::default()
    };
    let store = match ArtifactUri::parse(&config.location)? {
        ArtifactUri::Server(uri) => {
            let (tracking, _) = open::open(&config.tracking, &FreshSchema::default()).await?;
            match tracking.artifacts(&uri) {
                Some(store) => store,
                None => access.open(&uri)?,
            }
        }
        _ => access.open(&config.location)?,
    };
    Ok(probe::probe(store.as_ref(), &config.path, &config.file, &content).await)
}

fn deadline(seconds: f64) -> Option<Instant> {
    let timeout = Duration::try_from_secs_f64(seconds).ok()?;
    Instant::now().checked_add(timeout)
}
