//! The entries of one call that records: each is read by itself. One that cannot be recorded is noted or, in a strict
//! tracker, raises before anything is recorded.

use std::collections::{HashMap, HashSet};

use pyo3::{
    exceptions::PyException,
    prelude::*,
    types::{PyDict, PyString},
};

use super::{
    calls::{self, Calls},
    errors::{self, is_ours},
    numbers,
    tracker::MLflowTracker,
    values,
};
use crate::{
    mlflow::{
        key::Key,
        limits,
        run::{MetricPoint, RunId},
    },
    os::clock,
    tracker::{open::Tracker, unrecorded::Unrecorded},
};

/// Module that finds the data in objects of other libraries.
const DATA: &str = "heimdall_tracking._data";

type Pair<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// An entry of a call, for the message about it.
struct Entry<'a, 'py> {
    kind: &'static str,
    key: &'a str,
    value: &'a Bound<'py, PyAny>,
    step: Option<&'a Bound<'py, PyAny>>,
}

/// The entries of a call that can be recorded, and those that cannot.
pub(crate) struct Entries<'a, 'py> {
    py: Python<'py>,
    tracker: &'a Tracker,
    is_strict: bool,
    points: Vec<(Key, MetricPoint)>,
    params: Vec<(String, String)>,
    tags: Vec<(String, String)>,
    refused: Vec<Unrecorded>,
}

