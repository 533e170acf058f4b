//! Params, metrics, tags and inputs of the active run.

use std::cell::RefCell;

use super::{
    lock::lock, open::Tracker, recorder::new_params, runs::refuse_deleted, unrecorded::Unrecorded,
};
use crate::{
    delivery::runtime::KeepWaiting,
    error::{Error, Result},
    journal::{
        append::{Admission, EncodedRecords},
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
    /// Logs metrics of a run, with the present time unless a time is given: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a time before 1970.
    pub fn log_metrics(
        &self,
        run: RunId,
        values: Vec<(Key, f64)>,
        step: i64,
        timestamp: Option<i64>,
    ) -> Result<()> {
        self.check_process()?;
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

    /// Logs `count` metrics of a run, which `fill` pushes, without an allocation: training loops make this
    /// call most often. `fill` must not call the tracker.
    ///
    /// # Errors
    /// The errors of [`Tracker::log_metrics`] and of `fill`; nothing is logged then.
    pub fn log_metrics_from<E: From<Error>>(
        &self,
        run: RunId,
        count: usize,
        step: i64,
        timestamp: Option<i64>,
        fill: impl FnOnce(&mut MetricsDraft<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.check_process()?;
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
                && let Some(delivery) = &self.recorder().delivery
            {
                delivery.accept(EncodedRecords::Draft(draft), Admission::Bounded)?;
            }
            Ok(())
        })
    }

    /// Removes a tag of a run; a missing tag is no error.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that no tag can have.
    pub fn delete_tag(&self, run: RunId, key: &str) -> Result<()> {
        self.check_process()?;
        let key = Key::parse("tag key", key)?;
        self.record(Record::TagDeleted { run, key })
    }

    /// Logs points, params and tags of a run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key, time or value that MLflow would refuse, and for a param of
    /// this run that has another value.
    pub fn log_batch(
        &self,
        run: RunId,
        points: Vec<(Key, MetricPoint)>,
        params: Vec<(String, String)>,
        tags: Vec<(String, String)>,
    ) -> Result<()> {
        self.log_batch_but(run, points, params, tags, |key, _, reason| {
            Err(Error::invalid("param", key.as_str(), reason))
        })
    }

    /// Logs points, params and tags of a run, except params of this run that have another value. Returns those.
    ///
    /// # Errors
    /// The other errors of [`Tracker::log_batch`]: nothing is logged then.
    pub fn log_batch_in_part(
        &self,
        run: RunId,
        points: Vec<(Key, MetricPoint)>,
        params: Vec<(String, String)>,
        tags: Vec<(String, String)>,
    ) -> Result<Vec<Unrecorded>> {
        let mut unrecorded = Vec::new();
        self.log_batch_but(run, points, params, tags, |key, value, reason| {
            unrecorded.push(Unrecorded {
                kind: "param",
                key: key.as_str().to_owned(),
                value,
                step: None,
                reason,
            });
            Ok(())
        })?;
        Ok(unrecorded)
    }

    fn log_batch_but(
        &self,
        run: RunId,
        points: Vec<(Key, MetricPoint)>,
        params: Vec<(String, String)>,
        tags: Vec<(String, String)>,
        refuse: impl FnMut(&Key, String, String) -> Result<()>,
    ) -> Result<()> {
        self.check_process()?;
        let recorder = self.recorder();
        for (key, point) in &points {
            limits::timestamp(key.as_str(), point.timestamp)?;
        }
        let (mut active, mut others) = (lock(&recorder.active), None);
        let logged = match active.get_mut(run) {
            Some(active) => &mut active.params,
            None => {
                let others = others.insert(lock(&recorder.others));
                others.entry(run).or_default()
            }
        };
        let params = new_params(logged, params, refuse)?;
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
        recorder.record(records, Admission::Bounded)?;
        logged.extend(params);
        Ok(())
    }

    /// Logs a dataset as an input of a run.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a dataset that [`limits::dataset`] refuses.
    pub fn log_input(&self, run: RunId, dataset: DatasetInput) -> Result<()> {
        self.check_process()?;
        let dataset = Box::new(limits::dataset(dataset)?);
        self.record(Record::Input { run, dataset })
    }

    /// Finds a run that was not started here, before something is recorded for it. A store that is away is not asked:
    /// the records wait for the run. Waits on the store, once per run.
    ///
    /// # Errors
    /// [`Error::Store`] where there is no such run or it is deleted.
    pub fn find_run_to_log_to(&self, run: RunId, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        let recorder = self.recorder();
        if recorder.knows(run) {
            return Ok(());
        }
        let id = run.to_string();
        let found = self.ask(|stores| async move { stores.run(&id).await }, keep_waiting);
        match found {
            Ok(found) => {
                refuse_deleted(&found)?;
                recorder.remember(run);
                Ok(())
            }
            Err(Error::Store(error)) if !error.is_transient() => Err(error.into()),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(_) => recorder.attach(run),
        }
    }

    fn record(&self, record: Record) -> Result<()> {
        self.recorder().record(vec![record], Admission::Bounded)?;
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
