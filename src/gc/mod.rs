//! Garbage collection: artifacts of deleted runs, uploads that never finished, folders that belong to no run, and runs
//! that no rule keeps.
//!
//! A collection first makes a plan, and a dry run stops there. It then carries the plan out item by item, and checks
//! each item once more. It never deletes anything that a registered version or a logged model points to, anything
//! outside of the artifact location of an experiment, or anything of a run that a journal of this machine has records
//! of. The report names, with the reason, everything that looked like garbage and stays.

pub(crate) mod collect;
pub(crate) mod find;
pub(crate) mod journals;
pub(crate) mod location;
pub(crate) mod report;
pub(crate) mod rules;
pub(crate) mod uploads;
