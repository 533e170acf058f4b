//! Messages for the user, handed from the delivery thread to a thread that can show them.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Messages that wait for one of the user's threads.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    waiting: AtomicBool,
    texts: Mutex<Vec<String>>,
}

impl Notices {
    /// Adds a message.
    pub(crate) fn tell(&self, text: String) {
        self.texts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text);
        self.waiting.store(true, Ordering::Release);
    }

    /// Returns true where messages wait. Costs one load.
    pub(crate) fn are_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes the waiting messages.
    pub(crate) fn take(&self) -> Vec<String> {
        if !self.waiting.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.texts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
