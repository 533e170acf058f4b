//! Waiting for the delivery: goals that a destination reaches.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    destination::{DestinationState, State, Traffic},
    state::DeliveryState,
};
use crate::{
    error::{Error, Result},
    mlflow::run::RunId,
    os::clock::now_ms,
};

/// Entries before the target of a goal that count.
#[derive(Clone, Copy, Debug)]
enum Extent {
    /// All records.
    Records,
    /// All records and all artifacts.
    Artifacts,
    /// All records, but not the ends of other runs, which wait for uploads of these runs.
    Run(RunId),
}

/// Entries that the primary destination must have before a wait ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// Number of the first entry that need not be delivered.
    target: u64,
    extent: Extent,
    /// Number of the adoption request that must be fulfilled.
    adoption_request: u64,
    /// True where a wait ends as well when the user was told that the destination is away.
    ends_when_away: bool,
    begun: Instant,
}

impl Goal {
    /// Returns this goal for a wait that ends as well when the user was told that the destination is away.
    pub(crate) fn while_there(self) -> Self {
        Self {
            ends_when_away: true,
            ..self
        }
    }

    fn is_reached(&self, state: &State) -> bool {
        self.arrived(state) >= self.target
    }

    fn arrived(&self, state: &State) -> u64 {
        match self.extent {
            Extent::Records => state.written.all_before(),
            Extent::Artifacts => state.delivered,
            Extent::Run(run) => state.written.of_run_before(run),
        }
    }
}

impl DeliveryState {
    /// Returns the goal that everything recorded so far is delivered: only records, or artifacts as well. The journals
    /// of dead processes are delivered first.
    pub(crate) fn goal_of(&self, traffic: Traffic) -> Goal {
        let extent = match traffic {
            Traffic::Records => Extent::Records,
            Traffic::Artifacts => Extent::Artifacts,
        };
        Goal {
            extent,
            ..self.goal(self.journal.appended())
        }
    }

    /// Returns the goal that the entries before number `target` are delivered, artifacts as well.
    pub(crate) fn goal(&self, target: u64) -> Goal {
        Goal {
            target,
            extent: Extent::Artifacts,
            adoption_request: self.request_adoption(),
            ends_when_away: false,
            begun: Instant::now(),
        }
    }

    /// Returns a future that ends when the goal is reached. It ends as well when the worker ends.
    pub(crate) fn wait_for(&self, goal: Goal) -> impl Future<Output = ()> + Send + 'static {
        let primary = self.primary().filter(|_| !self.is_offline).cloned();
        let is_over = move |state: &State| {
            let is_there =
                goal.is_reached(state) && state.fulfilled_request >= goal.adoption_request;
            is_there || state.ended || goal.ends_when_away && state.is_away(Traffic::Artifacts)
        };
        async move {
            if let Some(primary) = primary {
                primary.wait_until(is_over).await;
            }
        }
    }

    /// Checks that a goal is reached.
    ///
    /// # Errors
    /// [`Error::Undelivered`] where the goal is not reached.
    pub(crate) fn check(&self, goal: Goal) -> Result<()> {
        let Some(primary) = self.primary() else {
            return Ok(());
        };
        let state = primary.state().clone();
        // There may have been no time to search for journals of dead processes; they have none of these records.
        if goal.is_reached(&state) {
            return Ok(());
        }
        let reason = if self.is_offline {
            "this tracker is offline: `heimdall sync` delivers"
        } else {
            "the store has not answered"
        };
        Err(Error::Undelivered {
            pending: goal.target.saturating_sub(goal.arrived(&state)),
            waited_s: goal.begun.elapsed().as_secs_f64(),
            reason: state.last_error().unwrap_or_else(|| reason.to_owned()),
            journal: self.journal.dir(),
        })
    }

    /// Returns the oldest outage of the primary destination that has lasted for `time`, and its error.
    pub(crate) fn outage_longer_than(&self, time: Duration) -> Option<(Traffic, String)> {
        let state = self.primary()?.state();
        let (since, traffic) = [Traffic::Records, Traffic::Artifacts]
            .into_iter()
            .filter_map(|traffic| Some((state.outage(traffic).since?, traffic)))
            .min_by_key(|(since, _)| *since)?;
        let waited = (now_ms() - since).max(0).unsigned_abs();
        let error = state.outage(traffic).error.clone().unwrap_or_default();
        (u128::from(waited) >= time.as_millis()).then_some((traffic, error))
    }

    /// Returns the goal that everything recorded so far for a run is written, and wakes the workers for it. Uploads of
    /// other runs are not waited for, nor are journals of dead processes looked for.
    pub(crate) fn goal_of_run(&self, run: RunId) -> Goal {
        self.shutdown.wake.notify_waiters();
        Goal {
            target: self.journal.appended(),
            extent: Extent::Run(run),
            adoption_request: 0,
            ends_when_away: false,
            begun: Instant::now(),
        }
    }

    /// Returns true where the primary destination is away and the user was told so: for records or, with
    /// [`Traffic::Artifacts`], for either.
    pub(crate) fn is_away(&self, traffic: Traffic) -> bool {
        let is_away = |primary: &Arc<DestinationState>| primary.state().is_away(traffic);
        self.primary().is_some_and(is_away)
    }
}
