//! Queries of runs and experiments, and changes that are made immediately.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;

use super::{
    rewind::rewinds_of,
    rows::{EXPERIMENT, RUN_COLUMNS, deleted_time, experiment, in_view, input, number, run, texts},
    schema::Dialect,
    search::{self, Scope},
    statement::Statement,
    store::SqlStore,
};
use crate::{
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        rewind::AppliedRewinds,
        run::{LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
        search::runs::RunQuery,
    },
    os::clock::now_ms,
    store::{
        error::StoreError,
        tracking::{Experiment, LoggedModelFiles, RunRow, TrackingStore},
    },
};

/// Number of runs whose params, metrics and tags are fetched at a time: bounds the memory beside the answer.
const PAGE: usize = 500;

/// For searches of up to this many results, the runs with a number are queried first; the others are queried only where
/// these are too few.
const FEW: usize = 1000;

/// Number of best values of a metric that are searched before all values are sorted.
const FIRST: usize = 100;

#[async_trait]
impl TrackingStore for SqlStore {
    async fn get_or_create_experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError> {
        let mut tx = self.begin().await?;
        let experiment = self
            .get_or_create_experiment_in(&mut tx, name, artifact_location)
            .await?;
        self.check_location(&experiment.artifact_location)?;
        self.commit(tx).await?;
        Ok(experiment)
    }

    async fn experiment(&self, id: &str) -> Result<Experiment, StoreError> {
        // A text that is no number is the id of no experiment of a database.
        let number = id.parse::<i64>().ok();
        let mut query = Statement::new(EXPERIMENT);
        query.push(" WHERE experiment_id = ").push_bind(number);
        query.push(self.layout.in_default_workspace("experiments"));
        let found = self.experiments_with_tags(query).await?.into_iter().next();
        found.ok_or_else(|| self.not_found(format!("experiment {id:?}")))
    }

    async fn experiment_by_name(&self, name: &str) -> Result<Experiment, StoreError> {
        let mut query = Statement::new(EXPERIMENT);
        query.push(" WHERE name = ").push_bind(name);
        query.push(self.layout.in_default_workspace("experiments"));
        let found = self.experiments_with_tags(query).await?.into_iter().next();
        found.ok_or_else(|| self.not_found(format!("experiment {name:?}")))
    }

    async fn experiments(&self, view: ViewType) -> Result<Vec<Experiment>, StoreError> {
        let mut query = Statement::new(EXPERIMENT);
        query.push(" WHERE ").push(in_view(view));
        query.push(self.layout.in_default_workspace("experiments"));
        query.push(" ORDER BY last_update_time DESC, experiment_id DESC");
        self.experiments_with_tags(query).await
    }

    async fn set_experiment_stage(
        &self,
        id: &str,
        stage: LifecycleStage,
    ) -> Result<(), StoreError> {
        let experiment = self.experiment(id).await?;
        let number = experiment.id.parse::<i64>().ok();
        let now = now_ms();
        let mut tx = self.begin().await?;
        let update = Statement::new(
            "UPDATE experiments SET lifecycle_stage = $1, last_update_time = $2 WHERE experiment_id = $3",
        )
        .bind(stage.as_str())
        .bind(now)
        .bind(number);
        self.execute(&mut tx, update).await?;
        // MLflow deletes and restores an experiment with all of its runs.
        let mut update = Statement::new("UPDATE runs SET lifecycle_stage = ");
        update.push_bind(stage.as_str());
        update
            .push(", deleted_time = ")
            .push_bind(deleted_time(stage, now));
        update.push(" WHERE experiment_id = ").push_bind(number);
        self.execute(&mut tx, update).await?;
        self.commit(tx).await
    }

    async fn create_run(
        &self,
        _start: &RunStart,
        _tags: &[(Key, String)],
    ) -> Result<Option<RunId>, StoreError> {
        Ok(None)
    }

    async fn write(&self, records: &[&Record]) -> Result<(), StoreError> {
        self.write_batch(records).await
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), StoreError> {
        self.fail_open_run(run_id, end_time).await
    }

    async fn run(&self, run_id: &str) -> Result<RunInfo, StoreError> {
        let query = Statement::new(format!(
            "SELECT {RUN_COLUMNS} FROM runs r WHERE r.run_uuid = $1"
        ))
        .bind(run_id);
        let runs = self.ask(query, run).await?;
        let found = self.with_details(runs).await?.pop();
        found.ok_or_else(|| self.run_not_found(run_id))
    }

    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError> {
        let query =
            Statement::new("SELECT artifact_uri FROM runs WHERE run_uuid = $1").bind(run_id);
        let found = self.ask(query, |row| row.string(0)).await?.pop();
        found.ok_or_else(|| self.run_not_found(run_id))
    }

