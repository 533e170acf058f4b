//! Rewinds: from a step on, the points of a run are recorded anew.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Tag of a run with the rewinds that its store has applied, so that it applies each of them once.
pub(crate) const REWINDS_TAG: &str = "heimdall.rewinds";
/// Beginning of the keys of MLflow's system metrics.
pub(crate) const SYSTEM_METRICS: &str = "system/";
/// Most rewinds that the tag has. Their text is shorter than MLflow's shortest limit, 5,000 characters.
const REMEMBERED: usize = 64;

/// A rewind of a run. The points from a step on that were recorded before it are deleted; those that are recorded
/// after it are kept. System metrics are kept as well, because they count steps of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// Random number that identifies the rewind.
    pub id: u64,
    /// First step whose points are deleted.
    pub step: i64,
    /// Time of the call, in milliseconds since 1970.
    pub at: i64,
}

impl Rewind {
    /// Returns true where the rewind deletes an earlier point of this key and step.
    pub(crate) fn covers(&self, key: &str, step: i64) -> bool {
        step >= self.step && !key.starts_with(SYSTEM_METRICS)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        Some(Self {
            id: u64::from_str_radix(parts.next()?, 16).ok()?,
            step: parts.next()?.parse().ok()?,
            at: parts.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Rewind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}:{}", self.id, self.step, self.at)
    }
}

/// The rewinds that a store has applied to a run, the last one last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedRewinds(Vec<Rewind>);

impl AppliedRewinds {
    /// Reads the value of [`REWINDS_TAG`]; leaves out what is no rewind.
    pub(crate) fn parse(value: &str) -> Self {
        let rewinds = value.split_whitespace().filter_map(Rewind::parse);
        Self(rewinds.collect())
    }

    /// Returns true where the rewind is among them.
    pub(crate) fn has(&self, rewind: &Rewind) -> bool {
        self.0.iter().any(|applied| applied.id == rewind.id)
    }

    /// Adds a rewind, and forgets the oldest of too many.
    pub(crate) fn add(&mut self, rewind: Rewind) {
        self.0.push(rewind);
        let surplus = self.0.len().saturating_sub(REMEMBERED);
        self.0.drain(..surplus);
    }

    /// Returns the rewinds.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Rewind> {
        self.0.iter()
    }

    /// Returns true where there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for AppliedRewinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, rewind) in self.0.iter().enumerate() {
            let gap = if place > 0 { " " } else { "" };
            write!(f, "{gap}{rewind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_tag_is_read_as_it_was_written_and_is_never_too_long(
            rewinds in proptest::collection::vec(any::<(u64, i64, i64)>(), 0..100)
        ) {
            let mut applied = AppliedRewinds::default();
            for (id, step, at) in &rewinds {
                applied.add(Rewind { id: *id, step: *step, at: *at });
            }
            let tag = applied.to_string();
            prop_assert!(tag.len() < 5_000, "{}", tag.len());
            prop_assert_eq!(AppliedRewinds::parse(&tag), applied.clone());
            if let Some((id, step, at)) = rewinds.last() {
                let last = Rewind { id: *id, step: *step, at: *at };
                prop_assert!(applied.has(&last));
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            AppliedRewinds::parse(&text);
        }
    }

    #[test]
    fn system_metrics_count_steps_of_their_own() {
        let rewind = Rewind {
            id: 1,
            step: 5,
            at: 0,
        };
        assert!(rewind.covers("loss", 5) && rewind.covers("systems", 6));
        assert!(
            !rewind.covers("loss", 4) && !rewind.covers("system/cpu_utilization_percentage", 9)
        );
    }
}
