//! Network from spectrograms of three receivers to a position and its uncertainty.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{
    convnext::{ConvNext, ConvNextSize, SMALLEST_INPUT},
    heads::{HeadSettings, Heads, Output, probability},
    state::{Scope, State},
};
use crate::{
    error::{Error, Result},
    geo::{LatLon, LocalFrame},
    learner::{Network, StateDict},
    metrics::Prediction,
};

/// Channels of an input, one per receiver.
pub const CHANNELS: i64 = 3;

/// All settings of a [`LocalizationNet`], without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalizationNetConfig {
    /// The network before the heads.
    pub backbone: ConvNextSize,
    /// True where only the heads are trained.
    pub freeze_backbone: bool,
    /// Probability that a training row skips the last block; it rises from 0 in the first.
    pub stochastic_depth: f64,
    /// Dropout after the first and the second layer of each head.
    pub head_dropout: [f64; 2],
    /// The place that east and north are counted from.
    pub origin: LatLon,
    /// Metres that correspond to an output of 1.
    pub position_scale_m: f64,
    /// Lower bound of sigma in metres; see [`positive_sigma`](crate::loss::positive_sigma).
    pub sigma_floor_m: f64,
    /// Sigma of the untrained network in metres.
    pub sigma_init_m: f64,
    /// Seed of the first weights.
    pub seed: u64,
}

impl LocalizationNetConfig {
    /// Returns a configuration for receivers as far apart as those of Piedmont, Liguria and Lombardy.
    pub fn new(backbone: ConvNextSize) -> Self {
        Self {
            backbone,
            freeze_backbone: false,
            stochastic_depth: backbone.stochastic_depth(),
            head_dropout: [0.3, 0.2],
            // The place is in the middle of the seven receivers.
            origin: LatLon {
                lat: 44.966,
                lon: 8.161,
            },
            position_scale_m: 50_000.0,
            // The documents of the network ask for 30 m.
            sigma_floor_m: 20.0,
            sigma_init_m: 20_000.0,
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
        let LatLon { lat, lon } = self.origin;
        // A map has no east at a pole.
        if LatLon::new(lat, lon).is_none() || lat.abs() > 89.0 {
            return Err(Error::configuration(
                "origin",
                format!("({lat}, {lon})"),
                "it must be a latitude, −89…89, and a longitude, −180…180, in degrees",
            ));
        }
        probability("stochastic_depth", self.stochastic_depth)?;
        self.heads().validate()
    }
}

/// The position and uncertainty heads of the Heimdall networks on a ConvNeXt.
///
/// The tensors of the backbone have torchvision's names below `backbone.`.
#[derive(Debug)]
pub struct LocalizationNet {
    config: LocalizationNetConfig,
    state: State,
    backbone: ConvNext,
    heads: Heads,
}

impl LocalizationNet {
    /// Makes a network with first weights drawn from libtorch's generator, which is seeded with the configuration's
    /// seed.
    pub fn new(config: LocalizationNetConfig) -> Result<Self> {
        config.validate()?;
        tch::manual_seed(config.seed as i64);
        let mut state = State::default();
        let mut scope = Scope::root(&mut state);
        let (size, drop) = (config.backbone, config.stochastic_depth);
        let backbone = ConvNext::new(scope.child("backbone"), size, drop)?;
        let frame = LocalFrame {
            origin: config.origin,
        };
        let heads = Heads::new(&mut scope, size.features(), config.heads(), frame)?;
        if config.freeze_backbone {
            state.freeze("backbone.")?;
        }
        Ok(Self {
            config,
            state,
            backbone,
            heads,
        })
    }

    /// Returns the configuration of the network.
    pub fn config(&self) -> &LocalizationNetConfig {
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

    /// Runs the network on spectrograms, `[rows, 3, height, width]`; `train` enables dropout, batch statistics and,
    /// unless the backbone is frozen, stochastic depth.
    pub fn forward(&self, spectrograms: &Tensor, train: bool) -> Result<Output> {
        check_shape(spectrograms)?;
        let train_backbone = train && !self.config.freeze_backbone;
        let features = self.backbone.forward(spectrograms, train_backbone)?;
        self.heads.forward(&features, train)
    }

    /// Returns the network's predictions for spectrograms, in degrees and metres.
    pub fn predict(&self, spectrograms: &Tensor) -> Result<Vec<Prediction>> {
        let _no_grad = tch::no_grad_guard();
        self.predictions(&self.forward(spectrograms, false)?)
    }

    /// Converts an output to degrees and metres.
    pub fn predictions(&self, output: &Output) -> Result<Vec<Prediction>> {
        self.heads.predictions(output)
    }

    /// Returns positions as targets of the network: `[rows, 2]`, in units of `position_scale_m`.
    pub fn targets(&self, positions: &[LatLon]) -> Result<Tensor> {
        self.heads.targets(positions)
    }
}

fn check_shape(spectrograms: &Tensor) -> Result<()> {
    let size = spectrograms.size();
    if let [_, CHANNELS, height, width] = size[..]
        && height.min(width) >= SMALLEST_INPUT
    {
        return Ok(());
    }
    Err(Error::Shape {
        what: "spectrograms",
        expected: format!(
            "[rows, {CHANNELS}, height, width] with height and width of at least {SMALLEST_INPUT}"
        ),
        found: format!("{size:?}"),
    })
}

impl Network for LocalizationNet {
    fn forward(&self, inputs: &[Tensor], train: bool) -> Result<Vec<Tensor>> {
        let Output { mean, sigma } = LocalizationNet::forward(self, &inputs[0], train)?;
        Ok(vec![mean, sigma])
    }
}

impl StateDict for LocalizationNet {
    fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.state.named())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn config() -> LocalizationNetConfig {
        LocalizationNetConfig::new(ConvNextSize::Tiny)
    }

