//! The MLflow schemas that a fresh database can get.
//!
//! A database that is made with [`Schema::statements`] is, table by table, the same as one that the stock release of
//! [`Schema::mlflow_version`] makes: that release opens it as its own, and `mlflow db upgrade` of a later release
//! upgrades it. `tests/test_schema.py` compares the two.
//!
//! A schema is described once, as constants that do not depend on the dialect; [`ddl`] writes the statements of a
//! dialect. `scripts/schema_from_mlflow.py` writes the constants. Experiment 0 is not among them, since it needs the
//! artifact root and the time: the caller that creates the database adds it. This module does not deal with databases
//! that exist already.

mod ddl;
#[rustfmt::skip]
mod mlflow_2_22_4;
#[rustfmt::skip]
mod mlflow_2_8_1;
#[rustfmt::skip]
mod mlflow_3_17_2;
#[rustfmt::skip]
mod mlflow_3_18_0;
#[rustfmt::skip]
mod mlflow_3_1_4;


/// Returns every schema that is shipped, the oldest one first.
pub(crate) fn all() -> [&'static Schema; 5] {
    [
        &mlflow_2_8_1::SCHEMA,
        &mlflow_2_22_4::SCHEMA,
        &mlflow_3_1_4::SCHEMA,
        newest(),
        &mlflow_3_18_0::SCHEMA,
    ]
}

/// Returns the schema of a database where the user names no release: the newest one that is shipped, except that of
/// 3.18.0, whose packages do not install completely. A release refuses a database that is newer than itself, and
/// upgrades an older one.
pub(crate) fn newest() -> &'static Schema {
    &mlflow_3_17_2::SCHEMA
}

/// Returns the schema of a release, if it is shipped.
pub(crate) fn of_version(mlflow_version: &str) -> Option<&'static Schema> {
    // The other releases are those whose newest migration is that of a shipped release.
    let shipped = match mlflow_version {
        "2.8.0" => "2.8.1",
        "2.22.0" | "2.22.1" | "2.22.2" | "2.22.3" => "2.22.4",
        "3.17.0" | "3.17.1" => "3.17.2",
        other => other,
    };
    all()
        .into_iter()
        .find(|schema| schema.mlflow_version == shipped)
}

/// A database that a schema can be rendered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// The content of a database that a release of MLflow has just made.
#[derive(Debug)]
pub(crate) struct Schema {
    /// The release, for example `3.17.2`.
    pub mlflow_version: &'static str,
    /// Its alembic revision, which the seed row of `alembic_version` must name.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "the seed rows have it as well; a test compares them"
        )
    )]
    pub revision: &'static str,
    /// All tables, each one after the tables that its foreign keys refer to.
    pub tables: &'static [Table],
    /// Rows that the tables have from the start.
    pub seeds: &'static [Seed],
}

impl Schema {
    /// Returns the statements, in order, that create this schema and its seed rows in an empty database.
    pub(crate) fn statements(&self, dialect: Dialect) -> Vec<String> {
        ddl::statements(self, dialect)
    }
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    /// Name of the table.
    pub name: &'static str,
    /// Columns, in order.
    pub columns: &'static [Column],
    /// Keys and other constraints of the rows.
    pub constraints: &'static [Constraint],
    /// Indexes besides those of the keys.
    pub indexes: &'static [Index],
}

/// A column of a table.
#[derive(Debug)]
pub(crate) struct Column {
    /// Name of the column.
    pub name: &'static str,
    /// Type of the column.
    pub column_type: ColumnType,
    /// True where the column may be NULL.
    pub nullable: bool,
    /// Value of the column in a row that is inserted without one.
    pub default: Option<DefaultValue>,
    /// Expression of a stored column that the database computes.
    pub generated: Option<&'static str>,
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColumnType {
    /// Text of at most so many characters.
    String(u16),
    /// Text of any length.
    Text,
    /// 32-bit integer.
    Integer,
    /// 32-bit integer that the database numbers.
    Serial,
    /// 64-bit integer that the database numbers.
    Identity,
    /// 64-bit integer.
    BigInt,
    /// Double-precision number.
    Float,
    /// True or false.
    Boolean,
    /// Day.
    Date,
    /// JSON document.
    Json,
    /// Bytes.
    Binary,
}

/// The default of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultValue {
    /// A quoted literal; the database reads it as a value of the column's type.
    Literal(&'static str),
    /// False, in the dialect's own word.
    False,
}

/// A constraint that the rows of a table must fulfil.
#[derive(Debug)]
pub(crate) enum Constraint {
    /// The table's key.
    PrimaryKey {
        /// Name of the constraint.
        name: &'static str,
        /// The columns, in order.
        columns: &'static [&'static str],
    },
    /// No two rows agree in all these columns.
    Unique {
        /// Name of the constraint, if it has one.
        name: Option<&'static str>,
        /// The columns, in order.
        columns: &'static [&'static str],
    },
    /// The columns name a row of another table.
    ForeignKey {
        /// Name of the constraint, if it has one.
        name: Option<&'static str>,
        /// The columns that refer to the other table.
        columns: &'static [&'static str],
        /// The table referred to.
        table: &'static str,
        /// The columns of that table, in the order of `columns`.
        references: &'static [&'static str],
        /// Changes to a row when the row that it refers to is deleted or changed; without an action that is refused.
        actions: &'static [Action],
    },
    /// A condition in SQL that every dialect understands.
    Check {
        /// Name of the constraint, if it has one.
        name: Option<&'static str>,
        /// The condition.
        condition: &'static str,
    },
    /// A boolean column is 0 or 1: a check for databases whose booleans are numbers, nothing for others.
    ZeroOrOne {
        /// The column.
        column: &'static str,
    },
    /// An UPDATE that changes one of these columns is refused, by a trigger.
    Immutable {
        /// Name of the trigger.
        name: &'static str,
        /// The columns, in order.
        columns: &'static [&'static str],
        /// Message of the database for such an UPDATE.
        message: &'static str,
    },
}

