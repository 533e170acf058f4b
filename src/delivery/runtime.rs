//! The thread behind the journal: one small runtime on which stores are talked to.

use std::{
    future::Future,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
};

use crate::error::{Error, Result};

/// How often a waiting caller looks whether it should go on waiting.
const PATIENCE: Duration = Duration::from_millis(50);

/// Asked while a caller waits; `false` ends the wait with [`Error::Interrupted`].
pub type KeepWaiting<'a> = &'a mut dyn FnMut() -> bool;

/// A runtime on its own thread. The thread ends when the last owner of this is gone and its tasks are not
/// waited for; whoever needs a task's end waits for it.
#[derive(Debug)]
pub struct Background {
    handle: Handle,
    _alive: watch::Sender<()>,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Configuration`] when the system gives no thread.
    pub fn start() -> Result<Self> {
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
                // Fails, and so ends the thread, when the sender is dropped.
                while runtime.block_on(gone.changed()).is_ok() {}
            })
            .map_err(failed)?;
        Ok(Self {
            handle,
            _alive: alive,
        })
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Runs a task and waits for its answer.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when `keep_waiting` says so; the task then goes on alone.
    /// [`Error::WorkerStopped`] when the thread is gone.
    pub fn wait<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        self.handle.spawn(async move {
            let _ = answer.send(task.await);
        });
        loop {
            match answered.recv_timeout(PATIENCE) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::WorkerStopped),
                Err(RecvTimeoutError::Timeout) if keep_waiting() => {}
                Err(RecvTimeoutError::Timeout) => return Err(Error::Interrupted),
            }
        }
    }
}
