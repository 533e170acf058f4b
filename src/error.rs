//! Every failure that a caller of [`crate::tracker::open::Tracker`] can see: the failed action, the value, and the
//! remedy.

use std::path::PathBuf;

use crate::{
    artifacts::error::ArtifactError, journal::error::JournalError, mlflow::invalid::Invalid,
    store::error::StoreError,
};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a tracker call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value breaks a rule of MLflow, or a setting cannot work.
    #[error(transparent)]
    Invalid(#[from] Invalid),

    /// A call records something while no run is active.
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

    /// The local file or folder to log does not exist.
    #[error("{} is not {expected}: nothing was logged", path.display())]
    NoSuchFile {
        /// The path as it was given.
        path: PathBuf,
        /// `a file` or `a folder`.
        expected: &'static str,
    },

    /// There is nothing at the place that a version was to be registered of.
    #[error(
        "there are no files of {uri} in {location}: nothing was registered. Log the model there first, or correct the path"
    )]
    NoModelFiles {
        /// URI of the model, without credentials.
        uri: String,
        /// Location that the URI leads to, without credentials.
        location: String,
    },

    /// Records could not be delivered within the allowed time.
    #[error("{pending} records are not delivered after {waited_s:.1} s ({reason}); they stay in {} and go out with the next start", journal.display())]
    Undelivered {
        /// Number of records that wait.
        pending: u64,
        /// Seconds waited.
        waited_s: f64,
        /// Last error of the destination, or a note that there was none.
        reason: String,
        /// Folder of the journal in which the records wait.
        journal: PathBuf,
    },

    /// The store has finally refused something that a call had logged.
    #[error("{what} was not taken: {reason}. It is kept among the dead letters of HEIMDALL_DIR")]
    Refused {
        /// Description of the logged item.
        what: String,
        /// The store's answer.
        reason: String,
    },

    /// The ranks of a distributed training could not agree on the run that they record into.
    #[error(transparent)]
    Ranks(Box<dyn std::error::Error + Send + Sync>),

    /// The caller stopped waiting (Ctrl-C).
    #[error("interrupted while waiting for the tracking store")]
    Interrupted,

    /// The delivery worker has ended; only an internal failure or an exiting process ends it.
    #[error("the delivery worker of this tracker has stopped; create a new tracker")]
    WorkerStopped,

    /// The tracking store or the model registry refused the request or could not be reached.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// The artifact store refused the request or could not be reached.
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
