//! A call of the user: the place it comes from, and how long it waits.

use crate::{delivery::runtime::KeepWaiting, mlflow::run::RunId};

/// The place that a call comes from: a thread or an asyncio task.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Runs that this place has started, and those that it has from the place that started it. The innermost is last.
    pub runs: Vec<RunId>,
}

/// A call that may wait on the journal and on the stores.
pub struct Call<'a> {
    /// Place that the call comes from.
    pub caller: Caller,
    /// Function that is called while the call waits; `false` ends the wait with
    /// [`Error::Interrupted`](crate::error::Error::Interrupted).
    pub keep_waiting: KeepWaiting<'a>,
}
