//! A thread beside an active run, which ends with it.
//!
//! Dropping a [`RunThread`] stops the thread, [`RunThread::finish`] lets it finish first; both wait for a bounded
//! time. After that nobody sees the work of the thread, as its results are passed by [`StopSignal::hand_over`].
//! In a fork the thread does not exist, and dropping the owner in the fork does nothing.

use std::{
    io, process,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Longest time that the end of a run waits for a thread that was told to stop: long enough for one call of a slow
/// driver.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Owner of the thread.
#[derive(Debug)]
pub(crate) struct RunThread {
    stop_signal: StopSignal,
    thread: Option<JoinHandle<()>>,
    pid: u32,
}

/// The part of the state that the thread shares with its owner.
#[derive(Clone, Debug)]
pub(crate) struct StopSignal(Arc<ThreadState>);

#[derive(Debug, Default)]
struct ThreadState {
    /// True once the thread must stop. It is outside of the mutex, because the function that passes a result may drop
    /// the owner while the mutex is locked.
    stopping: AtomicBool,
    ended: Mutex<bool>,
    changed: Condvar,
}

impl RunThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The error of the system where it cannot start a thread.
    pub(crate) fn start(
        name: &str,
        work: impl FnOnce(&StopSignal) + Send + 'static,
    ) -> io::Result<Self> {
        let stop_signal = StopSignal(Arc::default());
        let theirs = stop_signal.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            let _end = WorkEndGuard(&theirs);
            work(&theirs);
        })?;
        Ok(Self {
            stop_signal,
            thread: Some(thread),
            pid: process::id(),
        })
    }

    /// Waits for the end of the work, for at most `timeout`, and then stops the work.
    pub(crate) fn finish(self, timeout: Duration) {
        let waits_for_itself =
            |thread: &JoinHandle<()>| thread.thread().id() == thread::current().id();
        if self.pid == process::id() && !self.thread.as_ref().is_some_and(waits_for_itself) {
            self.stop_signal.0.wait_for_end(timeout);
        }
    }
}

impl StopSignal {
    /// Waits for `pause`; returns false, without more waiting, when the work must stop.
    pub(crate) fn wait(&self, pause: Duration) -> bool {
        let state = &*self.0;
        let (guard, waited) = state
            .changed
            .wait_timeout_while(state.ended(), pause, |_| !state.is_stopping())
            .unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        waited.timed_out() && !state.is_stopping()
    }

    /// Calls `give` unless the work must stop; returns true where it has called it. The end of the owner waits for the
    /// call.
    pub(crate) fn hand_over(&self, give: impl FnOnce()) -> bool {
        let _guard = self.0.ended();
        if self.0.is_stopping() {
            return false;
        }
        give();
        true
    }
}

impl ThreadState {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn ended(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the work; returns true where the work has ended.
    fn wait_for_end(&self, timeout: Duration) -> bool {
        *self
            .changed
            .wait_timeout_while(self.ended(), timeout, |ended| !*ended)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn stop(&self) {
        let guard = self.ended();
        self.stopping.store(true, Ordering::Release);
        drop(guard);
        self.changed.notify_all();
    }
}

/// Marks the work as ended when this is dropped, also after a panic.
struct WorkEndGuard<'a>(&'a StopSignal);

impl Drop for WorkEndGuard<'_> {
    fn drop(&mut self) {
        *self.0.0.ended() = true;
        self.0.0.changed.notify_all();
    }
}

impl Drop for RunThread {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let state = &*self.stop_signal.0;
        if self.pid != process::id() {
            // The thread belongs to the parent, and so does the lock that it may hold.
            std::mem::forget(thread);
        } else if thread.thread().id() == thread::current().id() {
            // A thread cannot wait for itself.
            state.stopping.store(true, Ordering::Release);
        } else {
            state.stop();
            // A thread that hangs in a driver is left alone.
            if state.wait_for_end(STOP_TIMEOUT) {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, sync_channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_pause_ends_with_the_owner_and_the_thread_with_it() {
        let (told, hears) = channel();
        let run_thread = RunThread::start("test", move |stop_signal| {
            let _ = told.send(stop_signal.wait(LONG));
        });
        drop(run_thread.unwrap());
        assert!(!hears.recv().unwrap());
        assert!(hears.recv().is_err(), "the thread has ended");
    }

    #[test]
    fn work_is_finished_by_an_owner_that_waits() {
        let (told, hears) = channel();
        let (go, goes) = sync_channel::<()>(0);
        let run_thread = RunThread::start("test", move |stop_signal| {
            let _ = goes.recv();
            assert!(stop_signal.hand_over(|| {
                let _ = told.send(());
            }));
        })
        .unwrap();
        let finishing = thread::spawn(move || run_thread.finish(LONG));
        go.send(()).unwrap();
        finishing.join().unwrap();
        assert!(hears.try_recv().is_ok());
    }

    #[test]
    fn nothing_is_handed_over_once_the_owner_is_gone() {
        let (told, hears) = channel();
        let run_thread = RunThread::start("test", move |stop_signal| {
            stop_signal.wait(LONG);
            let _ = told.send(stop_signal.hand_over(|| unreachable!("the run has ended")));
        });
        run_thread.unwrap().finish(Duration::ZERO);
        assert!(!hears.recv().unwrap());
    }

    #[test]
    fn an_owner_that_its_own_thread_drops_waits_for_nobody() {
        let (give, given) = channel::<RunThread>();
        let (told, hears) = channel();
        let run_thread = RunThread::start("test", move |stop_signal| {
            let owner = given.recv().unwrap();
            assert!(stop_signal.hand_over(|| owner.finish(LONG)));
            let _ = told.send(stop_signal.wait(LONG));
        });
        give.send(run_thread.unwrap()).unwrap();
        assert!(!hears.recv().unwrap());
    }

    #[test]
    fn work_that_panics_has_ended() {
        let run_thread = RunThread::start("test", |_| panic!("as it may"));
        run_thread.unwrap().finish(LONG);
    }
}
