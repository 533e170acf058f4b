//! Which process this is: a fork has its parent's memory and none of its threads.

use std::sync::{
    Once,
    atomic::{AtomicU32, Ordering},
};

/// Forks between the process that loaded this library and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);
static WATCHED: Once = Once::new();

/// A number that is another one in every fork. Costs one load.
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Counts forks from now on, whoever makes them.
pub(crate) fn watch_forks() {
    WATCHED.call_once(|| {
        // SAFETY: the handler is a function of this library, which is never unloaded, and does one thing that is
        // allowed between a fork and whatever comes next.
        #[cfg(target_os = "linux")]
        #[allow(unsafe_code)]
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
}

#[cfg(target_os = "linux")]
extern "C" fn in_child() {
    forked();
}

/// Notes that this is a fork.
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    crate::signals::in_child();
}
