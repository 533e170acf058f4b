//! `heimdall sync`: delivers the journals that dead processes have left, for any destinations.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    abandoned::NotDelivered,
    destination::{DestinationState, EndGuard},
    notices::Notices,
    runtime::Runtime,
    sender::Sender,
};
use crate::{
    artifacts::open::Access,
    config::{tracker::FreshSchema, uri::Destination},
    error::{Error, Result},
    journal::{
        abandoned::{self, AbandonedJournal},
        layout, reader,
        record::Entry,
    },
    store::deferred::DeferredStore,
};

/// A journal on this disk, with the number of its waiting records.
#[derive(Clone, Debug)]
pub struct JournalStatus {
    /// Folder of the journal.
    pub dir: PathBuf,
    /// Process that wrote or writes the journal.
    pub pid: u32,
    /// Time at which the journal was begun, milliseconds since 1970.
    pub created: i64,
    /// True where that process is alive, and so delivers the journal itself.
    pub is_alive: bool,
    /// The destinations of the journal.
    pub destinations: Vec<WaitingRecords>,
}

/// The records of a journal that wait for one destination.
#[derive(Clone, Debug)]
pub struct WaitingRecords {
    /// URI of the destination, without credentials.
    pub uri: String,
    /// Number of records that wait.
    pub pending: u64,
    /// Time at which the oldest waiting record was logged, milliseconds since 1970.
    pub oldest: Option<i64>,
    /// Last error of the destination, if one was noted.
    pub trouble: Option<String>,
}

/// Returns the journals below `heimdall_dir`, oldest first. Reads all of them; waits on the disk.
pub fn journals(heimdall_dir: &Path) -> Vec<JournalStatus> {
    layout::folders(heimdall_dir)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|dir| {
            let manifest = layout::manifest(&dir)?;
            let uris = manifest.destinations.iter().enumerate();
            let destinations = uris.map(|(index, uri)| {
                let (pending, oldest) = pending(&dir, index);
                WaitingRecords {
                    uri: uri.clone(),
                    pending,
                    oldest,
                    trouble: reader::outage_reason(&dir, index),
                }
            });
            Some(JournalStatus {
                destinations: destinations.collect(),
                is_alive: abandoned::is_alive(&dir),
                pid: manifest.pid,
                created: manifest.created,
                dir,
            })
        })
        .collect()
}

/// Counts the records of the journal in `dir` that wait for a destination, and finds the time of the oldest record.
fn pending(dir: &Path, destination: usize) -> (u64, Option<i64>) {
    let (mut count, mut oldest) = (0, None);
    let mut see = |entry: &Entry| {
        count += 1;
        oldest.get_or_insert(entry.at);
    };
    // The delivery reports unreadable parts.
    let _ = reader::peek(dir, destination, |batch| {
        batch.entries.iter().for_each(|placed| see(&placed.entry));
    });
    (count, oldest)
}

/// Returns the files of dead letters below `heimdall_dir`, and the number of records in each.
pub fn dead_letters(heimdall_dir: &Path) -> Vec<(PathBuf, usize)> {
    let files = std::fs::read_dir(heimdall_dir.join("dead_letter"));
    let mut found: Vec<(PathBuf, usize)> = files
        .into_iter()
        .flatten()
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
        .map(|path| {
            let lines = std::fs::read_to_string(&path).map_or(0, |text| text.lines().count());
            (path, lines)
        })
        .collect();
    found.sort();
    found
}

/// The journals and destinations of a [`sync`].
#[derive(Clone, Debug)]
pub struct SyncConfig {
    /// Folder of the journals.
    pub heimdall_dir: PathBuf,
    /// Destinations with their credentials, for journals that name these destinations without credentials.
    pub known: Vec<Destination>,
    /// Destination of everything, instead of the destinations that the journals name.
    pub instead: Option<Destination>,
    /// Schema of a database that does not exist yet.
    pub fresh_schema: FreshSchema,
    /// Longest time for the work; `None` sets no limit.
    pub timeout: Option<Duration>,
}

