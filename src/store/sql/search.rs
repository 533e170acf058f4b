//! A search for runs as a statement.

use super::{
    rows::{RUN_COLUMNS, in_view},
    schema::Dialect,
    statement::{Statement, Value},
};
use crate::{
    mlflow::run::RUN_NAME_TAG,
    mlflow::search::{
        grammar::{ComparisonOf, Operand, Operator},
        runs::{Attribute, Comparison, DatasetField, Field, OrderBy, RunQuery},
    },
};

/// The runs that a statement finds, and the plan by which it finds them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scope {
    /// All runs that match; runs without the value that is sorted by come last.
    Every,
    /// The runs that have a number for the metric that is sorted by first.
    Numbers,
    /// Like `Numbers`, for PostgreSQL: the values of the metric are sorted before any run is looked up, which is fast
    /// where most runs match and slow where few do.
    NumbersSortedFirst,
    /// Like `NumbersSortedFirst`, restricted to the n best values; ties with the n-th are left to a second query.
    FirstNumbers(usize),
}

/// Returns true where a query sorts by a metric first.
pub(crate) fn is_by_metric(query: &RunQuery) -> bool {
    let by = query.order_by.first().map(|order| &order.field);
    matches!(by, Some(Field::Metric(_)))
}

/// Returns the statement that finds the runs of a query, in the order of the query, as rows of [`RUN_COLUMNS`].
pub(crate) fn statement(query: &RunQuery, dialect: Dialect, scope: Scope) -> Statement {
    let mut statement = Statement::new("");
    if let Scope::FirstNumbers(count) = scope
        && let Some(order) = query.order_by.first()
    {
        statement.push("WITH first AS MATERIALIZED (");
        push_sorted(&mut statement, order);
        statement.push(&format!(" LIMIT {count}) "));
    }
    statement.push(&format!("SELECT {RUN_COLUMNS} FROM runs r"));
    for (number, order) in query.order_by.iter().enumerate() {
        let scope = if number == 0 { scope } else { Scope::Every };
        join_ordered(&mut statement, number, order, scope);
    }
    statement.push(" WHERE ").push(in_view(query.view));
    statement.push(" AND r.experiment_id IN ");
    statement.push_list(query.experiment_ids.iter().map(|id| id.parse::<i64>().ok()));
    for comparison in &query.filter.comparisons {
        statement.push(" AND ");
        push_condition(&mut statement, comparison, dialect);
    }
    if let Scope::FirstNumbers(count) = scope {
        // The list of first values may leave out runs whose value equals the last one.
        let is_better = match query.order_by.first() {
            Some(order) if !order.ascending => "> (SELECT min(value) FROM first)",
            _ => "< (SELECT max(value) FROM first)",
        };
        statement.push(&format!(
            " AND (o0.value {is_better} OR (SELECT count(*) FROM first) < {count})"
        ));
    }
    statement.push(" ORDER BY ");
    for (number, order) in query.order_by.iter().enumerate() {
        let scope = if number == 0 { scope } else { Scope::Every };
        push_order(&mut statement, number, order, scope);
    }
    let by_start = Field::Attribute(Attribute::StartTime);
    if !query.order_by.iter().any(|order| order.field == by_start) {
        statement.push("r.start_time DESC, ");
    }
    statement.push("r.run_uuid LIMIT ");
    statement.push_bind(i64::try_from(query.max_results).unwrap_or(i64::MAX));
    statement
}

/// Joins the table of the value that runs are sorted by, unless the value is an attribute of the run.
fn join_ordered(statement: &mut Statement, number: usize, order: &OrderBy, scope: Scope) {
    let (table, key) = match &order.field {
        Field::Metric(key) => ("latest_metrics", key),
        Field::Param(key) => ("params", key),
        Field::Tag(key) => ("tags", key),
        Field::Attribute(_) | Field::Dataset(_) => return,
    };
    let on = format!("o{number} ON o{number}.run_uuid = r.run_uuid");
    match scope {
        Scope::Every => {
            statement.push(&format!(" LEFT JOIN {table} {on} AND o{number}.key = "));
            statement.push_bind(key.as_str());
        }
        Scope::Numbers => {
            statement.push(&format!(
                " JOIN {table} {on} AND NOT o{number}.is_nan AND o{number}.key = "
            ));
            statement.push_bind(key.as_str());
        }
        Scope::NumbersSortedFirst => {
            statement.push(" JOIN (");
            push_sorted(statement, order);
            // OFFSET keeps the planner from merging this with the rest.
            statement.push(&format!(" OFFSET 0) {on}"));
        }
        Scope::FirstNumbers(_) => {
            statement.push(&format!(" JOIN first {on}"));
        }
    }
}

/// Adds a query for the numbers of the metric that is sorted by, in that order, with their runs.
fn push_sorted(statement: &mut Statement, order: &OrderBy) {
    let (Field::Metric(key) | Field::Param(key) | Field::Tag(key)) = &order.field else {
        return;
    };
    statement.push("SELECT run_uuid, value FROM latest_metrics WHERE NOT is_nan AND key = ");
    statement.push_bind(key.as_str());
    statement.push(&format!(" ORDER BY value {}", direction(order.ascending)));
}

