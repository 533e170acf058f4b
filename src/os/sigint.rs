//! Ctrl-C, which programs catch before they exit with an error code: the code alone does not tell of it.
//!
//! The signal is only noted here; the handler that was there, which is Python's, is called as before. A program that
//! has set Python's default action or a handler of C keeps that.

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        mem, ptr,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    /// Handler that is called after the signal is noted; it never changes once it is set.
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    /// Notes the signal. The kernel calls this function between any two instructions of any thread.
    extern "C" fn on_sigint(signal: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
        let next = NEXT.load(Ordering::Relaxed);
        // SAFETY: the value is a handler that the system has called with the same argument until now.
        #[expect(unsafe_code, reason = "signal handlers have no safe form")]
        let next = unsafe { mem::transmute::<usize, extern "C" fn(libc::c_int)>(next) };
        next(signal);
    }

    pub(crate) fn watch() {
        INTERRUPTED.store(false, Ordering::Relaxed);
        // SAFETY: the calls read and write structures of the right size; the handler is a function of this library,
        // which is never unloaded.
        #[expect(unsafe_code, reason = "signal handlers have no safe form")]
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            if libc::sigaction(libc::SIGINT, ptr::null(), &mut action) != 0 {
                return;
            }
            let handler = action.sa_sigaction;
            let is_plain = action.sa_flags & libc::SA_SIGINFO == 0;
            if !is_plain || [libc::SIG_DFL, libc::SIG_IGN].contains(&handler) {
                return;
            }
            if handler == on_sigint as *const () as libc::sighandler_t {
                return;
            }
            // A handler that somebody else has put before ours may call ours: only the first one is followed.
            let first = NEXT.compare_exchange(0, handler, Ordering::Relaxed, Ordering::Relaxed);
            if first.is_ok() || NEXT.load(Ordering::Relaxed) == handler {
                action.sa_sigaction = on_sigint as *const () as libc::sighandler_t;
                libc::sigaction(libc::SIGINT, &action, ptr::null_mut());
            }
        }
    }

    pub(crate) fn was_sent() -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

/// Notes Ctrl-C from now on, and forgets what came before.
pub(crate) fn watch() {
    #[cfg(target_os = "linux")]
    linux::watch();
}

/// Returns true where Ctrl-C was noted since the last call of [`watch`].
pub(crate) fn was_sent() -> bool {
    #[cfg(target_os = "linux")]
    return linux::was_sent();
    #[cfg(not(target_os = "linux"))]
    false
}
