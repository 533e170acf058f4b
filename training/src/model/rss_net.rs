//! Network from the powers at fixed receivers to a position and its uncertainty.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{
    heads::Head,
    layers::{LayerNorm, Linear},
    state::{Scope, State},
};
use crate::{
    dataset::{NOT_HEARD_DBM, Receiver, rss::local_frame},
    error::{Error, Result},
    geo::{EastNorth, LatLon, LocalFrame},
    loss::{positive_sigma, raw_for_sigma},
    metrics::Prediction,
};

/// All settings of an [`RssLocalizationNet`], without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RssNetConfig {
    /// The receivers, in order; each has one input.
    pub receivers: Vec<Receiver>,
    /// Width of each layer of the trunk.
    pub hidden: Vec<i64>,
    /// Dropout after each layer of the trunk.
    pub dropout: f64,
    /// Dropout after the first and the second layer of each head.
    pub head_dropout: [f64; 2],
    /// Decibels above "not heard" that correspond to an input of 1.
    pub rss_scale_db: f64,
    /// Metres that correspond to an output of 1.
    pub position_scale_m: f64,
    /// Lower bound of sigma in metres; see [`positive_sigma`].
    pub sigma_floor_m: f64,
    /// Sigma of the untrained network in metres.
    pub sigma_init_m: f64,
    /// Seed of the first weights.
    pub seed: u64,
}

impl RssNetConfig {
    /// Returns a configuration that works for a campus-sized network of these receivers.
    pub fn new(receivers: Vec<Receiver>) -> Self {
        Self {
            receivers,
            hidden: vec![128, 128],
            dropout: 0.1,
            head_dropout: [0.3, 0.2],
            rss_scale_db: 30.0,
            position_scale_m: 1000.0,
            sigma_floor_m: 20.0,
            sigma_init_m: 320.0,
            seed: 0,
        }
    }

    fn validate(&self) -> Result<()> {
        let positive = |name, value: f64| {
            if value > 0.0 && value.is_finite() {
                return Ok(());
            }
            let reason = "it must be a number above 0";
            Err(Error::configuration(name, value, reason))
        };
        positive("rss_scale_db", self.rss_scale_db)?;
        positive("position_scale_m", self.position_scale_m)?;
        positive("sigma_floor_m", self.sigma_floor_m)?;
        if !(self.sigma_init_m > self.sigma_floor_m && self.sigma_init_m.is_finite()) {
            let reason = format!(
                "it must be a length in metres above sigma_floor_m ({})",
                self.sigma_floor_m
            );
            return Err(Error::configuration(
                "sigma_init_m",
                self.sigma_init_m,
                reason,
            ));
        }
        let [first, second] = self.head_dropout;
        for (name, dropout) in [
            ("dropout", self.dropout),
            ("head_dropout", first),
            ("head_dropout", second),
        ] {
            if !(0.0..1.0).contains(&dropout) {
                let reason = "it must be a probability below 1";
                return Err(Error::configuration(name, dropout, reason));
            }
        }
        if self.hidden.is_empty() || self.hidden.iter().any(|&width| width < 1) {
            let hidden = format!("{:?}", self.hidden);
            return Err(Error::configuration(
                "hidden",
                hidden,
                "it lists the width of at least one layer",
            ));
        }
        Ok(())
    }
}

/// Output of the network for a batch, in units of `position_scale_m`.
#[derive(Debug)]
pub struct Output {
    /// East and north, `[rows, 2]`.
    pub mean: Tensor,
    /// Standard deviation of each, `[rows, 2]`.
    pub sigma: Tensor,
}

/// Factor that scales the receivers' shares of the power, which sum to 1, to the size of the other inputs.
const SHARE_SCALE: f64 = 3.0;

/// The position and uncertainty heads of the Heimdall networks on a small trunk for received powers.
///
/// The input is a row of dBm per receiver; the trunk is `Linear LayerNorm GELU Dropout` per layer. East and north are
/// measured from the middle of the receivers.
#[derive(Debug)]
pub struct RssLocalizationNet {
    config: RssNetConfig,
    frame: LocalFrame,
    /// Positions of the receivers, `[receivers, 2]`, in the unit of the output.
    receivers: Tensor,
    state: State,
    trunk: Vec<(Linear, LayerNorm)>,
    position: Head,
    uncertainty: Head,
}