/// The action on a row when the row that its foreign key refers to is deleted or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the words of SQL")]
pub(crate) enum Action {
    /// Deletes this row when the other row is deleted.
    OnDeleteCascade,
    /// Sets the columns of this row to NULL when the other row is deleted.
    OnDeleteSetNull,
    /// Changes the columns of this row when the key of the other row is changed.
    OnUpdateCascade,
}

/// An index.
#[derive(Debug)]
pub(crate) struct Index {
    /// Name of the index.
    pub name: &'static str,
    /// The columns, in order.
    pub columns: &'static [&'static str],
    /// The columns that are sorted in descending order.
    pub descending: &'static [&'static str],
    /// True where no two rows may agree in all columns of the index.
    pub unique: bool,
    /// Text behind the columns in PostgreSQL only: columns to cover and a condition.
    pub in_postgres: &'static str,
}

/// A row that a fresh database has; columns that are not named are NULL.
#[derive(Debug)]
pub(crate) struct Seed {
    /// The table.
    pub table: &'static str,
    /// Column and value.
    pub values: &'static [(&'static str, &'static str)],
}

// These functions shorten the constants of the schemas.

const fn column(name: &'static str, column_type: ColumnType) -> Column {
    Column {
        name,
        column_type,
        nullable: true,
        default: None,
        generated: None,
    }
}

const fn string(name: &'static str, length: u16) -> Column {
    column(name, ColumnType::String(length))
}

const fn text(name: &'static str) -> Column {
    column(name, ColumnType::Text)
}

const fn integer(name: &'static str) -> Column {
    column(name, ColumnType::Integer)
}

const fn serial(name: &'static str) -> Column {
    column(name, ColumnType::Serial)
}

const fn identity(name: &'static str) -> Column {
    column(name, ColumnType::Identity)
}

const fn bigint(name: &'static str) -> Column {
    column(name, ColumnType::BigInt)
}

const fn float(name: &'static str) -> Column {
    column(name, ColumnType::Float)
}

const fn boolean(name: &'static str) -> Column {
    column(name, ColumnType::Boolean)
}

const fn date(name: &'static str) -> Column {
    column(name, ColumnType::Date)
}

const fn json(name: &'static str) -> Column {
    column(name, ColumnType::Json)
}

const fn binary(name: &'static str) -> Column {
    column(name, ColumnType::Binary)
}

impl Column {
    const fn not_null(self) -> Self {
        Self {
            nullable: false,
            ..self
        }
    }

    const fn default(self, literal: &'static str) -> Self {
        Self {
            default: Some(DefaultValue::Literal(literal)),
            ..self
        }
    }

    const fn default_false(self) -> Self {
        Self {
            default: Some(DefaultValue::False),
            ..self
        }
    }

    const fn generated(self, expression: &'static str) -> Self {
        Self {
            generated: Some(expression),
            ..self
        }
    }
}

const fn primary_key(name: &'static str, columns: &'static [&'static str]) -> Constraint {
    Constraint::PrimaryKey { name, columns }
}

const fn unique(name: Option<&'static str>, columns: &'static [&'static str]) -> Constraint {
    Constraint::Unique { name, columns }
}

const fn check(name: Option<&'static str>, condition: &'static str) -> Constraint {
    Constraint::Check { name, condition }
}

const fn zero_or_one(column: &'static str) -> Constraint {
    Constraint::ZeroOrOne { column }
}

const fn immutable(
    name: &'static str,
    columns: &'static [&'static str],
    message: &'static str,
) -> Constraint {
    Constraint::Immutable {
        name,
        columns,
        message,
    }
}

const fn foreign_key(
    name: Option<&'static str>,
    columns: &'static [&'static str],
    table: &'static str,
    references: &'static [&'static str],
    actions: &'static [Action],
) -> Constraint {
    Constraint::ForeignKey {
        name,
        columns,
        table,
        references,
        actions,
    }
}

