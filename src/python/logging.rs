//! Params, metrics, tags and inputs of a run.

use pyo3::{
    prelude::*,
    types::{PyDict, PyMapping},
};

use super::{
    arguments::{RunId, RunTagKey},
    calls::{self, Calls},
    entities,
    entries::Entries,
    runs::run_of,
    tracker::MLflowTracker,
    values::{NotAppended, append_metric, append_metrics},
};
use crate::{journal::frame::MetricsDraft, mlflow::run::DatasetInput};

#[pymethods]
impl MLflowTracker {
    #[pyo3(signature = (key, value, run_id=None))]
    fn log_param<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        run_id: Option<RunId>,
    ) -> PyResult<()> {
        record(slf, run_id, "log_param", |it| {
            it.add_params(&one(key, value)?)
        })
    }

    #[pyo3(signature = (params, run_id=None))]
    fn log_params<'py>(
        slf: &Bound<'py, Self>,
        params: &Bound<'py, PyAny>,
        run_id: Option<RunId>,
    ) -> PyResult<()> {
        record(slf, run_id, "log_params", |it| it.add_params(params))
    }

    #[pyo3(signature = (key, value, step=None, timestamp=None, run_id=None))]
    fn log_metric<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        step: Option<&Bound<'py, PyAny>>,
        timestamp: Option<&Bound<'py, PyAny>>,
        run_id: Option<RunId>,
    ) -> PyResult<()> {
        let append = |draft: &mut MetricsDraft<'_>| append_metric(key, value, draft);
        let metrics = || one(key, value);
        log_moment(slf, run_id, Some(1), (step, timestamp), append, metrics)
    }

    #[pyo3(signature = (metrics, step=None, timestamp=None, run_id=None))]
    fn log_metrics<'py>(
        slf: &Bound<'py, Self>,
        metrics: &Bound<'py, PyAny>,
        step: Option<&Bound<'py, PyAny>>,
        timestamp: Option<&Bound<'py, PyAny>>,
        run_id: Option<RunId>,
    ) -> PyResult<()> {
        log_mapping(slf, metrics, (step, timestamp), run_id)
    }

    #[pyo3(signature = (metrics=None, params=None, tags=None, run_id=None))]
    fn log_batch<'py>(
        slf: &Bound<'py, Self>,
        metrics: Option<&Bound<'py, PyAny>>,
        params: Option<&Bound<'py, PyAny>>,
        tags: Option<&Bound<'py, PyAny>>,
        run_id: Option<RunId>,
    ) -> PyResult<()> {
        record(slf, run_id, "log_batch", |it| {
            metrics.map_or(Ok(()), |metrics| it.add_points(metrics))?;
            params.map_or(Ok(()), |params| it.add_params(params))?;
            tags.map_or(Ok(()), |tags| it.add_tags(tags))
        })
    }

    /// Records lists of MLflow's own entities where all are plain; returns false, and records nothing, otherwise.
    fn _log_plain(
        slf: &Bound<'_, Self>,
        run_id: &str,
        metrics: &Bound<'_, PyAny>,
        params: &Bound<'_, PyAny>,
        tags: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        entities::log_plain(slf, run_id, [metrics, params, tags])
    }

    #[pyo3(signature = (key, value, run_id=None))]
    fn set_tag<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        run_id: Option<RunId>,
    ) -> PyResult<()> {
        record(slf, run_id, "set_tag", |it| it.add_tags(&one(key, value)?))
    }

    #[pyo3(signature = (tags, run_id=None))]
    fn set_tags<'py>(
        slf: &Bound<'py, Self>,
        tags: &Bound<'py, PyAny>,
        run_id: Option<RunId>,
    ) -> PyResult<()> {
        record(slf, run_id, "set_tags", |it| it.add_tags(tags))
    }

    #[pyo3(signature = (key, run_id=None))]
    fn delete_tag(slf: &Bound<'_, Self>, key: RunTagKey, run_id: Option<&str>) -> PyResult<()> {
        let run = run_of(slf, run_id, "delete_tag")?;
        slf.record(|tracker| tracker.delete_tag(run, &key.0))
    }

    fn _log_input(
        slf: &Bound<'_, Self>,
        dataset: DatasetInput,
        run_id: Option<&str>,
    ) -> PyResult<()> {
        let run = run_of(slf, run_id, "log_input")?;
        slf.record(|tracker| tracker.log_input(run, dataset.clone()))
    }
}

/// Step and timestamp of metrics.
type Moment<'a, 'py> = (Option<&'a Bound<'py, PyAny>>, Option<&'a Bound<'py, PyAny>>);

/// Returns a list with one key and its value. A dict would refuse keys without a hash.
fn one<'py>(key: &Bound<'py, PyAny>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let pairs = [(key.clone(), value.clone())];
    Ok(pairs.into_pyobject(key.py())?.into_any())
}

/// Records the entries that `add` adds.
fn record<'py>(
    tracker: &Bound<'py, MLflowTracker>,
    run_id: Option<RunId>,
    action: &'static str,
    add: impl FnOnce(&mut Entries<'_, 'py>) -> PyResult<()>,
) -> PyResult<()> {
    let run = run_of(tracker, run_id.as_ref().map(|run| run.0.as_str()), action)?;
    let mut entries = Entries::of(tracker)?;
    add(&mut entries)?;
    entries.record(tracker, run)
}

fn log_mapping<'py>(
    tracker: &Bound<'py, MLflowTracker>,
    metrics: &Bound<'py, PyAny>,
    moment: Moment<'_, 'py>,
    run_id: Option<RunId>,
) -> PyResult<()> {
    // Of another mapping than a dict nothing is appended directly.
    let dict = metrics.cast::<PyDict>().ok();
    let count = dict.map(PyDictMethods::len);
    let append = |draft: &mut MetricsDraft<'_>| match dict {
        Some(dict) => append_metrics(dict, draft),
        None => Err(NotAppended),
    };
    let given = || Ok(metrics.clone());
    log_moment(tracker, run_id, count, moment, append, given)
}

/// Logs metrics of one moment: appends simple values to a frame directly, and reads other values one by one.
fn log_moment<'py>(
    tracker: &Bound<'py, MLflowTracker>,
    run_id: Option<RunId>,
    count: Option<usize>,
    (step, timestamp): Moment<'_, 'py>,
    append: impl FnOnce(&mut MetricsDraft<'_>) -> Result<(), NotAppended>,
    given: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<()> {
    let run_id = run_id.as_ref().map(|run| run.0.as_str());
    let run = run_of(tracker, run_id, "log_metrics")?;
    let this = tracker.get().of_this_process()?;
    let whole = |given: Option<&Bound<'py, PyAny>>| given.map(|it| it.extract::<i64>()).transpose();
    if let (Some(count), Ok(step), Ok(time)) = (count, whole(step), whole(timestamp))
        && this
            .log_metrics_from(run, count, step.unwrap_or(0), time, append)
            .is_ok()
    {
        return calls::answer(tracker.py(), this, Ok(()));
    }
    let mut entries = Entries::of(tracker)?;
    entries.add_metrics(&given()?, step, timestamp)?;
    entries.record(tracker, run)
}

/// Does nothing, with the same arguments as `log_metrics`: benchmarks measure the cost of the bare call with it.
#[pyfunction]
#[pyo3(name = "_floor", signature = (metrics, step=None))]
pub(crate) fn floor(metrics: &Bound<'_, PyMapping>, step: Option<i64>) {
    let _ = (metrics, step);
}
