//! Every failure that a caller of [`crate::tracker::open::Tracker`] can see: what failed, with which value, and what to do.

use std::path::PathBuf;

use crate::{
    artifacts::error::ArtifactError, journal::error::JournalError, mlflow::invalid::Invalid,
    store::error::StoreError,
};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure a tracker call can report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that breaks a rule of MLflow's, or a setting that cannot work.
    #[error(transparent)]
    Invalid(#[from] Invalid),

    /// Something is recorded while no run is active.
    #[error("no run is active: call start_run() before {action}()")]
    NoActiveRun {
        /// The call that needs a run.
        action: &'static str,
    },

    /// A call needs a run to have ended first.
    #[error("run {active} is still active: call end_run() before {action}")]
    RunActive {
        /// The active run.
        active: String,
        /// The call.
        action: &'static str,
    },

    /// The tracker was made in a parent process.
    #[error(
        "this tracker belongs to process {owner}, this is its fork {current}: create a new MLflowTracker here"
    )]
    Forked {
        /// Process that made the tracker.
        owner: u32,
        /// Process that called it.
        current: u32,
    },

    /// The local file or folder to log is not there.
    #[error("{} is not {expected}: nothing was logged", path.display())]
    NoSuchFile {
        /// The path as it was given.
        path: PathBuf,
        /// `a file` or `a folder`.
        expected: &'static str,
    },

    /// What was recorded could not be delivered in the time allowed.
    #[error("{pending} records are not delivered after {waited_s:.1} s ({reason}); they stay in {} and go out with the next start", journal.display())]
    Undelivered {
        /// Records that wait.
        pending: u64,
        /// Seconds waited.
        waited_s: f64,
        /// Last error of the destination, or that none was seen.
        reason: String,
        /// Where they wait.
        journal: PathBuf,
    },

    /// The store has refused for good what a call had logged.
    #[error("{what} was not taken: {reason}. It is kept among the dead letters of HEIMDALL_DIR")]
    Refused {
        /// What was logged.
        what: String,
        /// What the store says.
        reason: String,
    },

    /// The ranks of a distributed training could not tell each other which run they record into.
    #[error(transparent)]
    Ranks(Box<dyn std::error::Error + Send + Sync>),

    /// The caller stopped waiting (Ctrl-C).
    #[error("interrupted while waiting for the tracking store")]
    Interrupted,

    /// The delivery worker is gone; only an internal failure or an exiting process ends it.
    #[error("the delivery worker of this tracker has stopped; create a new tracker")]
    WorkerStopped,

    /// The tracking store or the model registry refused or could not be reached.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// The artifact store refused or could not be reached.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),

    /// The journal on local disk cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Error {
    /// Returns the error for a value that breaks a rule; the value is shortened for the message.
    pub fn invalid(what: &'static str, value: &str, reason: impl Into<String>) -> Self {
        Invalid::value(what, value, reason).into()
    }

    /// Returns the error for a setting that cannot work; its value is shortened for the message.
    pub fn configuration(what: &'static str, value: &str, reason: impl Into<String>) -> Self {
        Invalid::setting(what, value, reason).into()
    }
}
