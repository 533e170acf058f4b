//! Searches for registered models and versions as statements.

use super::{
    super::{
        database::Statement,
        layout::Layout,
        schema::Dialect,
        search::{direction, push_comparison},
    },
    DELETED,
    questions::{MODEL_COLUMNS, VERSION_COLUMNS},
};
use crate::store::search::{
    ComparisonOf, ModelField, ModelQuery, PROMPT_TAG, VersionField, VersionQuery,
};

/// The statement that finds the versions of a query, in its order, as rows of [`VERSION_COLUMNS`].
pub(super) fn versions(query: &VersionQuery, layout: &Layout, dialect: Dialect) -> Statement {
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
    let is_for_prompts = query.filter.is_for_prompts();
    if !is_for_prompts {
        tags.push_no_prompts(&mut statement);
    }
    for comparison in &query.filter.comparisons {
        match &comparison.field {
            VersionField::Tag(key) if key == PROMPT_TAG && !is_for_prompts => {}
            VersionField::Tag(key) => tags.push(&mut statement, key, comparison),
            field => {
                statement.push(" AND ");
                push_comparison(&mut statement, version_column(field), comparison, dialect);
            }
        }
    }
    statement.push(" ORDER BY ");
    for order in &query.order_by {
        let column = version_column(&order.field);
        statement.push(&format!("{column} {}, ", direction(order.ascending)));
    }
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

/// The statement that finds the models of a query, in its order, as rows of [`MODEL_COLUMNS`].
pub(super) fn models(query: &ModelQuery, layout: &Layout, dialect: Dialect) -> Statement {
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
    let is_for_prompts = query.filter.is_for_prompts();
    if !is_for_prompts {
        tags.push_no_prompts(&mut statement);
    }
    for comparison in &query.filter.comparisons {
        match &comparison.field {
            ModelField::Tag(key) if key == PROMPT_TAG && !is_for_prompts => {}
            ModelField::Tag(key) => tags.push(&mut statement, key, comparison),
            field => {
                statement.push(" AND ");
                push_comparison(&mut statement, model_column(field), comparison, dialect);
            }
        }
    }
    statement.push(" ORDER BY ");
    for order in &query.order_by {
        let column = model_column(&order.field);
        statement.push(&format!("{column} {}, ", direction(order.ascending)));
    }
    statement.push("m.name LIMIT ");
    statement.push_bind(i64::try_from(query.max_results).unwrap_or(i64::MAX));
    statement
}

/// A table of tags, and how its rows belong to what is searched for.
struct Tags<'a> {
    table: &'static str,
    of: &'static str,
    /// The same for the tag of prompts: one version that is a prompt makes its model one.
    prompts: &'static str,
    layout: &'a Layout,
    dialect: Dialect,
}

impl Tags<'_> {
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
