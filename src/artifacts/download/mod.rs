//! Downloads: whole or not at all, in ranges, and gone on with after an interruption.

pub mod download;
pub mod finished;
pub mod part_file;