/// The outcome of a [`sync`].
#[derive(Clone, Debug, Default)]
pub struct SyncOutcome {
    /// Records that were delivered.
    pub delivered: u64,
    /// Records that were finally refused and parked as dead letters.
    pub parked: u64,
    /// Number of records that are left, and the reason, by destination.
    pub left: BTreeMap<String, (u64, String)>,
    /// Further messages for the user.
    pub notices: Vec<String>,
}

/// The progress of a [`sync`].
#[derive(Clone, Copy, Debug)]
pub struct SyncProgress {
    /// Number of delivered records.
    pub delivered: u64,
    /// Number of records at the start.
    pub total: u64,
    /// Bytes of the files that are being sent.
    pub uploading: u64,
    /// Bytes of these files that are sent.
    pub uploaded: u64,
}

/// The work for one destination.
struct SyncTask {
    uris: Vec<String>,
    destination: Arc<DestinationState>,
    recovered: Arc<AtomicU64>,
}

/// Delivers the journals of dead processes. Calls `progress` meanwhile; if it returns false, the work ends.
///
/// # Errors
/// [`Error::Invalid`] for a destination that is not a URI; [`Error::Interrupted`] where `progress` returned false.
pub fn sync(
    config: &SyncConfig,
    progress: &mut dyn FnMut(SyncProgress) -> bool,
) -> Result<SyncOutcome> {
    let runtime = Runtime::start()?;
    let notices = Arc::new(Notices::default());
    let journals = Arc::new(abandoned::lock_all(&config.heimdall_dir, |_| true));
    let total = journals.iter().map(waiting).sum();
    let deadline = watch::Sender::new(false);
    let mut tasks = Vec::new();
    for uris in routes(config, &journals) {
        let task = start(config, uris, &journals, &notices, &deadline, &runtime)?;
        tasks.push(task);
    }
    let waited = wait(config, &tasks, &deadline, &runtime, progress, total);
    deadline.send_replace(true);
    for task in &tasks {
        let _ = runtime.wait(ended(&task.destination), &mut || true);
    }
    let mut outcome = left(&journals, &tasks);
    outcome.notices = notices.take();
    waited.map(|()| outcome)
}

/// Returns the number of waiting records of a journal, for all of its destinations together.
fn waiting(journal: &AbandonedJournal) -> u64 {
    let destinations = 0..journal.manifest.destinations.len();
    destinations
        .map(|index| pending(&journal.dir, index).0)
        .sum()
}

/// Groups the destinations of journals by the sender that delivers to them. The senders work concurrently, because a
/// destination that is down delays only its own. One sender delivers everything for one place: two senders would create
/// a run at a server twice.
fn routes(config: &SyncConfig, journals: &[AbandonedJournal]) -> Vec<Vec<String>> {
    let uris = journals.iter().flat_map(|it| &it.manifest.destinations);
    let mut uris: Vec<String> = uris.cloned().collect();
    uris.sort();
    uris.dedup();
    match &config.instead {
        Some(_) if uris.is_empty() => Vec::new(),
        Some(_) => vec![uris],
        None => uris.into_iter().map(|uri| vec![uri]).collect(),
    }
}

/// Starts a sender for some destinations.
fn start(
    config: &SyncConfig,
    uris: Vec<String>,
    journals: &Arc<Vec<AbandonedJournal>>,
    notices: &Arc<Notices>,
    deadline: &watch::Sender<bool>,
    runtime: &Runtime,
) -> Result<SyncTask> {
    let first = uris.first().cloned().unwrap_or_default();
    let known = config.known.iter().find(|known| known.uri() == first);
    let to = match config.instead.as_ref().or(known) {
        Some(to) => to.clone(),
        None => Destination::parse("destination", &first)?,
    };
    let store = DeferredStore::new(to, config.fresh_schema.clone(), false);
    let destination = Arc::new(DestinationState::new(first));
    let sender = Sender::new(
        config.heimdall_dir.clone(),
        Arc::new(store),
        Access::default(),
        Arc::clone(&destination),
        Arc::clone(notices),
        deadline.clone(),
    );
    let recovered = Arc::clone(&sender.recovered);
    let end = EndGuard(Arc::clone(&destination));
    let task = deliver(sender, uris.clone(), Arc::clone(journals));
    runtime.spawn(async move {
        task.await;
        drop(end);
    });
    Ok(SyncTask {
        uris,
        destination,
        recovered,
    })
}

