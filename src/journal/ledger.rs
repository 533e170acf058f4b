//! Who has delivered how much, and what nobody needs any more.
//!
//! A journal can have several destinations, each of which goes through it at its own pace. A segment is removed
//! when the slowest is past it, and a staged file when the last one has taken it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::position::Position;

/// A position, and the number of the first entry behind it that is not delivered.
pub type Place = (Position, u64);

/// How far each destination of a journal is.
#[derive(Debug)]
pub struct Ledger {
    places: Mutex<Vec<Place>>,
}

impl Ledger {
    /// The places of as many destinations, in the manifest's order.
    pub fn new(places: Vec<Place>) -> Self {
        Self {
            places: Mutex::new(places),
        }
    }

    /// Notes how far a destination has come, and returns the least of all places before and after.
    pub fn advance(&self, destination: usize, position: Position, next: u64) -> (Place, Place) {
        let mut places = self.places();
        let before = least(&places);
        if let Some(place) = places.get_mut(destination) {
            *place = (position.max(place.0), next.max(place.1));
        }
        (before, least(&places))
    }

    /// The number up to which all other destinations have delivered; the greatest where there is no other.
    pub fn others(&self, destination: usize) -> u64 {
        let places = self.places();
        let others = places.iter().enumerate();
        others
            .filter(|(place, _)| *place != destination)
            .map(|(_, (_, next))| *next)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// How far a destination has come.
    pub fn place(&self, destination: usize) -> Option<Place> {
        self.places().get(destination).copied()
    }

    /// The least of all places.
    pub fn least(&self) -> Place {
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
