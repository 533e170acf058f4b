//! Baselines that a network has to beat: three ways to a position that learn nothing or only remember rows.

use crate::{
    dataset::{NOT_HEARD_DBM, Recording, RssDataset},
    error::{Error, Result},
    geo::LatLon,
    metrics::median,
};

/// Number of neighbours whose positions are averaged.
const NEIGHBOURS: usize = 5;

/// Great-circle errors of one baseline on the test rows, in metres.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baseline {
    /// Name of the baseline in metrics.
    pub name: &'static str,
    /// Median error.
    pub median_m: f64,
    /// Mean error.
    pub mean_m: f64,
}

/// Returns the errors of the baselines on the test rows; the baselines know all other rows (training and validation).
pub fn baselines(dataset: &RssDataset) -> Result<Vec<Baseline>> {
    let mut known_rows = [dataset.split.train.as_slice(), &dataset.split.val].concat();
    known_rows.sort_unstable();
    let known: Vec<&Recording> = known_rows
        .iter()
        .map(|&row| &dataset.recordings[row])
        .collect();
    let positions: Vec<LatLon> = known.iter().map(|row| row.position).collect();
    let Some(centre) = LatLon::mean(&positions) else {
        return Err(Error::Split {
            reason: "there are no rows besides the test rows".to_owned(),
        });
    };
    let receivers: Vec<LatLon> = dataset
        .receivers
        .iter()
        .map(|receiver| receiver.position)
        .collect();
    let score = |name, predict: &dyn Fn(&Recording) -> LatLon| {
        let errors: Vec<f64> = dataset
            .split
            .test
            .iter()
            .map(|&row| &dataset.recordings[row])
            .map(|row| predict(row).distance_m(row.position))
            .collect();
        Baseline {
            name,
            mean_m: errors.iter().sum::<f64>() / errors.len() as f64,
            median_m: median(errors),
        }
    };
    Ok(vec![
        score("mean_position", &|_| centre),
        score("power_centroid", &|row| {
            power_centroid(row, &receivers).unwrap_or(centre)
        }),
        score("nearest_neighbours", &|row| {
            nearest_neighbours(row, &known).unwrap_or(centre)
        }),
    ])
}

/// Returns the mean position of the receivers that heard something, weighted by the power in milliwatts.
fn power_centroid(row: &Recording, receivers: &[LatLon]) -> Option<LatLon> {
    let (mut lat, mut lon, mut total) = (0.0, 0.0, 0.0);
    for (&dbm, receiver) in row.rss_dbm.iter().zip(receivers) {
        if dbm > NOT_HEARD_DBM {
            let milliwatts = 10f64.powf(f64::from(dbm) / 10.0);
            lat += milliwatts * receiver.lat;
            lon += milliwatts * receiver.lon;
            total += milliwatts;
        }
    }
    (total > 0.0).then(|| LatLon {
        lat: lat / total,
        lon: lon / total,
    })
}

/// Returns the mean position of the known rows whose powers in dBm are closest; "not heard" counts as a value of its
/// own.
fn nearest_neighbours(row: &Recording, known: &[&Recording]) -> Option<LatLon> {
    let mut distances: Vec<(f32, LatLon)> = known
        .iter()
        .map(|other| {
            let squares = row
                .rss_dbm
                .iter()
                .zip(&other.rss_dbm)
                .map(|(a, b)| (a - b) * (a - b));
            (squares.sum(), other.position)
        })
        .collect();
    if distances.len() > NEIGHBOURS {
        distances.select_nth_unstable_by(NEIGHBOURS - 1, |a, b| a.0.total_cmp(&b.0));
        distances.truncate(NEIGHBOURS);
    }
    let closest: Vec<LatLon> = distances
        .into_iter()
        .map(|(_, position)| position)
        .collect();
    LatLon::mean(&closest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::rss::tests::powder;

    /// Returns median and mean in whole metres, as published in the data's README.
    fn published(test: &str) -> Vec<(i64, i64)> {
        let rounded = |baseline: &Baseline| {
            (
                baseline.median_m.round() as i64,
                baseline.mean_m.round() as i64,
            )
        };
        baselines(&powder(test))
            .unwrap()
            .iter()
            .map(rounded)
            .collect()
    }

    #[test]
    fn the_baselines_are_those_of_the_published_table() {
        assert_eq!(published("grid_test"), [(482, 537), (255, 344), (137, 168)]);
        assert_eq!(published("random_test"), [(597, 577), (216, 278), (61, 93)]);
    }
}
