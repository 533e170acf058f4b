//! ConvNeXt as torchvision has it, with the names of its tensors.
//!
//! The architecture is from Liu et al. (2022), "A ConvNet for the 2020s"; names, first weights and probabilities of
//! stochastic depth are torchvision's, so that weights move both ways. Of torchvision's `classifier`, the LayerNorm
//! stays, because the pretrained features go through it, and only the layer for 1,000 classes is left out.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{
    layers::{Conv2d, Geometry, LayerNorm, Linear},
    state::Scope,
};
use crate::error::Result;

/// The sizes that torchvision has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConvNextSize {
    /// 28 million parameters.
    #[serde(rename = "convnext_tiny")]
    Tiny,
    /// 49 million parameters.
    #[serde(rename = "convnext_small")]
    Small,
    /// 88 million parameters.
    #[serde(rename = "convnext_base")]
    Base,
    /// 196 million parameters.
    #[serde(rename = "convnext_large")]
    Large,
}

impl ConvNextSize {
    /// All sizes, from the smallest.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::Small, Self::Base, Self::Large];

    /// Returns the name that torchvision's builder has.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "convnext_tiny",
            Self::Small => "convnext_small",
            Self::Base => "convnext_base",
            Self::Large => "convnext_large",
        }
    }

    /// Returns the channels of each stage.
    fn channels(self) -> [i64; 4] {
        match self {
            Self::Tiny | Self::Small => [96, 192, 384, 768],
            Self::Base => [128, 256, 512, 1024],
            Self::Large => [192, 384, 768, 1536],
        }
    }

    /// Returns the number of blocks of each stage.
    fn blocks(self) -> [usize; 4] {
        [3, 3, if self == Self::Tiny { 9 } else { 27 }, 3]
    }

    /// Returns the number of features, which is that of the channels of the last stage.
    pub fn features(self) -> i64 {
        self.channels()[3]
    }

    /// Returns the probability of stochastic depth in the last block that torchvision trains this size with.
    pub fn stochastic_depth(self) -> f64 {
        match self {
            Self::Tiny => 0.1,
            Self::Small => 0.4,
            Self::Base | Self::Large => 0.5,
        }
    }
}

const EPS: f64 = 1e-6;
const LAYER_SCALE: f64 = 1e-6;
/// Least height and width of an input: the network divides both by 32.
pub(crate) const SMALLEST_INPUT: i64 = 32;

/// From pictures, `[rows, 3, height, width]`, to features, `[rows, features]`.
#[derive(Debug)]
pub(crate) struct ConvNext {
    stem: (Conv2d, LayerNorm),
    /// The blocks of each stage, and the layers before them that halve height and width.
    stages: Vec<(Option<Downsampling>, Vec<Block>)>,
    norm: LayerNorm,
}

impl ConvNext {
    /// Makes a network whose probability of stochastic depth rises from 0 in the first block to this in the last.
    pub(crate) fn new(
        mut scope: Scope<'_>,
        size: ConvNextSize,
        stochastic_depth: f64,
    ) -> Result<Self> {
        let channels = size.channels();
        let mut features = scope.child("features");
        let geometry = Geometry {
            kernel: 4,
            stride: 4,
            padding: 0,
            groups: 1,
        };
        let stem = (
            Conv2d::new(features.child("0.0"), 3, channels[0], geometry)?,
            LayerNorm::with_eps(features.child("0.1"), channels[0], EPS)?,
        );
        let last = (size.blocks().iter().sum::<usize>() - 1) as f64;
        let mut made = 0;
        let mut stages = Vec::new();
        for (stage, (&width, count)) in channels.iter().zip(size.blocks()).enumerate() {
            let downsampling = match stage.checked_sub(1) {
                Some(before) => Some(Downsampling::new(
                    features.child(2 * stage),
                    channels[before],
                    width,
                )?),
                None => None,
            };
            let mut scope = features.child(2 * stage + 1);
            let mut blocks = Vec::new();
            for block in 0..count {
                let drop = stochastic_depth * f64::from(made) / last;
                blocks.push(Block::new(scope.child(block), width, drop)?);
                made += 1;
            }
            stages.push((downsampling, blocks));
        }
        let norm = LayerNorm::with_eps(scope.child("classifier.0"), size.features(), EPS)?;
        Ok(Self { stem, stages, norm })
    }

    /// Runs the network; `train` enables stochastic depth.
    pub(crate) fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        let (conv, norm) = &self.stem;
        // LayerNorm and the layers between pixels need the channels last. A tensor that has them so in memory is not
        // copied by any of the permutations.
        let channels_last = to_channels_first(&to_channels_last(pictures)?.f_contiguous()?)?;
        let mut hidden = norm_2d(norm, &conv.forward(&channels_last)?)?;
        for (downsampling, blocks) in &self.stages {
            if let Some(layers) = downsampling {
                hidden = layers.forward(&hidden)?;
            }
            for block in blocks {
                hidden = block.forward(&hidden, train)?;
            }
        }
        let pooled = hidden.f_adaptive_avg_pool2d([1, 1])?;
        self.norm.forward(&pooled.f_flatten(1, -1)?)
    }
}

/// `LayerNorm2d Conv2d`.
#[derive(Debug)]
struct Downsampling(LayerNorm, Conv2d);

