//! Attempts at one destination: repeated for as long as necessary, with one message to the user per outage.

use std::{
    fs,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::sync::watch;

use super::{
    destination::{DestinationState, Traffic},
    notices::Notices,
};
use crate::{
    artifacts::error::ArtifactError,
    net::retry::{Backoff, retry},
    store::error::StoreError,
};

/// Length of an outage after which the user is told.
pub(crate) const QUIET: Duration = Duration::from_secs(2);

/// The process ends before everything is delivered: the remaining records stay in the journal.
#[derive(Debug)]
pub(crate) struct DeadlineReached;

/// An error of the destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl Failure {
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Artifact(error) => error.is_transient(),
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(StoreError::NotFound { .. }))
    }

    /// Returns the time that the destination asks to wait before the next attempt.
    fn retry_after(&self) -> Duration {
        let asked = match self {
            Self::Store(error) => error.retry_after(),
            Self::Artifact(ArtifactError::Server { retry_after, .. }) => *retry_after,
            Self::Artifact(_) => None,
        };
        asked.unwrap_or_default()
    }
}

/// Makes attempts at one destination, and tells the user about outages.
#[derive(Clone, Debug)]
pub(crate) struct Attempts {
    heimdall_dir: PathBuf,
    destination: Arc<DestinationState>,
    notices: Arc<Notices>,
    deadline: watch::Sender<bool>,
    traffic: Traffic,
    /// Longest time that a failing attempt is repeated; `None` repeats it until the deadline.
    limit: Option<Duration>,
}

impl Attempts {
    /// Returns attempts for a destination's records. The attempts last until `deadline` says that the time is over.
    pub(crate) fn new(
        heimdall_dir: PathBuf,
        destination: Arc<DestinationState>,
        notices: Arc<Notices>,
        deadline: watch::Sender<bool>,
    ) -> Self {
        Self {
            heimdall_dir,
            destination,
            notices,
            deadline,
            traffic: Traffic::Records,
            limit: None,
        }
    }

    /// Returns attempts for the artifact store of the same destination.
    pub(crate) fn for_artifacts(&self, limit: Option<Duration>) -> Self {
        Self {
            traffic: Traffic::Artifacts,
            limit,
            ..self.clone()
        }
    }

    /// Returns true where there is no time left for delivery.
    pub(crate) fn is_over(&self) -> bool {
        *self.deadline.borrow()
    }

    /// Waits for `pause`. Returns true as soon as there is no time left for delivery.
    pub(crate) async fn wait_to_close(&self, pause: Duration) -> bool {
        let mut deadline = self.deadline.subscribe();
        tokio::time::timeout(pause, deadline.wait_for(|over| *over))
            .await
            .is_ok()
    }

    /// Repeats an attempt until it succeeds or can never succeed. While it fails, the file `note` has the reason, for
    /// later readers of the journal.
    pub(crate) async fn make<T, F>(
        &self,
        note: Option<&Path>,
        attempt: impl FnMut() -> F,
    ) -> Result<Result<T, Failure>, DeadlineReached>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut trouble = Trouble::default();
        let mut deadline = self.deadline.subscribe();
        let outcome = {
            let over = pin!(deadline.wait_for(|over| *over));
            let pause = |failure: &Failure| self.wait_out(&mut trouble, failure, note);
            match select(pin!(retry(attempt, pause)), over).await {
                Either::Left((outcome, _)) => Some(outcome),
                // An attempt that is cancelled here is made again by the process that delivers the rest.
                Either::Right(_) => None,
            }
        };
        let Some(outcome) = outcome else {
            trouble.note(note);
            return Err(DeadlineReached);
        };
        if outcome.as_ref().is_err_and(Failure::is_transient) {
            trouble.note(note);
            return Err(DeadlineReached);
        }
        self.end(&trouble, note);
        Ok(outcome)
    }

    /// Notes a failed attempt. Returns the pause before the next attempt; `None` where there is no next attempt.
    fn wait_out(
        &self,
        trouble: &mut Trouble,
        failure: &Failure,
        note: Option<&Path>,
    ) -> Option<Duration> {
        if !failure.is_transient() {
            return None;
        }
        let since = *trouble.since.get_or_insert_with(Instant::now);
        trouble.error = failure.to_string();
        let error = trouble.error.clone();
        self.destination.note_outage(self.traffic, error);
        if !trouble.is_noted && since.elapsed() >= QUIET {
            trouble.is_noted = true;
            trouble.note(note);
            // The user is told once per outage, although every attempt notices the outage again.
            if self.destination.tell_outage(self.traffic) {
                self.notices.tell(format!(
                    "tracking is degraded, training is not: {failure}. What is recorded is kept in {} and \
                     delivered as soon as it can be",
                    self.heimdall_dir.display()
                ));
            }
        }
        let is_enough = self.limit.is_some_and(|limit| since.elapsed() >= limit);
        (!is_enough).then(|| trouble.backoff.pause().max(failure.retry_after()))
    }

    /// Ends the outage: the destination has answered.
    fn end(&self, trouble: &Trouble, note: Option<&Path>) {
        if trouble.is_noted
            && let Some(path) = note
        {
            let _ = fs::remove_file(path);
        }
        if self.destination.end_outage(self.traffic) {
            self.notices.tell(format!(
                "tracking works again: {} takes {}",
                self.destination.uri,
                self.traffic.as_str()
            ));
        }
    }
}

/// The failed attempts at one action.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    /// The last error.
    error: String,
    is_noted: bool,
    backoff: Backoff,
}

impl Trouble {
    /// Writes the last error into a file.
    fn note(&self, note: Option<&Path>) {
        if let Some(path) = note.filter(|_| self.since.is_some()) {
            let _ = fs::write(path, &self.error);
        }
    }
}
