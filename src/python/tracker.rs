//! `MLflowTracker` as Python sees it. The documentation that users read stands in `_native.pyi`.

use std::sync::{Mutex, PoisonError};

use pyo3::{
    exceptions::{PyException, PyKeyboardInterrupt},
    prelude::*,
    types::{PyDict, PyList, PyMapping, PyString, PyType},
};

use super::{
    answers::{self, Experiment, MetricPoint, Run},
    artifacts::{self, Upload},
    caller,
    errors::to_python,
    exit::tell,
    interpreter,
    status::Status,
    values,
};
use crate::{
    config::{
        options::{GivenOptions, Options},
        s3::S3Config,
        tracker::{self, DEFAULT_EXPERIMENT, TrackerConfig},
        uri::Destination,
        variables,
    },
    delivery::runtime::KeepWaiting,
    environment::run_tags::RunContext,
    error::{Error, Result},
    journal::error::{JournalError, Room},
    mlflow::run::{self, Best, LifecycleStage, NewRun, RunStatus},
    net::secret::{self, Secret},
    os::{clock, fork, sigterm},
    tracker::{artifacts::file_path, open::Tracker, queries::Search, session},
};

#[pyclass(frozen, module = "heimdall_tracking", subclass, weakref)]
pub struct MLflowTracker {
    tracker: Tracker,
    /// The tracker of a fork, and which fork that is. It lives as long as the process.
    fork: Mutex<Option<(u32, &'static Tracker)>>,
    artifact_uri: Option<String>,
    /// Tracking and registry URI, with credentials, as the stock client reads them.
    uris: (Secret, Secret),
    /// Told of the active runs whenever they change.
    follower: Mutex<Option<Py<PyAny>>>,
}

#[pymethods]
impl MLflowTracker {
    #[new]
    #[pyo3(signature = (tracking_uri, artifact_uri=None, backend_store_uri=None, registry_uri=None, s3_endpoint_url=None, s3_access_key_id=None, s3_secret_access_key=None, experiment_name=DEFAULT_EXPERIMENT.to_owned(), mode=None, mirrors=None, ranks=None, durability=None, system_metrics=None, environment=None, set_environment=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the signature that existing scripts call"
    )]
    fn new(
        py: Python<'_>,
        tracking_uri: String,
        artifact_uri: Option<String>,
        backend_store_uri: Option<String>,
        registry_uri: Option<String>,
        s3_endpoint_url: Option<String>,
        s3_access_key_id: Option<String>,
        s3_secret_access_key: Option<String>,
        experiment_name: String,
        mode: Option<String>,
        mirrors: Option<Vec<String>>,
        ranks: Option<String>,
        durability: Option<String>,
        system_metrics: Option<bool>,
        environment: Option<bool>,
        set_environment: Option<bool>,
    ) -> PyResult<Self> {
        let given = GivenOptions {
            mode,
            mirrors,
            ranks,
            durability,
        };
        let options = Options::new(given).map_err(|error| to_python(py, &error.into()))?;
        let grace = options.term_grace;
        let config = TrackerConfig {
            tracking_uri,
            artifact_uri: artifact_uri.clone(),
            backend_store_uri,
            registry_uri,
            s3: S3Config {
                endpoint_url: s3_endpoint_url,
                access_key_id: s3_access_key_id.map(Secret::from),
                secret_access_key: s3_secret_access_key.map(Secret::from),
            },
            experiment_name,
            heimdall_dir: tracker::heimdall_dir(),
            fresh_schema: caller::fresh_schema(py)?,
            options,
            system_metrics,
            environment,
        };
        let context = RunContext {
            interpreter: interpreter::asked_for(py, &config)?,
            ..caller::context(py)?
        };
        let tracker = waiting(py, |keep_waiting| {
            Tracker::open(&config, context, keep_waiting)
        })?;
        sigterm::watch(grace, session::terminate);
        tell(py, tracker.notices())?;
        let tracking = stock_uri(tracker.destination(), &config.tracking_uri);
        let registry = config.registry_uri.as_deref().filter(|uri| !uri.is_empty());
        let registry = registry.map_or_else(
            || tracking.clone(),
            |uri| stock_uri(tracker.registry_destination(), uri),
        );
        let sets = variables::switch(set_environment, "HEIMDALL_SET_ENVIRONMENT", true);
        if sets.map_err(|error| to_python(py, &error.into()))? {
            caller::set_environment(py, &tracking, &registry, &config.s3)?;
        }
        Ok(Self {
            tracker,
            fork: Mutex::default(),
            uris: (tracking, registry),
            follower: Mutex::default(),
            artifact_uri: artifact_uri.map(|uri| secret::without_credentials(&uri)),
        })
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
    fn experiment_id(&self, py: Python<'_>) -> PyResult<String> {
        self.ask(py, |tracker, keep_waiting| {
            tracker.experiment_id(keep_waiting)
        })
    }

    #[getter]
    fn active_run_id(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let active = self.tracker(py)?.active_run();
        Ok(active.map(|run| run.to_string()))
    }

    #[getter]
    fn active_run_ids(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let active = self.tracker(py)?.active_runs();
        Ok(active.into_iter().map(|run| run.to_string()).collect())
    }

    #[pyo3(signature = (run_name=None, tags=None, nested=false, parent_run_id=None, description=None, run_id=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of MLflow's function of that name"
    )]
    fn start_run(
        &self,
        py: Python<'_>,
        run_name: Option<&Bound<'_, PyString>>,
        tags: Option<&Bound<'_, PyAny>>,
        nested: bool,
        parent_run_id: Option<&Bound<'_, PyString>>,
        description: Option<&Bound<'_, PyString>>,
        run_id: Option<&Bound<'_, PyString>>,
    ) -> PyResult<String> {
        let text = |what, given: Option<&Bound<'_, PyString>>| {
            let text = given.map(|given| values::argument(what, given).map(Into::into));
            self.answer(py, text.transpose())
        };
        let new = NewRun {
            name: text("run name", run_name)?,
            tags: self.answer(py, values::tags(tags)?)?,
            nested,
            parent: text("parent run", parent_run_id)?,
            description: text("description", description)?,
        };
        let run_id = text("run id", run_id)?;
        let id = run_id.as_ref().map(|id| id.parse::<run::RunId>());
        let id = self.answer(py, id.transpose())?;
        let tracker = self.tracker(py)?;
        let run = if tracker.attaches() {
            // Rank 0 starts and ends the run; this one only records into it.
            let id = match id {
                Some(id) => id,
                None => caller::run_of_rank_zero(py)?
                    .parse::<run::RunId>()
                    .map_err(|error| to_python(py, &error.into()))?,
            };
            self.log_waiting(py, |tracker| tracker.attach_run(id, nested))?;
            id
        } else if let Some(run_id) = run_id.filter(|_| !tracker.is_silent()) {
            self.begin(py, |tracker, keep_waiting| {
                tracker.resume_run(&run_id, &new, keep_waiting)
            })?
        } else {
            self.begin(py, |tracker, keep_waiting| {
                tracker.start_run(&new, keep_waiting)
            })?
        };
        if tracker.leads() {
            caller::tell_other_ranks(py, &run.to_string())?;
        }
        self.tell_follower(py)?;
        Ok(run.to_string())
    }

    #[pyo3(signature = (run, nested=false))]
    fn resume(&self, py: Python<'_>, run: &Bound<'_, PyString>, nested: bool) -> PyResult<String> {
        let run = self.answer(py, values::argument("run", run))?;
        let new = NewRun {
            nested,
            ..NewRun::default()
        };
        let id = self.begin(py, |tracker, keep_waiting| {
            tracker.resume_run(&run, &new, keep_waiting)
        })?;
        self.tell_follower(py)?;
        Ok(id.to_string())
    }

    #[pyo3(signature = (status="FINISHED"))]
    fn end_run(&self, py: Python<'_>, status: &str) -> PyResult<()> {
        let tracker = self.tracker(py)?;
        let ended = RunStatus::parse_final(status)
            .map_err(Error::from)
            .and_then(|status| py.detach(|| tracker.end_run(status)));
        if self.answer(py, ended)?.is_some() {
            self.tell_follower(py)?;
        }
        Ok(())
    }

    #[pyo3(signature = (status="FINISHED"))]
    fn set_terminated(&self, py: Python<'_>, status: &str) -> PyResult<()> {
        self.end_run(py, status)
    }

    #[pyo3(signature = (run_name=None, tags=None, nested=false, parent_run_id=None, description=None, run_id=None))]
    fn run(
        slf: Py<Self>,
        run_name: Option<Py<PyAny>>,
        tags: Option<Py<PyAny>>,
        nested: bool,
        parent_run_id: Option<Py<PyAny>>,
        description: Option<Py<PyAny>>,
        run_id: Option<Py<PyAny>>,
    ) -> ActiveRun {
        ActiveRun {
            tracker: slf,
            arguments: (run_name, tags, nested, parent_run_id, description, run_id),
            run_id: Mutex::default(),
        }
    }

    fn log_param(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let key = self.answer(py, values::argument("param key", key))?;
        let value = self.answer(py, values::param(&key, value)?)?;
        let param = (key.into_owned(), value);
        self.log(py, |tracker| {
            tracker.log_batch("log_param", vec![], vec![param.clone()], vec![])
        })
    }

    fn log_params(&self, py: Python<'_>, params: &Bound<'_, PyMapping>) -> PyResult<()> {
        let params = self.answer(py, values::params(Some(params))?)?;
        self.log(py, |tracker| tracker.log_params(params.clone()))
    }

    #[pyo3(signature = (key, value, step=None, timestamp=None))]
    fn log_metric(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        step: Option<i64>,
        timestamp: Option<i64>,
    ) -> PyResult<()> {
        let step = step.unwrap_or(0);
        let tracker = self.tracker(py)?;
        let pushed = tracker.log_metrics_from(1, step, timestamp, |draft| {
            values::push_metric(key, value, draft)
        });
        if pushed.is_ok() {
            return self.answer(py, Ok::<(), Error>(()));
        }
        let metric = self.answer(py, values::metric(key, value)?)?;
        self.log(py, |tracker| {
            tracker.log_metrics(vec![metric.clone()], step, timestamp)
        })
    }

    #[pyo3(signature = (metrics, step=None, timestamp=None))]
    fn log_metrics(
        &self,
        py: Python<'_>,
        metrics: &Bound<'_, PyMapping>,
        step: Option<i64>,
        timestamp: Option<i64>,
    ) -> PyResult<()> {
        let step = step.unwrap_or(0);
        if let Ok(dict) = metrics.cast::<PyDict>() {
            let tracker = self.tracker(py)?;
            let pushed = tracker.log_metrics_from(dict.len(), step, timestamp, |draft| {
                values::push_metrics(dict, draft)
            });
            if pushed.is_ok() {
                return self.answer(py, Ok::<(), Error>(()));
            }
        }
        let values = self.answer(py, values::metrics(metrics)?)?;
        self.log(py, |tracker| {
            tracker.log_metrics(values.clone(), step, timestamp)
        })
    }

    #[pyo3(signature = (metrics=None, params=None, tags=None))]
    fn log_batch(
        &self,
        py: Python<'_>,
        metrics: Option<&Bound<'_, PyAny>>,
        params: Option<&Bound<'_, PyAny>>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let points = match metrics {
            Some(metrics) => self.answer(py, values::points(metrics, clock::now_ms())?)?,
            None => Vec::new(),
        };
        let params = self.answer(py, values::params(params)?)?;
        let tags = self.answer(py, values::tags(tags)?)?;
        self.log(py, |tracker| {
            tracker.log_batch("log_batch", points.clone(), params.clone(), tags.clone())
        })
    }

    fn set_tag(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let key = self.answer(py, values::argument("tag key", key))?;
        let value = self.answer(py, values::tag(&key, value)?)?;
        let tag = (key.into_owned(), value);
        self.log(py, |tracker| {
            tracker.log_batch("set_tag", vec![], vec![], vec![tag.clone()])
        })
    }

    fn set_tags(&self, py: Python<'_>, tags: &Bound<'_, PyMapping>) -> PyResult<()> {
        let tags = self.answer(py, values::tags(Some(tags))?)?;
        self.log(py, |tracker| tracker.set_tags(tags.clone()))
    }

    fn delete_tag(&self, py: Python<'_>, key: &Bound<'_, PyString>) -> PyResult<()> {
        let key = self.answer(py, values::argument("tag key", key))?;
        self.log(py, |tracker| tracker.delete_tag(&key))
    }

    fn _log_bytes(
        &self,
        py: Python<'_>,
        content: &[u8],
        artifact_file: &Bound<'_, PyString>,
    ) -> PyResult<()> {
        let path = self.answer(py, values::argument("artifact file", artifact_file))?;
        self.log_waiting(py, |tracker| tracker.log_bytes(content, &path))
            .map(drop)
    }

    fn _check_artifact_file(
        &self,
        py: Python<'_>,
        artifact_file: &Bound<'_, PyString>,
    ) -> PyResult<()> {
        let path = values::argument("artifact file", artifact_file);
        let checked = path.map_err(Error::from).and_then(|path| file_path(&path));
        self.answer(py, checked).map(|_| ())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of a dataset, one each"
    )]
    fn _log_input(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        digest: &Bound<'_, PyString>,
        source_type: &Bound<'_, PyString>,
        source: &Bound<'_, PyString>,
        schema: Option<&Bound<'_, PyString>>,
        profile: Option<&Bound<'_, PyString>>,
        tags: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let text = |what, given| {
            let text = values::argument(what, given).map(|text| text.into_owned());
            self.answer(py, text)
        };
        let dataset = run::DatasetInput {
            name: text("dataset name", name)?,
            digest: text("dataset digest", digest)?,
            source_type: text("dataset source type", source_type)?,
            source: text("dataset source", source)?,
            schema: schema.map(|it| text("dataset schema", it)).transpose()?,
            profile: profile.map(|it| text("dataset profile", it)).transpose()?,
            tags: self.answer(py, values::tags(Some(tags))?)?,
        };
        self.log(py, |tracker| tracker.log_input(dataset.clone()))
    }

    /// The active run as it was when it was resumed, if it was.
    fn _resumed_from(&self, py: Python<'_>) -> PyResult<Option<Run>> {
        let before = self.tracker(py)?.resumed_from();
        Ok(before.map(|before| Run::from((*before).clone())))
    }

    /// Tracking and registry URI with credentials, for the stock client alone.
    fn _uris(&self) -> (&str, &str) {
        (self.uris.0.reveal(), self.uris.1.reveal())
    }

    /// Has `follower` called with the ids of the active runs whenever they change.
    fn _follow(&self, follower: Py<PyAny>) {
        let mut slot = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        let before = slot.replace(follower);
        drop(slot);
        // Its end may run code of Python's, which may come back here.
        drop(before);
    }

    #[pyo3(signature = (local_path, artifact_path="artifacts", immutable=false))]
    fn log_artifact(
        slf: &Bound<'_, Self>,
        local_path: &Bound<'_, PyAny>,
        artifact_path: Option<&str>,
        immutable: bool,
    ) -> PyResult<Upload> {
        let (file, folder) = (values::path(local_path)?, artifact_path.unwrap_or_default());
        let logged = slf.get().log_waiting(slf.py(), |tracker| {
            tracker.log_artifact(&file, folder, artifacts::keep(immutable))
        })?;
        Ok(Upload::new(slf, logged))
    }

    #[pyo3(signature = (local_dir, artifact_path="artifacts", immutable=false))]
    fn log_artifacts_dir(
        slf: &Bound<'_, Self>,
        local_dir: &Bound<'_, PyAny>,
        artifact_path: Option<&str>,
        immutable: bool,
    ) -> PyResult<Upload> {
        let (dir, folder) = (values::path(local_dir)?, artifact_path.unwrap_or_default());
        let logged = slf.get().log_waiting(slf.py(), |tracker| {
            tracker.log_artifacts_dir(&dir, folder, artifacts::keep(immutable))
        })?;
        Ok(Upload::new(slf, logged))
    }

    fn get_run_info<'py>(
        &self,
        py: Python<'py>,
        run_id: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let run_id = self.answer(py, values::argument("run id", run_id))?;
        let run = self.ask(py, |tracker, keep_waiting| {
            tracker.run_info(&run_id, keep_waiting)
        })?;
        let info = PyDict::new(py);
        info.set_item("run_id", run.run_id)?;
        info.set_item("experiment_id", run.experiment_id)?;
        info.set_item("status", run.status)?;
        info.set_item("start_time", run.start_time)?;
        info.set_item("end_time", run.end_time)?;
        info.set_item("parameters", run.params)?;
        info.set_item("metrics", run.metrics)?;
        info.set_item("tags", run.tags)?;
        Ok(info)
    }

    fn get_run(&self, py: Python<'_>, run_id: &Bound<'_, PyString>) -> PyResult<Run> {
        let run_id = self.answer(py, values::argument("run id", run_id))?;
        let run = self.ask(py, |tracker, keep_waiting| {
            tracker.run_info(&run_id, keep_waiting)
        })?;
        Ok(run.into())
    }

    fn _search_runs(
        &self,
        py: Python<'_>,
        filter: &Bound<'_, PyString>,
        order_by: Vec<String>,
        max_results: Option<usize>,
        view: &str,
        experiment_names: Option<Vec<String>>,
    ) -> PyResult<Vec<Run>> {
        let search = Search {
            filter: self
                .answer(py, values::argument("filter", filter))?
                .into_owned(),
            order_by,
            max_results,
            view: self.answer(py, view.parse())?,
            experiments: experiment_names,
        };
        let runs = self.ask(py, |tracker, keep_waiting| {
            tracker.search_runs(&search, keep_waiting)
        })?;
        Ok(runs.into_iter().map(Run::from).collect())
    }

    #[pyo3(signature = (metric="val/loss", compare_fn=None, filter=""))]
    fn get_best_run<'py>(
        &self,
        py: Python<'py>,
        metric: &str,
        compare_fn: Option<&Bound<'py, PyAny>>,
        filter: &str,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let best = self.answer(py, best(py, compare_fn)?)?;
        let run = self.ask(py, |tracker, keep_waiting| {
            tracker.best_run(metric, best, filter, keep_waiting)
        })?;
        let Some(run) = run else { return Ok(None) };
        let answer = PyDict::new(py);
        answer.set_item("run_id", run.run_id)?;
        answer.set_item("metric_value", run.metrics.get(metric))?;
        answer.set_item("params", run.params)?;
        Ok(Some(answer))
    }

    fn get_metric_history<'py>(
        &self,
        py: Python<'py>,
        run_id: &Bound<'py, PyString>,
        key: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyList>> {
        let run_id = self.answer(py, values::argument("run id", run_id))?;
        let key = self.answer(py, values::argument("metric key", key))?;
        let points = self.ask(py, |tracker, keep_waiting| {
            tracker.metric_history(&run_id, &key, keep_waiting)
        })?;
        answers::list(py, points.into_iter().map(MetricPoint::from))
    }

    #[pyo3(signature = (view="active_only"))]
    fn list_experiments(&self, py: Python<'_>, view: &str) -> PyResult<Vec<Experiment>> {
        let view = self.answer(py, view.parse())?;
        let experiments = self.ask(py, |tracker, keep_waiting| {
            tracker.experiments(view, keep_waiting)
        })?;
        Ok(experiments.into_iter().map(Experiment::from).collect())
    }

    #[pyo3(signature = (name_or_id=None))]
    fn get_experiment(
        &self,
        py: Python<'_>,
        name_or_id: Option<&Bound<'_, PyString>>,
    ) -> PyResult<Experiment> {
        let wanted = name_or_id.map(|wanted| values::argument("experiment", wanted));
        let wanted = self.answer(py, wanted.transpose())?;
        let found = self.ask(py, |tracker, keep_waiting| {
            tracker.experiment(wanted.as_deref(), keep_waiting)
        })?;
        Ok(found.into())
    }

    fn delete_run(&self, py: Python<'_>, run_id: &Bound<'_, PyString>) -> PyResult<()> {
        let run_id = self.answer(py, values::argument("run id", run_id))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_run_stage(&run_id, LifecycleStage::Deleted, keep_waiting)
        })
    }

    fn restore_run(&self, py: Python<'_>, run_id: &Bound<'_, PyString>) -> PyResult<()> {
        let run_id = self.answer(py, values::argument("run id", run_id))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_run_stage(&run_id, LifecycleStage::Active, keep_waiting)
        })
    }

    fn delete_experiment(&self, py: Python<'_>, name_or_id: &Bound<'_, PyString>) -> PyResult<()> {
        let wanted = self.answer(py, values::argument("experiment", name_or_id))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_experiment_stage(&wanted, LifecycleStage::Deleted, keep_waiting)
        })
    }

    fn restore_experiment(&self, py: Python<'_>, name_or_id: &Bound<'_, PyString>) -> PyResult<()> {
        let wanted = self.answer(py, values::argument("experiment", name_or_id))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_experiment_stage(&wanted, LifecycleStage::Active, keep_waiting)
        })
    }

    #[pyo3(signature = (timeout=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let timeout = values::timeout(timeout);
        let timeout = self.answer(py, timeout)?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.flush(timeout, keep_waiting)
        })
    }

    fn status(&self, py: Python<'_>) -> PyResult<Status> {
        Ok(Status::of(self.tracker(py)?))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let active = self.active_run_id(py)?;
        Ok(format!(
            "MLflowTracker(tracking_uri={:?}, experiment_name={:?}, active_run_id={})",
            self.tracking_uri(),
            self.experiment_name(),
            active.map_or_else(|| "None".to_owned(), |run| format!("{run:?}"))
        ))
    }
}