impl Downsampling {
    fn new(mut scope: Scope<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        let geometry = Geometry {
            kernel: 2,
            stride: 2,
            padding: 0,
            groups: 1,
        };
        Ok(Self(
            LayerNorm::with_eps(scope.child(0), inputs, EPS)?,
            Conv2d::new(scope.child(1), inputs, outputs, geometry)?,
        ))
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.1.forward(&norm_2d(&self.0, input)?)
    }
}

/// torchvision's `CNBlock`.
#[derive(Debug)]
struct Block {
    layer_scale: Tensor,
    depthwise: Conv2d,
    norm: LayerNorm,
    wide: Linear,
    narrow: Linear,
    /// Probability that a row skips the block.
    drop: f64,
}

impl Block {
    fn new(mut scope: Scope<'_>, width: i64, drop: f64) -> Result<Self> {
        let geometry = Geometry {
            kernel: 7,
            stride: 1,
            padding: 3,
            groups: width,
        };
        let layer_scale = scope.constant("layer_scale", &[width, 1, 1], LAYER_SCALE)?;
        // Modules 1, 4 and 6 of torchvision's sequence have no tensors.
        let mut block = scope.child("block");
        Ok(Self {
            layer_scale,
            depthwise: Conv2d::new(block.child(0), width, width, geometry)?,
            norm: LayerNorm::with_eps(block.child(2), width, EPS)?,
            wide: Linear::narrow(block.child(3), width, 4 * width)?,
            narrow: Linear::narrow(block.child(5), 4 * width, width)?,
            drop,
        })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = to_channels_last(&self.depthwise.forward(input)?)?;
        let hidden = self.wide.forward(&self.norm.forward(&hidden)?)?;
        let hidden = self.narrow.forward(&hidden.f_gelu("none")?)?;
        let mut change = to_channels_first(&hidden)?.f_mul(&self.layer_scale)?;
        if train && self.drop > 0.0 {
            change = change.f_mul(&survivors(&change, self.drop)?)?;
        }
        Ok(change.f_add(input)?)
    }
}

/// Returns for each row 0 with the probability `drop`, else the factor that keeps the mean.
fn survivors(rows: &Tensor, drop: f64) -> Result<Tensor> {
    let options = (Kind::Float, rows.device());
    let mut drawn = Tensor::f_empty([rows.size()[0], 1, 1, 1], options)?;
    Ok(drawn
        .f_bernoulli_float_(1.0 - drop)?
        .f_div_scalar(1.0 - drop)?)
}

/// torchvision's `LayerNorm2d`, over the channels of each pixel.
fn norm_2d(norm: &LayerNorm, input: &Tensor) -> Result<Tensor> {
    to_channels_first(&norm.forward(&to_channels_last(input)?)?)
}

fn to_channels_last(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_permute([0, 2, 3, 1])?)
}

fn to_channels_first(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_permute([0, 3, 1, 2])?)
}

#[cfg(test)]
mod tests {
    use super::{super::state::State, *};
    use tch::Device;

    fn tiny() -> (State, ConvNext) {
        tch::manual_seed(0);
        let mut state = State::default();
        let scope = Scope::root(&mut state);
        let net = ConvNext::new(scope, ConvNextSize::Tiny, 0.1).unwrap();
        (state, net)
    }

    #[test]
    fn the_smallest_has_the_tensors_and_the_parameters_of_torchvision() {
        let (state, _) = tiny();
        let names: Vec<&str> = state.entries().iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names.len(), 180);
        assert_eq!(
            names[..7],
            [
                "features.0.0.weight",
                "features.0.0.bias",
                "features.0.1.weight",
                "features.0.1.bias",
                "features.1.0.layer_scale",
                "features.1.0.block.0.weight",
                "features.1.0.block.0.bias",
            ]
        );
        assert_eq!(names[178..], ["classifier.0.weight", "classifier.0.bias"]);
        let count: usize = state.parameters().iter().map(Tensor::numel).sum();
        // The number is that of torchvision's network without the layer for 1,000 classes.
        assert_eq!(count, 28_589_128 - 769_000);
    }

    #[test]
    fn any_size_of_picture_from_32_has_features() {
        let (_, net) = tiny();
        for (height, width) in [(128, 32), (32, 32), (50, 70)] {
            let pictures = Tensor::randn([2, 3, height, width], (Kind::Float, Device::Cpu));
            assert_eq!(net.forward(&pictures, false).unwrap().size(), [2, 768]);
        }
    }

    #[test]
    fn a_row_goes_through_a_block_whole_or_not_at_all() {
        tch::manual_seed(0);
        let rows = Tensor::ones([1000, 2, 1, 1], (Kind::Float, Device::Cpu));
        let kept = Vec::<f32>::try_from(survivors(&rows, 0.5).unwrap().view([-1])).unwrap();
        assert!(kept.iter().all(|&factor| factor == 0.0 || factor == 2.0));
        let share = kept.iter().filter(|&&factor| factor > 0.0).count();
        assert!((400..600).contains(&share), "{share} of 1000 rows are kept");
    }

    #[test]
    fn stochastic_depth_is_for_training_only() {
        let (state, net) = tiny();
        let _no_grad = tch::no_grad_guard();
        for entry in state.entries() {
            if entry.name.ends_with("layer_scale") {
                let _ = entry.tensor.shallow_clone().f_fill_(1.0).unwrap();
            }
        }
        let pictures = Tensor::randn([4, 3, 32, 32], (Kind::Float, Device::Cpu));
        let once = |train| net.forward(&pictures, train).unwrap();
        assert_eq!(once(false), once(false));
        assert_ne!(once(true), once(true));
    }
}
