//! How one destination is waited for: tried again for as long as it takes, and the user told once.

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
    destination::{Cargo, Shared},
    notices::Notices,
};
use crate::{
    artifacts::error::ArtifactError, net::retry::Backoff, os::clock::now_ms,
    store::error::StoreError,
};

/// A destination that fails for longer than this is worth a word to the user.
pub(crate) const QUIET: Duration = Duration::from_secs(2);

/// The process ends before all is delivered: the rest stays in the journal.
#[derive(Debug)]
pub(crate) struct Closing;

/// What failed at the destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl Failure {
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Artifact(error) => error.is_transient(),
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(StoreError::NotFound { .. }))
    }

    /// How long the destination wants to be left alone.
    fn retry_after(&self) -> Duration {
        let asked = match self {
            Self::Store(error) => error.retry_after(),
            Self::Artifact(ArtifactError::Server { retry_after, .. }) => *retry_after,
            Self::Artifact(_) => None,
        };
        asked.unwrap_or_default()
    }
}

/// What waits for a destination, and tells of it.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    heimdall_dir: PathBuf,
    shared: Arc<Shared>,
    notices: Arc<Notices>,
    deadline: watch::Sender<bool>,
    cargo: Cargo,
    /// How long it waits for what fails; as long as there is time, where it is none.
    limit: Option<Duration>,
}

impl Patience {
    /// Waits until `deadline` says that the time is over.
    pub fn new(
        heimdall_dir: PathBuf,
        shared: Arc<Shared>,
        notices: Arc<Notices>,
        deadline: watch::Sender<bool>,
    ) -> Self {
        Self {
            heimdall_dir,
            shared,
            notices,
            deadline,
            cargo: Cargo::Records,
            limit: None,
        }
    }

    /// The same for what else is brought there.
    pub fn with(&self, cargo: Cargo, limit: Option<Duration>) -> Self {
        Self {
            cargo,
            limit,
            ..self.clone()
        }
    }

    /// Whether there is no time left to deliver in.
    pub fn is_over(&self) -> bool {
        *self.deadline.borrow()
    }

    /// Waits for `pause`; true as soon as there is no time left to deliver in.
    pub async fn wait_to_close(&self, pause: Duration) -> bool {
        let mut deadline = self.deadline.subscribe();
        tokio::time::timeout(pause, deadline.wait_for(|over| *over))
            .await
            .is_ok()
    }

    /// Tries until it succeeds or it is clear that it never will. `note` is the file in which whoever looks at the
    /// journal later finds why its destination takes nothing.
    pub async fn settle<T, F>(
        &self,
        note: Option<&Path>,
        mut attempt: impl FnMut() -> F,
    ) -> Result<Result<T, Failure>, Closing>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut trouble = Trouble::default();
        loop {
            let mut deadline = self.deadline.subscribe();
            let over = pin!(deadline.wait_for(|over| *over));
            let outcome = match select(pin!(attempt()), over).await {
                Either::Left((outcome, _)) => outcome,
                // What is broken off here is done again by whoever delivers the rest.
                Either::Right(_) => return Err(Closing),
            };
            match outcome {
                Err(failure) if failure.is_transient() => {
                    self.wait_out(&mut trouble, &failure, note).await?;
                }
                settled => {
                    self.over(&trouble, note);
                    return Ok(settled);
                }
            }
        }
    }

    async fn wait_out(
        &self,
        trouble: &mut Trouble,
        failure: &Failure,
        note: Option<&Path>,
    ) -> Result<(), Closing> {
        let since = *trouble.since.get_or_insert_with(Instant::now);
        self.shared.update(|state| {
            let outage = state.outage_mut(self.cargo);
            outage.error = Some(failure.to_string());
            outage.since.get_or_insert_with(now_ms);
        });
        if !trouble.told && since.elapsed() >= QUIET {
            trouble.told = true;
            note_trouble(note, Some(failure));
            // Once for an outage, although every attempt at something else finds it anew.
            if self.shared.tell_outage(self.cargo) {
                self.notices.tell(format!(
                    "tracking is degraded, training is not: {failure}. What is recorded is kept in {} and \
                     delivered as soon as it can be",
                    self.heimdall_dir.display()
                ));
            }
        }
        let pause = trouble.backoff.pause().max(failure.retry_after());
        let is_enough = self.limit.is_some_and(|limit| since.elapsed() >= limit);
        if is_enough || self.wait_to_close(pause).await {
            note_trouble(note, Some(failure));
            Err(Closing)
        } else {
            Ok(())
        }
    }

    fn over(&self, trouble: &Trouble, note: Option<&Path>) {
        if trouble.told {
            note_trouble(note, None);
        }
        if trouble.since.is_some() || self.shared.state().outage(self.cargo).since.is_some() {
            self.shared.update(|state| {
                let outage = state.outage_mut(self.cargo);
                outage.error = None;
                outage.since = None;
            });
        }
        if self.shared.outage_over(self.cargo) {
            let what = match self.cargo {
                Cargo::Records => "records",
                Cargo::Artifacts => "artifacts",
            };
            self.notices.tell(format!(
                "tracking works again: {} takes {what}",
                self.shared.uri
            ));
        }
    }
}

fn note_trouble(note: Option<&Path>, why: Option<&Failure>) {
    let Some(path) = note else { return };
    let _ = match why {
        Some(why) => fs::write(path, why.to_string()),
        None => fs::remove_file(path),
    };
}

/// A destination that does not take something.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    told: bool,
    backoff: Backoff,
}
