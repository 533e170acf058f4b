//! Tests the protocol of journal, delivery and recovery against a model of what was promised.
//!
//! A process records, delivers and dies at any point: between a commit and the saved position, in the middle of an
//! append or an upload, during the recovery of the previous process. Stores refuse, and return errors before or after
//! they have committed. The [`model`] has the promises to callers. [`scheduler`] plays histories against the scheduler
//! alone, [`journals`] against the sender with real journals.

mod journals;
mod model;
mod scheduler;