    async fn set_run_stage(&self, run_id: &str, stage: LifecycleStage) -> Result<(), StoreError> {
        let update = Statement::new(
            "UPDATE runs SET lifecycle_stage = $1, deleted_time = $2 WHERE run_uuid = $3",
        )
        .bind(stage.as_str())
        .bind(deleted_time(stage, now_ms()))
        .bind(run_id);
        let updated = self.database.execute(update).await;
        match updated.map_err(|error| self.error(error))? {
            0 => Err(self.run_not_found(run_id)),
            _ => Ok(()),
        }
    }

    async fn search_runs(&self, query: &RunQuery) -> Result<Vec<RunInfo>, StoreError> {
        let dialect = self.database.dialect();
        let wants_few = query.numbers_only || query.max_results <= FEW;
        if wants_few && search::is_by_metric(query) {
            let runs = self.by_number(query).await?;
            if query.numbers_only || runs.len() >= query.max_results {
                return self.with_details(runs).await;
            }
        }
        let statement = search::statement(query, dialect, Scope::Every);
        let runs = self.ask(statement, run).await?;
        self.with_details(runs).await
    }

    async fn metric_history(
        &self,
        run_id: &str,
        key: &str,
    ) -> Result<Vec<MetricPoint>, StoreError> {
        // SQLite has no statistics of the rows and would read the points of this key of all runs. With the hint that
        // nearly all points have this key, SQLite uses the index of the run.
        let of_key = match self.database.dialect() {
            Dialect::Sqlite => "likelihood(key = $2, 0.9)",
            Dialect::Postgres => "key = $2",
        };
        let query = Statement::new(format!(
            "SELECT CASE WHEN is_nan THEN NULL ELSE value END, timestamp, step FROM metrics \
             WHERE run_uuid = $1 AND {of_key} ORDER BY timestamp, step, value"
        ))
        .bind(run_id)
        .bind(key);
        let points = self
            .ask(query, |row| {
                Ok(MetricPoint {
                    value: row.float(0)?.unwrap_or(f64::NAN),
                    timestamp: row.int(1)?.unwrap_or_default(),
                    step: row.int(2)?.unwrap_or_default(),
                })
            })
            .await?;
        if points.is_empty() {
            // A run that does not exist is an error; a run without this metric is not.
            self.artifact_uri(run_id).await?;
        }
        Ok(points)
    }

    async fn latest_step(&self, run_id: &str, prefix: &str) -> Result<Option<i64>, StoreError> {
        // LIKE would ignore the case in SQLite.
        let query = Statement::new(
            "SELECT MAX(step) FROM latest_metrics WHERE run_uuid = $1 AND SUBSTR(key, 1, LENGTH($2)) = $2",
        )
        .bind(run_id)
        .bind(prefix);
        let steps = self.ask(query, |row| row.int(0)).await?;
        Ok(steps.into_iter().next().flatten())
    }

    async fn run_rows(&self, experiment_id: &str) -> Result<Vec<RunRow>, StoreError> {
        self.rows_of_runs(experiment_id).await
    }

    async fn logged_model_files(
        &self,
        _experiment_ids: &[String],
    ) -> Result<Vec<LoggedModelFiles>, StoreError> {
        self.files_of_logged_models().await
    }

    fn can_rewind(&self) -> bool {
        true
    }

    async fn applied_rewinds(&self, run_id: &str) -> Result<AppliedRewinds, StoreError> {
        let tags = self.ask(rewinds_of(run_id), |row| row.string(0)).await?;
        Ok(AppliedRewinds::parse(
            tags.first().map_or("", String::as_str),
        ))
    }

    fn can_purge(&self) -> bool {
        true
    }

    async fn purge_run(&self, run_id: &str) -> Result<bool, StoreError> {
        self.purge(run_id).await
    }
}

impl SqlStore {
    /// Returns the runs that have a number for the metric that is sorted by. Of two plans it takes the one that the
    /// planner of PostgreSQL, which has statistics of all tables, estimates to be cheaper.
    async fn by_number(&self, query: &RunQuery) -> Result<Vec<RunInfo>, StoreError> {
        let dialect = self.database.dialect();
        let joined = search::statement(query, dialect, Scope::Numbers);
        if dialect == Dialect::Sqlite {
            return self.ask(joined, run).await;
        }
        let sorted_first = search::statement(query, dialect, Scope::NumbersSortedFirst);
        if self.cost(&sorted_first).await? >= self.cost(&joined).await? {
            return self.ask(joined, run).await;
        }
        // A query for the best numbers costs less than sorting all of them, and mostly finds enough runs.
        if query.max_results <= FIRST / 2 {
            let first = search::statement(query, dialect, Scope::FirstNumbers(FIRST));
            let runs = self.ask(first, run).await?;
            if runs.len() >= query.max_results {
                return Ok(runs);
            }
        }
        self.ask(sorted_first, run).await
    }

