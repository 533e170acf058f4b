//! Params, metrics, tags and inputs of the active run.

use std::cell::RefCell;

use super::{open::Tracker, session::lock};
use crate::{
    error::{Error, Result},
    journal::{
        append::{Admission, Batch},
        error::JournalError,
        frame::{Draft, MetricsDraft},
        record::Record,
    },
    mlflow::{
        key::Key,
        limits,
        run::{DatasetInput, MetricPoint, RunId},
    },
    os::clock::now_ms,
};

/// Most points, params or tags of one record: far below the length of a frame of the journal.
const METRICS_OF_A_RECORD: usize = 10_000;
const TEXTS_OF_A_RECORD: usize = 500;

thread_local! {
    /// Buffer in which a call makes its frame, so that no call allocates memory for it.
    static DRAFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Tracker {
    /// Logs params of the active run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key that MLflow would refuse, and for a param of this run that
    /// has another value.
    pub fn log_params(&self, params: Vec<(String, String)>) -> Result<()> {
        self.log_batch("log_params", Vec::new(), params, Vec::new())
    }

    /// Logs metrics of the active run, with the present time unless a time is given: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a time before 1970.
    pub fn log_metrics(
        &self,
        values: Vec<(Key, f64)>,
        step: i64,
        timestamp: Option<i64>,
    ) -> Result<()> {
        let run = self.run_to_log_to("log_metrics")?;
        let Some((key, _)) = values.first() else {
            return Ok(());
        };
        let timestamp = match timestamp {
            Some(timestamp) => limits::timestamp(key.as_str(), timestamp)?,
            None => now_ms(),
        };
        self.record(Record::Metrics {
            run,
            step,
            timestamp,
            values,
        })
    }

    /// Logs `count` metrics of the active run, which `fill` pushes, without an allocation: training loops make this
    /// call most often. `fill` must not call the tracker.
    ///
    /// # Errors
    /// The errors of [`Tracker::log_metrics`] and of `fill`; nothing is logged then.
    pub fn log_metrics_from<E: From<Error>>(
        &self,
        count: usize,
        step: i64,
        timestamp: Option<i64>,
        fill: impl FnOnce(&mut MetricsDraft<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let run = self.run_to_log_to("log_metrics")?;
        let at = now_ms();
        let timestamp = match timestamp {
            Some(timestamp) => limits::timestamp("", timestamp).map_err(Error::from)?,
            None => at,
        };
        DRAFT.with_borrow_mut(|buffer| {
            let mut metrics = Draft::new(buffer).metrics(at, run, step, timestamp, count);
            fill(&mut metrics)?;
            let draft = metrics
                .finish()
                .map_err(|reason| Error::from(JournalError::Encode(reason)))?;
            if count > 0
                && let Some(delivery) = &self.session().delivery
            {
                delivery.accept(Batch::Draft(draft), Admission::Bounded)?;
            }
            Ok(())
        })
    }

    /// Sets tags of the active run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key or value that MLflow would refuse.
    pub fn set_tags(&self, tags: Vec<(String, String)>) -> Result<()> {
        self.log_batch("set_tags", Vec::new(), Vec::new(), tags)
    }

    /// Removes a tag of the active run; a missing tag is no error.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key that no tag can have.
    pub fn delete_tag(&self, key: &str) -> Result<()> {
        let run = self.run_to_log_to("delete_tag")?;
        let key = Key::parse("tag key", key)?;
        self.record(Record::TagDeleted { run, key })
    }

    /// Logs points, params and tags of the active run: all of them or, on an error, none. `action` is the name of the
    /// caller's method.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key, time or value that MLflow would refuse, and for a param of
    /// this run that has another value.
    pub fn log_batch(
        &self,
        action: &'static str,
        points: Vec<(Key, MetricPoint)>,
        params: Vec<(String, String)>,
        tags: Vec<(String, String)>,
    ) -> Result<()> {
        self.check_process()?;
        let session = self.session();
        let mut active = lock(&session.active);
        let active = active.last_mut().ok_or(Error::NoActiveRun { action })?;
        let run = active.id;
        for (key, point) in &points {
            limits::timestamp(key.as_str(), point.timestamp)?;
        }
        let params = active.new_params(params)?;
        let tags = limits::tags(tags)?;
        let mut records = metric_records(run, points);
        let texts = params.chunks(TEXTS_OF_A_RECORD);
        records.extend(texts.map(|values| Record::Params {
            run,
            values: values.to_vec(),
        }));
        let texts = tags.chunks(TEXTS_OF_A_RECORD);
        records.extend(texts.map(|values| Record::Tags {
            run,
            values: values.to_vec(),
        }));
        if records.is_empty() {
            return Ok(());
        }
        session.record(records, Admission::Bounded)?;
        active.params.extend(params);
        Ok(())
    }

    /// Logs a dataset as an input of the active run.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a dataset that [`limits::dataset`] refuses.
    pub fn log_input(&self, dataset: DatasetInput) -> Result<()> {
        let run = self.run_to_log_to("log_input")?;
        let dataset = Box::new(limits::dataset(dataset)?);
        self.record(Record::Input { run, dataset })
    }

    /// Returns the active run, in a process that may log to it.
    pub(crate) fn run_to_log_to(&self, action: &'static str) -> Result<RunId> {
        self.check_process()?;
        self.active_run().ok_or(Error::NoActiveRun { action })
    }

    fn record(&self, record: Record) -> Result<()> {
        self.session().record(vec![record], Admission::Bounded)?;
        Ok(())
    }
}

/// Makes records of points. Points with the same time are one record: their order means nothing to a store.
fn metric_records(run: RunId, mut points: Vec<(Key, MetricPoint)>) -> Vec<Record> {
    points.sort_by_key(|(_, point)| (point.step, point.timestamp));
    let moments = points.chunk_by(|(_, a), (_, b)| (a.step, a.timestamp) == (b.step, b.timestamp));
    let chunks = moments.flat_map(|moment| moment.chunks(METRICS_OF_A_RECORD));
    let record = |chunk: &[(Key, MetricPoint)]| Record::Metrics {
        run,
        step: chunk[0].1.step,
        timestamp: chunk[0].1.timestamp,
        values: chunk
            .iter()
            .map(|(key, point)| (key.clone(), point.value))
            .collect(),
    };
    chunks.map(record).collect()
}
