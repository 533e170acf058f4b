//! Tests the protocol of journal, delivery and recovery against a model of what was promised.
//!
//! A process records, delivers and dies at any point: between a commit and the saved position, in the middle of an
//! append or an upload, during the recovery of the previous process. Stores refuse, and return errors before or after
//! they have committed. The [`model`] holds what callers were told. [`uploads`] plays histories against the state
//! machine alone, [`journals`] against real journals and the sender.

mod journals;
mod model;
mod uploads;