impl<'a, 'py> Entries<'a, 'py> {
    /// Returns no entries, for a call of a tracker.
    pub(crate) fn of(tracker: &'a Bound<'py, MLflowTracker>) -> PyResult<Self> {
        Ok(Self {
            py: tracker.py(),
            tracker: tracker.get().of_this_process()?,
            is_strict: tracker.get().is_strict,
            points: Vec::new(),
            params: Vec::new(),
            tags: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// Adds metrics of one moment, by their keys.
    pub(crate) fn add_metrics(
        &mut self,
        metrics: &Bound<'py, PyAny>,
        step: Option<&Bound<'py, PyAny>>,
        timestamp: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let Some(pairs) = self.pairs("metric", metrics)? else {
            return Ok(());
        };
        let none = self.py.None().into_bound(self.py);
        let moment = [step.unwrap_or(&none), timestamp.unwrap_or(&none)];
        let points = pairs.into_iter().map(|(key, value)| {
            let [step, timestamp] = moment;
            [key, value, step.clone(), timestamp.clone()]
        });
        self.add_parts(points.collect())
    }

    /// Adds points: tuples (key, value, step, timestamp), objects such as MLflow's own `Metric`, or values by key.
    pub(crate) fn add_points(&mut self, given: &Bound<'py, PyAny>) -> PyResult<()> {
        if given.cast::<PyDict>().is_ok() {
            return self.add_metrics(given, None, None);
        }
        let items = given
            .try_iter()
            .map_err(|_| values::wrong_type("metrics", "", "tuples or objects", given));
        let Some(items) = self.take_whole("metric", given, items)? else {
            return Ok(());
        };
        let mut points = Vec::new();
        for item in items {
            let parts = item.and_then(|item| {
                let parts = values::parts_of_point(&item);
                self.take_whole("metric", &item, parts)
            });
            match self.take_whole("metric", given, parts)? {
                Some(Some(parts)) => points.push(parts),
                Some(None) => {}
                None => break,
            }
        }
        self.add_parts(points)
    }

    fn add_parts(&mut self, given: Vec<[Bound<'py, PyAny>; 4]>) -> PyResult<()> {
        let now = clock::now_ms();
        let mut points = Vec::with_capacity(given.len());
        for [key, value, step, timestamp] in given {
            let Some(key) = self.key("metric", &key, &value)? else {
                continue;
            };
            let point = self.point(&key, &value, (&step, &timestamp), now);
            let entry = Entry {
                kind: "metric",
                key: &key,
                value: &value,
                step: Some(&step),
            };
            if let Some(point) = self.take(&entry, point)? {
                points.push((key, point));
            }
        }
        let points = self.spelt("metric", points)?;
        self.points.extend(points);
        Ok(())
    }

    fn point(
        &self,
        key: &str,
        value: &Bound<'py, PyAny>,
        (step, timestamp): (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
        now: i64,
    ) -> PyResult<MetricPoint> {
        if self.is_strict {
            Key::check("metric key", key)?;
        }
        let value = numbers::number(key, value, self.is_strict)?;
        let (mut at, mut time) = (0, now);
        if !step.is_none() {
            let read = numbers::whole("step of metric", key, step, self.is_strict)?;
            at = read.number;
            if read.is_cut {
                self.tracker.tell_once("step", key, || {
                    format!(
                        "the step of metric {key:?} is no whole number: what follows the point is left out. This is \
                         told once per key"
                    )
                });
            }
        }
        if !timestamp.is_none() {
            time = numbers::whole("timestamp of metric", key, timestamp, self.is_strict)?.number;
        }
        Ok(MetricPoint {
            value,
            step: at,
            timestamp: limits::timestamp(key, time)?,
        })
    }

    /// Adds params: a mapping, an object that holds data, or objects such as MLflow's own `Param`.
    pub(crate) fn add_params(&mut self, given: &Bound<'py, PyAny>) -> PyResult<()> {
        let params = self.texts("param", given)?;
        self.params.extend(params);
        Ok(())
    }

    /// Adds tags, given as params are.
    pub(crate) fn add_tags(&mut self, given: &Bound<'py, PyAny>) -> PyResult<()> {
        let tags = self.texts("tag", given)?;
        self.tags.extend(tags);
        Ok(())
    }

    fn texts(
        &mut self,
        kind: &'static str,
        given: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<(String, String)>> {
        let mut texts = Vec::new();
        for (key, value) in self.pairs(kind, given)?.unwrap_or_default() {
            let Some(key) = self.key(kind, &key, &value)? else {
                continue;
            };
            let text = self.text(kind, &key, &value);
            let entry = Entry {
                kind,
                key: &key,
                value: &value,
                step: None,
            };
            if let Some(text) = self.take(&entry, text)? {
                texts.push((key, text));
            }
        }
        let texts = self.spelt(kind, texts)?.into_iter();
        Ok(texts
            .map(|(key, text)| (key.as_str().to_owned(), text))
            .collect())
    }

    fn text(&self, kind: &'static str, key: &str, value: &Bound<'py, PyAny>) -> PyResult<String> {
        if self.is_strict {
            let what = if kind == "tag" {
                "tag key"
            } else {
                "param key"
            };
            Key::check(what, key)?;
        }
        let text = if kind == "param" {
            values::param_text(key, value)?
        } else {
            values::text(kind, key, value)?
        };
        Ok(limits::text(kind, key, text)?)
    }

    /// Returns keys and values of a mapping, of an object that holds data, or of objects with `key` and `value`.
    fn pairs(
        &mut self,
        kind: &'static str,
        given: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Vec<Pair<'py>>>> {
        let pairs = || {
            if let Ok(dict) = given.cast::<PyDict>() {
                // Another thread may change the dict while code of a value runs.
                return dict.items().extract();
            }
            let data = self.py.import(DATA)?;
            data.call_method1("pairs", (given,))?.extract()
        };
        let pairs = pairs();
        self.take_whole(kind, given, pairs)
    }

    fn key(
        &mut self,
        kind: &'static str,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
    ) -> PyResult<Option<String>> {
        if self.is_strict {
            return Ok(Some(values::key_text(kind, key)?.into_owned()));
        }
        let text = match key.cast::<PyString>() {
            Ok(text) => in_utf8(text),
            Err(_) => key.str().and_then(|text| in_utf8(&text)),
        };
        let entry = Entry {
            kind,
            key: "a key without a text",
            value,
            step: None,
        };
        self.take(&entry, text)
    }

    /// Returns entries under keys that MLflow takes.
    fn spelt<T>(&self, kind: &'static str, entries: Vec<(String, T)>) -> PyResult<Vec<(Key, T)>> {
        let valid: HashSet<Key> = if entries.iter().all(|(key, _)| Key::check(kind, key).is_ok()) {
            HashSet::new()
        } else {
            let keys = entries.iter().map(|(key, _)| Key::parse(kind, key).ok());
            keys.flatten().collect()
        };
        let mut taken: HashMap<Key, String> = HashMap::new();
        let mut spelt = Vec::with_capacity(entries.len());
        for (given, entry) in entries {
            if let Ok(key) = Key::parse(kind, &given) {
                spelt.push((key, entry));
                continue;
            }
            let key = self.tracker.key_for(kind, &given, |key| {
                valid.contains(key) || taken.get(key).is_some_and(|other| *other != given)
            })?;
            taken.insert(key.clone(), given);
            spelt.push((key, entry));
        }
        Ok(spelt)
    }

    /// Returns what was read; notes an entry that could not be read, or raises in a strict tracker.
    fn take<T>(&mut self, entry: &Entry<'_, 'py>, read: PyResult<T>) -> PyResult<Option<T>> {
        let error = match read {
            Ok(read) => return Ok(Some(read)),
            // Ctrl-C and the end of the process are no data.
            Err(error) if !error.is_instance_of::<PyException>(self.py) => return Err(error),
            Err(error) => error,
        };
        if self.is_strict {
            return Err(errors::typed(self.py, entry.kind, entry.key, error));
        }
        let step = entry.step.filter(|step| !step.is_none());
        self.refused.push(Unrecorded {
            kind: entry.kind,
            key: entry.key.to_owned(),
            value: shown(entry.value),
            step: step.map(shown),
            reason: reason(self.py, &error),
        });
        Ok(None)
    }

    /// Returns what was read of the whole argument, as [`Self::take`] does.
    fn take_whole<T>(
        &mut self,
        kind: &'static str,
        given: &Bound<'py, PyAny>,
        read: PyResult<T>,
    ) -> PyResult<Option<T>> {
        let name = given.get_type().name()?.to_string();
        let entry = Entry {
            kind,
            key: &name,
            value: given,
            step: None,
        };
        self.take(&entry, read)
    }

    /// Returns the tags, and what could not be recorded.
    pub(crate) fn into_tags(self) -> (Vec<(String, String)>, Vec<Unrecorded>) {
        (self.tags, self.refused)
    }

    /// Records the entries for a run, and notes those that could not be recorded.
    pub(crate) fn record(self, tracker: &Bound<'_, MLflowTracker>, run: RunId) -> PyResult<()> {
        let Self {
            points,
            params,
            tags,
            mut refused,
            ..
        } = self;
        let logged = || (points.clone(), params.clone(), tags.clone());
        if self.is_strict {
            return tracker.record(|it| {
                let (points, params, tags) = logged();
                it.log_batch(run, points, params, tags)
            });
        }
        refused.extend(tracker.record(|it| {
            let (points, params, tags) = logged();
            it.log_batch_in_part(run, points, params, tags)
        })?);
        self.tracker.note_unrecorded(Some(run), refused);
        calls::answer(self.py, self.tracker, Ok(()))
    }
}

/// Returns a text in which a lone surrogate is a question mark.
fn in_utf8(text: &Bound<'_, PyString>) -> PyResult<String> {
    if let Ok(text) = text.to_cow() {
        return Ok(text.into_owned());
    }
    let bytes = text.call_method1("encode", ("utf-8", "replace"))?;
    Ok(String::from_utf8_lossy(&bytes.extract::<Vec<u8>>()?).into_owned())
}

/// Returns a value as a text, whatever its `repr` does.
fn shown(value: &Bound<'_, PyAny>) -> String {
    let text = match value.cast::<PyString>() {
        Ok(text) => Ok(text.clone()),
        Err(_) => value.repr(),
    };
    match text {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => "a value that cannot be shown".to_owned(),
    }
}

/// Returns the cause of an error, in one line.
fn reason(py: Python<'_>, error: &PyErr) -> String {
    let text = error.value(py).str();
    let text = text.map(|text| text.to_string_lossy().into_owned());
    let text = text.unwrap_or_default();
    if is_ours(py, error) {
        return text;
    }
    let name = error.get_type(py).name();
    let name = name.map(|name| name.to_string()).unwrap_or_default();
    format!("{name}: {text}")
}
