//! Status of the delivery, for Python.

use pyo3::{exceptions::PyKeyError, prelude::*, types::PyString};

use super::escaped;
use crate::{delivery::destination, os::clock::now_ms, tracker::open::Tracker};

/// Status of the delivery at the time of the call.
#[pyclass(frozen, get_all, module = "heimdall_tracking")]
pub(crate) struct Status {
    mode: &'static str,
    pending: u64,
    parked: u64,
    unrecorded: u64,
    degraded: bool,
    last_error: Option<String>,
    journal: String,
    in_memory: u64,
    oldest: Option<i64>,
    destinations: Vec<DestinationStatus>,
}

/// Status of one destination.
#[pyclass(frozen, get_all, from_py_object, module = "heimdall_tracking")]
#[derive(Clone)]
pub(crate) struct DestinationStatus {
    uri: String,
    pending: u64,
    parked: u64,
    last_error: Option<String>,
    since: Option<i64>,
    oldest: Option<i64>,
    uploading: u64,
    uploaded: u64,
}

impl From<destination::DestinationStatus> for DestinationStatus {
    fn from(status: destination::DestinationStatus) -> Self {
        Self {
            uri: status.uri,
            pending: status.pending,
            parked: status.parked,
            last_error: status.last_error,
            since: status.since,
            oldest: status.oldest,
            uploading: status.uploading,
            uploaded: status.uploaded,
        }
    }
}

impl Status {
    /// Returns the status of a tracker's delivery.
    pub(crate) fn of(tracker: &Tracker) -> Self {
        let Some(status) = tracker.status() else {
            return Self {
                mode: "silent",
                pending: 0,
                parked: 0,
                unrecorded: 0,
                degraded: false,
                last_error: None,
                journal: String::new(),
                in_memory: 0,
                oldest: None,
                destinations: Vec::new(),
            };
        };
        let destinations: Vec<DestinationStatus> =
            status.destinations.into_iter().map(Into::into).collect();
        let primary = destinations.first().cloned();
        let last_error = status
            .journal_error
            .or_else(|| destinations.iter().find_map(|it| it.last_error.clone()));
        Self {
            mode: if status.is_offline {
                "offline"
            } else {
                "online"
            },
            pending: primary.as_ref().map_or(0, |it| it.pending),
            parked: destinations.iter().map(|it| it.parked).sum(),
            unrecorded: tracker.unrecorded(),
            degraded: last_error.is_some(),
            last_error,
            journal: status.journal.display().to_string(),
            in_memory: status.in_memory,
            oldest: primary.and_then(|it| it.oldest),
            destinations,
        }
    }
}

/// Members of a status that are also its items.
const ITEMS: [&str; 10] = [
    "mode",
    "pending",
    "parked",
    "unrecorded",
    "degraded",
    "last_error",
    "journal",
    "in_memory",
    "oldest",
    "destinations",
];

/// Describes the waiting records: "3 records wait, the oldest since 12 s".
fn waiting(pending: u64, oldest: Option<i64>) -> String {
    let records = match pending {
        0 => return "all delivered".to_owned(),
        1 => "1 record waits".to_owned(),
        count => format!("{count} records wait"),
    };
    match oldest {
        Some(at) => format!(
            "{records}, the oldest since {} s",
            (now_ms() - at).max(0) / 1000
        ),
        None => records,
    }
}

/// Formats bytes as mebibytes: "12.3".
fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

#[pymethods]
impl Status {
    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let is_member = ITEMS.contains(&&*key.to_cow()?);
        if is_member {
            slf.getattr(key)
        } else {
            Err(PyKeyError::new_err(key.clone().unbind()))
        }
    }

    fn __repr__(&self) -> String {
        self.text()
    }

    fn _repr_html_(&self) -> String {
        self.html()
    }
}

impl Status {
    fn text(&self) -> String {
        let mut lines = vec![format!(
            "Status({}: {}{})",
            self.mode,
            waiting(self.pending, self.oldest),
            if self.degraded { ", degraded" } else { "" },
        )];
        lines.extend(
            self.destinations
                .iter()
                .map(|it| format!("  {}", it.line())),
        );
        if self.in_memory > 0 {
            lines.push(format!("  {} records are in memory only", self.in_memory));
        }
        if self.unrecorded > 0 {
            lines.push(format!(
                "  {} values could not be recorded",
                self.unrecorded
            ));
        }
        if !self.journal.is_empty() {
            lines.push(format!("  journal {}", self.journal));
        }
        lines.join("\n")
    }

    fn html(&self) -> String {
        let rows: String = self
            .destinations
            .iter()
            .map(|it| {
                format!(
                    "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                    escaped(&it.uri),
                    escaped(&waiting(it.pending, it.oldest)),
                    it.parked,
                    escaped(it.last_error.as_deref().unwrap_or("")),
                )
            })
            .collect();
        format!(
            "<table><caption>{}{}{}, journal {}</caption><tr><th>destination</th><th>pending</th><th>parked</th>\
             <th>error</th></tr>{rows}</table>",
            self.mode,
            if self.degraded { ", degraded" } else { "" },
            match self.unrecorded {
                0 => String::new(),
                count => format!(", {count} values could not be recorded"),
            },
            escaped(&self.journal),
        )
    }
}

impl DestinationStatus {
    fn line(&self) -> String {
        let mut line = format!("{}: {}", self.uri, waiting(self.pending, self.oldest));
        if self.uploading > 0 {
            let (done, all) = (mebibytes(self.uploaded), mebibytes(self.uploading));
            line += &format!(", {done} of {all} MiB are uploaded");
        }
        if self.parked > 0 {
            line += &format!(", {} parked", self.parked);
        }
        if let Some(error) = &self.last_error {
            line += &format!(" ({error})");
        }
        line
    }
}

#[pymethods]
impl DestinationStatus {
    fn __repr__(&self) -> String {
        format!("DestinationStatus({})", self.line())
    }
}
