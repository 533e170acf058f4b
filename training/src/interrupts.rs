//! Ctrl-C and SIGTERM during a training: the first signal is noted, so that a checkpoint can be written before the end.
//!
//! The handlers of the program, in whatever language they were written, come back at the end. A second Ctrl-C is handed
//! to them at once.
#![cfg_attr(unix, allow(unsafe_code, reason = "signal handlers have no safe form"))]

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The noted signal; 0 while there is none.
static RECEIVED: AtomicI32 = AtomicI32::new(0);
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Returns the number of the noted signal, if one was received.
pub fn received() -> Option<i32> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// Notes Ctrl-C and SIGTERM until this value is dropped.
#[derive(Debug)]
pub struct Interrupts {
    #[cfg(unix)]
    before: Vec<unix::Before>,
}

impl Interrupts {
    /// Begins to note signals; `None` where another value does that, and where there are no signals.
    pub fn watch() -> Option<Self> {
        if WATCHED.swap(true, Ordering::AcqRel) {
            return None;
        }
        RECEIVED.store(0, Ordering::Relaxed);
        #[cfg(unix)]
        return Some(Self {
            before: unix::watch(),
        });
        #[cfg(not(unix))]
        {
            WATCHED.store(false, Ordering::Release);
            None
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        #[cfg(unix)]
        unix::restore(&self.before);
        WATCHED.store(false, Ordering::Release);
    }
}

#[cfg(unix)]
mod unix {
    use std::{
        mem, ptr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::RECEIVED;

    /// The handler of Ctrl-C before this one, where it is a plain function; 0 where there is none.
    static BEFORE_SIGINT: AtomicUsize = AtomicUsize::new(0);

    /// A signal and what the program did about it.
    pub(super) struct Before {
        signal: libc::c_int,
        action: libc::sigaction,
    }

    impl std::fmt::Debug for Before {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "signal {}", self.signal)
        }
    }

    extern "C" fn note(signal: libc::c_int) {
        let is_first = RECEIVED.swap(signal, Ordering::Relaxed) == 0;
        let before = BEFORE_SIGINT.load(Ordering::Relaxed);
        if !is_first && signal == libc::SIGINT && before != 0 {
            // SAFETY: the address is that of a handler that the program has set for signals, with this signature.
            let before: extern "C" fn(libc::c_int) = unsafe { mem::transmute(before) };
            before(signal);
        }
    }

    pub(super) fn watch() -> Vec<Before> {
        let mut found = Vec::new();
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: both calls get structures of the right size, and `note` makes only calls that are allowed in a
            // handler.
            let action = unsafe {
                let mut before: libc::sigaction = mem::zeroed();
                if libc::sigaction(signal, ptr::null(), &raw mut before) != 0
                    || before.sa_sigaction == libc::SIG_IGN
                {
                    continue;
                }
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = note as *const () as libc::sighandler_t;
                libc::sigemptyset(&raw mut action.sa_mask);
                action.sa_flags = libc::SA_ONSTACK;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
                before
            };
            if signal == libc::SIGINT {
                let is_plain = action.sa_flags & libc::SA_SIGINFO == 0;
                let is_function = action.sa_sigaction != libc::SIG_DFL;
                let address = if is_plain && is_function {
                    action.sa_sigaction
                } else {
                    0
                };
                BEFORE_SIGINT.store(address, Ordering::Relaxed);
            }
            found.push(Before { signal, action });
        }
        found
    }

    pub(super) fn restore(before: &[Before]) {
        for it in before {
            // SAFETY: the action is what the system returned for this signal.
            unsafe { libc::sigaction(it.signal, &raw const it.action, ptr::null_mut()) };
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_noted_and_the_handler_before_comes_back() {
        let _deaf = {
            // SAFETY: the test sets a handler that does nothing, for a process that only runs tests.
            unsafe { libc::signal(libc::SIGTERM, ignore as *const () as libc::sighandler_t) }
        };
        let watched = Interrupts::watch().unwrap();
        assert!(Interrupts::watch().is_none());
        assert_eq!(received(), None);
        // SAFETY: the signal has a handler.
        unsafe { libc::raise(libc::SIGTERM) };
        assert_eq!(received(), Some(libc::SIGTERM));
        drop(watched);
        // SAFETY: the call only reads the handler.
        let now = unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
        assert_eq!(now, ignore as *const () as libc::sighandler_t);
    }

    extern "C" fn ignore(_signal: libc::c_int) {}
}
