//! What is asked of a tracker, and what is done at once: each waits for the store, after everything that was
//! recorded before.

use std::{sync::Arc, time::Duration};

use super::{open::Tracker, session::lock};
use crate::{
    config::options::Mode,
    delivery::{
        destination::{Cargo, Status},
        handle::Delivery,
        runtime::KeepWaiting,
    },
    error::{Error, Result},
    journal::error::Room,
    mlflow::{
        key::Key,
        run::{Best, LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
        search::{
            grammar::{self, Operand},
            runs::{Attribute, Comparison, Field, Filter, OrderBy, RunQuery},
        },
    },
    store::{
        error::StoreError,
        tracking::{Experiment, TrackingStore},
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
    pub(crate) fn find_run(&self, run: &str, keep_waiting: KeepWaiting<'_>) -> Result<RunInfo> {
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
            max_results: if grammar::is_exact(run) {
                1
            } else {
                usize::MAX
            },
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

impl Tracker {
    /// Waits until everything recorded so far is delivered.
    ///
    /// # Errors
    /// [`Error::Undelivered`] after `timeout`, [`Error::Interrupted`].
    pub fn flush(&self, timeout: Option<Duration>, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.check_process()?;
        match &self.session.delivery {
            Some(delivery) => delivery.flush(timeout, keep_waiting),
            None => Ok(()),
        }
    }

    /// Waits, before a question to the store, until every record so far is delivered; artifacts may still be on their
    /// way.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the store has taken nothing for as long as a start waits for it,
    /// [`Error::Interrupted`].
    pub(crate) fn settle(&self, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.settled_by(Delivery::flush_records, keep_waiting)
    }

    /// Waits, before a question about artifacts, until they have arrived as well.
    ///
    /// # Errors
    /// Those of [`Tracker::settle`], also where it is the artifact store that takes nothing.
    pub(crate) fn settle_artifacts(&self, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.settled_by(Delivery::flush, keep_waiting)
    }

    fn settled_by(
        &self,
        flush: impl Fn(&Delivery, Option<Duration>, KeepWaiting<'_>) -> Result<()>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        self.check_process()?;
        let Some(delivery) = self.session.delivery.as_ref() else {
            return Ok(());
        };
        if self.settled.options.mode == Mode::Offline {
            // The question itself says that nothing is asked.
            return Ok(());
        }
        let patience = self.settled.options.connect_timeout;
        loop {
            match flush(delivery, Some(patience), keep_waiting) {
                Err(Error::Undelivered { .. }) => {
                    if let Some((cargo, reason)) = delivery.troubled_for(patience) {
                        let uri = self.settled.tracking.uri();
                        return Err(Error::Store(StoreError::Unavailable {
                            destination: match cargo {
                                Cargo::Records => uri,
                                Cargo::Artifacts => format!("the artifact store of {uri}"),
                            },
                            source: reason.into(),
                            retry_after: None,
                        }));
                    }
                }
                settled => return settled,
            }
        }
    }

    /// How delivery stands; none on a rank that records nothing.
    pub fn status(&self) -> Option<Status> {
        self.session.delivery.as_ref().map(Delivery::status)
    }

    /// That the journal has room for a run to begin.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`].
    pub fn has_room(&self) -> Result<()> {
        match &self.session.delivery {
            Some(delivery) => Ok(delivery.journal().check_room()?),
            None => Ok(()),
        }
    }

    /// Waits until the journal has room for more; false when `keep_waiting` says to stop.
    pub fn wait_for_room(&self, room: Room, keep_waiting: KeepWaiting<'_>) -> bool {
        match &self.session.delivery {
            Some(delivery) => delivery.wait_for_room(room, keep_waiting),
            None => true,
        }
    }

    /// Id of the experiment. Waits on the store where it has not been reached yet.
    ///
    /// # Errors
    /// [`Error::Store`] when the store cannot be reached or the experiment is deleted.
    pub fn experiment_id(&self, keep_waiting: KeepWaiting<'_>) -> Result<String> {
        if let Some(experiment) = self.experiment.get() {
            return Ok(experiment.id.clone());
        }
        let (store, name) = (
            Arc::clone(&self.store),
            self.settled.experiment_name.clone(),
        );
        let location = self.settled.artifact_location();
        let asked = async move {
            store
                .get_or_create_experiment(&name, location.as_deref())
                .await
        };
        let experiment = self.ask(asked, keep_waiting)?;
        Ok(self.experiment.get_or_init(|| experiment).id.clone())
    }

    /// Runs a question to the store and waits for its answer.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<T> {
        Ok(self.background.wait(question, keep_waiting)??)
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
