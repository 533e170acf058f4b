//! Queries about runs, metrics and experiments, and their deletion.

use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};

use super::{
    arguments::{ExperimentIdOrName, MetricKey, RunId},
    calls::Calls,
    results::{
        self,
        run::{Experiment, MetricPoint, Run, best_run, run_info},
    },
    tracker::MLflowTracker,
};
use crate::{
    mlflow::run::{Best, LifecycleStage, ViewType},
    tracker::queries::Search,
};

#[pymethods]
impl MLflowTracker {
    fn get_run_info<'py>(slf: &Bound<'py, Self>, run_id: RunId) -> PyResult<Bound<'py, PyDict>> {
        let run = slf.ask(|stores| async move { stores.run(&run_id.0).await })?;
        run_info(slf.py(), run)
    }

    fn get_run(slf: &Bound<'_, Self>, run_id: RunId) -> PyResult<Run> {
        let run = slf.ask(|stores| async move { stores.run(&run_id.0).await })?;
        Ok(run.into())
    }

    fn _search_runs(slf: &Bound<'_, Self>, search: Search) -> PyResult<Vec<Run>> {
        let runs = slf.ask(|stores| async move { stores.search_runs(&search).await })?;
        Ok(runs.into_iter().map(Run::from).collect())
    }

    #[pyo3(signature = (metric="val/loss", compare_fn=None, filter=""))]
    fn get_best_run<'py>(
        slf: &Bound<'py, Self>,
        metric: &str,
        compare_fn: Option<Best>,
        filter: &str,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let best = compare_fn.unwrap_or(Best::Min);
        best_of(slf, metric.to_owned(), best, filter.to_owned())
    }

    fn get_metric_history<'py>(
        slf: &Bound<'py, Self>,
        run_id: RunId,
        key: MetricKey,
    ) -> PyResult<Bound<'py, PyList>> {
        let points =
            slf.ask(|stores| async move { stores.metric_history(&run_id.0, &key.0).await })?;
        results::list(slf.py(), points.into_iter().map(MetricPoint::from))
    }

    #[pyo3(signature = (view="active_only"))]
    fn list_experiments(slf: &Bound<'_, Self>, view: &str) -> PyResult<Vec<Experiment>> {
        let view: ViewType = view.parse()?;
        let found = slf.ask(move |stores| async move { stores.experiments(view).await })?;
        Ok(found.into_iter().map(Experiment::from).collect())
    }

    #[pyo3(signature = (name_or_id=None))]
    fn get_experiment(
        slf: &Bound<'_, Self>,
        name_or_id: Option<ExperimentIdOrName>,
    ) -> PyResult<Experiment> {
        let wanted = name_or_id.map(|wanted| wanted.0);
        let found = slf.ask(|stores| async move { stores.experiment(wanted.as_deref()).await })?;
        Ok(found.into())
    }

    fn delete_run(slf: &Bound<'_, Self>, run_id: RunId) -> PyResult<()> {
        set_run_stage(slf, run_id, LifecycleStage::Deleted)
    }

    fn restore_run(slf: &Bound<'_, Self>, run_id: RunId) -> PyResult<()> {
        set_run_stage(slf, run_id, LifecycleStage::Active)
    }

    fn delete_experiment(slf: &Bound<'_, Self>, name_or_id: ExperimentIdOrName) -> PyResult<()> {
        set_experiment_stage(slf, name_or_id, LifecycleStage::Deleted)
    }

    fn restore_experiment(slf: &Bound<'_, Self>, name_or_id: ExperimentIdOrName) -> PyResult<()> {
        set_experiment_stage(slf, name_or_id, LifecycleStage::Active)
    }
}

fn best_of<'py>(
    tracker: &Bound<'py, MLflowTracker>,
    metric: String,
    best: Best,
    filter: String,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let key = metric.clone();
    let found =
        tracker.ask(move |stores| async move { stores.best_run(&key, best, &filter).await })?;
    found
        .map(|run| best_run(tracker.py(), run, &metric))
        .transpose()
}

fn set_run_stage(
    tracker: &Bound<'_, MLflowTracker>,
    run_id: RunId,
    stage: LifecycleStage,
) -> PyResult<()> {
    tracker.ask(move |stores| async move { stores.set_run_stage(&run_id.0, stage).await })
}

fn set_experiment_stage(
    tracker: &Bound<'_, MLflowTracker>,
    name_or_id: ExperimentIdOrName,
    stage: LifecycleStage,
) -> PyResult<()> {
    tracker
        .ask(move |stores| async move { stores.set_experiment_stage(&name_or_id.0, stage).await })
}
