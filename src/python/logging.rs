//! Params, metrics, tags and inputs of the active run.

use pyo3::{
    prelude::*,
    types::{PyDict, PyMapping, PyString},
};

use super::{
    arguments::RunTagKey,
    calls::{self, Calls},
    tracker::MLflowTracker,
    values::{self, Metrics, NotAppended, Params, Points, Tags, append_metric, append_metrics},
};
use crate::{journal::frame::MetricsDraft, mlflow::run::DatasetInput};

#[pymethods]
impl MLflowTracker {
    fn log_param(
        slf: &Bound<'_, Self>,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let param = values::param(key, value)?;
        slf.record(|it| it.log_batch("log_param", vec![], vec![param.clone()], vec![]))
    }

    fn log_params(slf: &Bound<'_, Self>, params: Params) -> PyResult<()> {
        slf.record(|tracker| tracker.log_params(params.0.clone()))
    }

    #[pyo3(signature = (key, value, step=None, timestamp=None))]
    fn log_metric(
        slf: &Bound<'_, Self>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        step: Option<i64>,
        timestamp: Option<i64>,
    ) -> PyResult<()> {
        let append = |draft: &mut MetricsDraft<'_>| append_metric(key, value, draft);
        let checked = || Ok(Metrics(vec![values::metric(key, value)?]));
        log_metrics(slf, 1, (step, timestamp), append, checked)
    }

    #[pyo3(signature = (metrics, step=None, timestamp=None))]
    fn log_metrics(
        slf: &Bound<'_, Self>,
        metrics: &Bound<'_, PyMapping>,
        step: Option<i64>,
        timestamp: Option<i64>,
    ) -> PyResult<()> {
        // Of another mapping than a dict nothing is appended directly.
        let count = metrics.cast::<PyDict>().map_or(0, PyDictMethods::len);
        let append = |draft: &mut MetricsDraft<'_>| append_metrics(metrics, draft);
        log_metrics(slf, count, (step, timestamp), append, || metrics.extract())
    }

    #[pyo3(signature = (metrics=None, params=None, tags=None))]
    fn log_batch(
        slf: &Bound<'_, Self>,
        metrics: Option<Points>,
        params: Option<Params>,
        tags: Option<Tags>,
    ) -> PyResult<()> {
        let points = metrics.unwrap_or_default().0;
        let (params, tags) = (params.unwrap_or_default().0, tags.unwrap_or_default().0);
        slf.record(|it| it.log_batch("log_batch", points.clone(), params.clone(), tags.clone()))
    }

    fn set_tag(
        slf: &Bound<'_, Self>,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let tag = values::tag(key, value)?;
        slf.record(|it| it.log_batch("set_tag", vec![], vec![], vec![tag.clone()]))
    }

    fn set_tags(slf: &Bound<'_, Self>, tags: Tags) -> PyResult<()> {
        slf.record(|tracker| tracker.set_tags(tags.0.clone()))
    }

    fn delete_tag(slf: &Bound<'_, Self>, key: RunTagKey) -> PyResult<()> {
        slf.record(|tracker| tracker.delete_tag(&key.0))
    }

    fn _log_input(slf: &Bound<'_, Self>, dataset: DatasetInput) -> PyResult<()> {
        slf.record(|tracker| tracker.log_input(dataset.clone()))
    }
}

/// Logs metrics of one moment: appends simple values to a frame directly, and checks other values first.
fn log_metrics(
    tracker: &Bound<'_, MLflowTracker>,
    count: usize,
    (step, timestamp): (Option<i64>, Option<i64>),
    append: impl FnOnce(&mut MetricsDraft<'_>) -> Result<(), NotAppended>,
    checked: impl FnOnce() -> PyResult<Metrics>,
) -> PyResult<()> {
    let step = step.unwrap_or(0);
    let this = tracker.get().of_this_process()?;
    if this
        .log_metrics_from(count, step, timestamp, append)
        .is_ok()
    {
        return calls::answer(tracker.py(), this, Ok(()));
    }
    let metrics = checked()?.0;
    tracker.record(|tracker| tracker.log_metrics(metrics.clone(), step, timestamp))
}

/// Does nothing, with the same arguments as `log_metrics`: benchmarks measure the cost of the bare call with it.
#[pyfunction]
#[pyo3(name = "_floor", signature = (metrics, step=None))]
pub(crate) fn floor(metrics: &Bound<'_, PyMapping>, step: Option<i64>) {
    let _ = (metrics, step);
}