    /// Returns the estimate of the planner, in units of the planner.
    async fn cost(&self, statement: &Statement) -> Result<f64, StoreError> {
        // "Limit  (cost=4139.17..4139.18 rows=1 width=49)"
        let plan = self.ask(statement.explained(), |row| row.string(0)).await?;
        let whole = plan.first().and_then(|line| line.split_once(".."));
        let cost = whole.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        Ok(cost.unwrap_or(f64::INFINITY))
    }

    async fn experiments_with_tags(&self, query: Statement) -> Result<Vec<Experiment>, StoreError> {
        let mut experiments = self.ask(query, experiment).await?;
        for page in experiments.chunks_mut(PAGE) {
            let mut query = Statement::new(
                "SELECT experiment_id, key, value FROM experiment_tags WHERE experiment_id IN ",
            );
            query.push_list(page.iter().map(|it| it.id.parse::<i64>().ok()));
            let tags = self
                .ask(query, |row| {
                    let id = row.int(0)?.unwrap_or_default().to_string();
                    Ok((id, row.string(1)?, row.string(2)?))
                })
                .await?;
            for (id, key, value) in tags {
                if let Some(experiment) = page.iter_mut().find(|it| it.id == id) {
                    experiment.tags.insert(key, value);
                }
            }
        }
        Ok(experiments)
    }

    /// Adds to runs the params, metrics, tags and inputs from the other tables.
    async fn with_details(&self, mut runs: Vec<RunInfo>) -> Result<Vec<RunInfo>, StoreError> {
        for page in runs.chunks_mut(PAGE) {
            let ids: Vec<String> = page.iter().map(|run| run.run_id.clone()).collect();
            let mut by_id: HashMap<String, &mut RunInfo> = page
                .iter_mut()
                .map(|run| (run.run_id.clone(), run))
                .collect();
            let of = |select: &'static str, column: &str| {
                let mut query = Statement::new(select);
                query.push(" WHERE ").push(column).push(" ");
                query.push_one_of(self.database.dialect(), &ids);
                query
            };
            let metrics = of(
                "SELECT run_uuid, key, value, is_nan FROM latest_metrics",
                "run_uuid",
            );
            for (id, key, value) in self
                .ask(metrics, |row| {
                    Ok((row.string(0)?, row.string(1)?, number(row, 2, 3)?))
                })
                .await?
            {
                if let Some(run) = by_id.get_mut(&id) {
                    run.metrics.insert(key, value);
                }
            }
            let params = of("SELECT run_uuid, key, value FROM params", "run_uuid");
            for (id, key, value) in self.ask(params, texts).await? {
                if let Some(run) = by_id.get_mut(&id) {
                    run.params.insert(key, value);
                }
            }
            let tags = of("SELECT run_uuid, key, value FROM tags", "run_uuid");
            for (id, key, value) in self.ask(tags, texts).await? {
                if let Some(run) = by_id.get_mut(&id) {
                    run.tags.insert(key, value);
                }
            }
            let mut inputs = of(
                "SELECT i.destination_id, i.input_uuid, d.name, d.digest, d.dataset_source_type, \
                 d.dataset_source, d.dataset_schema, d.dataset_profile \
                 FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id",
                "i.source_type = 'DATASET' AND i.destination_type = 'RUN' AND i.destination_id",
            );
            inputs.push(" ORDER BY d.name, d.digest");
            let inputs = self.ask(inputs, input).await?;
            if inputs.is_empty() {
                continue;
            }
            let ids: Vec<String> = inputs.iter().map(|(_, id, _)| id.clone()).collect();
            let mut query =
                Statement::new("SELECT input_uuid, name, value FROM input_tags WHERE input_uuid ");
            query.push_one_of(self.database.dialect(), &ids);
            let mut tags: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
            for (id, name, value) in self.ask(query, texts).await? {
                tags.entry(id).or_default().push((name, value));
            }
            for (run_id, input_id, mut dataset) in inputs {
                dataset.tags = tags.remove(&input_id).unwrap_or_default();
                if let Some(run) = by_id.get_mut(&run_id) {
                    run.inputs.push(dataset);
                }
            }
        }
        Ok(runs)
    }
}
