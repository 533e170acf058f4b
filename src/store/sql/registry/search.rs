//! Searches for registered models and versions as statements.

use super::rows::{DELETED, MODEL_COLUMNS, VERSION_COLUMNS};
use crate::{
    mlflow::search::{
        grammar::{ComparisonOf, FilterOf, OrderOf},
        models::{ModelField, ModelQuery, PROMPT_TAG, RegistryField, VersionField, VersionQuery},
    },
    store::sql::{
        layout::Layout,
        schema::Dialect,
        search::{direction, push_comparison},
        statement::Statement,
    },
};

/// Returns the statement that finds the versions of a query, in the order of the query, as rows of [`VERSION_COLUMNS`].
pub(crate) fn versions(query: &VersionQuery, layout: &Layout, dialect: Dialect) -> Statement {
    let mut statement = Statement::new(format!(
        "SELECT {VERSION_COLUMNS} FROM model_versions v WHERE v.current_stage <> "
    ));
    statement.push_bind(DELETED);
    statement.push(layout.in_default_workspace("model_versions"));
    let tags = Tags {
        table: "model_version_tags",
        of: "f.name = v.name AND f.version = v.version",
        prompts: "f.name = v.name",
        layout,
        dialect,
    };
    tags.push_filter(&mut statement, &query.filter, version_column);
    push_order(&mut statement, &query.order_by, version_column);
    let is_sorted_by = |field| query.order_by.iter().any(|order| order.field == field);
    if query.order_by.is_empty() {
        statement.push("v.last_updated_time DESC, ");
    }
    if !is_sorted_by(VersionField::Name) {
        statement.push("v.name, ");
    }
    statement.push("v.version DESC LIMIT ");
    statement.push_bind(i64::try_from(query.max_results).unwrap_or(i64::MAX));
    statement
}

/// Returns the statement that finds the models of a query, in the order of the query, as rows of [`MODEL_COLUMNS`].
pub(crate) fn models(query: &ModelQuery, layout: &Layout, dialect: Dialect) -> Statement {
    let mut statement = Statement::new(format!(
        "SELECT {MODEL_COLUMNS} FROM registered_models m WHERE 1 = 1"
    ));
    statement.push(layout.in_default_workspace("registered_models"));
    let tags = Tags {
        table: "registered_model_tags",
        of: "f.name = m.name",
        prompts: "f.name = m.name",
        layout,
        dialect,
    };
    tags.push_filter(&mut statement, &query.filter, model_column);
    push_order(&mut statement, &query.order_by, model_column);
    statement.push("m.name LIMIT ");
    statement.push_bind(i64::try_from(query.max_results).unwrap_or(i64::MAX));
    statement
}

/// A table of tags, and the conditions that join its rows with the rows that are searched for.
struct Tags<'a> {
    table: &'static str,
    of: &'static str,
    /// The condition for the tag of prompts: a model is a prompt where one of its versions is a prompt.
    prompts: &'static str,
    layout: &'a Layout,
    dialect: Dialect,
}

impl Tags<'_> {
    /// Adds the conditions of a filter; prompts are left out unless the filter asks for them.
    fn push_filter<F: RegistryField>(
        &self,
        statement: &mut Statement,
        filter: &FilterOf<F>,
        column: fn(&F) -> &'static str,
    ) {
        let is_for_prompts = filter.is_for_prompts();
        if !is_for_prompts {
            self.push_no_prompts(statement);
        }
        for comparison in &filter.comparisons {
            match comparison.field.tag() {
                Some(PROMPT_TAG) if !is_for_prompts => {}
                Some(key) => self.push(statement, key, comparison),
                None => {
                    statement.push(" AND ");
                    let column = column(&comparison.field);
                    push_comparison(statement, column, comparison, self.dialect);
                }
            }
        }
    }

    fn push<F>(&self, statement: &mut Statement, key: &str, comparison: &ComparisonOf<F>) {
        let (table, of) = (self.table, self.of);
        statement.push(&format!(
            " AND EXISTS (SELECT 1 FROM {table} f WHERE {of} AND f.key = "
        ));
        statement.push_bind(key).push(" AND ");
        push_comparison(statement, "f.value", comparison, self.dialect);
        statement.push(self.layout.in_default_workspace(table));
        statement.push(")");
    }

    fn push_no_prompts(&self, statement: &mut Statement) {
        let (table, of) = (self.table, self.prompts);
        statement.push(&format!(
            " AND NOT EXISTS (SELECT 1 FROM {table} f WHERE {of} AND f.value = 'true' AND f.key = "
        ));
        statement.push_bind(PROMPT_TAG);
        statement.push(self.layout.in_default_workspace(table));
        statement.push(")");
    }
}

/// Adds the orders of a query; the caller adds the last ones, which decide between equals.
fn push_order<F>(
    statement: &mut Statement,
    order_by: &[OrderOf<F>],
    column: fn(&F) -> &'static str,
) {
    statement.push(" ORDER BY ");
    for order in order_by {
        let column = column(&order.field);
        statement.push(&format!("{column} {}, ", direction(order.ascending)));
    }
}

fn version_column(field: &VersionField) -> &'static str {
    match field {
        VersionField::Name => "v.name",
        VersionField::Version => "v.version",
        VersionField::RunId => "v.run_id",
        VersionField::Source => "v.source",
        VersionField::Created => "v.creation_time",
        VersionField::Updated => "v.last_updated_time",
        VersionField::Tag(_) => "f.value",
    }
}

fn model_column(field: &ModelField) -> &'static str {
    match field {
        ModelField::Name => "m.name",
        ModelField::Updated => "m.last_updated_time",
        ModelField::Tag(_) => "f.value",
    }
}
