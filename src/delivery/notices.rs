//! What the user should be told, from the worker's thread to the one that can say it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Sentences for the user, waiting for a thread of theirs.
#[derive(Debug, Default)]
pub struct Notices {
    waiting: AtomicBool,
    texts: Mutex<Vec<String>>,
}

impl Notices {
    /// Adds a sentence.
    pub fn tell(&self, text: String) {
        self.texts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text);
        self.waiting.store(true, Ordering::Release);
    }

    /// Whether something waits. Costs one load.
    pub fn are_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes what waits.
    pub fn take(&self) -> Vec<String> {
        if !self.waiting.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.texts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
