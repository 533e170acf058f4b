//! The MLflow schemas that a fresh database can get.
//!
//! Promises that a database made with [`Schema::statements`] is, table by table, the one that the stock
//! release of [`Schema::mlflow_version`] makes: that release opens it as its own, and `mlflow db upgrade`
//! of a later one carries it on. `tests/test_schema.py` compares the two.
//!
//! A schema is described once, as constants without a dialect's spelling; what a database wants to hear is
//! [`ddl`]'s. The constants are written by `scripts/schema_from_mlflow.py`. Experiment 0
//! is not among them, since it needs the artifact root and the time: whoever creates the database adds it.
//! Databases that exist already are no business of this module.

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


/// Every schema that is shipped, the oldest one first.
pub fn all() -> [&'static Schema; 5] {
    [
        &mlflow_2_8_1::SCHEMA,
        &mlflow_2_22_4::SCHEMA,
        &mlflow_3_1_4::SCHEMA,
        newest(),
        &mlflow_3_18_0::SCHEMA,
    ]
}

/// What a database gets where nothing says of which release: the newest schema that is shipped, but for that of
/// 3.18.0, whose packages do not install whole. A release refuses a database that is newer than itself, and
/// upgrades an older one.
pub fn newest() -> &'static Schema {
    &mlflow_3_17_2::SCHEMA
}

/// The schema of a release, if it is shipped.
pub fn of_version(mlflow_version: &str) -> Option<&'static Schema> {
    // Other releases whose newest migration is that of a shipped one.
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
pub enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// All that a release of MLflow finds in a database it has just made.
#[derive(Debug)]
pub struct Schema {
    /// The release, for example `3.17.2`.
    pub mlflow_version: &'static str,
    /// Its alembic revision, which `alembic_version` must name.
    pub revision: &'static str,
    /// Every table, after those that its foreign keys refer to.
    pub tables: &'static [Table],
    /// Rows that are there from the start.
    pub seeds: &'static [Seed],
}

impl Schema {
    /// The statements that make an empty database one of this schema, seed rows included, in order.
    pub fn statements(&self, dialect: Dialect) -> Vec<String> {
        ddl::statements(self, dialect)
    }
}

/// A table.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its columns, in order.
    pub columns: &'static [Column],
    /// Its keys and what else its rows must fulfil.
    pub constraints: &'static [Constraint],
    /// Indexes beyond those that its keys imply.
    pub indexes: &'static [Index],
}

/// A column of a table.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub column_type: ColumnType,
    /// Whether it may be NULL.
    pub nullable: bool,
    /// What a row has that doesn't name the column.
    pub default: Option<DefaultValue>,
    /// For a stored column that the database computes: its expression.
    pub generated: Option<&'static str>,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
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
pub enum DefaultValue {
    /// A quoted literal; the database reads it as a value of the column's type.
    Literal(&'static str),
    /// False, in the dialect's own word.
    False,
}

/// What the rows of a table must fulfil.
#[derive(Debug)]
pub enum Constraint {
    /// The table's key.
    PrimaryKey {
        /// Its name.
        name: &'static str,
        /// The columns, in order.
        columns: &'static [&'static str],
    },
    /// No two rows agree in all these columns.
    Unique {
        /// Its name, if it has one.
        name: Option<&'static str>,
        /// The columns, in order.
        columns: &'static [&'static str],
    },
    /// The columns name a row of another table.
    ForeignKey {
        /// Its name, if it has one.
        name: Option<&'static str>,
        /// The columns that refer.
        columns: &'static [&'static str],
        /// The table referred to.
        table: &'static str,
        /// Its columns, in the order of `columns`.
        references: &'static [&'static str],
        /// What becomes of a row when the referred one goes or changes; without an action that is refused.
        actions: &'static [Action],
    },
    /// A condition in SQL that every dialect understands.
    Check {
        /// Its name, if it has one.
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
        /// What the database answers to such an UPDATE.
        message: &'static str,
    },
}

/// How a row follows the one that its foreign key refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// That is deleted: so is this.
    OnDeleteCascade,
    /// That is deleted: the columns become NULL here.
    OnDeleteSetNull,
    /// Its key is changed: so are the columns here.
    OnUpdateCascade,
}

/// An index.
#[derive(Debug)]
pub struct Index {
    /// Its name.
    pub name: &'static str,
    /// The columns, in order.
    pub columns: &'static [&'static str],
    /// Those of them that are sorted downwards.
    pub descending: &'static [&'static str],
    /// Whether no two rows may agree in all its columns.
    pub unique: bool,
    /// What it has behind its columns in PostgreSQL alone: columns to cover and a condition.
    pub in_postgres: &'static str,
}

/// A row that a fresh database has; columns that it doesn't name are NULL.
#[derive(Debug)]
pub struct Seed {
    /// The table.
    pub table: &'static str,
    /// Column and value.
    pub values: &'static [(&'static str, &'static str)],
}

// The words in which the constants are written.

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