impl MLflowTracker {
    /// The tracker of this process: in a fork one of its own.
    pub(crate) fn tracker(&self, py: Python<'_>) -> PyResult<&Tracker> {
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
        // A fork of a fork goes on from its own parent.
        let parent = fork.map_or(&self.tracker, |(_, tracker)| tracker);
        let tracker = parent.in_fork().map_err(|error| to_python(py, &error))?;
        let tracker: &'static Tracker = Box::leak(Box::new(tracker));
        *fork = Some((generation, tracker));
        Ok(tracker)
    }

    /// A call's outcome for Python, after what the workers have to say.
    pub(crate) fn answer<T, E: Into<Error>>(
        &self,
        py: Python<'_>,
        outcome: std::result::Result<T, E>,
    ) -> PyResult<T> {
        let tracker = self.tracker(py)?;
        if tracker.has_notices() {
            tell(py, tracker.notices())?;
        }
        outcome.map_err(|error| to_python(py, &error.into()))
    }

    /// Makes a call that records something. Where the journal has no room it waits until there is some, without
    /// the GIL, and makes it again.
    fn log(&self, py: Python<'_>, mut call: impl FnMut(&Tracker) -> Result<()>) -> PyResult<()> {
        let tracker = self.tracker(py)?;
        loop {
            match call(tracker) {
                Err(Error::Journal(JournalError::NoRoom { room, .. })) => {
                    self.wait_for_room(py, room)?;
                }
                outcome => return self.answer(py, outcome),
            }
        }
    }

