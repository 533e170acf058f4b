//! The end of the process: the recorded data is delivered first, within a bounded time.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::{
    destination::{DestinationState, State},
    runtime::{KeepWaiting, Runtime},
    state::DeliveryState,
};
use crate::error::Error;

/// Longest wait, at the exit, for a mirror that accepts nothing.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest time for the last records before a signal ends the process.
const MIN_FINAL_TIMEOUT: Duration = Duration::from_millis(500);
/// Time between two checks whether a mirror is still worth waiting for.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Deliveries of this process that have not ended.
static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());

/// A delivery and the runtime that its workers run on.
struct Live {
    shared: Weak<DeliveryState>,
    runtime: Weak<Runtime>,
}

/// Adds a delivery, so that the exit of the process waits for it.
pub(crate) fn add(shared: &Arc<DeliveryState>, runtime: &Arc<Runtime>) {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    live.retain(|delivery| delivery.shared.strong_count() > 0);
    live.push(Live {
        shared: Arc::downgrade(shared),
        runtime: Arc::downgrade(runtime),
    });
}

/// Forgets, in a fork, the deliveries of the parent process: they belong to the parent.
pub(crate) fn forget_parent() {
    if let Ok(mut live) = LIVE.try_lock() {
        std::mem::forget(std::mem::take(&mut *live));
    }
}

/// Returns the deliveries that have not ended.
fn live() -> Vec<(Arc<DeliveryState>, Option<Arc<Runtime>>)> {
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    live.iter()
        .filter_map(|delivery| Some((delivery.shared.upgrade()?, delivery.runtime.upgrade())))
        .collect()
}

/// Returns the deliveries of this process, except `own`, whose primary destination has a URI.
pub(crate) fn others_to(uri: &str, own: &Arc<DeliveryState>) -> Vec<Arc<DeliveryState>> {
    let live = live().into_iter().map(|(delivery, _)| delivery);
    live.filter(|delivery| {
        let primary = delivery.primary().filter(|_| !delivery.is_offline);
        !Arc::ptr_eq(delivery, own) && primary.is_some_and(|primary| primary.uri == uri)
    })
    .collect()
}

/// Returns the number of records of this process that wait for the destination that is furthest behind.
pub fn pending() -> u64 {
    live()
        .iter()
        .filter(|(delivery, _)| !delivery.is_offline)
        .map(|(delivery, _)| delivery.pending())
        .sum()
}

