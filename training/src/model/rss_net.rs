//! Network from the powers at fixed receivers to a position and its uncertainty.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{
    heads::{HeadSettings, Heads, Output, positive, probability, targets},
    layers::{LayerNorm, Linear},
    state::{Scope, State},
};
use crate::{
    dataset::{NOT_HEARD_DBM, Receiver, rss::local_frame},
    error::{Error, Result},
    geo::{LatLon, LocalFrame},
    learner::{Network, StateDict},
    metrics::{OutputScale, Prediction},
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

    fn heads(&self) -> HeadSettings {
        HeadSettings {
            dropout: self.head_dropout,
            position_scale_m: self.position_scale_m,
            sigma_floor_m: self.sigma_floor_m,
            sigma_init_m: self.sigma_init_m,
        }
    }

    fn validate(&self) -> Result<()> {
        positive("rss_scale_db", self.rss_scale_db)?;
        probability("dropout", self.dropout)?;
        self.heads().validate()?;
        if self.hidden.is_empty() || self.hidden.iter().any(|&width| width < 1) {
            let hidden = format!("{:?}", self.hidden);
            return Err(Error::configuration(
                "hidden",
                hidden,
                "it must list the width of at least one layer",
            ));
        }
        Ok(())
    }
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
    /// Positions of the receivers, `[receivers, 2]`, in the unit of the output.
    receivers: Tensor,
    state: State,
    trunk: Vec<(Linear, LayerNorm)>,
    heads: Heads,
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
                "a network must have at least one receiver",
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
        let heads = Heads::new(&mut scope, features, config.heads(), frame)?;
        let positions: Vec<_> = config
            .receivers
            .iter()
            .map(|receiver| receiver.position)
            .collect();
        Ok(Self {
            receivers: targets(&positions, frame, config.position_scale_m)?,
            config,
            state,
            trunk,
            heads,
        })
    }

    /// Returns the configuration of the network.
    pub fn config(&self) -> &RssNetConfig {
        &self.config
    }

    /// Returns the map that positions are computed on.
    pub fn frame(&self) -> LocalFrame {
        self.heads.frame()
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
        self.heads.forward(&hidden, train)
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
        self.heads.predictions(output)
    }

    /// Returns the map and the scale of the outputs.
    pub fn scale(&self) -> OutputScale {
        self.heads.scale()
    }

    /// Returns positions as targets of the network: `[rows, 2]`, in units of `position_scale_m`.
    pub fn targets(&self, positions: &[LatLon]) -> Result<Tensor> {
        self.heads.targets(positions)
    }
}

impl Network for RssLocalizationNet {
    fn forward(&self, inputs: &[Tensor], train: bool) -> Result<Vec<Tensor>> {
        let Output { mean, sigma } = RssLocalizationNet::forward(self, &inputs[0], train)?;
        Ok(vec![mean, sigma])
    }
}

impl StateDict for RssLocalizationNet {
    fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.state.named())
    }
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
