//! The output of the Heimdall networks: one head for the position, one for its uncertainty.

use tch::Tensor;

use super::{
    layers::{BatchNorm1d, Linear},
    state::Scope,
};
use crate::{
    error::{Error, Result},
    geo::{LatLon, LocalFrame},
    loss::{positive_sigma, raw_for_sigma},
    metrics::{OutputScale, Prediction},
};

/// Output of a network for a batch, in units of `position_scale_m`.
#[derive(Debug)]
pub struct Output {
    /// East and north, `[rows, 2]`.
    pub mean: Tensor,
    /// Standard deviation of each, `[rows, 2]`.
    pub sigma: Tensor,
}

/// Settings of both heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadSettings {
    /// Dropout after the first and the second layer.
    pub(crate) dropout: [f64; 2],
    /// Metres that correspond to an output of 1.
    pub(crate) position_scale_m: f64,
    /// Lower bound of sigma in metres; see [`positive_sigma`].
    pub(crate) sigma_floor_m: f64,
    /// Sigma of the untrained network in metres.
    pub(crate) sigma_init_m: f64,
}

impl HeadSettings {
    pub(crate) fn validate(&self) -> Result<()> {
        positive("position_scale_m", self.position_scale_m)?;
        positive("sigma_floor_m", self.sigma_floor_m)?;
        if !(self.sigma_init_m > self.sigma_floor_m && self.sigma_init_m.is_finite()) {
            let reason = format!(
                "it must be a length in metres above sigma_floor_m ({})",
                self.sigma_floor_m
            );
            let value = self.sigma_init_m;
            return Err(Error::configuration("sigma_init_m", value, reason));
        }
        let [first, second] = self.dropout;
        probability("head_dropout", first)?;
        probability("head_dropout", second)
    }
}

/// Refuses a setting that is not a number above 0.
pub(crate) fn positive(name: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    let reason = "it must be a number above 0";
    Err(Error::configuration(name, value, reason))
}

/// Refuses a setting that is not a probability below 1.
pub(crate) fn probability(name: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let reason = "it must be a probability below 1";
    Err(Error::configuration(name, value, reason))
}

/// Both heads, and the map that their output is on.
#[derive(Debug)]
pub(crate) struct Heads {
    position: Head,
    uncertainty: Head,
    settings: HeadSettings,
    frame: LocalFrame,
}

impl Heads {
    /// Makes `position_head` and `uncertainty_head` for an input of this many features. The settings must be valid.
    pub(crate) fn new(
        scope: &mut Scope<'_>,
        features: i64,
        settings: HeadSettings,
        frame: LocalFrame,
    ) -> Result<Self> {
        let position = Head::new(scope.child("position_head"), features, settings.dropout)?;
        let uncertainty = Head::new(scope.child("uncertainty_head"), features, settings.dropout)?;
        let scaled = |metres: f64| metres / settings.position_scale_m;
        let raw = raw_for_sigma(
            scaled(settings.sigma_init_m),
            scaled(settings.sigma_floor_m),
        );
        let _no_grad = tch::no_grad_guard();
        let _ = uncertainty.last.bias.shallow_clone().f_fill_(raw)?;
        Ok(Self {
            position,
            uncertainty,
            settings,
            frame,
        })
    }

    /// Returns the map that positions are computed on.
    pub(crate) fn frame(&self) -> LocalFrame {
        self.frame
    }

    /// Runs both heads on features, `[rows, features]`.
    pub(crate) fn forward(&self, features: &Tensor, train: bool) -> Result<Output> {
        if train && features.size().first() == Some(&1) {
            return Err(Error::Shape {
                what: "a batch in training",
                expected: "at least 2 rows, because BatchNorm needs the variance of a batch"
                    .to_owned(),
                found: "1 row".to_owned(),
            });
        }
        let mean = self.position.forward(features, train)?;
        let floor = self.settings.sigma_floor_m / self.settings.position_scale_m;
        let sigma = positive_sigma(&self.uncertainty.forward(features, train)?, floor)?;
        Ok(Output { mean, sigma })
    }