/// Returns the bytes of this process' files that are being sent to primary destinations, and how many of these bytes
/// are sent.
pub fn uploads() -> (u64, u64) {
    let live = live();
    let primary = live
        .iter()
        .filter_map(|(delivery, _)| delivery.destinations.first());
    let sizes = primary.map(|destination| destination.state().upload_bytes());
    sizes.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// Waits, before a signal ends the process, until the recorded data is delivered. Calls that record something are
/// accepted meanwhile; near the end, no call returns any more, and the remaining records are delivered. Returns
/// messages for the user.
pub(crate) fn finish_while_recording(grace: Duration) -> Vec<String> {
    let begun = Instant::now();
    wait_for_all(grace, &mut || true);
    for (delivery, _) in &live() {
        delivery.journal.freeze();
    }
    let left = grace.saturating_sub(begun.elapsed());
    finish(left.max(MIN_FINAL_TIMEOUT.min(grace)), &mut || true)
}

/// Waits, at the end of the process, until the recorded data is delivered. The deliveries do not end: [`finish`] has
/// to follow. Returns messages for the user.
pub(crate) fn deliver(timeout: Duration, keep_waiting: KeepWaiting<'_>) -> Vec<String> {
    for (delivery, _) in &live() {
        delivery.request_adoption();
    }
    wait_for_all(timeout, keep_waiting);
    let live = live();
    live.iter()
        .flat_map(|(delivery, _)| delivery.notices.take())
        .collect()
}

/// Waits until all destinations have what is recorded now.
fn wait_for_all(timeout: Duration, keep_waiting: KeepWaiting<'_>) {
    let begun = Instant::now();
    let until = begun.checked_add(timeout);
    let mut is_interrupted = false;
    for (delivery, runtime) in live().iter().filter(|(delivery, _)| !delivery.is_offline) {
        let target = delivery.journal.appended();
        delivery.shutdown.wake.notify_waiters();
        for (index, destination) in delivery.destinations.iter().enumerate() {
            if let Some(runtime) = runtime {
                let stop = is_interrupted.then(Instant::now).or(until);
                let has_all = move |state: &State| state.ended || state.delivered >= target;
                let over = done_or_down(Arc::clone(destination), index, begun, has_all);
                let waited = runtime.wait_until(stop, over, keep_waiting);
                is_interrupted |= matches!(waited, Err(Error::Interrupted));
            }
        }
    }
}

/// Waits, at the end of the process, for all of its deliveries; undelivered records stay in their journal for the next
/// start. Returns messages for the user.
pub(crate) fn finish(timeout: Duration, keep_waiting: KeepWaiting<'_>) -> Vec<String> {
    let live = live();
    let begun = Instant::now();
    let until = begun.checked_add(timeout);
    for (delivery, _) in &live {
        delivery.request_adoption();
        delivery.shutdown.close();
    }
    let mut told = Vec::new();
    let mut is_interrupted = false;
    for (delivery, runtime) in &live {
        let dir = delivery.journal.dir();
        if delivery.is_offline {
            let kept = delivery.journal.appended();
            if kept > 0 {
                told.push(format!(
                    "{kept} records are kept in {}: `heimdall sync` delivers them",
                    dir.display()
                ));
            }
            delivery.shutdown.deadline.send_replace(true);
            continue;
        }
        for (index, destination) in delivery.destinations.iter().enumerate() {
            let stop = is_interrupted.then(Instant::now).or(until);
            if let Some(runtime) = runtime {
                let ended = |state: &State| state.ended;
                let over = done_or_down(Arc::clone(destination), index, begun, ended);
                let waited = runtime.wait_until(stop, over, keep_waiting);
                is_interrupted |= matches!(waited, Err(Error::Interrupted));
            }
            let appended = delivery.journal.appended();
            let state = destination.state();
            // Without any time to wait, a worker has not ended, even where nothing is left.
            if !state.ended && state.delivered < appended {
                let in_memory = delivery.journal.end().in_memory;
                told.push(left_behind(&destination.uri, &dir, in_memory));
            }
        }
        delivery.shutdown.deadline.send_replace(true);
        told.extend(delivery.notices.take());
    }
    LIVE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|kept| {
            !live
                .iter()
                .any(|(it, _)| std::ptr::eq(kept.shared.as_ptr(), Arc::as_ptr(it)))
        });
    told
}

/// Waits until `done` returns true for a destination, or the wait is useless: a mirror that is down for a day must not
/// delay an exit, because its records stay in the journal.
async fn done_or_down(
    destination: Arc<DestinationState>,
    index: usize,
    begun: Instant,
    done: impl Fn(&State) -> bool,
) {
    loop {
        let waited = tokio::time::timeout(CHECK_INTERVAL, destination.wait_until(&done)).await;
        let is_down = index > 0 && destination.state().since().is_some();
        if waited.is_ok() || (is_down && begun.elapsed() >= MIRROR_TIMEOUT) {
            return;
        }
    }
}

fn left_behind(uri: &str, journal: &Path, in_memory: u64) -> String {
    let kept = format!(
        "not everything is delivered to {uri}; the rest stays in {} and goes out with the next start or with \
         `heimdall sync`",
        journal.display()
    );
    match in_memory {
        0 => kept,
        lost => format!("{kept}, but for {lost} records that the disk has not taken"),
    }
}
