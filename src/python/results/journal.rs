//! Journals on this disk, and the results of their delivery.

use std::collections::BTreeMap;

use pyo3::prelude::*;

use crate::delivery::sync;

/// A journal on this disk.
#[pyclass(frozen, get_all, module = "heimdall_tracking")]
pub(crate) struct JournalStatus {
    journal: String,
    pid: u32,
    created: i64,
    alive: bool,
    destinations: Vec<WaitingRecords>,
}

impl From<sync::JournalStatus> for JournalStatus {
    fn from(status: sync::JournalStatus) -> Self {
        Self {
            journal: status.dir.display().to_string(),
            pid: status.pid,
            created: status.created,
            alive: status.is_alive,
            destinations: status.destinations.into_iter().map(Into::into).collect(),
        }
    }
}

/// Records of a journal that wait for one destination.
#[pyclass(frozen, get_all, module = "heimdall_tracking")]
#[derive(Clone)]
pub(crate) struct WaitingRecords {
    uri: String,
    pending: u64,
    oldest: Option<i64>,
    trouble: Option<String>,
}

impl From<sync::WaitingRecords> for WaitingRecords {
    fn from(waiting: sync::WaitingRecords) -> Self {
        Self {
            uri: waiting.uri,
            pending: waiting.pending,
            oldest: waiting.oldest,
            trouble: waiting.trouble,
        }
    }
}

/// Results of a delivery of journals.
#[pyclass(frozen, get_all, module = "heimdall_tracking")]
pub(crate) struct SyncOutcome {
    delivered: u64,
    parked: u64,
    left: BTreeMap<String, (u64, String)>,
    notices: Vec<String>,
}

impl From<sync::SyncOutcome> for SyncOutcome {
    fn from(outcome: sync::SyncOutcome) -> Self {
        Self {
            delivered: outcome.delivered,
            parked: outcome.parked,
            left: outcome.left,
            notices: outcome.notices,
        }
    }
}
