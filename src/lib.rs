//! The tracker of heimdall-tracking.
//!
//! A call on [`Tracker`] checks its arguments, appends a record to the [`journal`] on local disk and returns. A
//! [`delivery`] worker for each destination reads the journal. It writes the records into a [`store`] (an MLflow
//! database or server) and the files into an [`artifacts`] store, and saves its position after they are committed. If a
//! process dies, its journal stays, and the next process delivers it. Queries (`get_run_info`, `get_best_run`) and the
//! model [registry](store::registry) go to the store directly, after the earlier records have arrived.
//!
//! ```text
//! call → record (checked) → journal (appended) ┆ delivery worker → store / artifacts → position saved
//! ```
//!
//! Two optional threads observe an active run and end with it: one samples [`system_metrics`], the other records the
//! [`environment`].
//!
//! The module [`gc`] finds and deletes artifacts and runs that nobody needs.
//!
//! Only the module `python` uses Python; the feature of that name adds it.

mod artifacts;
mod config;
mod delivery;
mod environment;
mod error;
mod events;
mod gc;
mod journal;
mod mlflow;
mod net;
mod os;
mod store;
mod system_metrics;
mod tracker;

#[cfg(feature = "python")]
mod python;

pub use crate::{
    config::{
        options::{GivenOptions, Mode, Options, Ranks},
        s3::S3Config,
        tracker::{FreshSchema, TrackerConfig, heimdall_dir},
        uri::{ArtifactUri, Destination},
    },
    delivery::{
        exit::{pending, uploads},
        sync::{
            JournalStatus, SyncConfig, SyncOutcome, SyncProgress, WaitingRecords, dead_letters,
            journals, sync,
        },
    },
    environment::{capture::Interpreter, run_tags::RunContext},
    error::{Error, Result},
    events::{
        Event, Value, are_waiting as events_are_waiting, enable as enable_events,
        take as take_events,
    },
    gc::{
        collect::collect as collect_garbage,
        report::{CollectConfig, GarbageItem, GarbageReport, SparedItem},
        rules::{KeepBest, Retention},
    },
    journal::inspect::inspect,
    mlflow::{
        key::Key,
        model::{Alias, ModelName, Stage, TagValue, parse_description, parse_version},
        run::{NewRun, RunId, RunInfo, RunStatus},
    },
    net::secret::{Secret, without_credentials},
    os::sigterm::watch as watch_sigterm,
    store::{registry::ModelRegistry, tracking::TrackingStore},
    tracker::{
        artifacts::{Keep, Logged},
        open::Tracker,
        queries::Search,
        recorder::{finish, forget_parent, terminate},
        registry::Registration,
        runs::RankExchange,
        stores::Stores,
    },
};

/// Functions that read bytes or texts from outside, for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use crate::{
        journal::segment::{self, HEADER_LEN},
        mlflow::search::runs::{Filter, OrderBy},
    };

    /// Reads any bytes as a segment of the journal: to the end, with progress.
    pub fn read_segment(bytes: &[u8]) {
        let end = bytes.len() as u64;
        let mut offset = HEADER_LEN;
        while offset < end {
            let Ok(chunk) = segment::read(bytes, offset, end) else {
                return;
            };
            assert!(chunk.offset > offset && chunk.offset <= end);
            let mut entries = chunk.entries.iter();
            assert!(entries.all(|(_, _, behind)| *behind <= chunk.offset));
            offset = chunk.offset;
        }
    }

    /// Reads any text as a filter and as an order of a search for runs.
    pub fn read_search(text: &str) {
        let _ = Filter::parse(text);
        let _ = OrderBy::parse_all(&[text.to_owned()]);
    }
}
