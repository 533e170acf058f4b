//! `heimdall sync`: what dead processes have left goes out, whatever their destinations are.

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
    destination::Shared,
    notices::Notices,
    runtime::{Background, KeepWaiting},
    sender::{Courier, Left},
};
use crate::{
    artifacts::open,
    config::{tracker::FreshSchema, uri::Destination},
    error::{Error, Result},
    journal::{
        abandoned::{self, Abandoned},
        layout, reader,
        record::Entry,
    },
    store::{deferred::DeferredStore, tracking::TrackingStore},
};

/// A journal on this disk and how far it is.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its folder.
    pub dir: PathBuf,
    /// Process that wrote or writes it.
    pub pid: u32,
    /// When it was begun, milliseconds since 1970.
    pub created: i64,
    /// Whether that process lives, and so delivers it itself.
    pub is_alive: bool,
    /// URI, records that wait, when the first of them was recorded, and why they wait as far as that is known, for
    /// each destination.
    pub destinations: Vec<(String, u64, Option<i64>, Option<String>)>,
}

/// The journals below `heimdall_dir`, oldest first. Reads them all; waits on the disk.
pub fn journals(heimdall_dir: &Path) -> Vec<Found> {
    layout::folders(heimdall_dir)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|dir| {
            let manifest = layout::manifest(&dir)?;
            let uris = manifest.destinations.iter().enumerate();
            let destinations = uris.map(|(place, uri)| {
                let (pending, oldest) = pending(&dir, place);
                (uri.clone(), pending, oldest, reader::trouble(&dir, place))
            });
            Some(Found {
                destinations: destinations.collect(),
                is_alive: abandoned::is_alive(&dir),
                pid: manifest.pid,
                created: manifest.created,
                dir,
            })
        })
        .collect()
}

/// Records of the journal in `dir` that wait for a destination, and when the first of them was recorded.
fn pending(dir: &Path, destination: usize) -> (u64, Option<i64>) {
    let mut oldest = None;
    let count = read(dir, destination, |entry| {
        oldest.get_or_insert(entry.at);
    });
    (count, oldest)
}

/// Calls `each` with the entries of the journal in `dir` that wait for a destination, and returns their number.
fn read(dir: &Path, destination: usize, mut each: impl FnMut(&Entry)) -> u64 {
    let mut count = 0;
    // What cannot be read is told by the delivery.
    let _ = reader::peek(dir, destination, |batch| {
        count += batch.entries.len() as u64;
        batch.entries.iter().for_each(|placed| each(&placed.entry));
    });
    count
}

/// Dead letters below `heimdall_dir`: the files, and how many records each has.
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

/// What [`sync`] is to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// Folder of the journals.
    pub heimdall_dir: PathBuf,
    /// Destinations with their credentials, for journals that name them without.
    pub known: Vec<Destination>,
    /// Where everything goes, whatever the journals name.
    pub instead: Option<Destination>,
    /// Schema of a database that does not exist yet.
    pub fresh_schema: FreshSchema,
    /// Longest time to work; no limit where it is not given.
    pub timeout: Option<Duration>,
}

/// What [`sync`] has done.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Records that were delivered.
    pub delivered: u64,
    /// Records that were refused for good and parked as dead letters.
    pub parked: u64,
    /// Records that are left, and why, by destination.
    pub left: BTreeMap<String, (u64, String)>,
    /// What else the user should know.
    pub notices: Vec<String>,
}

/// The work for one destination.
struct Work {
    uris: Vec<String>,
    shared: Arc<Shared>,
    recovered: Arc<AtomicU64>,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Records that are delivered.
    pub delivered: u64,
    /// Records that there were.
    pub total: u64,
    /// Bytes of the files that are on their way.
    pub uploading: u64,
    /// Bytes of those that are sent.
    pub uploaded: u64,
}

