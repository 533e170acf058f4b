//! The end of the process: what is recorded is delivered first, within a bounded time.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::{destination::State, keeper::Common, runtime::KeepWaiting};
use crate::error::Error;

/// At the exit, a mirror that takes nothing is not waited for longer than this.
const MIRROR_PATIENCE: Duration = Duration::from_secs(2);

/// Before a signal ends the process, there is so much time at least for what was recorded last.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Deliveries of this process that have not ended, so that its exit can wait for them.
pub(crate) static LIVE: Mutex<Vec<Weak<Common>>> = Mutex::new(Vec::new());

/// Forgets, in a fork, the deliveries of its parent: they are the parent's.
pub(crate) fn forget_parent() {
    if let Ok(mut live) = LIVE.try_lock() {
        std::mem::forget(std::mem::take(&mut *live));
    }
}

/// Records of this process that wait for the destination that is furthest behind.
pub fn pending() -> u64 {
    live()
        .iter()
        .filter(|it| !it.is_offline)
        .map(|it| it.pending())
        .sum()
}

/// Bytes of this process' files that are on their way to their primary destinations, and those of them that are sent.
pub fn uploads() -> (u64, u64) {
    let live = live();
    let states = live.iter().filter_map(|it| it.destinations.first());
    let sizes = states.map(|shared| shared.state().uploads());
    sizes.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// Waits, before a signal ends the process, until what it has recorded is delivered. Calls that record something are
/// accepted meanwhile; at last no more of them return, and what is left goes out. Returns what to tell the user.
pub fn finish_while_recording(grace: Duration) -> Vec<String> {
    let live = live();
    let begun = Instant::now();
    let until = begun.checked_add(grace);
    for delivery in live.iter().filter(|delivery| !delivery.is_offline) {
        let target = delivery.journal.appended();
        delivery.wake.notify_waiters();
        for (place, shared) in delivery.destinations.iter().enumerate() {
            let over = |state: &State| {
                state.ended || state.delivered >= target || is_hopeless(place, state, begun)
            };
            let _ = shared.wait_for(until, &mut || true, over);
        }
    }
    for delivery in &live {
        delivery.journal.freeze();
    }
    let left = grace.saturating_sub(begun.elapsed());
    finish(left.max(LAST_MOMENT.min(grace)), &mut || true)
}

/// The deliveries of this process that have not ended.
pub(crate) fn live() -> Vec<Arc<Common>> {
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    live.iter().filter_map(Weak::upgrade).collect()
}

/// Whether an exit waits in vain: a mirror that is down for a day must not hold it up; its part is in the journal.
fn is_hopeless(place: usize, state: &State, begun: Instant) -> bool {
    place > 0 && state.since().is_some() && begun.elapsed() >= MIRROR_PATIENCE
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

/// Waits, at the end of the process, for all deliveries of it; what is not delivered in time stays in its
/// journal for the next start. Returns what to tell the user.
pub fn finish(timeout: Duration, keep_waiting: KeepWaiting<'_>) -> Vec<String> {
    let live = live();
    let begun = Instant::now();
    let until = begun.checked_add(timeout);
    for delivery in &live {
        delivery.request_adoption();
        delivery.close();
    }
    let mut told = Vec::new();
    let mut is_interrupted = false;
    for delivery in &live {
        let dir = delivery.journal.dir();
        if delivery.is_offline {
            let kept = delivery.journal.appended();
            if kept > 0 {
                told.push(format!(
                    "{kept} records are kept in {}: `heimdall sync` delivers them",
                    dir.display()
                ));
            }
            delivery.deadline.send_replace(true);
            continue;
        }
        for (place, shared) in delivery.destinations.iter().enumerate() {
            let over = |state: &State| state.ended || is_hopeless(place, state, begun);
            let stop = is_interrupted.then(Instant::now).or(until);
            let waited = shared.wait_for(stop, keep_waiting, over);
            is_interrupted |= matches!(waited, Err(Error::Interrupted));
            let appended = delivery.journal.appended();
            let state = shared.state();
            // Without a moment to wait a worker has not ended, even where nothing is left.
            if !state.ended && state.delivered < appended {
                let in_memory = delivery.journal.end().in_memory;
                told.push(left_behind(&shared.uri, &dir, in_memory));
            }
        }
        delivery.deadline.send_replace(true);
        told.extend(delivery.notices.take());
    }
    LIVE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|kept| {
            !live
                .iter()
                .any(|it| std::ptr::eq(kept.as_ptr(), Arc::as_ptr(it)))
        });
    told
}
