//! Batches of MLflow's own entities, as its client hands them to a store.
//!
//! Only plain batches are recorded here: those that every release of MLflow accepts without a change. All others are
//! left to MLflow's own checks, so that its errors and its cuts stay its own.

use pyo3::{
    exceptions::PyException,
    intern,
    prelude::*,
    types::{PyFloat, PyInt, PyList, PyString},
};

use super::{calls, errors, runs::run_of, tracker::MLflowTracker, values::NotAppended};
use crate::{
    journal::frame::{Checked, MetricsDraft},
    mlflow::{
        key::{Key, MAX_KEY_LENGTH},
        run::{MetricPoint, RunId},
    },
    tracker::open::Tracker,
};

/// Most entities of a batch in MLflow: of all kinds together, and of params or tags.
const MAX_ENTITIES: usize = 1_000;
const MAX_TEXTS: usize = 100;

/// Longest value of a param or tag that no release of MLflow cuts or refuses, in bytes.
const MAX_PLAIN_TEXT: usize = 500;

/// Lists of metrics, params and tags.
pub(super) type Lists<'a, 'py> = [&'a Bound<'py, PyAny>; 3];

/// A metric of a batch.
struct Point<'py> {
    key: Bound<'py, PyString>,
    value: f64,
    step: i64,
    timestamp: i64,
}

/// A plain batch.
struct Batch<'py> {
    points: Vec<Point<'py>>,
    params: Vec<(String, String)>,
    tags: Vec<(String, String)>,
}

/// Records a plain batch; returns false, and records nothing, where the batch is not plain or cannot be recorded.
pub(super) fn log_plain(
    tracker: &Bound<'_, MLflowTracker>,
    run_id: &str,
    lists: Lists<'_, '_>,
) -> PyResult<bool> {
    let py = tracker.py();
    match Batch::read(lists) {
        Ok(Some(batch)) => match batch.record(tracker, run_id) {
            // Whoever checks the batch finds the error again, and tells it in MLflow's words.
            Err(error) if errors::is_ours(py, &error) => Ok(false),
            recorded => recorded,
        },
        Ok(None) => Ok(false),
        Err(error) if error.is_instance_of::<PyException>(py) => Ok(false),
        Err(error) => Err(error),
    }
}

impl<'py> Batch<'py> {
    /// Returns the batch of some lists; `None` where it is not plain.
    fn read(lists: Lists<'_, 'py>) -> PyResult<Option<Self>> {
        let lists = lists.map(|list| list.cast_exact::<PyList>());
        let [Ok(metrics), Ok(params), Ok(tags)] = lists else {
            return Ok(None);
        };
        let counts = [metrics.len(), params.len(), tags.len()];
        if counts.iter().sum::<usize>() > MAX_ENTITIES || counts[1..].iter().any(|n| *n > MAX_TEXTS)
        {
            return Ok(None);
        }
        let (Some(points), Some(params), Some(tags)) =
            (points(metrics)?, texts(params)?, texts(tags)?)
        else {
            return Ok(None);
        };
        let mut keys: Vec<&str> = params.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        let is_unique = keys.windows(2).all(|pair| pair[0] != pair[1]);
        Ok(is_unique.then_some(Self {
            points,
            params,
            tags,
        }))
    }

    /// Records the batch; returns false where that is not possible at present, such as for want of room.
    fn record(self, tracker: &Bound<'py, MLflowTracker>, run_id: &str) -> PyResult<bool> {
        let run = run_of(tracker, Some(run_id), "log_batch")?;
        let this = tracker.get().of_this_process()?;
        let is_recorded = if self.is_moment() {
            self.append(this, run)
        } else {
            let points = self.points.iter().map(Point::parsed);
            let points = points.collect::<PyResult<_>>()?;
            this.log_batch(run, points, self.params, self.tags).is_ok()
        };
        calls::answer(tracker.py(), this, Ok(is_recorded))
    }

    /// Returns true for metrics of one moment and nothing else.
    fn is_moment(&self) -> bool {
        let moment = |point: &Point<'_>| (point.step, point.timestamp);
        let mut pairs = self.points.windows(2);
        self.params.is_empty()
            && self.tags.is_empty()
            && pairs.all(|pair| moment(&pair[0]) == moment(&pair[1]))
    }

