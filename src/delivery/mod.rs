//! Delivery: the records of the journal arrive at its destinations, in order, however long that takes.
//!
//! One worker per destination reads the journal at its own pace and writes to the store. If the destination is at
//! fault, the worker tries again for as long as necessary. If the record is at fault, the worker parks the record: it
//! writes the record into a file of dead letters and continues. The saved position moves only past entries that are
//! committed or parked. A keeper checks the journal itself and wakes the workers, so that a logging call wakes nobody.
//!
//! The files, in an order in which they can be read:
//!
//! - [`handle`]: `Delivery`, which a tracker owns. It starts the parts below and lets callers wait for them.
//! - [`state`] and [`destination`]: the state that the parts and the callers share, of the delivery and of each
//!   destination.
//! - [`runtime`]: the thread on which everything runs, and the loop in which callers wait for it.
//! - [`keeper`]: wakes the workers.
//! - [`worker`]: the loop that reads the journal for one destination.
//! - [`outbox`]: one journal on its way to one destination.
//! - [`scheduler`]: decides what the sender does next; [`targets`] tells which uploads and deletions wait for one
//!   another.
//! - [`sender`]: does it, with [`transfer`] for uploads, [`attempts`] for outages and [`dead_letter`] for records that
//!   the store refuses.
//! - [`abandoned`]: delivers journals of dead processes, for the workers and for the command `heimdall sync` ([`sync`]).
//! - [`rewound`]: leaves out of these journals the points that a rewind has deleted.
//! - [`exit`]: waits for all deliveries before the process ends.
//! - [`notices`]: messages for the user.

pub(crate) mod abandoned;
pub(crate) mod attempts;
pub(crate) mod dead_letter;
pub(crate) mod destination;
pub(crate) mod exit;
pub(crate) mod goal;
pub(crate) mod handle;
pub(crate) mod keeper;
pub(crate) mod notices;
pub(crate) mod outbox;
pub(crate) mod rewound;
pub(crate) mod runtime;
pub(crate) mod scheduler;
pub(crate) mod sender;
pub(crate) mod state;
pub(crate) mod sync;
pub(crate) mod targets;
pub(crate) mod transfer;
pub(crate) mod worker;

#[cfg(test)]
mod tests;
