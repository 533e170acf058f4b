//! An MLflow database, written to directly.
//!
//! Statements name their columns. They use only the columns that every supported revision of the schema has and those
//! that [`Layout`] has found, so the database decides the revision, not the writer.

pub(crate) mod copy;
pub(crate) mod database;
pub(crate) mod experiments;
pub(crate) mod fault;
pub(crate) mod fresh;
pub(crate) mod gc;
pub(crate) mod layout;
pub(crate) mod locks;
pub(crate) mod points;
pub(crate) mod postgres_hosts;
pub(crate) mod registry;
pub(crate) mod rewind;
pub(crate) mod row;
pub(crate) mod rows;
pub(crate) mod schema;
pub(crate) mod search;
pub(crate) mod statement;
pub(crate) mod store;
pub(crate) mod tracking;
pub(crate) mod write;

#[cfg(test)]
mod tests;