impl RssLocalizationNet {
    /// Makes a network with first weights drawn from libtorch's generator, which is seeded with the configuration's
    /// seed.
    pub fn new(config: RssNetConfig) -> Result<Self> {
        config.validate()?;
        let Some(frame) = local_frame(&config.receivers) else {
            return Err(Error::configuration(
                "receivers",
                "[]",
                "a network needs at least one receiver",
            ));
        };
        tch::manual_seed(config.seed as i64);
        let mut state = State::default();
        let mut scope = Scope::root(&mut state);
        let mut features = 3 * config.receivers.len() as i64 + 5;
        let mut trunk = Vec::new();
        for (layer, &width) in config.hidden.iter().enumerate() {
            // There are four modules per layer, as in the corresponding torch.nn.Sequential.
            let linear = Linear::new(scope.child("trunk").child(4 * layer), features, width)?;
            trunk.push((
                linear,
                LayerNorm::new(scope.child("trunk").child(4 * layer + 1), width)?,
            ));
            features = width;
        }
        let position = Head::new(scope.child("position_head"), features, config.head_dropout)?;
        let uncertainty = Head::new(
            scope.child("uncertainty_head"),
            features,
            config.head_dropout,
        )?;
        {
            let _no_grad = tch::no_grad_guard();
            let scaled = |metres: f64| metres / config.position_scale_m;
            let raw = raw_for_sigma(scaled(config.sigma_init_m), scaled(config.sigma_floor_m));
            let _ = uncertainty.last.bias.shallow_clone().f_fill_(raw)?;
        }
        let positions: Vec<_> = config
            .receivers
            .iter()
            .map(|receiver| receiver.position)
            .collect();
        Ok(Self {
            receivers: targets(&positions, frame, config.position_scale_m)?,
            config,
            frame,
            state,
            trunk,
            position,
            uncertainty,
        })
    }

    /// Returns the configuration of the network.
    pub fn config(&self) -> &RssNetConfig {
        &self.config
    }

    /// Returns the map that positions are computed on.
    pub fn frame(&self) -> LocalFrame {
        self.frame
    }

    /// Returns the tensors by name.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Runs the network on powers in dBm, `[rows, receivers]`; `train` enables dropout and batch statistics.
    pub fn forward(&self, rss: &Tensor, train: bool) -> Result<Output> {
        let receivers = self.config.receivers.len() as i64;
        if rss.dim() != 2 || rss.size()[1] != receivers {
            let found = format!("{:?}", rss.size());
            return Err(Error::Shape {
                what: "rss",
                expected: format!("[rows, {receivers}]"),
                found,
            });
        }
        let mut hidden = self.features(rss)?;
        for (linear, norm) in &self.trunk {
            let normalised = norm.forward(&linear.forward(&hidden)?)?;
            hidden = normalised
                .f_gelu("none")?
                .f_dropout(self.config.dropout, train)?;
        }
        let mean = self.position.forward(&hidden, train)?;
        let floor = self.config.sigma_floor_m / self.config.position_scale_m;
        let sigma = positive_sigma(&self.uncertainty.forward(&hidden, train)?, floor)?;
        Ok(Output { mean, sigma })
    }

