//! The tracker of heimdall-tracking.
//!
//! A call on [`Tracker`] is validated, appended to the [`journal`] on local disk and returns. Behind the
//! journal a [`delivery`] worker for each destination writes the records into a [`store`] (an MLflow database or
//! server) and the files into an [`artifacts`] store, and moves its position only after they have committed. A process that dies
//! leaves its journal; the next one delivers it. Questions (`get_run_info`, `get_best_run`) and the model
//! [registry](store::registry) go to the store directly, after everything recorded before them has arrived.
//!
//! ```text
//! call → record (validate) → journal (append) ┆ delivery worker → store / artifacts → position moved
//! ```
//!
//! Beside an active run, where they are asked for, [`system_metrics`] are sampled and its [`environment`] is
//! found, each by a thread that ends with the run.
//!
//! What nobody needs any more is found and deleted by the [`gc`].
//!
//! Everything here is free of Python but the `python` module, which the feature of that name adds.

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
        registry::Registration,
        runs::RankExchange,
        session::{finish, forget_parent, terminate},
        stores::Stores,
    },
};

/// Whatever reads bytes or texts from outside, for the fuzz targets.
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