    /// As [`MLflowTracker::log`], for a call that waits on the disk.
    fn log_waiting<T: Send>(
        &self,
        py: Python<'_>,
        call: impl Fn(&Tracker) -> Result<T> + Sync,
    ) -> PyResult<T> {
        let tracker = self.tracker(py)?;
        loop {
            match py.detach(|| call(tracker)) {
                Err(Error::Journal(JournalError::NoRoom { room, .. })) => {
                    self.wait_for_room(py, room)?;
                }
                outcome => return self.answer(py, outcome),
            }
        }
    }

    /// As [`MLflowTracker::log`], for a call that waits on the store and begins a run.
    fn begin<T: Send>(
        &self,
        py: Python<'_>,
        call: impl Fn(&Tracker, KeepWaiting<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.log(py, Tracker::has_room)?;
        self.ask(py, call)
    }

    fn wait_for_room(&self, py: Python<'_>, room: Room) -> PyResult<()> {
        let mut told = false;
        self.ask(py, |tracker, keep_waiting| {
            let has_room = tracker.wait_for_room(room, &mut || {
                if !std::mem::replace(&mut told, true) {
                    // Nobody would hear of it while the call waits.
                    let _ = Python::attach(|py| tell(py, tracker.notices()));
                }
                keep_waiting()
            });
            match has_room {
                true => Ok(()),
                false => Err(Error::Interrupted),
            }
        })
    }

    /// Tells who follows the active runs what they are now.
    fn tell_follower(&self, py: Python<'_>) -> PyResult<()> {
        let follower = self
            .follower
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|follower| follower.clone_ref(py));
        if let Some(follower) = follower {
            follower.call1(py, (self.active_run_ids(py)?,))?;
        }
        Ok(())
    }