    /// Converts an output to degrees and metres.
    pub(crate) fn predictions(&self, output: &Output) -> Result<Vec<Prediction>> {
        self.scale().predictions(&output.mean, &output.sigma)
    }

    /// Returns the map and the scale of the outputs.
    pub(crate) fn scale(&self) -> OutputScale {
        OutputScale {
            frame: self.frame,
            position_scale_m: self.settings.position_scale_m,
        }
    }

    /// Returns positions as targets of the network: `[rows, 2]`, in units of `position_scale_m`.
    pub(crate) fn targets(&self, positions: &[LatLon]) -> Result<Tensor> {
        targets(positions, self.frame, self.settings.position_scale_m)
    }
}

/// Returns positions on a map, `[rows, 2]`, in units of `scale_m`.
pub(crate) fn targets(positions: &[LatLon], frame: LocalFrame, scale_m: f64) -> Result<Tensor> {
    let values: Vec<f32> = positions
        .iter()
        .map(|&position| frame.to_local(position))
        .flat_map(|at| [(at.east / scale_m) as f32, (at.north / scale_m) as f32])
        .collect();
    Ok(Tensor::f_from_slice(&values)?.f_view([-1, 2])?)
}

/// `Linear(F→128) BatchNorm ReLU Dropout 0.3, Linear(128→64) BatchNorm ReLU Dropout 0.2, Linear(64→2)`, with
/// the names of a `torch.nn.Sequential`.
#[derive(Debug)]
struct Head {
    first: (Linear, BatchNorm1d),
    second: (Linear, BatchNorm1d),
    last: Linear,
    dropout: [f64; 2],
}

impl Head {
    fn new(mut scope: Scope<'_>, features: i64, dropout: [f64; 2]) -> Result<Self> {
        Ok(Self {
            first: (
                Linear::new(scope.child(0), features, 128)?,
                BatchNorm1d::new(scope.child(1), 128)?,
            ),
            second: (
                Linear::new(scope.child(4), 128, 64)?,
                BatchNorm1d::new(scope.child(5), 64)?,
            ),
            last: Linear::new(scope.child(8), 64, 2)?,
            dropout,
        })
    }

    fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let mut hidden = features.shallow_clone();
        for ((linear, norm), dropout) in [&self.first, &self.second].into_iter().zip(self.dropout) {
            hidden = norm
                .forward(&linear.forward(&hidden)?, train)?
                .f_relu()?
                .f_dropout(dropout, train)?;
        }
        self.last.forward(&hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::state::State, *};
    use tch::{Device, Kind};

    fn heads(state: &mut State) -> Heads {
        let settings = HeadSettings {
            dropout: [0.3, 0.2],
            position_scale_m: 1000.0,
            sigma_floor_m: 20.0,
            sigma_init_m: 320.0,
        };
        let origin = LatLon {
            lat: 45.0,
            lon: 8.0,
        };
        Heads::new(&mut Scope::root(state), 4, settings, LocalFrame { origin }).unwrap()
    }

    #[test]
    fn a_training_batch_of_one_row_is_refused_and_says_why() {
        let mut state = State::default();
        let heads = heads(&mut state);
        let row = Tensor::zeros([1, 4], (Kind::Float, Device::Cpu));
        let text = heads.forward(&row, true).unwrap_err().to_string();
        assert_eq!(
            text,
            "a batch in training must be at least 2 rows, because BatchNorm needs the variance of a batch, not 1 row"
        );
        assert_eq!(heads.forward(&row, false).unwrap().mean.size(), [1, 2]);
    }

    #[test]
    fn a_target_is_the_output_that_predicts_it() {
        let mut state = State::default();
        let heads = heads(&mut state);
        let truth = LatLon {
            lat: 45.3,
            lon: 7.2,
        };
        let mean = heads.targets(&[truth]).unwrap();
        let sigma = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let found = heads.predictions(&Output { mean, sigma }).unwrap()[0];
        assert!(found.position.distance_m(truth) < 0.1, "{found:?}");
        assert!((found.sigma.north - 1000.0).abs() < 1e-9);
    }
}
