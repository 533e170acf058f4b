//! Uploads that wait or are on their way while the records behind them are delivered.
//!
//! They hold up nothing but the end of their run. The position moves behind one when it has landed: what comes
//! after it is written again where the process dies before, which changes nothing.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::FutureExt;
use tokio::task::JoinSet;

use super::{
    destination::Shared,
    outage::{Closing, Failure, Patience},
};
use crate::{
    artifacts::{
        error::ArtifactError,
        store::{ArtifactStore, Upload},
    },
    journal::{reader::Placed, record::Record},
    mlflow::{artifact_path::ArtifactPath, run::RunId},
};

/// Uploads at a time.
const TOGETHER: usize = 16;
/// Bytes that they hold in memory at a time.
const MEMORY: u64 = 40 << 20;
/// What a long upload holds of it: the parts that are on their way.
const OF_ONE: u64 = 32 << 20;
/// Bytes of entries that wait for an upload before them to land. What a dead process leaves of them is written again.
const BEHIND: usize = 16 << 20;

/// An upload that has ended.
#[derive(Debug)]
pub(crate) struct Landed {
    pub placed: Placed,
    pub outcome: Result<Result<(), Failure>, Closing>,
}

/// An upload that is on its way.
#[derive(Debug)]
struct Flight {
    run: RunId,
    path: Option<ArtifactPath>,
    size: u64,
    sent: Arc<AtomicU64>,
}

/// Uploads on their way, and what was delivered behind them.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    tasks: JoinSet<Landed>,
    in_air: BTreeMap<u64, Flight>,
    /// Artifacts that wait for room, or for one before them to the same place.
    queue: VecDeque<Placed>,
    /// Ends of runs, which wait for the artifacts before them.
    ends: VecDeque<Placed>,
    /// What was handed in, from the first that has not arrived.
    behind: VecDeque<Placed>,
    behind_bytes: usize,
}

/// Where a flight takes what it brings.
#[derive(Debug)]
pub(crate) struct Order {
    pub store: Arc<dyn ArtifactStore>,
    /// The journal's copy of the file, if it has one.
    pub staged: Option<PathBuf>,
    /// Nobody else needs that copy.
    pub is_ours: bool,
    /// Where an upload in parts keeps what it has sent.
    pub resume: PathBuf,
    /// File in which trouble is noted.
    pub note: PathBuf,
    /// Folder for what is in memory alone.
    pub heimdall_dir: PathBuf,
}

impl Flights {
    /// Whether nothing waits and all have landed.
    pub fn is_empty(&self) -> bool {
        self.in_air.is_empty() && self.queue.is_empty() && self.ends.is_empty()
    }

    /// Whether artifacts of a run have not arrived, of those before an entry.
    fn has(&self, run: RunId, before: u64) -> bool {
        let mut queued = self.queue.iter().take_while(|it| it.number < before);
        self.in_air.values().any(|flight| flight.run == run)
            || queued.any(|placed| placed.entry.record.run() == run)
    }

    /// Whether a record is not for the tracking store, or not yet.
    pub fn must_wait(&self, record: &Record) -> bool {
        match record {
            Record::RunEnded { run, .. } => self.has(*run, u64::MAX),
            record => record.is_artifact(),
        }
    }

    /// Whether the end of a run waits for its artifacts.
    pub fn is_ending(&self, run: RunId) -> bool {
        self.ends.iter().any(|end| end.entry.record.run() == run)
    }

    /// Whether too much waits for what is on its way.
    pub fn hold_up(&self) -> bool {
        !self.is_empty() && self.behind_bytes >= BEHIND
    }

    /// Adds an artifact, or the end of a run, to what waits for its turn.
    pub fn wait(&mut self, placed: Placed) {
        match placed.entry.record {
            Record::RunEnded { .. } => self.ends.push_back(placed),
            _ => self.queue.push_back(placed),
        }
    }

    /// Takes what has its turn: the end of a run all of whose artifacts have arrived, or an artifact there is room for.
    pub fn take(&mut self) -> Option<Placed> {
        let has_arrived = |end: &Placed| !self.has(end.entry.record.run(), end.number);
        if let Some(place) = self.ends.iter().position(has_arrived) {
            return self.ends.remove(place);
        }
        if self.in_air.len() >= TOGETHER {
            return None;
        }
        // Of two to the same place, the later must arrive later.
        let flights = self.in_air.values();
        let mut taken: HashSet<_> = flights.map(|it| (it.run, it.path.as_ref())).collect();
        let mut places = self.queue.iter().map(|placed| {
            let record = &placed.entry.record;
            (record.run(), record.artifact_path())
        });
        let next = places.position(|place| taken.insert(place))?;
        let weight = |size: u64| size.min(OF_ONE);
        let held: u64 = self.in_air.values().map(|it| weight(it.size)).sum();
        let has_room =
            self.in_air.is_empty() || held + weight(size(&self.queue[next].entry.record)) <= MEMORY;
        if has_room {
            self.queue.remove(next)
        } else {
            None
        }
    }

