//! Queries about runs, metrics and experiments, and their deletion: each waits for the store, after everything that was
//! recorded before.

use super::{lock::lock, stores::Stores};
use crate::{
    delivery::destination::Traffic,
    error::{Error, Result},
    mlflow::{
        key::Key,
        run::{Best, LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
        search::{
            grammar::{self, Operand},
            runs::{Attribute, Comparison, Field, Filter, OrderBy, RunQuery},
        },
    },
    store::{error::StoreError, tracking::Experiment},
};

/// A search for runs.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Filter in MLflow's language; an empty filter finds all runs.
    pub filter: String,
    /// Sort orders, the most important first.
    pub order_by: Vec<String>,
    /// Most runs to return; `None` returns all.
    pub max_results: Option<usize>,
    /// Active, deleted or all runs.
    pub view: ViewType,
    /// Names of the experiments to search; the tracker's own where none are given.
    pub experiments: Option<Vec<String>>,
}

impl Stores {
    /// Returns a run with its params, latest metrics and tags.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such run, or the store accepts nothing.
    pub async fn run(&self, run_id: &str) -> Result<RunInfo> {
        self.deliver_first(Traffic::Records).await?;
        Ok(self.tracking().await?.run(run_id).await?)
    }

    /// Returns the runs that a search finds, in the requested order and then in MLflow's: latest start first, then run
    /// id.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a filter or an order that MLflow would refuse; [`Error::Store`] for an experiment that
    /// does not exist, and when the store accepts nothing.
    pub async fn search_runs(&self, search: &Search) -> Result<Vec<RunInfo>> {
        let filter = Filter::parse(&search.filter)?;
        let order_by = OrderBy::parse_all(&search.order_by)?;
        self.deliver_first(Traffic::Records).await?;
        let store = self.tracking().await?;
        let experiment_ids = match &search.experiments {
            None => vec![self.experiment_id().await?],
            Some(names) => {
                let mut ids = Vec::with_capacity(names.len());
                for name in names {
                    ids.push(store.experiment_by_name(name).await?.id);
                }
                ids
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
        Ok(store.search_runs(&query).await?)
    }

    /// Returns a run by its id, or the latest run of that name in the experiment that is not deleted.
    pub(crate) async fn find_run(&self, run: &str) -> Result<RunInfo> {
        let store = self.tracking().await?;
        if run.parse::<RunId>().is_ok() {
            match store.run(run).await {
                Err(StoreError::NotFound { .. }) => {}
                found => return Ok(found?),
            }
        }
        let query = RunQuery {
            experiment_ids: vec![self.experiment_id().await?],
            filter: named(run),
            order_by: Vec::new(),
            view: ViewType::ActiveOnly,
            max_results: if grammar::is_exact(run) {
                1
            } else {
                usize::MAX
            },
            numbers_only: false,
        };
        let found = store.search_runs(&query).await?;
        let found = found.into_iter().find(|found| found.run_name == run);
        found.ok_or_else(|| {
            let experiment = &self.config.experiment_name;
            Error::Store(StoreError::NotFound {
                what: format!("a run of the id or name {run:?} in experiment {experiment:?}"),
                destination: self.config.tracking.uri(),
            })
        })
    }

    /// Returns all points of a metric of a run, in MLflow's order; none for a metric that the run does not have.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that no metric can have; [`Error::Store`] when there is no such run, or the store
    /// accepts nothing.
    pub async fn metric_history(&self, run_id: &str, key: &str) -> Result<Vec<MetricPoint>> {
        let key = Key::parse("metric key", key)?;
        self.deliver_first(Traffic::Records).await?;
        let store = self.tracking().await?;
        Ok(store.metric_history(run_id, key.as_str()).await?)
    }

    /// Returns all experiments of the store, the last updated first.
    ///
    /// # Errors
    /// [`Error::Store`] where the store fails.
    pub async fn experiments(&self, view: ViewType) -> Result<Vec<Experiment>> {
        self.deliver_first(Traffic::Records).await?;
        Ok(self.tracking().await?.experiments(view).await?)
    }

    /// Returns an experiment by its name or, where no experiment has that name, by its id; without either, the
    /// tracker's own. Finds deleted experiments, too.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such experiment, or the store accepts nothing.
    pub async fn experiment(&self, name_or_id: Option<&str>) -> Result<Experiment> {
        self.deliver_first(Traffic::Records).await?;
        let store = self.tracking().await?;
        let Some(wanted) = name_or_id else {
            let own = self.experiment_id().await?;
            return Ok(store.experiment(&own).await?);
        };
        let found = match store.experiment_by_name(wanted).await {
            // Usually only an id, and not a name, is a number.
            Err(StoreError::NotFound { .. })
                if wanted.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                store.experiment(wanted).await
            }
            found => found,
        };
        Ok(found?)
    }

    /// Deletes or restores a run.
    ///
    /// # Errors
    /// [`Error::RunActive`] for the deletion of an active run of this tracker; [`Error::Store`] when there is no such
    /// run, or the store accepts nothing.
    pub async fn set_run_stage(&self, run_id: &str, stage: LifecycleStage) -> Result<()> {
        if let Ok(id) = run_id.parse::<RunId>()
            && stage == LifecycleStage::Deleted
        {
            if lock(&self.recorder.active).has(id) {
                return Err(Error::RunActive {
                    active: id.to_string(),
                    action: "delete_run()",
                });
            }
            lock(&self.recorder.started).remove(&id);
        }
        self.deliver_first(Traffic::Records).await?;
        Ok(self.tracking().await?.set_run_stage(run_id, stage).await?)
    }

    /// Deletes or restores an experiment with its runs, by its name or id.
    ///
    /// # Errors
    /// [`Error::RunActive`] for an experiment in which this tracker has an active run; [`Error::Store`] when there is
    /// no such experiment, or the store accepts nothing.
    pub async fn set_experiment_stage(
        &self,
        name_or_id: &str,
        stage: LifecycleStage,
    ) -> Result<()> {
        let experiment = self.experiment(Some(name_or_id)).await?;
        let active = lock(&self.recorder.active).ids().pop();
        if let Some(active) = active
            && stage == LifecycleStage::Deleted
            && experiment.id == self.experiment_id().await?
        {
            return Err(Error::RunActive {
                active: active.to_string(),
                action: "delete_experiment()",
            });
        }
        let store = self.tracking().await?;
        Ok(store.set_experiment_stage(&experiment.id, stage).await?)
    }

    /// Returns the run of the experiment with the best latest value of `metric`, among the runs that a filter finds.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that no metric can have and a filter that MLflow would refuse; [`Error::Store`]
    /// when the store accepts nothing.
    pub async fn best_run(
        &self,
        metric: &str,
        best: Best,
        filter: &str,
    ) -> Result<Option<RunInfo>> {
        let metric = Key::parse("metric key", metric)?;
        let filter = Filter::parse(filter)?;
        self.deliver_first(Traffic::Records).await?;
        let query = RunQuery {
            experiment_ids: vec![self.experiment_id().await?],
            filter,
            order_by: vec![OrderBy::metric(metric.as_str(), best == Best::Min)],
            view: ViewType::ActiveOnly,
            max_results: 1,
            numbers_only: true,
        };
        let found = self.tracking().await?.search_runs(&query).await?;
        // If no run has a number, a server puts a run without one first.
        let has_number = |run: &RunInfo| {
            let value = run.metrics.get(metric.as_str());
            value.is_some_and(|value| !value.is_nan())
        };
        Ok(found.into_iter().next().filter(has_number))
    }
}

/// Returns a filter for runs of a name. A name with both kinds of quotes can only be expressed by a pattern, which
/// finds other names, too.
fn named(name: &str) -> Filter {
    let (operator, operand, text) = grammar::equal("attributes.run_name", name);
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
