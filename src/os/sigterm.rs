//! SIGTERM: how schedulers (Slurm, Kubernetes) end a training.
//!
//! A thread of ours waits for the signal, does what its caller asks for, and lets the process die of the signal, as it
//! would have without us. A program that has a handler of its own keeps it.

use std::time::Duration;

/// Called when the signal has come, with the time there is; returns sentences for the user.
pub type OnTerminate = fn(Duration) -> Vec<String>;

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

    /// Called by the kernel, between any two instructions of any thread.
    extern "C" fn on_sigterm(_signal: libc::c_int) {
        let wake = WAKE.load(Ordering::Relaxed);
        let byte = 1u8;
        // SAFETY: `write` is allowed in a signal handler, and the byte lives until it returns. The errno of the code
        // that was interrupted is put back.
        #[allow(unsafe_code)]
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(wake, ptr::from_ref(&byte).cast(), 1);
            *libc::__errno_location() = errno;
        }
    }

    pub fn watch(grace: Duration, on_terminate: super::OnTerminate) {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = fork::generation();
        if *watched == Some(generation) || !is(libc::SIG_DFL) {
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
                    die();
                }
            });
        if watcher.is_err() {
            return;
        }
        // For as long as the process lives.
        let wake = mem::ManuallyDrop::new(File::from(std::os::fd::OwnedFd::from(wake)));
        WAKE.store(std::os::fd::AsRawFd::as_raw_fd(&*wake), Ordering::Relaxed);
        fork::on_fork(in_child);
        set(Some(on_sigterm));
        *watched = Some(generation);
    }

    /// Takes the handler away in a fork: the waiting thread is the parent's, so SIGTERM ends a fork at once.
    fn in_child() {
        if WAKE.swap(-1, Ordering::Relaxed) >= 0
            && is(on_sigterm as *const () as libc::sighandler_t)
        {
            set(None);
        }
    }

    /// Whether that is who handles the signal now.
    fn is(handler: libc::sighandler_t) -> bool {
        // SAFETY: only reads what is set, into a structure of that size.
        #[allow(unsafe_code)]
        unsafe {
            let mut now: libc::sigaction = mem::zeroed();
            libc::sigaction(libc::SIGTERM, ptr::null(), &mut now) == 0
                && now.sa_sigaction == handler
        }
    }

    fn set(handler: Option<extern "C" fn(libc::c_int)>) {
        // SAFETY: the handler is a function of this library, which is never unloaded, and calls only what a handler
        // may.
        #[allow(unsafe_code)]
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = match handler {
                Some(handler) => handler as *const () as libc::sighandler_t,
                None => libc::SIG_DFL,
            };
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGTERM, &action, ptr::null_mut());
        }
    }

    fn die() {
        set(None);
        // SAFETY: sends a signal to this process, which it dies of; but for the first process of a container, which
        // the kernel spares, and which ends as if it had.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(libc::getpid(), libc::SIGTERM);
            thread::sleep(Duration::from_secs(1));
            libc::_exit(128 + libc::SIGTERM);
        }
    }
}

/// Watches for SIGTERM from now on, unless somebody else does. `grace` is handed to `on_terminate`.
pub fn watch(grace: Duration, on_terminate: OnTerminate) {
    #[cfg(target_os = "linux")]
    linux::watch(grace, on_terminate);
    #[cfg(not(target_os = "linux"))]
    let _ = (grace, on_terminate);
}

/// Waits until the process dies of the signal. A call that comes too late to be recorded must not return: its caller
/// would take it for accepted. The caller may hold locks, the GIL among them: nobody needs them any more.
pub fn wait_for_death() -> ! {
    loop {
        std::thread::park();
    }
}