/// Adds the order: numbers and texts first, then NaN (for metrics), then runs without a value, in both directions.
fn push_order(statement: &mut Statement, number: usize, order: &OrderBy, scope: Scope) {
    let value = match &order.field {
        Field::Attribute(attribute) => format!("r.{}", column(*attribute)),
        _ => format!("o{number}.value"),
    };
    if scope == Scope::Every {
        let nan = match order.field {
            Field::Metric(_) => format!("WHEN o{number}.is_nan THEN 1 "),
            _ => String::new(),
        };
        statement.push(&format!(
            "CASE {nan}WHEN {value} IS NULL THEN 2 ELSE 0 END, "
        ));
    }
    statement.push(&format!("{value} {}, ", direction(order.ascending)));
}

pub(crate) fn direction(ascending: bool) -> &'static str {
    if ascending { "ASC" } else { "DESC" }
}

fn push_condition(statement: &mut Statement, comparison: &Comparison, dialect: Dialect) {
    let of_run =
        |table: &str| format!("EXISTS (SELECT 1 FROM {table} f WHERE f.run_uuid = r.run_uuid");
    match &comparison.field {
        // Runs of MLflow before 1.30 have the name in the tag only, and an empty column.
        Field::Attribute(Attribute::RunName) => {
            statement.push(&of_run("tags")).push(" AND f.key = ");
            statement.push_bind(RUN_NAME_TAG).push(" AND ");
            push_comparison(statement, "f.value", comparison, dialect);
            statement.push(")");
        }
        Field::Attribute(attribute) => {
            let column = format!("r.{}", column(*attribute));
            push_comparison(statement, &column, comparison, dialect);
        }
        Field::Metric(key) => {
            statement
                .push(&of_run("latest_metrics"))
                .push(" AND f.key = ");
            statement.push_bind(key.as_str()).push(" AND ");
            // NaN is stored as 0 with a flag, and is not equal to any value.
            if comparison.operator == Operator::NotEqual {
                statement.push("(f.is_nan OR ");
            } else {
                statement.push("(NOT f.is_nan AND ");
            }
            push_comparison(statement, "f.value", comparison, dialect);
            statement.push("))");
        }
        Field::Param(key) | Field::Tag(key) => {
            let table = match comparison.field {
                Field::Param(_) => "params",
                _ => "tags",
            };
            if comparison.operator == Operator::IsNull {
                statement.push("NOT ");
            }
            statement.push(&of_run(table)).push(" AND f.key = ");
            statement.push_bind(key.as_str());
            if comparison.operand != Operand::Nothing {
                statement.push(" AND ");
                push_comparison(statement, "f.value", comparison, dialect);
            }
            statement.push(")");
        }
        Field::Dataset(field) => {
            statement.push(
                "EXISTS (SELECT 1 FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id",
            );
            let column = match field {
                DatasetField::Name => "d.name",
                DatasetField::Digest => "d.digest",
                DatasetField::Context => {
                    statement.push(
                        " JOIN input_tags t ON t.input_uuid = i.input_uuid AND t.name = 'mlflow.data.context'",
                    );
                    "t.value"
                }
            };
            statement.push(" WHERE i.destination_id = r.run_uuid AND ");
            push_comparison(statement, column, comparison, dialect);
            statement.push(")");
        }
    }
}

pub(crate) fn push_comparison<F>(
    statement: &mut Statement,
    column: &str,
    comparison: &ComparisonOf<F>,
    dialect: Dialect,
) {
    let value: Value = match &comparison.operand {
        Operand::Number(number) => (*number).into(),
        Operand::Integer(number) => (*number).into(),
        Operand::Text(text) => text.as_str().into(),
        Operand::Texts(texts) => {
            let not = if comparison.operator == Operator::NotIn {
                "NOT "
            } else {
                ""
            };
            statement.push(column).push(" ").push(not).push("IN ");
            statement.push_list(texts.iter().map(String::as_str));
            return;
        }
        Operand::Nothing => return,
    };
    match (comparison.operator, dialect) {
        (Operator::ILike, Dialect::Sqlite) => {
            statement.push("lower(").push(column).push(") LIKE lower(");
            statement.push_bind(value).push(")");
        }
        (operator, _) => {
            statement.push(column).push(&format!(" {operator} "));
            statement.push_bind(value);
        }
    }
}

fn column(attribute: Attribute) -> &'static str {
    match attribute {
        Attribute::RunId => "run_uuid",
        Attribute::RunName => "name",
        Attribute::Status => "status",
        Attribute::StartTime => "start_time",
        Attribute::EndTime => "end_time",
        Attribute::ArtifactUri => "artifact_uri",
        Attribute::UserId => "user_id",
    }
}
