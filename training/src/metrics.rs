//! Measures of the quality of predictions.

use tch::{Kind, Tensor};

use crate::{
    error::Result,
    geo::{EastNorth, LatLon, LocalFrame},
    learner::Metric,
};

/// The predicted position of a transmitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Most likely position.
    pub position: LatLon,
    /// The same position on the model's map.
    pub local: EastNorth,
    /// Standard deviation east and north in metres.
    pub sigma: EastNorth,
}

/// A prediction beside the truth.
#[derive(Debug, Clone, Copy)]
struct Residual {
    error_m: f64,
    east: f64,
    north: f64,
    sigma: EastNorth,
}

/// Quality of the predictions of a set of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// Mean loss per row.
    pub loss: f64,
    /// Mean absolute error of east and north in metres.
    pub mae: f64,
    /// Mean great-circle distance between prediction and truth in metres.
    pub position_error_mean: f64,
    /// Standard deviation of that distance (divided by n − 1; 0 for a single row).
    pub position_error_std: f64,
    /// Median of that distance.
    pub position_error_median: f64,
    /// Mean predicted standard deviation of east and north in metres.
    pub sigma_mean: f64,
    /// Share of truths inside the predicted 1-sigma ellipse; 0.393 for a true Gaussian.
    pub within_1_sigma: f64,
    /// Share of truths inside the predicted 2-sigma ellipse; 0.865 for a true Gaussian.
    pub within_2_sigma: f64,
}

impl Metrics {
    /// Returns the metrics with their recorded names, without the prefix `train/`, `val/` or `test/`.
    pub fn named(&self) -> [(&'static str, f64); 8] {
        [
            ("loss", self.loss),
            ("mae", self.mae),
            ("position_error_mean", self.position_error_mean),
            ("position_error_std", self.position_error_std),
            ("position_error_median", self.position_error_median),
            ("sigma_mean", self.sigma_mean),
            ("within_1_sigma", self.within_1_sigma),
            ("within_2_sigma", self.within_2_sigma),
        ]
    }
}

/// The map that a network's outputs are on, and their scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputScale {
    /// Map of the outputs.
    pub frame: LocalFrame,
    /// Metres that correspond to an output of 1.
    pub position_scale_m: f64,
}

impl OutputScale {
    /// Converts outputs to degrees and metres: `mean` and `sigma` east and north, `[rows, 2]`.
    pub fn predictions(&self, mean: &Tensor, sigma: &Tensor) -> Result<Vec<Prediction>> {
        let (mean, sigma) = (numbers(mean)?, numbers(sigma)?);
        let metres = |pair: &[f64]| EastNorth {
            east: pair[0] * self.position_scale_m,
            north: pair[1] * self.position_scale_m,
        };
        let rows = mean.chunks_exact(2).zip(sigma.chunks_exact(2));
        Ok(rows
            .map(|(mean, sigma)| {
                let local = metres(mean);
                Prediction {
                    position: self.frame.to_lat_lon(local),
                    local,
                    sigma: metres(sigma),
                }
            })
            .collect())
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor
        .f_detach()?
        .f_to_kind(Kind::Double)?
        .f_contiguous()?
        .f_view([-1])?;
    Ok(Vec::try_from(flat)?)
}

/// The metrics of positions over an epoch. Outputs are mean and sigma, the second target is the truth in degrees.
#[derive(Debug)]
pub struct LocalizationMetrics {
    scale: OutputScale,
    /// Mean, sigma and truth of each batch. They are looked at once, at the end of the epoch.
    batches: Vec<[Tensor; 3]>,
}

impl LocalizationMetrics {
    /// Returns the metrics of a network with outputs of this scale.
    pub fn new(scale: OutputScale) -> Self {
        Self {
            scale,
            batches: Vec::new(),
        }
    }
}

impl Metric for LocalizationMetrics {
    fn update(&mut self, outputs: &[Tensor], targets: &[Tensor]) -> Result<()> {
        let [mean, sigma] = [&outputs[0], &outputs[1]];
        let batch = [
            mean.f_detach()?,
            sigma.f_detach()?,
            targets[1].shallow_clone(),
        ];
        self.batches.push(batch);
        Ok(())
    }

