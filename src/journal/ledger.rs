//! Progress of each destination, and the parts of a journal that no destination needs any more.
//!
//! A journal can have several destinations, and each reads it at its own pace. A segment is removed once the slowest
//! destination is past it, and a staged file once the last destination has stored it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::position::Position;

/// A position, and the number of the first entry behind it that is not delivered.
pub(crate) type Cursor = (Position, u64);

/// Progress of each destination of a journal.
#[derive(Debug)]
pub(crate) struct Ledger {
    cursors: Mutex<Vec<Cursor>>,
}

impl Ledger {
    /// Makes a ledger with the cursor of each destination, in the manifest's order.
    pub(crate) fn new(cursors: Vec<Cursor>) -> Self {
        Self {
            cursors: Mutex::new(cursors),
        }
    }

    /// Notes the progress of a destination. Returns the least of all cursors before and after.
    pub(crate) fn advance(
        &self,
        destination: usize,
        position: Position,
        next: u64,
    ) -> (Cursor, Cursor) {
        let mut cursors = self.cursors();
        let before = least(&cursors);
        if let Some(cursor) = cursors.get_mut(destination) {
            *cursor = (position.max(cursor.0), next.max(cursor.1));
        }
        (before, least(&cursors))
    }

    /// Returns the number up to which all other destinations have delivered; the greatest number where there is no
    /// other destination.
    pub(crate) fn others(&self, destination: usize) -> u64 {
        let cursors = self.cursors();
        let others = cursors.iter().enumerate();
        others
            .filter(|(cursor, _)| *cursor != destination)
            .map(|(_, (_, next))| *next)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Returns the cursor of a destination.
    pub(crate) fn cursor(&self, destination: usize) -> Option<Cursor> {
        self.cursors().get(destination).copied()
    }

    /// Returns the least of all cursors.
    pub(crate) fn least(&self) -> Cursor {
        least(&self.cursors())
    }

    fn cursors(&self) -> MutexGuard<'_, Vec<Cursor>> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn least(cursors: &[Cursor]) -> Cursor {
    let position = cursors.iter().map(|(position, _)| *position).min();
    let next = cursors.iter().map(|(_, next)| *next).min();
    (position.unwrap_or(Position::START), next.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Position {
        Position { segment: 1, offset }
    }

    #[test]
    fn the_slowest_destination_decides() {
        let ledger = Ledger::new(vec![(at(12), 0); 2]);
        assert_eq!(ledger.advance(0, at(90), 3), ((at(12), 0), (at(12), 0)));
        assert_eq!(ledger.advance(1, at(50), 2), ((at(12), 0), (at(50), 2)));
        assert_eq!((ledger.others(0), ledger.others(1)), (2, 3));
        assert_eq!(Ledger::new(vec![(at(12), 0)]).others(0), u64::MAX);
    }
}
