//! The delivery thread: one small runtime that runs all communication with stores, and the one place where callers wait
//! for it.

use std::{
    future::Future,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
};

use crate::error::{Error, Result};

/// Time between two checks of a waiting caller whether to continue waiting.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Function that is called while a caller waits; `false` ends the wait with [`Error::Interrupted`].
pub(crate) type KeepWaiting<'a> = &'a mut dyn FnMut() -> bool;

/// A runtime on its own thread. The thread ends when the last owner of this value is gone, and its tasks end with it: a
/// caller that needs the end of a task must wait for it.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    _alive: watch::Sender<()>,
}

impl Runtime {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the system gives no thread.
    pub(crate) fn start() -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::configuration("delivery thread", "heimdall-delivery", error.to_string())
        };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (alive, mut gone) = watch::channel(());
        thread::Builder::new()
            .name("heimdall-delivery".into())
            .spawn(move || {
                // This fails, and so ends the thread, when the sender is dropped.
                while runtime.block_on(gone.changed()).is_ok() {}
            })
            .map_err(failed)?;
        Ok(Self {
            handle,
            _alive: alive,
        })
    }

    /// Starts a task.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Runs a task and waits for its result.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when `keep_waiting` returns false; the task then continues on its own.
    /// [`Error::WorkerStopped`] when the thread is gone.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        self.handle.spawn(async move {
            let _ = answer.send(task.await);
        });
        wait_for_result(&answered, None, keep_waiting)?.ok_or(Error::WorkerStopped)
    }

    /// Runs a task and waits for its result until `deadline`; returns `None` after that. The caller's own clock
    /// decides, even while the delivery thread is busy. A task that nobody waits for any more is dropped.
    ///
    /// # Errors
    /// The errors of [`Runtime::wait`].
    pub(crate) fn wait_until<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        task: impl Future<Output = T> + Send + 'static,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Option<T>> {
        let (answer, answered) = sync_channel(1);
        let task = self.handle.spawn(async move {
            let _ = answer.send(task.await);
        });
        let result = wait_for_result(&answered, deadline, keep_waiting);
        task.abort();
        result
    }
}

/// Waits for a result until `deadline`.
fn wait_for_result<T>(
    answered: &Receiver<T>,
    deadline: Option<Instant>,
    keep_waiting: KeepWaiting<'_>,
) -> Result<Option<T>> {
    loop {
        let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
        let pause = left.map_or(CHECK_INTERVAL, |left| left.min(CHECK_INTERVAL));
        match answered.recv_timeout(pause) {
            Ok(answer) => return Ok(Some(answer)),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::WorkerStopped),
            Err(RecvTimeoutError::Timeout) if left.is_some_and(|left| left.is_zero()) => {
                return Ok(None);
            }
            Err(RecvTimeoutError::Timeout) if keep_waiting() => {}
            Err(RecvTimeoutError::Timeout) => return Err(Error::Interrupted),
        }
    }
}