    fn compute(&mut self) -> Result<Vec<(String, f64)>> {
        let mut tally = Tally::default();
        for [mean, sigma, degrees] in self.batches.drain(..) {
            let predictions = self.scale.predictions(&mean, &sigma)?;
            let truth: Vec<Truth> = numbers(&degrees)?
                .chunks_exact(2)
                .map(|pair| LatLon {
                    lat: pair[0],
                    lon: pair[1],
                })
                .map(|position| Truth {
                    position,
                    local: self.scale.frame.to_local(position),
                })
                .collect();
            tally.add(0.0, &predictions, &truth);
        }
        let named = tally.metrics().named().into_iter();
        // The loop measures the loss itself.
        let named = named.filter(|(name, _)| *name != "loss");
        Ok(named
            .map(|(name, value)| (name.to_owned(), value))
            .collect())
    }
}

/// Collects predictions and losses batch by batch.
#[derive(Debug, Default)]
pub struct Tally {
    residuals: Vec<Residual>,
    loss_sum: f64,
}

impl Tally {
    /// Adds a batch with its mean loss.
    pub fn add(&mut self, loss: f64, predictions: &[Prediction], truth: &[Truth]) {
        self.loss_sum += loss * predictions.len() as f64;
        self.residuals.extend(
            predictions
                .iter()
                .zip(truth)
                .map(|(prediction, truth)| Residual {
                    error_m: prediction.position.distance_m(truth.position),
                    east: truth.local.east - prediction.local.east,
                    north: truth.local.north - prediction.local.north,
                    sigma: prediction.sigma,
                }),
        );
    }

    /// Returns the metrics of everything that was added; they are NaN if nothing was.
    pub fn metrics(&self) -> Metrics {
        let n = self.residuals.len() as f64;
        let mean = |value: fn(&Residual) -> f64| self.residuals.iter().map(value).sum::<f64>() / n;
        let within = |radius: f64| {
            let inside = |residual: &&Residual| {
                let (east, north) = (
                    residual.east / residual.sigma.east,
                    residual.north / residual.sigma.north,
                );
                east.hypot(north) < radius
            };
            self.residuals.iter().filter(inside).count() as f64 / n
        };
        let errors: Vec<f64> = self
            .residuals
            .iter()
            .map(|residual| residual.error_m)
            .collect();
        let position_error_mean = mean(|residual| residual.error_m);
        Metrics {
            loss: self.loss_sum / n,
            mae: mean(|residual| (residual.east.abs() + residual.north.abs()) / 2.0),
            position_error_mean,
            position_error_std: standard_deviation(&errors, position_error_mean),
            position_error_median: median(errors),
            sigma_mean: mean(|residual| (residual.sigma.east + residual.sigma.north) / 2.0),
            within_1_sigma: within(1.0),
            within_2_sigma: within(2.0),
        }
    }
}

/// A true position, in degrees and on the model's map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truth {
    /// Position in degrees.
    pub position: LatLon,
    /// Position in metres.
    pub local: EastNorth,
}

fn standard_deviation(values: &[f64], mean: f64) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    (values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / (values.len() - 1) as f64)
        .sqrt()
}

/// Returns the middle value, or the mean of the two in the middle; NaN for no values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[half],
        _ => (values[half - 1] + values[half]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: LatLon = LatLon {
        lat: 45.0,
        lon: 8.0,
    };

    fn metrics(east_errors: &[f64], sigma: f64) -> Metrics {
        let frame = crate::geo::LocalFrame { origin: HERE };
        let mut tally = Tally::default();
        let zero = EastNorth {
            east: 0.0,
            north: 0.0,
        };
        for &east in east_errors {
            let local = EastNorth { east, north: 0.0 };
            let sigma = EastNorth {
                east: sigma,
                north: 2.0 * sigma,
            };
            let prediction = Prediction {
                position: frame.to_lat_lon(local),
                local,
                sigma,
            };
            tally.add(
                0.5,
                &[prediction],
                &[Truth {
                    position: HERE,
                    local: zero,
                }],
            );
        }
        tally.metrics()
    }

    #[test]
    fn the_errors_are_metres() {
        let metrics = metrics(&[100.0, 200.0, 600.0], 50.0);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-3;
        assert!(close(metrics.position_error_mean, 300.0), "{metrics:?}");
        assert!(close(metrics.position_error_median, 200.0), "{metrics:?}");
        assert!(
            close(metrics.position_error_std, 70_000f64.sqrt()),
            "{metrics:?}"
        );
        assert!(
            close(metrics.mae, 150.0) && close(metrics.sigma_mean, 75.0),
            "{metrics:?}"
        );
        assert_eq!(metrics.loss, 0.5);
    }

    #[test]
    fn the_share_within_sigma_counts_ellipses() {
        let metrics = metrics(&[49.0, 51.0, 99.0, 101.0], 50.0);
        assert_eq!(
            (metrics.within_1_sigma, metrics.within_2_sigma),
            (0.25, 0.75)
        );
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }
}
