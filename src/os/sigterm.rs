//! SIGTERM, by which schedulers (Slurm, Kubernetes) end a training, and SIGHUP, by which a terminal does that closes.
//!
//! A thread of this library waits for the signals, calls the function that its caller has given, and then lets the
//! process die of the signal, as it would without this library. A program that has a handler of its own, or is deaf to a
//! signal as under nohup, stays so.

use std::time::Duration;

/// Function that is called after the signal, with the time that is left; it returns messages for the user.
pub(crate) type OnTerminate = fn(Duration) -> Vec<String>;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        fs::File,
        io::{Read, Write},
        mem, ptr,
        sync::{
            Mutex, PoisonError,
            atomic::{AtomicI32, Ordering},
        },
        thread,
        time::Duration,
    };

    use super::super::fork;

    /// Descriptor that the handler writes to; below zero while there is none.
    static WAKE: AtomicI32 = AtomicI32::new(-1);
    static WATCHED: Mutex<Option<u32>> = Mutex::new(None);
    /// Signals that end the process.
    const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGHUP];

    /// Wakes the waiting thread. The kernel calls this function between any two instructions of any thread.
    extern "C" fn on_signal(signal: libc::c_int) {
        let wake = WAKE.load(Ordering::Relaxed);
        // All signals have numbers below 128.
        let byte = signal.to_le_bytes()[0];
        // SAFETY: `write` is allowed in a signal handler, and the byte lives until `write` returns. The errno of the
        // interrupted code is restored.
        #[expect(unsafe_code, reason = "signal handlers have no safe form")]
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(wake, ptr::from_ref(&byte).cast(), 1);
            *libc::__errno_location() = errno;
        }
    }

    pub(crate) fn watch(grace: Duration, on_terminate: super::OnTerminate) {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = fork::generation();
        let unhandled = SIGNALS.map(|signal| is(signal, libc::SIG_DFL).then_some(signal));
        if *watched == Some(generation) || unhandled == [None; 2] {
            return;
        }
        let Ok((mut woken, wake)) = std::io::pipe() else {
            return;
        };
        let watcher = thread::Builder::new()
            .name("heimdall-sigterm".into())
            .spawn(move || {
                let mut byte = [0];
                if woken.read_exact(&mut byte).is_ok() {
                    for text in on_terminate(grace) {
                        let _ = writeln!(std::io::stderr(), "heimdall_tracking: {text}");
                    }
                    die(byte[0].into());
                }
            });
        if watcher.is_err() {
            return;
        }
        // The pipe stays open for as long as the process lives.
        let wake = mem::ManuallyDrop::new(File::from(std::os::fd::OwnedFd::from(wake)));
        WAKE.store(std::os::fd::AsRawFd::as_raw_fd(&*wake), Ordering::Relaxed);
        fork::on_fork(in_child);
        for signal in unhandled.into_iter().flatten() {
            set(signal, Some(on_signal));
        }
        *watched = Some(generation);
    }

    /// Removes the handler in a fork: the waiting thread belongs to the parent, so the signals end a fork at once.
    fn in_child() {
        if WAKE.swap(-1, Ordering::Relaxed) < 0 {
            return;
        }
        for signal in SIGNALS {
            if is(signal, on_signal as *const () as libc::sighandler_t) {
                set(signal, None);
            }
        }
    }

    /// Returns true where `handler` handles the signal now.
    fn is(signal: libc::c_int, handler: libc::sighandler_t) -> bool {
        // SAFETY: the call only reads the current handler into a structure of the right size.
        #[expect(unsafe_code, reason = "signal handlers have no safe form")]
        unsafe {
            let mut now: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut now) == 0 && now.sa_sigaction == handler
        }
    }

    fn set(signal: libc::c_int, handler: Option<extern "C" fn(libc::c_int)>) {
        // SAFETY: the handler is a function of this library, which is never unloaded, and makes only calls that are
        // allowed in a handler.
        #[expect(unsafe_code, reason = "signal handlers have no safe form")]
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = match handler {
                Some(handler) => handler as *const () as libc::sighandler_t,
                None => libc::SIG_DFL,
            };
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }

    fn die(signal: libc::c_int) {
        set(signal, None);
        // SAFETY: the calls send the signal to this process, which dies of it. The kernel does not end the first
        // process of a container by a signal; that process exits with the status of such a death.
        #[expect(unsafe_code, reason = "signal handlers have no safe form")]
        unsafe {
            libc::kill(libc::getpid(), signal);
            thread::sleep(Duration::from_secs(1));
            libc::_exit(128 + signal);
        }
    }
}

/// Watches for SIGTERM and SIGHUP from now on, unless the program has a handler of its own. `grace` is passed to `on_terminate`.
pub fn watch(grace: Duration, on_terminate: OnTerminate) {
    #[cfg(target_os = "linux")]
    linux::watch(grace, on_terminate);
    #[cfg(not(target_os = "linux"))]
    let _ = (grace, on_terminate);
}

/// Waits until the process dies of the signal. A call that is too late to be recorded must not return, as its caller
/// would believe that the record was accepted. The caller may hold locks, the GIL among them: nobody needs them any
/// more.
pub(crate) fn wait_for_death() -> ! {
    loop {
        std::thread::park();
    }
}
