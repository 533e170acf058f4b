//! Rows of experiments, runs and datasets.

use std::collections::BTreeMap;

use super::row::Row;
use crate::{
    mlflow::run::{DatasetInput, LifecycleStage, RunInfo, ViewType},
    store::tracking::Experiment,
};

/// Columns of an experiment, in the order that [`experiment`] reads.
pub(crate) const EXPERIMENT: &str = "SELECT experiment_id, name, artifact_location, lifecycle_stage, \
                          creation_time, last_update_time FROM experiments";

/// Columns of a run, in the order that [`run`] reads; the table's alias is `r`.
pub(crate) const RUN_COLUMNS: &str = "r.run_uuid, r.name, r.experiment_id, r.user_id, r.status, \
                                      r.start_time, r.end_time, r.lifecycle_stage, r.artifact_uri";

/// Returns the experiment of a row of [`EXPERIMENT`]'s columns.
pub(crate) fn experiment(row: &Row) -> Result<Experiment, sqlx::Error> {
    Ok(Experiment {
        id: row.int(0)?.unwrap_or_default().to_string(),
        name: row.string(1)?,
        artifact_location: row.string(2)?,
        lifecycle_stage: row.string(3)?,
        creation_time: row.int(4)?,
        last_update_time: row.int(5)?,
        tags: BTreeMap::new(),
    })
}

/// Returns the run of a row of [`RUN_COLUMNS`].
pub(crate) fn run(row: &Row) -> Result<RunInfo, sqlx::Error> {
    Ok(RunInfo {
        run_id: row.string(0)?,
        run_name: row.string(1)?,
        experiment_id: row.int(2)?.unwrap_or_default().to_string(),
        user_id: row.string(3)?,
        status: row.string(4)?,
        start_time: row.int(5)?,
        end_time: row.int(6)?,
        lifecycle_stage: row.string(7)?,
        artifact_uri: row.string(8)?,
        ..RunInfo::default()
    })
}

pub(crate) fn texts(row: &Row) -> Result<(String, String, String), sqlx::Error> {
    Ok((row.string(0)?, row.string(1)?, row.string(2)?))
}

pub(crate) fn input(row: &Row) -> Result<(String, String, DatasetInput), sqlx::Error> {
    let dataset = DatasetInput {
        name: row.string(2)?,
        digest: row.string(3)?,
        source_type: row.string(4)?,
        source: row.string(5)?,
        schema: row.text(6)?,
        profile: row.text(7)?,
        tags: Vec::new(),
    };
    Ok((row.string(0)?, row.string(1)?, dataset))
}

/// Returns a value as it was logged, from the column of the number and the column of the NaN flag.
pub(crate) fn number(row: &Row, value: usize, is_nan: usize) -> Result<f64, sqlx::Error> {
    if row.bool(is_nan)? {
        return Ok(f64::NAN);
    }
    Ok(row.float(value)?.unwrap_or(f64::NAN))
}

pub(crate) fn deleted_time(stage: LifecycleStage, now: i64) -> Option<i64> {
    (stage == LifecycleStage::Deleted).then_some(now)
}

/// Returns a condition on the lifecycle stage; the statement must have one column of that name only.
pub(crate) fn in_view(view: ViewType) -> &'static str {
    match view {
        ViewType::All => "1 = 1",
        ViewType::ActiveOnly => "lifecycle_stage = 'active'",
        ViewType::DeletedOnly => "lifecycle_stage = 'deleted'",
    }
}