    /// Runs what waits on a store, without the GIL.
    pub(crate) fn ask<T: Send>(
        &self,
        py: Python<'_>,
        question: impl FnOnce(&Tracker, KeepWaiting<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        let tracker = self.tracker(py)?;
        let answer = waiting(py, |keep_waiting| question(tracker, keep_waiting));
        tell(py, tracker.notices())?;
        answer
    }

    /// The same for what waits until files have arrived, and shows how far they are where that takes long.
    pub(crate) fn ask_of_files<T: Send>(
        &self,
        py: Python<'_>,
        question: impl FnOnce(&Tracker, KeepWaiting<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        // A bar that fails is no reason to fail; Ctrl-C and the end of the process are.
        let lets = |called: PyResult<_>| match called {
            Err(error) if !error.is_instance_of::<PyException>(py) => Err(error),
            called => Ok(called.ok()),
        };
        let progress = py.import("heimdall_tracking._progress");
        let end = lets(progress.and_then(|it| it.call_method0("begin")))?;
        let answer = self.ask(py, question);
        if let Some(end) = end {
            lets(end.call0())?;
        }
        answer
    }
}

/// Arguments of `start_run`, in their order.
type Arguments = (
    Option<Py<PyAny>>,
    Option<Py<PyAny>>,
    bool,
    Option<Py<PyAny>>,
    Option<Py<PyAny>>,
    Option<Py<PyAny>>,
);

/// `with tracker.run("name") as run:`
#[pyclass(frozen, module = "heimdall_tracking", name = "ActiveRun")]
pub struct ActiveRun {
    tracker: Py<MLflowTracker>,
    arguments: Arguments,
    run_id: Mutex<Option<String>>,
}

#[pymethods]
impl ActiveRun {
    #[getter]
    fn run_id(&self) -> Option<String> {
        self.run_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let py = slf.py();
        let run = slf.get();
        // By its name and with what was given alone, so that a subclass of the user's is asked as always.
        let (run_name, tags, nested, parent, description, run_id) = &run.arguments;
        let arguments = PyDict::new(py);
        for (name, given) in [
            ("run_name", run_name),
            ("tags", tags),
            ("parent_run_id", parent),
            ("description", description),
            ("run_id", run_id),
        ] {
            if let Some(given) = given {
                arguments.set_item(name, given)?;
            }
        }
        if *nested {
            arguments.set_item("nested", true)?;
        }
        let started = run
            .tracker
            .bind(py)
            .call_method("start_run", (), Some(&arguments))?;
        *run.run_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(started.extract()?);
        Ok(slf)
    }

    #[expect(unused_variables, reason = "what Python passes")]
    fn __exit__(
        &self,
        py: Python<'_>,
        exception: Option<&Bound<'_, PyType>>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let status = match exception {
            None => RunStatus::Finished,
            Some(exception) if exception.is_subclass_of::<PyKeyboardInterrupt>()? => {
                RunStatus::Killed
            }
            Some(_) => RunStatus::Failed,
        };
        let tracker = self.tracker.bind(py);
        // The caller may have ended the run in the block already, and started another one; or have left runs
        // open that are nested in this one.
        let run_id = self.run_id().unwrap_or_default();
        let active = tracker.get().active_run_ids(py)?;
        let place = active.iter().position(|active| *active == run_id);
        for _ in place.unwrap_or(active.len())..active.len() {
            tracker.call_method1("end_run", (status.as_str(),))?;
        }
        Ok(false)
    }

    fn __repr__(&self) -> String {
        format!(
            "ActiveRun(run_id={:?})",
            self.run_id().unwrap_or_else(|| "not started".to_owned())
        )
    }
}

/// What a call costs that takes the same arguments and does nothing with them; for benchmarks.
#[pyfunction]
#[pyo3(name = "_floor", signature = (metrics, step=None))]
pub fn floor(metrics: &Bound<'_, PyMapping>, step: Option<i64>) {
    let _ = (metrics, step);
}

/// An URI as it may be shown.
#[pyfunction]
pub fn without_credentials(uri: &str) -> String {
    secret::without_credentials(uri)
}

/// A URI, credentials included, as the stock client takes it.
fn stock_uri(destination: &Destination, given: &str) -> Secret {
    Secret::from(match destination {
        // Absolute, as the working directory may change.
        Destination::Sqlite(_) => destination.uri(),
        // SQLAlchemy knows the scheme by its long name only.
        Destination::Postgres(_) => match given.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("postgres") => {
                format!("postgresql:{rest}")
            }
            _ => given.to_owned(),
        },
        Destination::Server(_) => given.trim_end_matches('/').to_owned(),
    })
}

