//! Delivery: what is journaled arrives at its destinations, in order, whatever has to be waited out.
//!
//! One worker per destination reads the journal at its own pace and writes to the store. It tries again for as long
//! as it takes where the destination is at fault, parks a record as a [`dead_letter`] where the record is, and
//! moves its position only behind what has been committed. A keeper looks after the journal itself and wakes the
//! workers, so that a logging call wakes nobody.

pub mod abandoned;
pub mod dead_letter;
pub mod destination;
pub mod exit;
pub mod handle;
pub mod keeper;
pub mod notices;
pub mod outage;
pub mod runtime;
pub mod sender;
pub mod sync;
pub mod transfer;
pub mod uploads;
pub mod worker;

#[cfg(test)]
mod tests;
