//! A search for runs as a statement.

use super::{
    database::Statement,
    query::{RUN_COLUMNS, in_view},
    schema::Dialect,
};
use crate::store::search::RunQuery;

/// The statement that finds the runs of a query, in its order, as rows of [`RUN_COLUMNS`].
pub(super) fn statement(query: &RunQuery, _dialect: Dialect) -> Statement {
    let mut statement = Statement::new(format!("SELECT {RUN_COLUMNS} FROM runs r WHERE "));
    statement.push("r.experiment_id IN ");
    statement.push_list(query.experiment_ids.iter().map(|id| id.parse::<i64>().ok()));
    statement.push(" AND ").push(in_view(query.view));
    statement.push(" ORDER BY r.start_time DESC, r.run_uuid LIMIT ");
    statement.push_bind(i64::try_from(query.max_results).unwrap_or(i64::MAX));
    statement
}