    /// Starts an upload.
    pub fn start(&mut self, placed: Placed, order: Order, patience: Patience, shared: &Shared) {
        let sent = Arc::new(AtomicU64::new(0));
        let size = size(&placed.entry.record);
        let flight = Flight {
            run: placed.entry.record.run(),
            path: placed.entry.record.artifact_path().cloned(),
            size,
            sent: Arc::clone(&sent),
        };
        self.in_air.insert(placed.number, flight);
        self.tasks.spawn(async move {
            let attempt = || {
                sent.store(0, Ordering::Relaxed);
                put(&placed.entry.record, &order, &sent)
            };
            let work = patience.settle(Some(&order.note), attempt);
            // A bug in one upload must not take the others with it.
            let outcome = AssertUnwindSafe(work).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| {
                Ok(Err(Failure::Artifact(ArtifactError::Io {
                    artifact: placed.entry.record.summary(),
                    target: order.resume.clone(),
                    source: io::Error::other("the upload panicked"),
                })))
            });
            Landed { placed, outcome }
        });
        self.show(shared);
    }

    /// Waits for the next to land; `None` where none is on its way.
    pub async fn next(&mut self, shared: &Shared) -> Option<Landed> {
        let landed = self.tasks.join_next().await?.ok()?;
        self.in_air.remove(&landed.placed.number);
        self.show(shared);
        Some(landed)
    }

    /// Adds entries that are delivered, on their way or waiting.
    pub fn follow(&mut self, entries: Vec<Placed>) {
        self.behind_bytes += entries.iter().map(held).sum::<usize>();
        self.behind.extend(entries);
    }

    /// Takes the entries that nothing before them has not arrived of.
    pub fn settled(&mut self) -> Vec<Placed> {
        let numbers = [
            self.in_air.keys().next().copied(),
            self.queue.front().map(|placed| placed.number),
            self.ends.front().map(|placed| placed.number),
        ];
        let until = numbers.into_iter().flatten().min().unwrap_or(u64::MAX);
        let settled = self.behind.partition_point(|placed| placed.number < until);
        let settled: Vec<_> = self.behind.drain(..settled).collect();
        self.behind_bytes -= settled.iter().map(held).sum::<usize>();
        settled
    }

    /// Number of entries before `end` and before the first end of a run that waits.
    pub fn written(&self, end: u64) -> u64 {
        let waiting = self.ends.front().map_or(u64::MAX, |placed| placed.number);
        waiting.min(end)
    }

    fn show(&self, shared: &Shared) {
        let flights = self.in_air.values();
        let shown = flights.map(|flight| (flight.size, Arc::clone(&flight.sent)));
        let shown: Vec<_> = shown.collect();
        shared.update(|state| state.uploads = shown);
    }
}

/// Bytes that an entry takes, about.
fn held(placed: &Placed) -> usize {
    let content = match &placed.entry.record {
        Record::ArtifactInline { content, .. } => content.len(),
        _ => 0,
    };
    size_of::<Placed>() + content
}

fn size(record: &Record) -> u64 {
    match record {
        Record::Artifact { size, .. } => *size,
        Record::ArtifactInline { content, .. } => content.len() as u64,
        Record::ArtifactInPlace { source, .. } => {
            fs::metadata(source).map_or(0, |metadata| metadata.len())
        }
        _ => 0,
    }
}

async fn put(record: &Record, order: &Order, sent: &AtomicU64) -> Result<(), Failure> {
    let upload = |file, size, path, is_ours, resume| Upload {
        file,
        size,
        path,
        is_ours,
        resume,
        sent,
    };
    let resume = Some(order.resume.as_path());
    match record {
        Record::Artifact { path, size, .. } => {
            let file = order.staged.as_deref().unwrap_or(Path::new(""));
            let upload = upload(file, *size, path, order.is_ours, resume);
            order.store.put(upload).await?;
        }
        Record::ArtifactInPlace { source, path, .. } => {
            let file = Path::new(source);
            let metadata = fs::metadata(file).map_err(|_| lost(file, path))?;
            let upload = upload(file, metadata.len(), path, false, resume);
            order.store.put(upload).await?;
        }
        Record::ArtifactInline { content, path, .. } => {
            let name = format!(".inline-{:016x}", rand::random::<u64>());
            // The journal's own disk may be the full one.
            let places = [order.heimdall_dir.clone(), std::env::temp_dir()];
            let file = places
                .iter()
                .map(|place| place.join(&name))
                .find(|file| write_private(file, content).is_ok());
            let Some(file) = file else {
                return Err(Failure::Artifact(ArtifactError::Io {
                    artifact: path.as_str().to_owned(),
                    target: places[1].join(&name),
                    source: io::ErrorKind::StorageFull.into(),
                }));
            };
            // Also where this is broken off.
            let _gone = Temporary(&file);
            let upload = upload(&file, content.len() as u64, path, false, None);
            order.store.put(upload).await?;
        }
        _ => {}
    }
    Ok(())
}

/// A file that goes with this.
struct Temporary<'a>(&'a Path);

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

fn lost(file: &Path, path: &ArtifactPath) -> ArtifactError {
    ArtifactError::StagedLost {
        staged: file.to_owned(),
        artifact: path.as_str().to_owned(),
    }
}

/// Writes a file that nobody else may read.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}