/// Waits until all senders have ended.
fn wait(
    config: &SyncConfig,
    tasks: &[SyncTask],
    deadline: &watch::Sender<bool>,
    runtime: &Runtime,
    progress: &mut dyn FnMut(SyncProgress) -> bool,
    total: u64,
) -> Result<()> {
    let timeout = config.timeout;
    let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut goes_on = true;
    for task in tasks {
        let mut keep_waiting = || {
            goes_on = progress(so_far(tasks, total));
            goes_on
        };
        let ended = runtime.wait_until(until, ended(&task.destination), &mut keep_waiting);
        if !matches!(ended, Ok(Some(()))) {
            deadline.send_replace(true);
        }
        if !goes_on {
            return Err(Error::Interrupted);
        }
    }
    progress(so_far(tasks, total));
    Ok(())
}

fn ended(destination: &Arc<DestinationState>) -> impl Future<Output = ()> + Send + 'static {
    let destination = Arc::clone(destination);
    async move { destination.wait_until(|state| state.ended).await }
}

fn so_far(tasks: &[SyncTask], total: u64) -> SyncProgress {
    let mut so_far = SyncProgress {
        delivered: 0,
        total,
        uploading: 0,
        uploaded: 0,
    };
    for task in tasks {
        so_far.delivered += task.recovered.load(Ordering::Relaxed);
        let (uploading, uploaded) = task.destination.state().upload_bytes();
        so_far.uploading += uploading;
        so_far.uploaded += uploaded;
    }
    so_far
}

/// Removes the journals that are delivered to all of their destinations, and counts the records of the other journals.
fn left(journals: &[AbandonedJournal], tasks: &[SyncTask]) -> SyncOutcome {
    let mut outcome = SyncOutcome::default();
    for task in tasks {
        outcome.delivered += task.recovered.load(Ordering::Relaxed);
        outcome.parked += task.destination.state().parked;
    }
    outcome.delivered -= outcome.parked.min(outcome.delivered);
    for journal in journals {
        if journal.is_done() {
            journal.remove();
            continue;
        }
        for (index, uri) in journal.manifest.destinations.iter().enumerate() {
            if journal.reader(index).is_done(journal.end) {
                continue;
            }
            let reason = tasks
                .iter()
                .find(|task| task.uris.contains(uri))
                .and_then(|task| task.destination.state().last_error());
            let left = outcome.left.entry(uri.clone()).or_default();
            left.0 += pending(&journal.dir, index).0;
            left.1 = reason.unwrap_or_else(|| "the time is over".to_owned());
        }
    }
    outcome
}

/// Delivers the part of all journals that goes to some destinations. A journal with records of a run that another
/// journal starts is tried again after the other journal.
async fn deliver(mut sender: Sender, wanted: Vec<String>, journals: Arc<Vec<AbandonedJournal>>) {
    let mut left: Vec<&AbandonedJournal> = journals.iter().collect();
    loop {
        let before = left.len();
        let mut early = Vec::new();
        'journals: for journal in left {
            let uris = journal.manifest.destinations.iter().enumerate();
            for (index, _) in uris.filter(|(_, uri)| wanted.contains(uri)) {
                match sender.deliver_abandoned(journal, index).await {
                    Ok(()) => {}
                    Err(NotDelivered::TooEarly) => {
                        early.push(journal);
                        continue 'journals;
                    }
                    Err(NotDelivered::Journal(error)) => sender.tell_damage(&[error.to_string()]),
                    Err(NotDelivered::DeadlineReached | NotDelivered::Stalled) => break 'journals,
                }
            }
        }
        if early.is_empty() || early.len() == before {
            break;
        }
        left = early;
    }
}
