//! The journal: the records that the tracker has promised to deliver, on local disk.
//!
//! A record that [`Journal::append`] has accepted survives the end of the process at any later instruction, because its
//! bytes are with the kernel; with [`Durability::Power`] it survives a power cut. A record leaves the journal only
//! after the worker of every destination has seen the store commit it and has saved a position behind it.
//!
//! Each tracker has one folder below `$HEIMDALL_DIR/journal`:
//!
//! ```text
//! 1795450774263-4711-9f3a/
//!   lock              held while the process lives
//!   manifest.json     destinations (no credentials) and id of the process
//!   00000001.segment  frames (see [`frame`]); a delivered segment is removed
//!   position-0.json   progress of the first destination, and the runs open there
//!   staging/          copies of the files to upload
//! ```
//!
//! If the disk accepts nothing (it is full, read-only, or the folder was deleted), records wait in memory, are
//! delivered from there, and move to the disk as soon as it accepts them. If neither disk nor memory has room,
//! callers wait.

pub(crate) mod abandoned;
pub(crate) mod append;
pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod folder;
pub(crate) mod frame;
pub(crate) mod inspect;
pub(crate) mod layout;
pub(crate) mod ledger;
pub(crate) mod mapped;
pub(crate) mod position;
pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod staging;
pub(crate) mod upkeep;
pub(crate) mod writer;

#[cfg(test)]
mod tests;
