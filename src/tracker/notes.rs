//! Notes about values that cannot be recorded, so that the user is told once.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, atomic::AtomicU64},
};

use super::lock::lock;
use crate::mlflow::key::Key;

/// Most keys that are told of, and most spellings that are remembered, so that memory is bounded.
pub(super) const MOST_KEYS: usize = 1_000;

/// The notes of a tracker about such values.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Number of values that could not be recorded.
    pub(super) count: AtomicU64,
    /// Kinds and keys that the user was told of.
    told: Mutex<HashSet<(&'static str, String)>>,
    /// Keys under which kinds and forbidden keys are recorded.
    pub(super) spellings: Mutex<HashMap<(&'static str, String), Key>>,
}

impl Notes {
    /// Returns true where a message about a key has not been given yet. Notes that it is given now.
    pub(super) fn is_new(&self, kind: &'static str, key: &str) -> bool {
        let mut told = lock(&self.told);
        told.len() < MOST_KEYS && told.insert((kind, key.to_owned()))
    }
}