    /// Returns the inputs of the trunk for powers in dBm. For each receiver these are its level above the mean of the
    /// receivers that heard something, a flag for having heard something, and its share of the power. The mean itself
    /// and two centroids of the receivers follow. A transmitter that is twice as strong changes only the mean, because
    /// all other inputs are relative.
    fn features(&self, rss: &Tensor) -> Result<Tensor> {
        let floor = f64::from(NOT_HEARD_DBM);
        let heard = rss.f_gt(floor)?.f_to_kind(Kind::Float)?;
        let level = rss
            .f_sub_scalar(floor)?
            .f_div_scalar(self.config.rss_scale_db)?
            .f_mul(&heard)?;
        let sum = |tensor: &Tensor| tensor.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        let mean = sum(&level)?.f_div(&sum(&heard)?.f_clamp_min(1.0)?)?;
        let relative = level.f_sub(&mean)?.f_mul(&heard)?;
        // In a mean weighted by powers, the strongest receiver dominates; weighted by their cube roots, several
        // receivers count.
        let shares = |root: f64| -> Result<Tensor> {
            let exponent = rss.f_div_scalar(10.0 * root)?;
            let power = Tensor::f_pow_scalar(10.0, &exponent)?.f_mul(&heard)?;
            Ok(power.f_div(&sum(&power)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?)
        };
        let (power, root_power) = (shares(1.0)?, shares(3.0)?);
        let (centroid, soft_centroid) = (
            power.f_matmul(&self.receivers)?,
            root_power.f_matmul(&self.receivers)?,
        );
        let spread = root_power.f_mul_scalar(SHARE_SCALE)?;
        Ok(Tensor::f_cat(
            &[relative, heard, spread, mean, centroid, soft_centroid],
            1,
        )?)
    }

    /// Returns the network's predictions for powers in dBm, `[rows, receivers]`, in degrees and metres.
    pub fn predict(&self, rss: &Tensor) -> Result<Vec<Prediction>> {
        let _no_grad = tch::no_grad_guard();
        self.predictions(&self.forward(rss, false)?)
    }

    /// Converts an output to degrees and metres.
    pub fn predictions(&self, output: &Output) -> Result<Vec<Prediction>> {
        let scale = self.config.position_scale_m;
        let numbers = |tensor: &Tensor| -> Result<Vec<f64>> {
            let flat = tensor
                .f_detach()?
                .f_contiguous()?
                .f_view([-1])?
                .f_to_kind(Kind::Double)?;
            Ok(Vec::try_from(flat)?)
        };
        let (mean, sigma) = (numbers(&output.mean)?, numbers(&output.sigma)?);
        let rows = mean.chunks_exact(2).zip(sigma.chunks_exact(2));
        Ok(rows
            .map(|(mean, sigma)| {
                let local = EastNorth {
                    east: mean[0] * scale,
                    north: mean[1] * scale,
                };
                Prediction {
                    position: self.frame.to_lat_lon(local),
                    local,
                    sigma: EastNorth {
                        east: sigma[0] * scale,
                        north: sigma[1] * scale,
                    },
                }
            })
            .collect())
    }

    /// Returns positions as targets of the network: `[rows, 2]`, in units of `position_scale_m`.
    pub fn targets(&self, positions: &[LatLon]) -> Result<Tensor> {
        targets(positions, self.frame, self.config.position_scale_m)
    }
}

fn targets(positions: &[LatLon], frame: LocalFrame, scale_m: f64) -> Result<Tensor> {
    let values: Vec<f32> = positions
        .iter()
        .map(|&position| frame.to_local(position))
        .flat_map(|at| [(at.east / scale_m) as f32, (at.north / scale_m) as f32])
        .collect();
    Ok(Tensor::f_from_slice(&values)?.f_view([-1, 2])?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes a small network of three receivers.
    pub(crate) fn small(seed: u64) -> RssLocalizationNet {
        let receivers = (0..3)
            .map(|n| Receiver {
                id: format!("rx{n}"),
                position: LatLon {
                    lat: 45.0 + 0.01 * f64::from(n),
                    lon: 8.0,
                },
            })
            .collect();
        RssLocalizationNet::new(RssNetConfig {
            hidden: vec![16],
            seed,
            ..RssNetConfig::new(receivers)
        })
        .unwrap()
    }

    fn readings() -> Tensor {
        Tensor::from_slice(&[-50f32, -80.0, -101.0, -90.0, -101.0, -60.0]).view([2, 3])
    }

    #[test]
    fn the_tensors_have_the_names_torch_would_give_them() {
        let names: Vec<_> = small(0)
            .state()
            .entries()
            .iter()
            .map(|entry| entry.name.clone())
            .collect();
        assert_eq!(
            names[..4],
            [
                "trunk.0.weight",
                "trunk.0.bias",
                "trunk.1.weight",
                "trunk.1.bias"
            ]
        );
        assert!(names.contains(&"position_head.5.num_batches_tracked".to_owned()));
        assert_eq!(
            names.last().map(String::as_str),
            Some("uncertainty_head.8.bias")
        );
    }

    #[test]
    fn an_untrained_network_is_as_unsure_as_it_was_told_to_be() {
        for prediction in small(0).predict(&readings()).unwrap() {
            assert!(
                (prediction.sigma.east - 320.0).abs() < 150.0,
                "{}",
                prediction.sigma.east
            );
        }
    }

    #[test]
    fn what_nobody_heard_has_an_answer_all_the_same() {
        let silence = Tensor::from_slice(&[-101f32; 3]).view([1, 3]);
        let prediction = small(0).predict(&silence).unwrap()[0];
        assert!(
            prediction.local.east.is_finite() && prediction.sigma.north.is_finite(),
            "{prediction:?}"
        );
    }

    #[test]
    fn readings_of_another_network_are_refused() {
        let text = small(0)
            .predict(&Tensor::from_slice(&[0f32; 8]).view([2, 4]))
            .unwrap_err()
            .to_string();
        assert_eq!(text, "rss must be [rows, 3], not [2, 4]");
    }

    #[test]
    fn weights_move_from_one_network_to_another() {
        let (a, b) = (small(1), small(2));
        b.state().load(&a.state().copy().unwrap()).unwrap();
        assert_eq!(
            a.predict(&readings()).unwrap(),
            b.predict(&readings()).unwrap()
        );
        let mut incomplete = a.state().copy().unwrap();
        incomplete.pop();
        let text = b.state().load(&incomplete).unwrap_err().to_string();
        assert!(text.contains("uncertainty_head.8.bias"), "{text}");
    }

    #[test]
    fn settings_that_make_no_network_are_refused() {
        let good = small(0).config().clone();
        let refused =
            |config: RssNetConfig| RssLocalizationNet::new(config).unwrap_err().to_string();
        assert!(
            refused(RssNetConfig {
                hidden: vec![],
                ..good.clone()
            })
            .starts_with("hidden=[]")
        );
        assert!(
            refused(RssNetConfig {
                dropout: 1.0,
                ..good.clone()
            })
            .starts_with("dropout=1 ")
        );
        assert!(
            refused(RssNetConfig {
                sigma_init_m: 1.0,
                ..good.clone()
            })
            .starts_with("sigma_init_m=1 ")
        );
        assert!(
            refused(RssNetConfig {
                receivers: vec![],
                ..good
            })
            .starts_with("receivers=[]")
        );
    }
}
