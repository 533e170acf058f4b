//! The journal: what the tracker has promised to deliver, on local disk.
//!
//! A record that [`Journal::append`] has taken survives the end of the process at any later instruction, because
//! its bytes are with the kernel; with [`Durability::Power`] it survives a power cut. A record leaves the journal
//! only after every destination's worker has seen its store commit it and has saved a position behind it.
//!
//! One folder per tracker, below `$HEIMDALL_DIR/journal`:
//!
//! ```text
//! 1795450774263-4711-9f3a/
//!   lock              held while the process lives
//!   manifest.json     where the records go (no credentials), who wrote them
//!   00000001.segment  frames (see [`frame`]); a delivered segment is removed
//!   position-0.json   how far the first destination is, and which runs were open there
//!   staging/          copies of the files to upload
//! ```
//!
//! Where the disk takes nothing (it is full, read-only, or the folder was deleted), records wait in memory, are
//! delivered from there, and move to the disk as soon as it takes them. Where neither takes more, callers wait.

pub mod abandoned;
pub mod append;
pub mod config;
pub mod error;
pub mod folder;
pub mod frame;
pub mod inspect;
pub mod layout;
pub mod ledger;
pub mod mapped;
pub mod position;
pub mod reader;
pub mod record;
pub mod segment;
pub mod staging;
pub mod upkeep;
pub mod writer;

#[cfg(test)]
mod tests;
