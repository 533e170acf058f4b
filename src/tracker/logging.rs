//! Params, metrics, tags and inputs of the active run.

use std::cell::RefCell;

use super::{open::Tracker, session::lock};
use crate::{
    error::{Error, Result},
    journal::{
        error::JournalError,
        frame::{Draft, MetricsDraft},
        record::Record,
    },
    mlflow::{
        key::Key,
        limits::{self, MAX_TAG_VALUE_LENGTH, cut},
        run::{DatasetInput, MetricPoint},
    },
    os::clock::now_ms,
};

/// Points of one record, and params or tags: far below what a frame of the journal takes.
const METRICS_OF_A_RECORD: usize = 10_000;

const TEXTS_OF_A_RECORD: usize = 500;

thread_local! {
    /// Where a call's frame is made, so that making one allocates nothing.
    static DRAFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Tracker {
    /// Logs params of the active run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key MLflow would refuse or a param of this run
    /// that has another value.
    pub fn log_params(&self, params: Vec<(String, String)>) -> Result<()> {
        self.log_batch("log_params", Vec::new(), params, Vec::new())
    }

    /// Logs metrics of the active run, timed now unless a time is given: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a time before 1970.
    pub fn log_metrics(
        &self,
        values: Vec<(Key, f64)>,
        step: i64,
        timestamp: Option<i64>,
    ) -> Result<()> {
        self.check_process()?;
        let run = self.active("log_metrics")?;
        let Some((key, _)) = values.first() else {
            return Ok(());
        };
        let timestamp = match timestamp {
            Some(timestamp) => limits::timestamp(key.as_str(), timestamp)?,
            None => now_ms(),
        };
        self.session.accept(Record::Metrics {
            run,
            step,
            timestamp,
            values,
        })
    }

    /// Logs `count` metrics of the active run, which `fill` pushes, without an allocation: what training loops
    /// call most. `fill` must not come back here.
    ///
    /// # Errors
    /// Those of [`Tracker::log_metrics`] and of `fill`; nothing is logged then.
    pub fn log_metrics_from<E: From<Error>>(
        &self,
        count: usize,
        step: i64,
        timestamp: Option<i64>,
        fill: impl FnOnce(&mut MetricsDraft<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.check_process()?;
        let run = self.active("log_metrics")?;
        let at = now_ms();
        let timestamp = match timestamp {
            Some(timestamp) => limits::timestamp("", timestamp).map_err(Error::from)?,
            None => at,
        };
        DRAFT.with_borrow_mut(|buffer| {
            let mut metrics = Draft::new(buffer).metrics(at, run, step, timestamp, count);
            fill(&mut metrics)?;
            let mut draft = metrics
                .finish()
                .map_err(|reason| Error::from(JournalError::Encode(reason)))?;
            if count > 0
                && let Some(delivery) = &self.session.delivery
            {
                delivery.accept_draft(&mut draft)?;
            }
            Ok(())
        })
    }

    /// Sets tags of the active run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key or value MLflow would refuse.
    pub fn set_tags(&self, tags: Vec<(String, String)>) -> Result<()> {
        self.log_batch("set_tags", Vec::new(), Vec::new(), tags)
    }

    /// Removes a tag of the active run; a tag that is not there is no error.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key that no tag can have.
    pub fn delete_tag(&self, key: &str) -> Result<()> {
        self.check_process()?;
        let run = self.active("delete_tag")?;
        let key = Key::parse("tag key", key)?;
        self.session.accept(Record::TagDeleted { run, key })
    }

    /// Logs points, params and tags of the active run: all of them or, on an error, none. `action` is what the
    /// caller calls it.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key, time or value MLflow would refuse, and a param of
    /// this run that has another value.
    pub fn log_batch(
        &self,
        action: &'static str,
        mut points: Vec<(Key, MetricPoint)>,
        params: Vec<(String, String)>,
        tags: Vec<(String, String)>,
    ) -> Result<()> {
        self.check_process()?;
        let mut active = lock(&self.session.active);
        let active = active.last_mut().ok_or(Error::NoActiveRun { action })?;
        let run = active.id;
        for (key, point) in &points {
            limits::timestamp(key.as_str(), point.timestamp)?;
        }
        let params = active.new_params(params)?;
        let tags = tag_values("tag key", tags)?;
        let mut records = Vec::new();
        // Points of one moment are one record; their order among each other means nothing to a store.
        points.sort_by_key(|(_, point)| (point.step, point.timestamp));
        for moment in
            points.chunk_by(|(_, a), (_, b)| (a.step, a.timestamp) == (b.step, b.timestamp))
        {
            let (step, timestamp) = (moment[0].1.step, moment[0].1.timestamp);
            records.extend(moment.chunks(METRICS_OF_A_RECORD).map(|points| {
                Record::Metrics {
                    run,
                    step,
                    timestamp,
                    values: points
                        .iter()
                        .map(|(key, point)| (key.clone(), point.value))
                        .collect(),
                }
            }));
        }
        records.extend(
            params
                .chunks(TEXTS_OF_A_RECORD)
                .map(|values| Record::Params {
                    run,
                    values: values.to_vec(),
                }),
        );
        records.extend(tags.chunks(TEXTS_OF_A_RECORD).map(|values| Record::Tags {
            run,
            values: values.to_vec(),
        }));
        if records.is_empty() {
            return Ok(());
        }
        self.session.accept_all(records)?;
        active.params.extend(params);
        Ok(())
    }

    /// Logs that the active run was given a dataset.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for what [`record::dataset`] refuses.
    pub fn log_input(&self, dataset: DatasetInput) -> Result<()> {
        self.check_process()?;
        let run = self.active("log_input")?;
        let dataset = Box::new(limits::dataset(dataset)?);
        self.session.accept(Record::Input { run, dataset })
    }
}

pub(crate) fn tag_values(
    what: &'static str,
    tags: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(Key, String)>> {
    tags.into_iter()
        .map(|(key, value)| {
            let value = limits::text("tag", &key, value)?;
            Ok((Key::parse(what, &key)?, cut(value, MAX_TAG_VALUE_LENGTH)))
        })
        .collect()
}
