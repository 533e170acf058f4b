//! What is observed beside an active run, where it is asked for: the machine, and what the run was started with.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{open::Tracker, session::Session};
use crate::{
    delivery::runtime::KeepWaiting,
    environment::{
        capture::{self, Capture, Found},
        git::source_folder,
    },
    error::{Error, Result},
    journal::record::Record,
    mlflow::{artifact_path::ArtifactPath, run::RunId},
    store::tracking::TrackingStore,
    system_metrics::sampler::{self, Sampler},
};

/// The observers of one run, which end before its end is recorded.
#[derive(Debug, Default)]
pub(crate) struct Observation {
    sampler: Option<Sampler>,
    capture: Option<Capture>,
}

impl Observation {
    /// Ends them. What the run was started with is waited for, for at most `patience`.
    pub(crate) fn end(self, patience: Duration) {
        drop(self.sampler);
        if let Some(capture) = self.capture {
            capture.finish(patience.min(capture::PATIENCE));
        }
    }
}

impl Tracker {
    /// Observes a run that starts. That this cannot be done is told, and no reason not to start.
    pub(crate) fn observe_start(&self, run: RunId) -> Observation {
        Observation {
            sampler: self.sample(run, 0),
            capture: self.capture(run),
        }
    }

    /// Observes a run that goes on; `first_step` is of its next system metrics. What it was started with stays.
    pub(crate) fn observe_resumed(&self, run: RunId, first_step: i64) -> Observation {
        Observation {
            sampler: self.sample(run, first_step),
            capture: None,
        }
    }

    /// Step of the next system metrics of a run that has some. Waits on the store, where they are on.
    ///
    /// # Errors
    /// [`Error::Interrupted`] alone: where the store does not tell, steps begin at 0, as by MLflow.
    pub(crate) fn next_system_step(
        &self,
        run: RunId,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<i64> {
        if self.settled.system_metrics.is_none() || !self.store.is_open() {
            return Ok(0);
        }
        let (store, run_id) = (Arc::clone(&self.store), run.to_string());
        let latest = async move { store.latest_step(&run_id, sampler::PREFIX).await };
        match self.ask(latest, keep_waiting) {
            Ok(latest) => Ok(latest.map_or(0, |step| step.saturating_add(1))),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(_) => Ok(0),
        }
    }

    fn sample(&self, run: RunId, first_step: i64) -> Option<Sampler> {
        let mut config = self.settled.system_metrics.clone()?;
        config.first_step = first_step;
        let session = Arc::downgrade(&self.session);
        let sampler = Sampler::start(config, move |values, step, timestamp| {
            // What the journal cannot take is told by the calls of the user.
            let _ = accept(
                &session,
                Record::Metrics {
                    run,
                    step,
                    timestamp,
                    values,
                },
            );
        });
        self.started("system metrics are not sampled", sampler)
    }

    fn capture(&self, run: RunId) -> Option<Capture> {
        let interpreter = self.context.interpreter.clone()?;
        let folder = source_folder(&self.context.source_name);
        let session = Arc::downgrade(&self.session);
        let capture = Capture::start(interpreter, folder, move |found| {
            let _ = match found {
                Found::Tags(values) => accept(&session, Record::Tags { run, values }),
                Found::File { path, content } => file(&session, run, path, &content),
            };
        });
        self.started("the environment is not recorded", capture)
    }

    fn started<T>(&self, otherwise: &str, observer: std::io::Result<T>) -> Option<T> {
        observer
            .map_err(|error| self.notices.tell(format!("{otherwise}: {error}")))
            .ok()
    }
}

fn accept(session: &Weak<Session>, record: Record) -> Result<()> {
    match session.upgrade() {
        Some(session) => session.accept(record),
        None => Ok(()),
    }
}

fn file(session: &Weak<Session>, run: RunId, path: ArtifactPath, content: &[u8]) -> Result<()> {
    match session.upgrade() {
        Some(session) => session.accept_bytes(run, path, content),
        None => Ok(()),
    }
}
