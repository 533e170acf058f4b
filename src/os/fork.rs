//! Forks: a fork has its parent's memory and none of its threads.

use std::sync::{
    Once, OnceLock,
    atomic::{AtomicU32, Ordering},
};

#[cfg(target_os = "linux")]
use super::file_lock;

/// Number of forks between the process that loaded this library and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);
static WATCHED: Once = Once::new();
/// Function that runs in every fork, right after the fork.
static HOOK: OnceLock<fn()> = OnceLock::new();

/// Returns a number that differs between a process and its forks. Costs one load.
pub(crate) fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Counts forks from now on, those of other libraries too.
pub(crate) fn watch() {
    WATCHED.call_once(|| {
        // SAFETY: the handler is a function of this library, which is never unloaded, and makes only calls that are
        // allowed in a fork before it calls `exec`.
        #[cfg(target_os = "linux")]
        #[allow(unsafe_code, reason = "the C library has no safe form of it")]
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
}

/// Registers `hook`, which is called in every fork. The hook may make only calls that are allowed in a signal handler.
/// The first hook stays; later ones are ignored.
pub(crate) fn on_fork(hook: fn()) {
    let _ = HOOK.set(hook);
}

#[cfg(target_os = "linux")]
extern "C" fn in_child() {
    forked();
    file_lock::release_in_fork();
}

/// Notes that this process is a fork.
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    if let Some(hook) = HOOK.get() {
        hook();
    }
}
