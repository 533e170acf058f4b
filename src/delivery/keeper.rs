//! The keeper of a journal: checks the journal's disk and wakes the workers.

use std::time::{Duration, Instant};

use super::state::DeliveryState;

/// Time between two checks of the journal.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two checks of the journal while many calls come in.
const BUSY_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time that records are collected while nobody waits for them: a transaction costs the store, and the
/// processor that also runs the training, the same for one record as for thousands.
const MAX_BATCHING_DELAY: Duration = Duration::from_millis(500);
/// Number of records at which the collecting ends.
const FULL_BATCH: u64 = 10_000;
/// Time between two searches for journals whose processes have died meanwhile.
const ADOPTION_INTERVAL: Duration = Duration::from_secs(10);

/// Checks the journal and wakes the workers until all of them have ended.
pub(crate) async fn keep(delivery: &DeliveryState) {
    // `woken_for` counts the records that the workers have been woken for, `seen` those at the last check.
    let (mut woken_for, mut seen) = (0, 0);
    let (mut woken, mut adopted) = (Instant::now(), Instant::now());
    loop {
        maintain(delivery);
        let appended = delivery.journal.appended();
        let is_due = woken.elapsed() >= MAX_BATCHING_DELAY || appended - woken_for >= FULL_BATCH;
        if appended != woken_for && is_due {
            woken_for = appended;
            woken = Instant::now();
            delivery.shutdown.wake.notify_waiters();
        }
        let is_busy = appended - std::mem::replace(&mut seen, appended) >= FULL_BATCH / 10;
        if adopted.elapsed() >= ADOPTION_INTERVAL && !delivery.is_offline {
            adopted = Instant::now();
            delivery.request_adoption();
        }
        if delivery.has_ended() {
            break;
        }
        tokio::time::sleep(if is_busy {
            BUSY_CHECK_INTERVAL
        } else {
            CHECK_INTERVAL
        })
        .await;
    }
}

/// Checks the journal's disk, and tells the user of a change.
fn maintain(delivery: &DeliveryState) {
    if let Some(change) = delivery.journal.maintain() {
        delivery.set_disk_told(delivery.journal.disk_error().is_some());
        delivery.notices.tell(change);
    }
}
