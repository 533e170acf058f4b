//! The Python class `MLflowTracker`: its construction, its properties and its state. The user documentation is in
//! `_native.pyi` and in the Python class that extends this one.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use pyo3::prelude::*;

use super::{
    arguments::{Named, Seconds},
    calls::{self, Calls},
    results::status::Status,
    script,
    values::Tags,
};
use crate::{
    config::{
        options::{GivenOptions, Options},
        s3::S3Config,
        tracker::{self, TrackerConfig},
        uri::Destination,
        variables,
    },
    environment::run_tags::RunContext,
    net::secret::{self, Secret},
    os::{fork, sigterm},
    tracker::{open::Tracker, recorder},
};

#[pyclass(frozen, module = "heimdall_tracking", subclass, weakref)]
pub(crate) struct MLflowTracker {
    tracker: Tracker,
    /// The tracker of a fork, and the number of the fork. It lives as long as the process.
    fork: Mutex<Option<(u32, &'static Tracker)>>,
    artifact_uri: Option<String>,
    is_bridged: bool,
    /// True where a value that cannot be recorded raises.
    pub is_strict: bool,
    /// Tracking and registry URI, with credentials, as the stock client reads them.
    uris: (Secret, Secret),
}

/// Arguments of `MLflowTracker`.
pub(crate) struct TrackerArguments {
    config: TrackerConfig,
    set_environment: Option<bool>,
    bridge: Option<bool>,
    strict: Option<bool>,
}

impl<'py> FromPyObject<'_, 'py> for TrackerArguments {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = given.py();
        let given = Named::of(given)?;
        let default_tags: Option<Tags> = given.get("default_tags")?;
        let secret = |name| Ok::<_, PyErr>(given.get::<Option<String>>(name)?.map(Secret::from));
        let config = TrackerConfig {
            tracking_uri: given.get("tracking_uri")?,
            artifact_uri: given.get("artifact_uri")?,
            backend_store_uri: given.get("backend_store_uri")?,
            registry_uri: given.get("registry_uri")?,
            s3: S3Config {
                endpoint_url: given.get("s3_endpoint_url")?,
                access_key_id: secret("s3_access_key_id")?,
                secret_access_key: secret("s3_secret_access_key")?,
            },
            experiment_name: given.get("experiment_name")?,
            heimdall_dir: given
                .get::<Option<PathBuf>>("heimdall_dir")?
                .unwrap_or_else(tracker::heimdall_dir),
            fresh_schema: script::fresh_schema(py)?,
            options: Options::new(GivenOptions {
                mode: given.get("mode")?,
                mirrors: given.get("mirrors")?,
                ranks: given.get("ranks")?,
                durability: given.get("durability")?,
                joins_tasks: given.get("joins_tasks")?,
            })?,
            system_metrics: given.get("system_metrics")?,
            environment: given.get("environment")?,
            default_tags: default_tags.unwrap_or_default().0,
        };
        Ok(Self {
            config,
            set_environment: given.get("set_environment")?,
            bridge: given.get("bridge")?,
            strict: given.get("strict")?,
        })
    }
}

#[pymethods]
impl MLflowTracker {
    #[new]
    fn new(py: Python<'_>, arguments: TrackerArguments) -> PyResult<Self> {
        Self::open(py, &arguments)
    }

    #[getter]
    fn tracking_uri(&self) -> String {
        self.tracker.destination().uri()
    }

    #[getter]
    fn registry_uri(&self) -> String {
        self.tracker.registry_destination().uri()
    }

    #[getter]
    fn backend_store_uri(&self) -> String {
        self.tracker.destination().uri()
    }

    #[getter]
    fn artifact_uri(&self) -> Option<&str> {
        self.artifact_uri.as_deref()
    }

    #[getter]
    fn experiment_name(&self) -> &str {
        self.tracker.experiment_name()
    }

    #[getter]
    fn experiment_id(slf: &Bound<'_, Self>) -> PyResult<String> {
        slf.ask(|stores| async move { stores.experiment_id().await })
    }