/// Delivers the journals of dead processes. `progress` is told how far it is, while it works; false ends the work.
///
/// # Errors
/// [`Error::Configuration`] for a destination that no URI can be made of; [`Error::Interrupted`].
pub fn sync(order: &Order, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Outcome> {
    let background = Background::start()?;
    let notices = Arc::new(Notices::default());
    let all = abandoned::abandoned(&order.heimdall_dir, |_| true);
    let total: u64 = all
        .iter()
        .flat_map(|it| (0..it.manifest.destinations.len()).map(|place| pending(&it.dir, place).0))
        .sum();
    let all: Arc<Vec<Abandoned>> = Arc::new(all);
    let deadline = watch::Sender::new(false);
    // One courier for each destination, side by side: one that is down delays only itself.
    let mut uris: Vec<String> = all
        .iter()
        .flat_map(|it| it.manifest.destinations.clone())
        .collect();
    uris.sort();
    uris.dedup();
    // What all goes to one place goes there by one courier: two would create a run at a server twice.
    let routes: Vec<Vec<String>> = match &order.instead {
        Some(_) => vec![uris],
        None => uris.into_iter().map(|uri| vec![uri]).collect(),
    };
    let mut works = Vec::new();
    for uris in routes {
        let Some(first) = uris.first().cloned() else {
            continue;
        };
        let destination = match &order.instead {
            Some(instead) => instead.clone(),
            None => match order.known.iter().find(|known| known.uri() == first) {
                Some(known) => known.clone(),
                None => Destination::parse("destination", &first)?,
            },
        };
        let store = DeferredStore::new(destination, order.fresh_schema.clone(), false);
        let shared = Arc::new(Shared::new(first));
        let courier = Courier::new(
            order.heimdall_dir.clone(),
            Arc::new(store) as Arc<dyn TrackingStore>,
            open::Access::default(),
            Arc::clone(&shared),
            Arc::clone(&notices),
            deadline.clone(),
        );
        let recovered = Arc::clone(&courier.recovered);
        let work = deliver(courier, uris.clone(), Arc::clone(&all), Arc::clone(&shared));
        background.spawn(work);
        works.push(Work {
            uris,
            shared,
            recovered,
        });
    }
    let outcome = wait(order, &works, &deadline, progress, total);
    deadline.send_replace(true);
    let mut done = Outcome {
        notices: notices.take(),
        ..Outcome::default()
    };
    for Work {
        shared, recovered, ..
    } in &works
    {
        let _ = shared.wait_for(None, &mut || true, |state| state.ended);
        done.delivered += recovered.load(Ordering::Relaxed);
        done.parked += shared.state().parked;
    }
    done.delivered -= done.parked.min(done.delivered);
    done.notices.extend(notices.take());
    for abandoned in all.iter() {
        if abandoned.is_done() {
            abandoned.remove();
            continue;
        }
        for (place, uri) in abandoned.manifest.destinations.iter().enumerate() {
            if abandoned.reader(place).is_done(abandoned.end) {
                continue;
            }
            let reason = works
                .iter()
                .find(|work| work.uris.contains(uri))
                .and_then(|work| work.shared.state().last_error());
            let left = done.left.entry(uri.clone()).or_default();
            left.0 += pending(&abandoned.dir, place).0;
            left.1 = reason.unwrap_or_else(|| "the time is over".to_owned());
        }
    }
    outcome.map(|()| done)
}

/// Waits until all couriers have ended.
fn wait(
    order: &Order,
    works: &[Work],
    deadline: &watch::Sender<bool>,
    progress: &mut dyn FnMut(Progress) -> bool,
    total: u64,
) -> Result<()> {
    let until = order
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let so_far = || {
        let mut so_far = Progress {
            delivered: 0,
            total,
            uploading: 0,
            uploaded: 0,
        };
        for work in works {
            so_far.delivered += work.recovered.load(Ordering::Relaxed);
            let (uploading, uploaded) = work.shared.state().uploads();
            so_far.uploading += uploading;
            so_far.uploaded += uploaded;
        }
        so_far
    };
    let mut goes_on = true;
    for Work { shared, .. } in works {
        let mut keep_waiting = || {
            goes_on = progress(so_far());
            goes_on
        };
        let keep_waiting: KeepWaiting<'_> = &mut keep_waiting;
        if !matches!(
            shared.wait_for(until, keep_waiting, |state| state.ended),
            Ok(true)
        ) {
            deadline.send_replace(true);
        }
        if !goes_on {
            return Err(Error::Interrupted);
        }
    }
    progress(so_far());
    Ok(())
}

/// Delivers all that journals have for some destinations. What belongs to a run that another journal starts is tried
/// again after it.
async fn deliver(
    mut courier: Courier,
    wanted: Vec<String>,
    all: Arc<Vec<Abandoned>>,
    shared: Arc<Shared>,
) {
    let mut left: Vec<&Abandoned> = all.iter().collect();
    loop {
        let before = left.len();
        let mut early = Vec::new();
        'journals: for abandoned in left {
            let uris = abandoned.manifest.destinations.iter().enumerate();
            for (place, _) in uris.filter(|(_, uri)| wanted.contains(uri)) {
                match courier.deliver_abandoned(abandoned, place).await {
                    Ok(()) => {}
                    Err(Left::Early) => {
                        early.push(abandoned);
                        continue 'journals;
                    }
                    Err(Left::Journal(error)) => courier.tell_damage(&[error.to_string()]),
                    Err(Left::Closing | Left::Stalled) => break 'journals,
                }
            }
        }
        if early.is_empty() || early.len() == before {
            break;
        }
        left = early;
    }
    shared.update(|state| state.ended = true);
}
