//! Sentences for the user, handed from the delivery thread to a thread that can say them.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Sentences that wait for a thread of the user's.
#[derive(Debug, Default)]
pub(crate) struct Notices {
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

    /// Returns true where sentences wait. Costs one load.
    pub fn are_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes the sentences that wait.
    pub fn take(&self) -> Vec<String> {
        if !self.waiting.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.texts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
