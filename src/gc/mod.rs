//! The end of what nobody needs any more: artifacts of deleted runs, uploads that never finished, folders that belong
//! to no run, and runs that no rule keeps.
//!
//! A collection first makes a plan, which is all that a dry run does, and then carries it out, item by item, each
//! checked once more. What it promises: nothing goes that a registered version or a logged model points to, nothing
//! outside of the artifact location of an experiment, nothing of a run that a journal of this machine has records of.
//! What can be told is told: everything that looked like garbage and stays is in the report with the reason.

pub mod collect;
pub mod find;
pub mod journals;
pub mod location;
pub mod report;
pub mod rules;
pub mod uploads;
