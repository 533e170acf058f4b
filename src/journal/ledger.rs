//! Progress of each destination, and the parts of a journal that no destination needs any more.
//!
//! A journal can have several destinations, and each reads it at its own pace. A segment is removed once the slowest
//! destination is past it, and a staged file once the last destination has stored it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::position::Position;

/// A position, and the number of the first undelivered entry behind it.
pub(crate) type Place = (Position, u64);

/// Progress of each destination of a journal.
#[derive(Debug)]
pub(crate) struct Ledger {
    places: Mutex<Vec<Place>>,
}

impl Ledger {
    /// Makes a ledger with the place of each destination, in the manifest's order.
    pub(crate) fn new(places: Vec<Place>) -> Self {
        Self {
            places: Mutex::new(places),
        }
    }

    /// Notes the progress of a destination. Returns the least of all places before and after.
    pub(crate) fn advance(
        &self,
        destination: usize,
        position: Position,
        next: u64,
    ) -> (Place, Place) {
        let mut places = self.places();
        let before = least(&places);
        if let Some(place) = places.get_mut(destination) {
            *place = (position.max(place.0), next.max(place.1));
        }
        (before, least(&places))
    }

    /// Returns the number up to which all other destinations have delivered; the greatest number where there is no
    /// other destination.
    pub(crate) fn others(&self, destination: usize) -> u64 {
        let places = self.places();
        let others = places.iter().enumerate();
        others
            .filter(|(place, _)| *place != destination)
            .map(|(_, (_, next))| *next)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Returns the place of a destination.
    pub(crate) fn place(&self, destination: usize) -> Option<Place> {
        self.places().get(destination).copied()
    }

    /// Returns the least of all places.
    pub(crate) fn least(&self) -> Place {
        least(&self.places())
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn least(places: &[Place]) -> Place {
    let position = places.iter().map(|(position, _)| *position).min();
    let next = places.iter().map(|(_, next)| *next).min();
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
