//! Attempts to reach one destination: repeated for as long as necessary, with one message to the user per outage.

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
pub(crate) const REPORT_AFTER: Duration = Duration::from_secs(2);

/// The time for attempts is over, and the destination has not answered: at the deadline, when the process ends, or at
/// the retry limit of the attempts. The remaining records stay in the journal.
#[derive(Debug)]
pub(crate) struct DeadlineReached;

/// An error of one attempt at the destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl DeliveryError {
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
    retry_limit: Option<Duration>,
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
            retry_limit: None,
        }
    }

    /// Returns attempts for the artifact store of the same destination.
    pub(crate) fn for_artifacts(&self, retry_limit: Option<Duration>) -> Self {
        Self {
            traffic: Traffic::Artifacts,
            retry_limit,
            ..self.clone()
        }
    }

    /// Returns true where there is no time left for delivery.
    pub(crate) fn is_over(&self) -> bool {
        *self.deadline.borrow()
    }

    /// Waits for `pause`. Returns true as soon as there is no time left for delivery.
    pub(crate) async fn reaches_deadline_within(&self, pause: Duration) -> bool {
        let mut deadline = self.deadline.subscribe();
        tokio::time::timeout(pause, deadline.wait_for(|over| *over))
            .await
            .is_ok()
    }

    /// Repeats an attempt until it succeeds or can never succeed. The inner error is the destination's final refusal;
    /// the outer error means that there was no more time. While the attempt fails, the file `outage_file` has the
    /// reason, for later readers of the journal.
    pub(crate) async fn make<T, F>(
        &self,
        outage_file: Option<&Path>,
        attempt: impl FnMut() -> F,
    ) -> Result<Result<T, DeliveryError>, DeadlineReached>
    where
        F: Future<Output = Result<T, DeliveryError>>,
    {
        let mut failures = FailedAttempts::default();
        let mut deadline = self.deadline.subscribe();
        let outcome = {
            let over = pin!(deadline.wait_for(|over| *over));
            let pause =
                |failure: &DeliveryError| self.note_failure(&mut failures, failure, outage_file);
            match select(pin!(retry(attempt, pause)), over).await {
                Either::Left((outcome, _)) => Some(outcome),
                // An attempt that is cancelled here is made again by the process that delivers the rest.
                Either::Right(_) => None,
            }
        };
        let Some(outcome) = outcome else {
            failures.write_reason(outage_file);
            return Err(DeadlineReached);
        };
        // A transient error ends the attempts only at their retry limit.
        if outcome.as_ref().is_err_and(DeliveryError::is_transient) {
            failures.write_reason(outage_file);
            return Err(DeadlineReached);
        }
        self.end_outage(&failures, outage_file);
        Ok(outcome)
    }

    /// Notes a failed attempt. Returns the pause before the next attempt; `None` where there is no next attempt.
    fn note_failure(
        &self,
        failures: &mut FailedAttempts,
        failure: &DeliveryError,
        outage_file: Option<&Path>,
    ) -> Option<Duration> {
        if !failure.is_transient() {
            return None;
        }
        let since = *failures.since.get_or_insert_with(Instant::now);
        failures.error = failure.to_string();
        let error = failures.error.clone();
        self.destination.note_outage(self.traffic, error);
        if !failures.is_noted && since.elapsed() >= REPORT_AFTER {
            failures.is_noted = true;
            failures.write_reason(outage_file);
            // The user is told once per outage, although every attempt notices the outage again.
            if self.destination.tell_outage(self.traffic) {
                self.notices.tell(format!(
                    "tracking is degraded, training is not: {failure}. What is recorded is kept in {} and \
                     delivered as soon as it can be",
                    self.heimdall_dir.display()
                ));
            }
        }
        let is_enough = self
            .retry_limit
            .is_some_and(|limit| since.elapsed() >= limit);
        (!is_enough).then(|| failures.backoff.pause().max(failure.retry_after()))
    }

    /// Ends the outage: the destination has answered.
    fn end_outage(&self, failures: &FailedAttempts, outage_file: Option<&Path>) {
        if failures.is_noted
            && let Some(path) = outage_file
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

/// The failed attempts since the last answer.
#[derive(Debug, Default)]
struct FailedAttempts {
    /// Time of the first failed attempt.
    since: Option<Instant>,
    /// The last error.
    error: String,
    /// True once the error is in the outage file and the user has been told.
    is_noted: bool,
    backoff: Backoff,
}

impl FailedAttempts {
    /// Writes the last error into a file.
    fn write_reason(&self, outage_file: Option<&Path>) {
        if let Some(path) = outage_file.filter(|_| self.since.is_some()) {
            let _ = fs::write(path, &self.error);
        }
    }
}
