//! Delivery: the records of the journal arrive at its destinations, in order, however long that takes.
//!
//! One worker per destination reads the journal at its own pace and writes to the store. If the destination is at
//! fault, the worker tries again for as long as necessary; if the record is at fault, it parks the record as a
//! [`dead_letter`]. It moves its position only past entries that have been committed. A keeper checks the journal
//! itself and wakes the workers, so that a logging call wakes nobody.

pub(crate) mod abandoned;
pub(crate) mod dead_letter;
pub(crate) mod destination;
pub(crate) mod exit;
pub(crate) mod handle;
pub(crate) mod keeper;
pub(crate) mod notices;
pub(crate) mod outage;
pub(crate) mod outbox;
pub(crate) mod runtime;
pub(crate) mod sender;
pub(crate) mod sync;
pub(crate) mod transfer;
pub(crate) mod uploads;
pub(crate) mod worker;

#[cfg(test)]
mod tests;