    /// Appends metrics of one moment to the journal directly; returns false where that is not possible at present.
    fn append(&self, tracker: &Tracker, run: RunId) -> bool {
        let Some(first) = self.points.first() else {
            return true;
        };
        let fill = |draft: &mut MetricsDraft<'_>| {
            self.points.iter().try_for_each(|point| {
                let key = point.key.to_str().map_err(|_| NotAppended)?;
                draft.push(Checked::parse("metric key", key)?, point.value);
                Ok::<_, NotAppended>(())
            })
        };
        let (count, time) = (self.points.len(), Some(first.timestamp));
        tracker
            .log_metrics_from(run, count, first.step, time, fill)
            .is_ok()
    }
}

impl Point<'_> {
    fn parsed(&self) -> PyResult<(Key, MetricPoint)> {
        let point = MetricPoint {
            value: self.value,
            step: self.step,
            timestamp: self.timestamp,
        };
        Ok((Key::parse("metric key", self.key.to_str()?)?, point))
    }
}

/// Returns metrics; `None` where one is not plain.
fn points<'py>(metrics: &Bound<'py, PyList>) -> PyResult<Option<Vec<Point<'py>>>> {
    let mut points = Vec::with_capacity(metrics.len());
    for metric in metrics {
        let Some(point) = point(&metric)? else {
            return Ok(None);
        };
        points.push(point);
    }
    Ok(Some(points))
}

fn point<'py>(metric: &Bound<'py, PyAny>) -> PyResult<Option<Point<'py>>> {
    let py = metric.py();
    // Releases before 3 have no logged models.
    let model = metric.getattr_opt(intern!(py, "model_id"))?;
    let key = metric.getattr(intern!(py, "key"))?.cast_into::<PyString>();
    let value = metric.getattr(intern!(py, "value"))?;
    let step = whole(&metric.getattr(intern!(py, "step"))?);
    let timestamp = whole(&metric.getattr(intern!(py, "timestamp"))?);
    let (Ok(key), Some(step), Some(timestamp)) = (key, step, timestamp) else {
        return Ok(None);
    };
    let is_plain = model.is_none_or(|model| model.is_none())
        && timestamp >= 0
        && key.to_str().is_ok_and(is_plain_key);
    let value = value.cast::<PyFloat>().ok().filter(|_| is_plain);
    Ok(value.map(|value| Point {
        value: value.value(),
        key,
        step,
        timestamp,
    }))
}

/// Returns the number that an int is; `None` for other values, and for one that no store has room for.
fn whole(value: &Bound<'_, PyAny>) -> Option<i64> {
    value.cast_exact::<PyInt>().ok()?.extract().ok()
}

/// Returns params or tags; `None` where one is not plain.
fn texts(entities: &Bound<'_, PyList>) -> PyResult<Option<Vec<(String, String)>>> {
    let py = entities.py();
    let mut texts = Vec::with_capacity(entities.len());
    for entity in entities {
        let key = entity.getattr(intern!(py, "key"))?;
        let value = entity.getattr(intern!(py, "value"))?;
        let (Some(key), Some(value)) = (plain(&key), plain(&value)) else {
            return Ok(None);
        };
        if !is_plain_key(&key) {
            return Ok(None);
        }
        texts.push((key, value));
    }
    Ok(Some(texts))
}

/// Returns a text that MLflow neither cuts nor refuses.
fn plain(text: &Bound<'_, PyAny>) -> Option<String> {
    let text = text.cast_exact::<PyString>().ok()?.to_str().ok()?;
    let is_plain = (1..=MAX_PLAIN_TEXT).contains(&text.len()) && !text.contains('\0');
    is_plain.then(|| text.to_owned())
}

/// Returns true for a key that every release of MLflow takes: ASCII letters, digits, `_ - .` and blanks, with single
/// slashes inside and no part that begins with a dot.
fn is_plain_key(text: &str) -> bool {
    let is_part = |part: &str| {
        let mut bytes = part.bytes();
        !part.is_empty()
            && !part.starts_with('.')
            && bytes.all(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b' ')
            })
    };
    text.len() <= MAX_KEY_LENGTH && text.split('/').all(is_part)
}
