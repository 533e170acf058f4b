//! A schema in SQLite's words.
//!
//! SQLite keeps the text of a statement, and SQLAlchemy reads names and checks back out of it when alembic
//! rebuilds a table. So a definition stands one to a line and is quoted only where SQLAlchemy itself quotes.

use super::{Action, Column, ColumnType, Constraint, DefaultValue, Index, Schema, Seed, Table};

/// Every statement, in an order in which they can be executed.
pub(super) fn statements(schema: &Schema) -> Vec<String> {
    let mut statements = Vec::new();
    for table in schema.tables {
        statements.push(create_table(table));
        statements.extend(table.indexes.iter().map(|index| create_index(table, index)));
        statements.extend(
            table
                .constraints
                .iter()
                .filter_map(|it| create_trigger(table, it)),
        );
    }
    statements.extend(schema.seeds.iter().map(insert));
    statements
}

fn create_table(table: &Table) -> String {
    let columns = table.columns.iter().map(column);
    let constraints = table.constraints.iter().filter_map(constraint);
    let definitions: Vec<String> = columns.chain(constraints).collect();
    format!(
        "CREATE TABLE {} (\n\t{}\n)",
        table.name,
        definitions.join(", \n\t")
    )
}

fn column(column: &Column) -> String {
    let mut definition = format!("{} {}", quoted(column.name), type_name(column.column_type));
    match column.default {
        Some(DefaultValue::Literal(value)) => {
            definition.push_str(" DEFAULT ");
            definition.push_str(&literal(value));
        }
        Some(DefaultValue::False) => definition.push_str(" DEFAULT 0"),
        None => {}
    }
    if let Some(expression) = column.generated {
        definition.push_str(&format!(" GENERATED ALWAYS AS ({expression}) STORED"));
    }
    if !column.nullable {
        definition.push_str(" NOT NULL");
    }
    definition
}

fn type_name(column_type: ColumnType) -> String {
    let name = match column_type {
        ColumnType::String(length) => return format!("VARCHAR({length})"),
        ColumnType::Text => "TEXT",
        ColumnType::Integer => "INTEGER",
        ColumnType::BigInt => "BIGINT",
        ColumnType::Float => "FLOAT",
        ColumnType::Boolean => "BOOLEAN",
        ColumnType::Date => "DATE",
        ColumnType::Json => "JSON",
        ColumnType::Binary => "BLOB",
    };
    name.to_owned()
}

/// The line of a constraint in CREATE TABLE; one that takes a trigger has none.
fn constraint(constraint: &Constraint) -> Option<String> {
    let (name, rule) = match constraint {
        Constraint::PrimaryKey { name, columns } => {
            (Some(*name), format!("PRIMARY KEY ({})", list(columns)))
        }
        Constraint::Unique { name, columns } => {
            (Some(*name), format!("UNIQUE ({})", list(columns)))
        }
        Constraint::ForeignKey {
            name,
            columns,
            table,
            references,
            actions,
        } => {
            let mut rule = format!(
                "FOREIGN KEY({}) REFERENCES {table} ({})",
                list(columns),
                list(references)
            );
            for action in *actions {
                rule.push_str(match action {
                    Action::OnDeleteCascade => " ON DELETE CASCADE",
                    Action::OnDeleteSetNull => " ON DELETE SET NULL",
                    Action::OnUpdateCascade => " ON UPDATE CASCADE",
                });
            }
            (*name, rule)
        }
        Constraint::Check { name, condition } => (*name, format!("CHECK ({condition})")),
        Constraint::ZeroOrOne { column } => (None, format!("CHECK ({} IN (0, 1))", quoted(column))),
        Constraint::Immutable { .. } => return None,
    };
    Some(match name {
        Some(name) => format!("CONSTRAINT {name} {rule}"),
        None => rule,
    })
}

fn create_trigger(table: &Table, constraint: &Constraint) -> Option<String> {
    let Constraint::Immutable {
        name,
        columns,
        message,
    } = constraint
    else {
        return None;
    };
    let changed: Vec<String> = columns
        .iter()
        .map(|column| format!("OLD.{0} != NEW.{0}", quoted(column)))
        .collect();
    Some(format!(
        "CREATE TRIGGER {name}\nBEFORE UPDATE ON {}\nFOR EACH ROW\nWHEN {}\nBEGIN\n    \
         SELECT RAISE(ABORT, {});\nEND",
        table.name,
        changed.join(" OR "),
        literal(message)
    ))
}

fn create_index(table: &Table, index: &Index) -> String {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let columns: Vec<String> = index
        .columns
        .iter()
        .map(|column| {
            let order = if index.descending.contains(column) {
                " DESC"
            } else {
                ""
            };
            format!("{}{order}", quoted(column))
        })
        .collect();
    format!(
        "CREATE {unique}INDEX {} ON {} ({})",
        index.name,
        table.name,
        columns.join(", ")
    )
}

fn insert(seed: &Seed) -> String {
    let columns: Vec<&str> = seed.values.iter().map(|(column, _)| *column).collect();
    let values: Vec<String> = seed
        .values
        .iter()
        .map(|(_, value)| literal(value))
        .collect();
    format!(
        "INSERT INTO {} ({}) VALUES ({})",
        seed.table,
        list(&columns),
        values.join(", ")
    )
}

fn list(columns: &[&str]) -> String {
    let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    columns.join(", ")
}

/// A column's name; of the names that occur `key` alone is a word of SQLite.
fn quoted(column: &str) -> String {
    if column == "key" {
        "\"key\"".to_owned()
    } else {
        column.to_owned()
    }
}

fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
