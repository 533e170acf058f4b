//! What is asked of a tracker, and what is done at once: each waits for the store, after everything that was
//! recorded before.

use std::sync::Arc;

use super::{Tracker, lock};
use crate::{
    delivery::background::KeepWaiting,
    error::{Error, Result},
    record::Key,
    run::{Best, LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
    store::{
        Experiment, StoreError, TrackingStore,
        search::{self, Attribute, Comparison, Field, Filter, Operand, OrderBy, RunQuery},
    },
};

/// A search for runs, as the caller gives it.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Filter in MLflow's language; empty finds all.
    pub filter: String,
    /// Orders, the first one first.
    pub order_by: Vec<String>,
    /// At most so many runs; all where it is not given.
    pub max_results: Option<usize>,
    /// Active, deleted or all runs.
    pub view: ViewType,
    /// Names of the experiments to look in; the tracker's own where none are given.
    pub experiments: Option<Vec<String>>,
}

impl Tracker {
    /// A run with its params, latest metrics and tags. Delivers first, then waits on the store.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such run; [`Error::Store`] when the store takes nothing.
    pub fn run_info(&self, run_id: &str, keep_waiting: KeepWaiting<'_>) -> Result<RunInfo> {
        self.settle(keep_waiting)?;
        let (store, run_id) = (Arc::clone(&self.store), run_id.to_owned());
        self.ask(async move { store.run(&run_id).await }, keep_waiting)
    }