const fn index(name: &'static str, columns: &'static [&'static str]) -> Index {
    Index {
        name,
        columns,
        descending: &[],
        unique: false,
        in_postgres: "",
    }
}

const fn unique_index(name: &'static str, columns: &'static [&'static str]) -> Index {
    Index {
        name,
        columns,
        descending: &[],
        unique: true,
        in_postgres: "",
    }
}

impl Index {
    const fn in_postgres(self, tail: &'static str) -> Self {
        Self {
            in_postgres: tail,
            ..self
        }
    }

    const fn descending(self, columns: &'static [&'static str]) -> Self {
        Self {
            descending: columns,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

    use super::*;

    /// Executes the statements in an empty database in memory, then asks `query` for a number or a text.
    fn ask<T>(query: &str) -> Result<T, sqlx::Error>
    where
        T: Send + Unpin + sqlx::Type<sqlx::Sqlite> + for<'r> sqlx::Decode<'r, sqlx::Sqlite>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut database = SqliteConnection::connect("sqlite::memory:").await?;
            for statement in newest().statements(Dialect::Sqlite) {
                sqlx::query(AssertSqlSafe(statement))
                    .execute(&mut database)
                    .await?;
            }
            sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
                .fetch_one(&mut database)
                .await
        })
    }

    fn has_columns(table: &Table, names: &[&str]) -> bool {
        names
            .iter()
            .all(|name| table.columns.iter().any(|column| column.name == *name))
    }

    #[test]
    fn foreign_keys_refer_to_columns_of_tables_that_stand_before() {
        let tables = |schema: &'static Schema| schema.tables.iter().enumerate();
        for (schema, (position, table)) in all()
            .into_iter()
            .flat_map(|it| tables(it).map(move |table| (it, table)))
        {
            for constraint in table.constraints {
                let Constraint::ForeignKey {
                    table: parent,
                    references,
                    ..
                } = constraint
                else {
                    continue;
                };
                let parent = schema.tables[..position]
                    .iter()
                    .find(|it| it.name == *parent);
                assert!(
                    parent.is_some_and(|parent| has_columns(parent, references)),
                    "{}: {constraint:?}",
                    table.name
                );
            }
        }
    }

    #[test]
    fn constraints_and_indexes_name_columns_of_their_table() {
        for table in all().into_iter().flat_map(|schema| schema.tables) {
            for constraint in table.constraints {
                let columns = match constraint {
                    Constraint::PrimaryKey { columns, .. }
                    | Constraint::Unique { columns, .. }
                    | Constraint::ForeignKey { columns, .. }
                    | Constraint::Immutable { columns, .. } => *columns,
                    Constraint::ZeroOrOne { column } => &[*column],
                    Constraint::Check { .. } => &[],
                };
                assert!(
                    has_columns(table, columns),
                    "{}: {constraint:?}",
                    table.name
                );
            }
            for index in table.indexes {
                assert!(
                    has_columns(table, index.columns),
                    "{}: {index:?}",
                    table.name
                );
                assert!(
                    index
                        .descending
                        .iter()
                        .all(|column| index.columns.contains(column))
                );
            }
        }
    }

    #[test]
    fn the_statements_make_all_65_tables_in_an_empty_sqlite_database() {
        let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table'";
        assert_eq!(ask::<i64>(tables).unwrap(), 65);
    }

    #[test]
    fn a_fresh_database_names_the_revision_of_the_schema() {
        let revision: String = ask("SELECT version_num FROM alembic_version").unwrap();
        assert_eq!(revision, newest().revision);
    }

    #[test]
    fn a_fresh_database_has_the_default_workspace() {
        assert_eq!(
            ask::<String>("SELECT name FROM workspaces").unwrap(),
            "default"
        );
    }

    #[test]
    fn sqlite_refuses_to_change_an_immutable_column() {
        let refused = ask::<String>(
            "INSERT INTO secrets (secret_id, secret_name, encrypted_value, wrapped_dek, kek_version, \
             masked_value, created_at, last_updated_at) VALUES ('1', 'a', x'', x'', 1, '', 0, 0); \
             UPDATE secrets SET secret_name = 'b' RETURNING secret_name",
        );
        assert!(refused.unwrap_err().to_string().contains("are immutable"));
    }
}
