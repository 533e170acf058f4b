//! The keeper of a journal: it looks after the journal's disk and wakes the workers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use super::{abandoned::Adoption, destination::Shared, notices::Notices};
use crate::journal::{config::JournalConfig, writer::Journal};

/// How often the keeper looks after the journal, and how often while calls come in thick.
const LOOK: Duration = Duration::from_millis(100);

const LOOK_OFTEN: Duration = Duration::from_millis(20);

/// For how long records are gathered that nobody waits for: a transaction costs a store, and the processor that trains
/// beside it, the same for one record as for thousands.
const GATHER: Duration = Duration::from_millis(500);

/// So many records are not waited with.
const ENOUGH: u64 = 10_000;

/// How often journals are looked for whose processes have died since.
const ADOPT: Duration = Duration::from_secs(10);

/// What a delivery's keeper, workers and callers all see.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) journal: Arc<Journal>,
    /// Told when there may be something to do.
    pub(crate) wake: Notify,
    closing: AtomicBool,
    pub(crate) deadline: watch::Sender<bool>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) adoption: Adoption,
    /// Number of the last request to look for journals of dead processes.
    pub(crate) adopt: AtomicU64,
    pub(crate) destinations: Vec<Arc<Shared>>,
    /// Destinations that have not delivered all yet.
    pub(crate) behind: AtomicUsize,
    /// Nothing is tried: the journal is all there is.
    pub(crate) is_offline: bool,
    /// The journal is all there is to end a run by.
    pub(crate) leaves_runs: AtomicBool,
    /// The user has been told that calls wait for room.
    pub(crate) room_told: AtomicBool,
    /// The user has been told that the journal's disk takes nothing.
    disk_told: AtomicBool,
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
            wake: Notify::new(),
            closing: AtomicBool::new(false),
            deadline: watch::Sender::new(false),
            notices,
            adoption: Adoption::new(config.heimdall_dir.clone(), uris.clone()),
            // The start is a request.
            adopt: AtomicU64::new(1),
            behind: AtomicUsize::new(uris.len()),
            destinations: uris
                .into_iter()
                .map(|uri| Arc::new(Shared::new(uri)))
                .collect(),
            is_offline,
            leaves_runs: AtomicBool::new(false),
            room_told: AtomicBool::new(false),
            disk_told: AtomicBool::new(false),
        }
    }

    /// Tells the user, once until it is over, that the journal's disk takes nothing.
    pub(crate) fn tell_disk(&self, text: String) {
        if !self.disk_told.swap(true, Ordering::AcqRel) {
            self.notices.tell(text);
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// Asks for a look for journals of dead processes, and wakes the workers.
    pub(crate) fn request_adoption(&self) -> u64 {
        let request = self.adopt.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake.notify_waiters();
        request
    }

    pub(crate) fn pending(&self) -> u64 {
        let appended = self.journal.appended();
        let pending = |shared: &Arc<Shared>| appended.saturating_sub(shared.state().delivered);
        self.destinations.iter().map(pending).max().unwrap_or(0)
    }

    /// Looks after the journal and wakes the workers until all have ended.
    pub(crate) async fn keep(&self) {
        // Records that the workers have been woken for, and that there were when last looked.
        let (mut woken_for, mut seen) = (0, 0);
        let (mut woken, mut adopted) = (Instant::now(), Instant::now());
        loop {
            if let Some(told) = self.journal.maintain() {
                self.disk_told
                    .store(self.journal.trouble().is_some(), Ordering::Release);
                self.notices.tell(told);
            }
            let appended = self.journal.appended();
            let is_due = woken.elapsed() >= GATHER || appended - woken_for >= ENOUGH;
            if appended != woken_for && is_due {
                woken_for = appended;
                woken = Instant::now();
                self.wake.notify_waiters();
            }
            let comes_thick = appended - std::mem::replace(&mut seen, appended) >= ENOUGH / 10;
            if adopted.elapsed() >= ADOPT && !self.is_offline {
                adopted = Instant::now();
                self.request_adoption();
            }
            let has_ended = match self.is_offline {
                true => self.is_closing(),
                false => self.behind.load(Ordering::Acquire) == 0,
            };
            if has_ended || *self.deadline.borrow() {
                break;
            }
            tokio::time::sleep(if comes_thick { LOOK_OFTEN } else { LOOK }).await;
        }
    }
}
