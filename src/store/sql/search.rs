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

/// Which runs a statement finds, and by which way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scope {
    /// All runs that match, those without what they are sorted by at the end.
    Every,
    /// Those with a number for the metric they are first sorted by.
    Numbers,
    /// The same, for PostgreSQL: the metric's values are sorted before any run is looked up, which is quick where
    /// most of them match and slow where few do.
    NumbersSortedFirst,
    /// Of those, and by the same way, only runs that are sure to be before all others: of so many values those that
    /// are better than the last.
    FirstNumbers(usize),
}

/// Whether the runs at the top of a query's answer are those with the best numbers of a metric.
pub(crate) fn is_by_metric(query: &RunQuery) -> bool {
    let by = query.order_by.first().map(|order| &order.field);
    matches!(by, Some(Field::Metric(_)))
}

/// The statement that finds the runs of a query, in its order, as rows of [`RUN_COLUMNS`].
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
        // Runs that are level with the last of the values may be missing among them.
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

/// Joins what a run is sorted by, unless that is its own attribute.
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

/// The numbers of the metric that an order is by, sorted, with their runs.
fn push_sorted(statement: &mut Statement, order: &OrderBy) {
    let (Field::Metric(key) | Field::Param(key) | Field::Tag(key)) = &order.field else {
        return;
    };
    statement.push("SELECT run_uuid, value FROM latest_metrics WHERE NOT is_nan AND key = ");
    statement.push_bind(key.as_str());
    statement.push(&format!(" ORDER BY value {}", direction(order.ascending)));
}

/// Values first, then (of metrics) NaN, then runs that have none, whichever way the values go.
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
        // The column is empty for runs of MLflow before 1.30, the tag is not.
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
            // NaN is kept as 0 with a flag, and is not equal to anything.
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
