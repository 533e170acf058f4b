//! The delivery as a tracker sees it: it starts the keeper and the workers, and lets callers wait for them.

use std::{future::Future, ops::Range, path::PathBuf, sync::Arc};

use super::{
    destination::{DestinationState, DestinationStatus, Refused, Traffic},
    exit, keeper,
    notices::Notices,
    runtime::Runtime,
    state::DeliveryState,
    worker::Worker,
};
use crate::{
    artifacts::open::Access,
    error::Result,
    journal::{
        append::{Admission, Appended, EncodedRecords, Medium},
        config::JournalConfig,
        error::{JournalError, Room},
        reader::Reader,
        writer::Journal,
    },
    mlflow::{artifact_path::ArtifactPath, run::RunId},
    os::sigterm,
    store::deferred::DeferredStore,
};

/// Status of a delivery.
#[derive(Clone, Debug)]
pub struct Status {
    /// The destinations, the primary one first.
    pub destinations: Vec<DestinationStatus>,
    /// Folder of the journal.
    pub journal: PathBuf,
    /// Error of the journal's disk, while the disk accepts nothing.
    pub journal_error: Option<String>,
    /// Records that are in memory only.
    pub in_memory: u64,
    /// True where nothing is sent: records wait for `heimdall sync`.
    pub is_offline: bool,
}

/// The delivery of one tracker: a journal, its keeper and its workers.
#[derive(Debug)]
pub(crate) struct Delivery {
    shared: Arc<DeliveryState>,
    pid: u32,
}

impl Delivery {
    /// Begins a journal and starts a worker for each destination on `runtime`, which the workers keep alive until they
    /// end. `stores` are the stores of the configuration's destinations; without stores, nothing is sent.
    pub(crate) fn start(
        config: JournalConfig,
        stores: Vec<Arc<DeferredStore>>,
        access: &Access,
        runtime: &Arc<Runtime>,
        notices: Arc<Notices>,
    ) -> Self {
        let journal = Arc::new(Journal::create(config.clone()));
        let trouble = journal.disk_error();
        let shared = Arc::new(DeliveryState::new(
            journal,
            &config,
            notices,
            stores.is_empty(),
        ));
        if let Some(error) = trouble {
            shared.tell_disk(format!(
                "tracking is degraded, training is not: the journal cannot be kept in {} ({error}); set \
                 HEIMDALL_DIR to a folder that can be written. Records are kept in memory until then; they are \
                 lost if this process dies before they are delivered",
                config.heimdall_dir.display()
            ));
        }
        exit::add(&shared, runtime);
        for (index, store) in stores.into_iter().enumerate() {
            let worker = Worker::new(
                config.heimdall_dir.clone(),
                index,
                store,
                access.clone(),
                Arc::clone(&shared),
            );
            let kept = Arc::clone(runtime);
            runtime.spawn(async move {
                worker.run().await;
                drop(kept);
            });
        }
        let (delivery, kept) = (Arc::clone(&shared), Arc::clone(runtime));
        runtime.spawn(async move {
            keeper::keep(&delivery).await;
            drop(kept);
        });
        Self {
            shared,
            pid: std::process::id(),
        }
    }

    /// Returns the state that the keeper, the workers and the callers share.
    pub(crate) fn shared(&self) -> &Arc<DeliveryState> {
        &self.shared
    }

    /// Returns the journal.
    pub(crate) fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    fn primary(&self) -> Option<&Arc<DestinationState>> {
        self.shared.primary()
    }

    /// Accepts records: they are in the journal when this returns, and will be delivered. Returns the numbers of the
    /// records.
    ///
    /// # Errors
    /// The errors of [`Journal::append`].
    pub(crate) fn accept(
        &self,
        records: EncodedRecords<'_>,
        admission: Admission,
    ) -> Result<Range<u64>> {
        let appended = match self.journal().append(records, admission) {
            Err(JournalError::Frozen) => sigterm::wait_for_death(),
            appended => appended?,
        };
        let Appended { numbers, medium } = appended;
        if let Medium::Memory(error) = medium {
            self.shared.tell_disk(format!(
                "tracking is degraded, training is not: the journal in {} cannot be written ({error}). \
                 Records are kept in memory until it can; they are lost if this process dies before",
                self.journal().dir().display()
            ));
        }
        Ok(numbers)
    }

    /// Tells the user, once, that calls wait for room in the journal. Returns a future that ends when there is room.
    pub(crate) fn wait_for_room(&self, room: Room) -> impl Future<Output = ()> + Send + 'static {
        self.shared.tell_room();
        let journal = Arc::clone(&self.shared.journal);
        async move { journal.wait_for_room(room).await }
    }

    /// Tells the user, once per outage, that the primary destination accepts nothing.
    pub(crate) fn tell_outage(&self, reason: &str) {
        if let Some(primary) = self.primary()
            && primary.tell_outage(Traffic::Records)
        {
            primary.note_outage(Traffic::Records, reason.to_owned());
            self.shared.notices.tell(format!(
                "tracking is degraded, training is not: {reason}. What is recorded is kept in {} and delivered as soon \
                 as it can be",
                self.journal().dir().display()
            ));
        }
    }

    /// Returns the refused artifacts among the entries of these numbers.
    pub(crate) fn refused_among(&self, numbers: &Range<u64>) -> Vec<Refused> {
        let Some(primary) = self.primary() else {
            return Vec::new();
        };
        let state = primary.state();
        let refused = state.refused.range(numbers.clone());
        refused.map(|(_, it)| it.clone()).collect()
    }

    /// Returns an artifact of a run, at `folder` or below it, that was refused and is not in the store.
    pub(crate) fn refused_below(&self, run: RunId, folder: &ArtifactPath) -> Option<Refused> {
        let state = self.primary()?.state();
        let mut refused = state.refused.values();
        refused
            .find(|it| !it.is_replaced && it.run == run && it.path.is_within(folder))
            .cloned()
    }

    /// Returns true where all entries before a number have arrived at the primary destination or were refused.
    pub(crate) fn has_delivered(&self, number: u64) -> bool {
        let delivered = |primary: &Arc<DestinationState>| primary.state().delivered >= number;
        self.primary().is_some_and(delivered)
    }

    /// Returns true where the primary destination accepted nothing at the last attempt.
    pub(crate) fn has_outage(&self) -> bool {
        let troubled = |primary: &Arc<DestinationState>| {
            primary.state().outage(Traffic::Records).error.is_some()
        };
        self.primary().is_some_and(troubled)
    }

    /// Returns the status. Waits on the disk.
    pub(crate) fn status(&self) -> Status {
        let end = self.journal().end();
        let destinations = self.shared.destinations.iter().enumerate();
        Status {
            destinations: destinations
                .map(|(index, destination)| {
                    destination.status(end.appended, || Reader::oldest(&self.shared.journal, index))
                })
                .collect(),
            journal: self.journal().dir(),
            journal_error: self.journal().disk_error(),
            in_memory: end.in_memory,
            is_offline: self.shared.is_offline,
        }
    }
}

impl Drop for Delivery {
    /// Lets the workers finish on their own. A fork has no workers, only a copy of their state.
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            self.shared.shutdown.close();
        }
    }
}
