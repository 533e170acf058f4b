//! Downloads: each is complete or not done at all, is fetched in ranges, and continues after an interruption.

pub(crate) mod completed;
pub(crate) mod fetch;
pub(crate) mod part_file;
