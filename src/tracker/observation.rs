//! The start of the observers of a run, and what they record.

use std::sync::{Arc, Weak};

use super::{observers::Observers, open::Tracker, recorder::Recorder, stores::Stores};
use crate::{
    environment::{
        capture::{Capture, CapturedPart},
        git::source_folder,
    },
    error::Result,
    journal::{append::Admission, record::Record},
    mlflow::run::RunId,
    system_metrics::sampler::{self, Sampler},
};

impl Tracker {
    /// Observes a run that starts. If that is not possible, the user is told, and the run starts all the same.
    pub(crate) fn observe_start(&self, run: RunId) -> Observers {
        Observers {
            sampler: self.sample(run, 0),
            capture: self.capture(run),
        }
    }

    /// Observes a run that is resumed; its system metrics continue at `first_step`. Its environment stays as recorded.
    pub(crate) fn observe_resumed(&self, run: RunId, first_step: i64) -> Observers {
        Observers {
            sampler: self.sample(run, first_step),
            capture: None,
        }
    }

    fn sample(&self, run: RunId, first_step: i64) -> Option<Sampler> {
        let mut config = self.stores.config.system_metrics.clone()?;
        config.first_step = first_step;
        let recorder = Arc::downgrade(self.recorder());
        let sampler = Sampler::start(config, move |values, step, timestamp| {
            let metrics = Record::Metrics {
                run,
                step,
                timestamp,
                values,
            };
            // The user's own calls report a journal that accepts nothing.
            let _ = record(&recorder, metrics);
        });
        self.started("system metrics are not sampled", sampler)
    }

    fn capture(&self, run: RunId) -> Option<Capture> {
        let context = &self.stores.context;
        let interpreter = context.interpreter.clone()?;
        let folder = source_folder(&context.source_name);
        let recorder = Arc::downgrade(self.recorder());
        let capture = Capture::start(interpreter, folder, move |found| {
            let _ = match found {
                CapturedPart::Tags(values) => record(&recorder, Record::Tags { run, values }),
                CapturedPart::File { path, content } => match recorder.upgrade() {
                    Some(recorder) => recorder.record_bytes(run, path, &content).map(drop),
                    None => Ok(()),
                },
            };
        });
        self.started("the environment is not recorded", capture)
    }

    fn started<T>(&self, otherwise: &str, observer: std::io::Result<T>) -> Option<T> {
        let tell = |error| self.stores.notices.tell(format!("{otherwise}: {error}"));
        observer.map_err(tell).ok()
    }
}

impl Stores {
    /// Returns the step at which the system metrics of a run continue. Waits on the store, where system metrics are
    /// enabled. Steps begin at 0, as in MLflow, where the store does not answer.
    pub(crate) async fn next_system_step(&self, run_id: &str) -> i64 {
        if self.config.system_metrics.is_none() || !self.store.is_open() {
            return 0;
        }
        let latest = async {
            let store = self.store.tracking().await?;
            store.latest_step(run_id, sampler::PREFIX).await
        };
        let latest = latest.await.ok().flatten();
        latest.map_or(0, |step| step.saturating_add(1))
    }
}

fn record(recorder: &Weak<Recorder>, record: Record) -> Result<()> {
    match recorder.upgrade() {
        Some(recorder) => recorder.record(vec![record], Admission::Bounded).map(drop),
        None => Ok(()),
    }
}