    fn spectrograms(rows: i64) -> Tensor {
        Tensor::randn([rows, 3, 128, 32], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn an_untrained_network_points_near_its_origin_and_is_as_unsure_as_it_was_told_to_be() {
        let net = LocalizationNet::new(config()).unwrap();
        for prediction in net.predict(&spectrograms(2)).unwrap() {
            let from_origin = prediction.position.distance_m(config().origin);
            assert!(from_origin < 50_000.0, "{from_origin}");
            assert!((prediction.sigma.east - 20_000.0).abs() < 10_000.0);
        }
    }

    #[test]
    fn every_parameter_gets_a_gradient_unless_the_backbone_is_frozen() {
        for freeze_backbone in [false, true] {
            let net = LocalizationNet::new(LocalizationNetConfig {
                freeze_backbone,
                ..config()
            })
            .unwrap();
            let output = net.forward(&spectrograms(2), true).unwrap();
            (output.mean.sum(Kind::Float) + output.sigma.sum(Kind::Float)).backward();
            for entry in net.state().entries() {
                let is_frozen = freeze_backbone && entry.name.starts_with("backbone.");
                let is_buffer = entry.name.contains("running_") || entry.name.contains("batches");
                assert_eq!(entry.learned, !(is_frozen || is_buffer), "{}", entry.name);
                assert_eq!(
                    entry.tensor.grad().defined(),
                    entry.learned,
                    "{}",
                    entry.name
                );
            }
        }
    }

    #[test]
    fn a_frozen_backbone_skips_no_block() {
        let net = LocalizationNet::new(LocalizationNetConfig {
            freeze_backbone: true,
            stochastic_depth: 0.9,
            head_dropout: [0.0; 2],
            ..config()
        })
        .unwrap();
        let input = spectrograms(3);
        let once = || net.forward(&input, true).unwrap().mean;
        assert_eq!(once(), once());
    }

    #[test]
    fn inputs_of_another_shape_are_refused() {
        let net = LocalizationNet::new(config()).unwrap();
        for shape in [&[1, 2, 128, 32][..], &[3, 128, 32], &[1, 3, 128, 31]] {
            let text = net
                .predict(&Tensor::zeros(shape, (Kind::Float, Device::Cpu)))
                .unwrap_err()
                .to_string();
            assert_eq!(
                text,
                format!(
                    "spectrograms must be [rows, 3, height, width] with height and width of at least 32, not {shape:?}"
                )
            );
        }
    }

    #[test]
    fn settings_that_make_no_network_are_refused() {
        let refused =
            |config: LocalizationNetConfig| LocalizationNet::new(config).unwrap_err().to_string();
        let stochastic_depth = 1.0;
        let text = refused(LocalizationNetConfig {
            stochastic_depth,
            ..config()
        });
        assert!(text.starts_with("stochastic_depth=1 "), "{text}");
        let origin = LatLon {
            lat: 95.0,
            lon: 8.0,
        };
        let text = refused(LocalizationNetConfig { origin, ..config() });
        assert!(text.starts_with("origin=(95, 8) "), "{text}");
        let text = refused(LocalizationNetConfig {
            sigma_init_m: 1.0,
            ..config()
        });
        assert!(text.starts_with("sigma_init_m=1 "), "{text}");
    }

    #[test]
    fn the_configuration_survives_being_written_down() {
        let text = serde_json::to_string(&config()).unwrap();
        assert!(text.contains("\"backbone\":\"convnext_tiny\""), "{text}");
        assert_eq!(
            serde_json::from_str::<LocalizationNetConfig>(&text).unwrap(),
            config()
        );
    }
}