    #[pyo3(signature = (timeout=None))]
    fn flush(slf: &Bound<'_, Self>, timeout: Option<Seconds>) -> PyResult<()> {
        let timeout = timeout.map(|timeout| timeout.0);
        slf.wait(|tracker, keep_waiting| tracker.flush(timeout, keep_waiting))
    }

    fn status(&self) -> PyResult<Status> {
        Ok(Status::of(self.of_this_process()?))
    }

    #[getter]
    fn _is_bridged(&self) -> bool {
        self.is_bridged
    }

    #[getter]
    fn _rank(&self) -> u32 {
        self.tracker.rank()
    }

    #[getter]
    fn _is_strict(&self) -> bool {
        self.is_strict
    }

    /// Returns the tracking and the registry URI with credentials, only for the stock client.
    fn _uris(&self) -> (&str, &str) {
        (self.uris.0.reveal(), self.uris.1.reveal())
    }
}

impl MLflowTracker {
    /// Opens the tracker, and sets the environment variables that stock libraries in this process read.
    fn open(py: Python<'_>, arguments: &TrackerArguments) -> PyResult<Self> {
        calls::collect_events(py)?;
        let config = &arguments.config;
        let context = RunContext {
            interpreter: script::interpreter(py, config)?,
            ..script::context(py)?
        };
        let tracker = calls::waiting(py, |keep_waiting| {
            Tracker::open(config, context, keep_waiting)
        })?;
        sigterm::watch(config.options.term_grace, recorder::terminate);
        calls::tell(py, tracker.notices())?;
        let tracking = stock_uri(tracker.destination(), &config.tracking_uri);
        let registry = match config.registry_uri.as_deref() {
            None | Some("") => tracking.clone(),
            Some(uri) => stock_uri(tracker.registry_destination(), uri),
        };
        let set = arguments.set_environment;
        if variables::switch(set, "HEIMDALL_SET_ENVIRONMENT", true)? {
            script::set_environment(py, &tracking, &registry, &config.s3)?;
        }
        let artifact_uri = config.artifact_uri.as_deref();
        Ok(Self {
            tracker,
            is_bridged: variables::switch(arguments.bridge, "HEIMDALL_BRIDGE", true)?,
            is_strict: variables::switch(arguments.strict, "HEIMDALL_STRICT", false)?,
            fork: Mutex::default(),
            uris: (tracking, registry),
            artifact_uri: artifact_uri.map(secret::without_credentials),
        })
    }

    /// Returns the tracker of this process; in a fork, the fork's own tracker.
    pub(crate) fn of_this_process(&self) -> PyResult<&Tracker> {
        if !self.tracker.is_forked() {
            return Ok(&self.tracker);
        }
        let mut fork = self.fork.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = fork::generation();
        if let Some((of, tracker)) = *fork
            && of == generation
        {
            return Ok(tracker);
        }
        // A fork of a fork continues from its own parent.
        let parent = fork.map_or(&self.tracker, |(_, tracker)| tracker);
        let tracker: &'static Tracker = Box::leak(Box::new(parent.in_fork()?));
        *fork = Some((generation, tracker));
        Ok(tracker)
    }
}

/// Returns a URI with credentials in the form that the stock client accepts.
fn stock_uri(destination: &Destination, given: &str) -> Secret {
    Secret::from(match destination {
        // The path is absolute, because the working directory may change.
        Destination::Sqlite(_) => destination.uri(),
        // SQLAlchemy knows the scheme only by its long name.
        Destination::Postgres(_) => match given.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("postgres") => {
                format!("postgresql:{rest}")
            }
            _ => given.to_owned(),
        },
        Destination::Server(_) => given.trim_end_matches('/').to_owned(),
    })
}

/// Returns a URI without credentials, so that it may be shown.
#[pyfunction]
pub(crate) fn without_credentials(uri: &str) -> String {
    secret::without_credentials(uri)
}