/// Runs something that waits, without the GIL, so that Ctrl-C ends the wait.
pub(crate) fn waiting<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(KeepWaiting<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut pending = None;
    let outcome = py.detach(|| {
        work(&mut || match Python::attach(|py| py.check_signals()) {
            Ok(()) => true,
            Err(interrupt) => {
                pending = Some(interrupt);
                false
            }
        })
    });
    match (outcome, pending) {
        (Err(Error::Interrupted), Some(interrupt)) => Err(interrupt),
        (Ok(answer), _) => Ok(answer),
        (Err(error), _) => Err(to_python(py, &error)),
    }
}

/// `min` and `max`, the built-ins or the words.
fn best(py: Python<'_>, compare_fn: Option<&Bound<'_, PyAny>>) -> PyResult<Result<Best>> {
    let Some(compare) = compare_fn else {
        return Ok(Ok(Best::Min));
    };
    let builtins = py.import("builtins")?;
    for (name, best) in [("min", Best::Min), ("max", Best::Max)] {
        if compare.is(builtins.getattr(name)?) || compare.eq(name)? {
            return Ok(Ok(best));
        }
    }
    let shown = compare.repr()?.to_string();
    Ok(Err(Error::invalid(
        "compare_fn",
        &shown,
        "it is min or max, the function or the word",
    )))
}