    /// The runs that a filter finds, in the order that is asked for, behind which MLflow's comes: latest start
    /// first, then run id. Of this experiment, or of those that are named. Delivers first, then waits on the
    /// store.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a filter or an order that MLflow would refuse; [`Error::Store`] for an experiment
    /// that does not exist; [`Error::Store`] when the store takes nothing.
    pub fn search_runs(
        &self,
        search: &Search,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<RunInfo>> {
        let filter = Filter::parse(&search.filter)?;
        let order_by = OrderBy::parse_all(&search.order_by)?;
        self.settle(keep_waiting)?;
        let store = Arc::clone(&self.store);
        let experiment_ids = match search.experiments.clone() {
            None => vec![self.experiment_id(keep_waiting)?],
            Some(names) => {
                let named = async move {
                    let mut ids = Vec::with_capacity(names.len());
                    for name in names {
                        ids.push(store.experiment_by_name(&name).await?.id);
                    }
                    Ok(ids)
                };
                self.ask(named, keep_waiting)?
            }
        };
        if experiment_ids.is_empty() || search.max_results == Some(0) {
            return Ok(Vec::new());
        }
        let query = RunQuery {
            experiment_ids,
            filter,
            order_by,
            view: search.view,
            max_results: search.max_results.unwrap_or(usize::MAX),
            numbers_only: false,
        };
        let store = Arc::clone(&self.store);
        self.ask(async move { store.search_runs(&query).await }, keep_waiting)
    }

    /// A run by its id, or the latest of its name in the experiment that is not deleted. Waits on the store.
    pub(super) fn find_run(&self, run: &str, keep_waiting: KeepWaiting<'_>) -> Result<RunInfo> {
        if run.parse::<RunId>().is_ok() {
            let (store, run_id) = (Arc::clone(&self.store), run.to_owned());
            match self.ask(async move { store.run(&run_id).await }, keep_waiting) {
                Err(Error::Store(StoreError::NotFound { .. })) => {}
                answer => return answer,
            }
        }
        let query = RunQuery {
            experiment_ids: vec![self.experiment_id(keep_waiting)?],
            filter: named(run),
            order_by: Vec::new(),
            view: ViewType::ActiveOnly,
            max_results: if search::is_exact(run) { 1 } else { usize::MAX },
            numbers_only: false,
        };
        let store = Arc::clone(&self.store);
        let found = self.ask(async move { store.search_runs(&query).await }, keep_waiting)?;
        let found = found.into_iter().find(|found| found.run_name == run);
        found.ok_or_else(|| {
            Error::Store(StoreError::NotFound {
                what: format!(
                    "a run of the id or name {run:?} in experiment {:?}",
                    self.settled.experiment_name
                ),
                destination: self.settled.tracking.uri(),
            })
        })
    }

    /// All points of a metric of a run, in the order that MLflow gives them; none for a metric that the run
    /// does not have. Delivers first, then waits on the store.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that no metric can have; [`Error::Store`] when there is no such run; those
    /// of [`Tracker::flush`].
    pub fn metric_history(
        &self,
        run_id: &str,
        key: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<MetricPoint>> {
        let key = Key::parse("metric key", key)?;
        self.settle(keep_waiting)?;
        let (store, run_id) = (Arc::clone(&self.store), run_id.to_owned());
        let history = async move { store.metric_history(&run_id, key.as_str()).await };
        self.ask(history, keep_waiting)
    }

    /// All experiments of the store, those that were updated last first. Delivers first, then waits on the
    /// store.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn experiments(
        &self,
        view: ViewType,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<Experiment>> {
        self.settle(keep_waiting)?;
        let store = Arc::clone(&self.store);
        self.ask(async move { store.experiments(view).await }, keep_waiting)
    }

    /// An experiment by its name or, where none has that name, by its id; the tracker's own without either.
    /// Deleted ones are found, too. Delivers first, then waits on the store.
    ///
    /// # Errors
    /// [`Error::Store`] when there is none; [`Error::Store`] when the store takes nothing.
    pub fn experiment(
        &self,
        name_or_id: Option<&str>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Experiment> {
        self.settle(keep_waiting)?;
        let store = Arc::clone(&self.store);
        let own = match name_or_id {
            Some(_) => String::new(),
            None => self.experiment_id(keep_waiting)?,
        };
        let wanted = name_or_id.map(str::to_owned);
        let found = async move {
            let Some(wanted) = wanted else {
                return store.experiment(&own).await;
            };
            match store.experiment_by_name(&wanted).await {
                // Of ids and names only an id can be a number alone, as a rule.
                Err(StoreError::NotFound { .. })
                    if wanted.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    store.experiment(&wanted).await
                }
                found => found,
            }
        };
        self.ask(found, keep_waiting)
    }

    /// Deletes or restores a run. Delivers first, then waits on the store.
    ///
    /// # Errors
    /// [`Error::RunActive`] for an active run of this tracker that is to be deleted; [`Error::Store`] when
    /// there is no such run; [`Error::Store`] when the store takes nothing.
    pub fn set_run_stage(
        &self,
        run_id: &str,
        stage: LifecycleStage,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        if let Ok(id) = run_id.parse::<RunId>()
            && stage == LifecycleStage::Deleted
        {
            if self.active_runs().contains(&id) {
                return Err(Error::RunActive {
                    active: id.to_string(),
                    action: "delete_run()",
                });
            }
            lock(&self.session.started).remove(&id);
        }
        self.settle(keep_waiting)?;
        let (store, run_id) = (Arc::clone(&self.store), run_id.to_owned());
        self.ask(
            async move { store.set_run_stage(&run_id, stage).await },
            keep_waiting,
        )
    }

    /// Deletes or restores an experiment with its runs, by its name or id. Delivers first, then waits on the
    /// store.
    ///
    /// # Errors
    /// [`Error::RunActive`] for the experiment that this tracker has an active run in; [`Error::Store`] when
    /// there is no such experiment; [`Error::Store`] when the store takes nothing.
    pub fn set_experiment_stage(
        &self,
        name_or_id: &str,
        stage: LifecycleStage,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let experiment = self.experiment(Some(name_or_id), keep_waiting)?;
        if let Some(active) = self.active_run()
            && stage == LifecycleStage::Deleted
            && experiment.id == self.experiment_id(keep_waiting)?
        {
            return Err(Error::RunActive {
                active: active.to_string(),
                action: "delete_experiment()",
            });
        }
        let store = Arc::clone(&self.store);
        self.ask(
            async move { store.set_experiment_stage(&experiment.id, stage).await },
            keep_waiting,
        )
    }

    /// The run of the experiment whose latest value of `metric` is best, of those that a filter finds. Delivers
    /// first, then waits on the store.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that no metric can have and a filter that MLflow would refuse; those of
    /// [`Tracker::flush`].
    pub fn best_run(
        &self,
        metric: &str,
        best: Best,
        filter: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Option<RunInfo>> {
        let metric = Key::parse("metric key", metric)?;
        let filter = Filter::parse(filter)?;
        self.settle(keep_waiting)?;
        let query = RunQuery {
            experiment_ids: vec![self.experiment_id(keep_waiting)?],
            filter,
            order_by: vec![OrderBy::metric(metric.as_str(), best == Best::Min)],
            view: ViewType::ActiveOnly,
            max_results: 1,
            numbers_only: true,
        };
        let store = Arc::clone(&self.store);
        let found = async move { store.search_runs(&query).await };
        let found = self.ask(found, keep_waiting)?;
        // A server that knows no run with a number puts one without first.
        let has_number = |run: &RunInfo| {
            let value = run.metrics.get(metric.as_str());
            value.is_some_and(|value| !value.is_nan())
        };
        Ok(found.into_iter().next().filter(has_number))
    }
}

/// A filter for runs of a name. A name with both kinds of quotes can only be asked for by a pattern, which finds
/// others, too.
fn named(name: &str) -> Filter {
    let (operator, operand, text) = search::equal("attributes.run_name", name);
    Filter {
        text,
        comparisons: vec![Comparison {
            field: Field::Attribute(Attribute::RunName),
            operator,
            operand: Operand::Text(operand),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_so_that_it_ends_where_it_ends() {
        for (name, text) in [
            ("plain", "attributes.run_name = 'plain'"),
            ("it's", "attributes.run_name = \"it's\""),
            ("a \"b\"", "attributes.run_name = 'a \"b\"'"),
            ("it's \"b\"", "attributes.run_name LIKE 'it_s _b_'"),
        ] {
            assert_eq!(named(name).text, text);
        }
    }
}
