//! The state of one delivery, which its keeper, its workers and the callers share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::{Notify, watch};

use super::{abandoned::AdoptedJournals, destination::DestinationState, notices::Notices};
use crate::journal::{config::JournalConfig, writer::Journal};

/// State of a delivery. The keeper and the workers work on it, callers read it and wait for it.
#[derive(Debug)]
pub(crate) struct DeliveryState {
    pub journal: Arc<Journal>,
    pub destinations: Vec<Arc<DestinationState>>,
    /// Journals of dead processes that this process has locked.
    pub adopted: AdoptedJournals,
    pub notices: Arc<Notices>,
    told: Told,
    pub shutdown: Shutdown,
    /// True where nothing is sent: there is only the journal.
    pub is_offline: bool,
}

/// The messages that the user is told once.
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
    /// True once the tracker has closed: the workers end when everything is delivered.
    closing: AtomicBool,
    /// True once there is no time left for delivery.
    pub deadline: watch::Sender<bool>,
    /// Destinations that have not delivered everything yet.
    behind: AtomicUsize,
    /// True where runs are left open: the journal is needed to end these runs.
    leaves_runs: AtomicBool,
}

impl DeliveryState {
    pub(crate) fn new(
        journal: Arc<Journal>,
        config: &JournalConfig,
        notices: Arc<Notices>,
        is_offline: bool,
    ) -> Self {
        let uris = config.destinations.clone();
        Self {
            journal,
            adopted: AdoptedJournals::new(config.heimdall_dir.clone(), uris.clone()),
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

    /// Notes whether the user has been told that the journal's disk accepts nothing.
    pub(crate) fn set_disk_told(&self, told: bool) {
        self.told.disk.store(told, Ordering::Release);
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

    /// Requests the delivery of journals of dead processes, and wakes the workers. Returns the number of the request.
    pub(crate) fn request_adoption(&self) -> u64 {
        let request = self.adopted.request();
        self.shutdown.wake.notify_waiters();
        request
    }

    /// Returns the first destination, which queries use.
    pub(crate) fn primary(&self) -> Option<&Arc<DestinationState>> {
        self.destinations.first()
    }

    /// Returns the number of records that wait for the destination that is furthest behind.
    pub(crate) fn pending(&self) -> u64 {
        let appended = self.journal.appended();
        let pending = |it: &Arc<DestinationState>| appended.saturating_sub(it.state().delivered);
        self.destinations.iter().map(pending).max().unwrap_or(0)
    }

    /// Returns true once all workers have ended, or there is no time left for delivery.
    pub(crate) fn has_ended(&self) -> bool {
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
