//! Experiments and runs at a tracking server.

pub(crate) const HISTORY_PAGE: usize = 25_000;
