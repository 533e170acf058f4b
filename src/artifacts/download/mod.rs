//! Downloads: whole or not at all, in ranges, and gone on with after an interruption.

pub mod fetch;
pub mod finished;
pub mod part_file;
