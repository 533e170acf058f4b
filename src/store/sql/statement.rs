//! Statements and the values that are bound to them.

use std::borrow::Cow;

use sqlx::{
    AssertSqlSafe, Postgres, Sqlite, postgres::PgArguments, query::Query, sqlite::SqliteArguments,
};

use super::schema::Dialect;

/// The value of a parameter of a statement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(Option<i64>),
    Float(f64),
    Bool(bool),
    Text(Option<String>),
    /// Columns of several rows, for PostgreSQL's `unnest`.
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<i64>> for Value {
    fn from(values: Vec<i64>) -> Self {
        Self::Ints(values)
    }
}

impl From<Vec<f64>> for Value {
    fn from(values: Vec<f64>) -> Self {
        Self::Floats(values)
    }
}

impl From<Vec<bool>> for Value {
    fn from(values: Vec<bool>) -> Self {
        Self::Bools(values)
    }
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        Self::Texts(values)
    }
}

/// A text of SQL and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Statement {
    sql: Cow<'static, str>,
    values: Vec<Value>,
}

impl Statement {
    pub(crate) fn new(sql: impl Into<Cow<'static, str>>) -> Self {
        Self {
            sql: sql.into(),
            values: Vec::new(),
        }
    }

    /// Returns the statement that asks PostgreSQL for the plan of this statement instead of the rows.
    pub(crate) fn explained(&self) -> Self {
        Self {
            sql: format!("EXPLAIN {}", self.sql).into(),
            values: self.values.clone(),
        }
    }

    /// Sets the value of the next parameter.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Adds a piece of SQL; values from users are added by [`Statement::push_bind`] only.
    pub(crate) fn push(&mut self, sql: &str) -> &mut Self {
        self.sql.to_mut().push_str(sql);
        self
    }

    /// Adds a parameter at the end of the text.
    pub(crate) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        let number = format!("${}", self.values.len());
        self.push(&number)
    }

    /// Adds `(first, second, …)` with a parameter for each.
    pub(crate) fn push_list<V: Into<Value>>(
        &mut self,
        values: impl IntoIterator<Item = V>,
    ) -> &mut Self {
        self.push("(");
        for (position, value) in values.into_iter().enumerate() {
            if position > 0 {
                self.push(", ");
            }
            self.push_bind(value);
        }
        self.push(")")
    }

    /// Adds `IN (…)` or, where the database has arrays, `= ANY (…)`, which stays one prepared statement.
    pub(crate) fn push_one_of(&mut self, dialect: Dialect, texts: &[String]) -> &mut Self {
        match dialect {
            Dialect::Sqlite => self.push("IN ").push_list(texts.iter().map(String::as_str)),
            Dialect::Postgres => self.push("= ANY (").push_bind(texts.to_vec()).push(")"),
        }
    }

    pub(crate) fn sqlite(self) -> Query<'static, Sqlite, SqliteArguments> {
        let mut query = match self.sql {
            Cow::Borrowed(sql) => sqlx::query(sql),
            Cow::Owned(sql) => sqlx::query(AssertSqlSafe(sql)),
        };
        for value in self.values {
            query = match value {
                Value::Int(value) => query.bind(value),
                Value::Float(value) => query.bind(value),
                Value::Bool(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                // SQLite has no arrays, and no statement for SQLite binds one.
                Value::Ints(_) | Value::Floats(_) | Value::Bools(_) | Value::Texts(_) => {
                    query.bind(None::<i64>)
                }
            };
        }
        query
    }

    pub(crate) fn postgres(self) -> Query<'static, Postgres, PgArguments> {
        let mut query = match self.sql {
            Cow::Borrowed(sql) => sqlx::query(sql),
            Cow::Owned(sql) => sqlx::query(AssertSqlSafe(sql)),
        };
        for value in self.values {
            query = match value {
                Value::Int(value) => query.bind(value),
                Value::Float(value) => query.bind(value),
                Value::Bool(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Ints(values) => query.bind(values),
                Value::Floats(values) => query.bind(values),
                Value::Bools(values) => query.bind(values),
                Value::Texts(values) => query.bind(values),
            };
        }
        query
    }
}
