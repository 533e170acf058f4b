//! The keeper of a journal: checks the journal's disk and wakes the workers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use super::{abandoned::AbandonedJournals, destination::DestinationState, notices::Notices};
use crate::journal::{config::JournalConfig, writer::Journal};

/// Time between two checks of the journal; also the time between them while many calls come in.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const BUSY_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time that records are collected while nobody waits for them: a transaction costs the store, and the
/// processor that also runs the training, the same for one record as for thousands.
const GATHER: Duration = Duration::from_millis(500);
/// Number of records at which the collecting ends.
const ENOUGH: u64 = 10_000;
/// Time between two searches for journals whose processes have died meanwhile.
const ADOPTION_INTERVAL: Duration = Duration::from_secs(10);

/// The parts of a delivery that its keeper, workers and callers share.
#[derive(Debug)]
pub(crate) struct Common {
    pub journal: Arc<Journal>,
    pub destinations: Vec<Arc<DestinationState>>,
    pub abandoned: AbandonedJournals,
    pub notices: Arc<Notices>,
    told: Told,
    pub shutdown: Shutdown,
    /// True where nothing is sent: there is only the journal.
    pub is_offline: bool,
}

/// The messages that the user has been told once.
#[derive(Debug, Default)]
struct Told {
    /// Calls wait for room in the journal.
    room: AtomicBool,
    /// The journal's disk accepts nothing.
    disk: AtomicBool,
}

/// The end of a delivery.
#[derive(Debug)]
pub(crate) struct Shutdown {
    /// Notified when there may be work.
    pub wake: Notify,
    closing: AtomicBool,
    /// True once there is no time left for delivery.
    pub deadline: watch::Sender<bool>,
    /// Destinations that have not delivered everything yet.
    behind: AtomicUsize,
    /// True where runs are left open: the journal is needed to end these runs.
    leaves_runs: AtomicBool,
}

impl Common {
    pub(crate) fn new(
        journal: Arc<Journal>,
        config: &JournalConfig,
        notices: Arc<Notices>,
        is_offline: bool,
    ) -> Self {
        let uris = config.destinations.clone();
        Self {
            journal,
            abandoned: AbandonedJournals::new(config.heimdall_dir.clone(), uris.clone()),
            notices,
            told: Told::default(),
            shutdown: Shutdown {
                wake: Notify::new(),
                closing: AtomicBool::new(false),
                deadline: watch::Sender::new(false),
                behind: AtomicUsize::new(uris.len()),
                leaves_runs: AtomicBool::new(false),
            },
            destinations: uris
                .into_iter()
                .map(|uri| Arc::new(DestinationState::new(uri)))
                .collect(),
            is_offline,
        }
    }

    /// Tells the user that the journal's disk accepts nothing, once until that is over.
    pub(crate) fn tell_disk(&self, text: String) {
        if !self.told.disk.swap(true, Ordering::AcqRel) {
            self.notices.tell(text);
        }
    }

    /// Tells the user, once, that calls wait for room.
    pub(crate) fn tell_room(&self) {
        if !self.told.room.swap(true, Ordering::AcqRel) {
            self.notices.tell(format!(
                "the journal in {} has reached its limit (HEIMDALL_JOURNAL_LIMIT): calls wait until what it holds is \
                 delivered",
                self.journal.dir().display()
            ));
        }
    }

    /// Requests a search for journals of dead processes, and wakes the workers.
    pub(crate) fn request_adoption(&self) -> u64 {
        let request = self.abandoned.request();
        self.shutdown.wake.notify_waiters();
        request
    }

    /// Returns the number of records that wait for the destination that is furthest behind.
    pub(crate) fn pending(&self) -> u64 {
        let appended = self.journal.appended();
        let pending = |it: &Arc<DestinationState>| appended.saturating_sub(it.state().delivered);
        self.destinations.iter().map(pending).max().unwrap_or(0)
    }

    /// Checks the journal and wakes the workers until all of them have ended.
    pub(crate) async fn keep(&self) {
        // `woken_for` counts the records that the workers have been woken for, `seen` those at the last check.
        let (mut woken_for, mut seen) = (0, 0);
        let (mut woken, mut adopted) = (Instant::now(), Instant::now());
        loop {
            self.maintain();
            let appended = self.journal.appended();
            let is_due = woken.elapsed() >= GATHER || appended - woken_for >= ENOUGH;
            if appended != woken_for && is_due {
                woken_for = appended;
                woken = Instant::now();
                self.shutdown.wake.notify_waiters();
            }
            let is_busy = appended - std::mem::replace(&mut seen, appended) >= ENOUGH / 10;
            if adopted.elapsed() >= ADOPTION_INTERVAL && !self.is_offline {
                adopted = Instant::now();
                self.request_adoption();
            }
            if self.has_ended() {
                break;
            }
            tokio::time::sleep(if is_busy {
                BUSY_LOOK_INTERVAL
            } else {
                LOOK_INTERVAL
            })
            .await;
        }
    }

    fn maintain(&self) {
        if let Some(change) = self.journal.maintain() {
            let is_in_trouble = self.journal.trouble().is_some();
            self.told.disk.store(is_in_trouble, Ordering::Release);
            self.notices.tell(change);
        }
    }

    fn has_ended(&self) -> bool {
        let has_delivered = if self.is_offline {
            self.shutdown.is_closing()
        } else {
            self.shutdown.behind.load(Ordering::Acquire) == 0
        };
        has_delivered || *self.shutdown.deadline.borrow()
    }
}

impl Shutdown {
    /// Returns true where the workers must end once everything is delivered.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Lets the workers end once everything is delivered.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// Notes that everything is delivered to a destination. Returns true where that holds for all destinations and no
    /// run was left open.
    pub(crate) fn destination_is_done(&self, leaves_runs: bool) -> bool {
        // The next start ends a run whose end could not be recorded any more.
        if leaves_runs {
            self.leaves_runs.store(true, Ordering::Release);
        }
        self.behind.fetch_sub(1, Ordering::AcqRel) == 1 && !self.leaves_runs.load(Ordering::Acquire)
    }
}
