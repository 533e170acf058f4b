//! Division of recordings by place.
//!
//! Recordings of neighbouring seconds are only metres apart. A random division would put them on both sides, and a
//! network that only remembers rows would look good. So the validation rows are whole squares of the map, as the
//! published `grid_test` rows are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    geo::EastNorth,
    rng::Rng,
};

/// Settings of the division of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitConfig {
    /// Name of the published split that is held out for the test.
    pub test: String,
    /// Share of the other rows that are used for validation, 0…1 exclusive; whole squares are taken until it is
    /// reached.
    pub val_fraction: f64,
    /// Side of a square in metres.
    pub square_m: f64,
    /// Seed of the choice of the validation squares.
    pub seed: u64,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self {
            test: "grid_test".to_owned(),
            val_fraction: 0.125,
            square_m: 230.0,
            seed: 0,
        }
    }
}

/// Indices of rows, ascending; no row is in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Rows for training.
    pub train: Vec<usize>,
    /// Rows that decide which checkpoint is best and when the training ends.
    pub val: Vec<usize>,
    /// Rows that are used once, at the end.
    pub test: Vec<usize>,
}

/// Returns the square of the map that contains a point, by column and row.
fn square(point: EastNorth, side_m: f64) -> (i64, i64) {
    (
        (point.east / side_m).floor() as i64,
        (point.north / side_m).floor() as i64,
    )
}

impl Split {
    /// Holds out the rows `test` (ascending) and takes the validation rows from the rest by squares.
    pub fn by_square(points: &[EastNorth], test: &[usize], config: &SplitConfig) -> Result<Self> {
        if !(config.val_fraction > 0.0 && config.val_fraction < 1.0) {
            let reason = "it must be a share of the rows between 0 and 1";
            return Err(Error::configuration(
                "val_fraction",
                config.val_fraction,
                reason,
            ));
        }
        if !(config.square_m > 0.0 && config.square_m.is_finite()) {
            return Err(Error::configuration(
                "square_m",
                config.square_m,
                "it must be a length in metres above 0",
            ));
        }
        let mut squares: BTreeMap<(i64, i64), Vec<usize>> = BTreeMap::new();
        let others = (0..points.len()).filter(|row| test.binary_search(row).is_err());
        let mut rows = 0;
        for row in others {
            squares
                .entry(square(points[row], config.square_m))
                .or_default()
                .push(row);
            rows += 1;
        }
        let mut squares: Vec<Vec<usize>> = squares.into_values().collect();
        Rng::new(config.seed, 0).shuffle(&mut squares);

        let wanted = ((config.val_fraction * rows as f64).round() as usize).max(1);
        let (mut train, mut val) = (Vec::new(), Vec::new());
        for square in squares {
            if val.len() < wanted {
                val.extend(square)
            } else {
                train.extend(square)
            }
        }
        train.sort_unstable();
        val.sort_unstable();
        if train.is_empty() || val.is_empty() || test.is_empty() {
            let reason = format!(
                "{} training, {} validation and {} test rows, none of which may be 0; choose another \
                 val_fraction (now {}) or square_m (now {})",
                train.len(),
                val.len(),
                test.len(),
                config.val_fraction,
                config.square_m
            );
            return Err(Error::Split { reason });
        }
        Ok(Self {
            train,
            val,
            test: test.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::rss::{local_frame, tests::powder};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_square_of_the_shipped_recordings_both_trains_and_validates() {
        let dataset = powder("grid_test");
        let frame = local_frame(&dataset.receivers).unwrap();
        let squares = |rows: &[usize]| -> BTreeSet<_> {
            dataset
                .positions(rows)
                .into_iter()
                .map(|at| square(frame.to_local(at), 230.0))
                .collect()
        };
        assert!(squares(&dataset.split.train).is_disjoint(&squares(&dataset.split.val)));
        let share = dataset.split.val.len() as f64 / 4340.0;
        assert!((0.125..0.16).contains(&share), "{share}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let points = vec![
            EastNorth {
                east: 0.0,
                north: 0.0
            };
            4
        ];
        let with = |config| {
            Split::by_square(&points, &[0], &config)
                .unwrap_err()
                .to_string()
        };
        let default = SplitConfig::default;
        assert!(
            with(SplitConfig {
                val_fraction: 1.0,
                ..default()
            })
            .starts_with("val_fraction=1 ")
        );
        assert!(
            with(SplitConfig {
                square_m: 0.0,
                ..default()
            })
            .starts_with("square_m=0 ")
        );
        // One square cannot be on two sides.
        assert!(with(default()).contains("0 training"));
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_part(
            places in proptest::collection::vec((-2000f64..2000.0, -2000f64..2000.0), 20..200),
            seed: u64,
        ) {
            let points: Vec<_> = places.iter().map(|&(east, north)| EastNorth { east, north }).collect();
            let config = SplitConfig { seed, val_fraction: 0.3, ..SplitConfig::default() };
            let split = Split::by_square(&points, &[1, 5], &config).unwrap();
            let mut all = [split.train.clone(), split.val.clone(), split.test.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..points.len()).collect::<Vec<_>>());
            prop_assert_eq!(Split::by_square(&points, &[1, 5], &config).unwrap(), split);
        }
    }
}
