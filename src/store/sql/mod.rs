//! An MLflow database, written to directly.
//!
//! Statements name their columns and use only those that every supported revision of the schema has, or that
//! [`Layout`] has found, so that the database decides the revision and not the writer.

pub mod copy;
pub mod database;
pub mod experiments;
pub mod fault;
pub mod fresh;
pub mod gc;
pub mod layout;
pub mod locks;
pub mod points;
pub mod registry;
pub mod rows;
pub mod schema;
pub mod search;
pub mod statement;
pub mod store;
pub mod tracking;
pub mod write;

#[cfg(test)]
mod tests;
