//! Rows of received powers, prepared for the network.

use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    batches::{Batch, Batches, Order, ShuffledRows, TensorBatches},
    dataset::{NOT_HEARD_DBM, RssDataset},
    error::{Error, Result},
    metrics::Truth,
    model::RssLocalizationNet,
};

/// Rows as tensors and as positions.
#[derive(Debug)]
pub struct Examples {
    /// Powers in dBm, `[rows, receivers]`.
    pub rss: Tensor,
    /// Outputs that the network should have, `[rows, 2]`.
    pub targets: Tensor,
    /// The same targets as positions.
    pub truth: Vec<Truth>,
}

impl Examples {
    /// Prepares the rows of a dataset for a network, which must have been made for the same receivers.
    pub fn new(dataset: &RssDataset, rows: &[usize], model: &RssLocalizationNet) -> Result<Self> {
        if dataset.receivers != model.config().receivers {
            return Err(Error::Shape {
                what: "the receivers of the dataset",
                expected: "those the model was made for".to_owned(),
                found: "other ones".to_owned(),
            });
        }
        let positions = dataset.positions(rows);
        let truth = positions.iter().map(|&position| Truth {
            position,
            local: model.frame().to_local(position),
        });
        Ok(Self {
            rss: dataset.rss(rows)?,
            targets: model.targets(&positions)?,
            truth: truth.collect(),
        })
    }

    /// Returns the rows as batches, with two targets: the outputs that the network should have, and degrees.
    pub fn batches(&self, order: Order) -> Result<TensorBatches> {
        let truth = self.truth.iter();
        let degrees: Vec<f64> = truth
            .flat_map(|truth| [truth.position.lat, truth.position.lon])
            .collect();
        let degrees = Tensor::f_from_slice(&degrees)?.f_view([-1, 2])?;
        let targets = vec![self.targets.shallow_clone(), degrees];
        Ok(TensorBatches::new(
            vec![self.rss.shallow_clone()],
            targets,
            order,
        ))
    }
}

/// Training batches of a dataset, whose powers are changed anew each time.
#[derive(Debug)]
pub struct RssBatches {
    rows: TensorBatches,
    augmentation: Augmentation,
}

impl RssBatches {
    /// Makes shuffled batches of `batch_size` rows.
    pub fn new(
        examples: &Examples,
        batch_size: usize,
        seed: u64,
        augmentation: Augmentation,
    ) -> Result<Self> {
        let rows = ShuffledRows::new(examples.truth.len(), batch_size)?;
        Ok(Self {
            rows: examples.batches(Order::Shuffled { rows, seed })?,
            augmentation,
        })
    }
}

impl Batches<Batch> for RssBatches {
    fn per_epoch(&self) -> Option<usize> {
        self.rows.per_epoch()
    }

    fn begin(&mut self, epoch: usize) -> Result<()> {
        self.rows.begin(epoch)
    }

    fn next(&mut self) -> Result<Option<Batch>> {
        let Some(mut batch) = self.rows.next()? else {
            return Ok(None);
        };
        for rss in &mut batch.inputs {
            *rss = self.augmentation.apply(rss)?;
        }
        Ok(Some(batch))
    }
}

/// Random changes to the powers of a training batch, drawn anew each time from libtorch's generator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Augmentation {
    /// Mean share of the receivers that are silenced in a row; the share of each row is uniform in 0…2×this.
    pub drop_receivers: f64,
    /// Standard deviation of noise on each power in dB.
    pub noise_db: f64,
    /// Standard deviation of a change that all powers of a row share, in dB.
    pub gain_db: f64,
}

/// Receivers that are kept in each row, however many are silenced.
const RECEIVERS_KEPT: i64 = 4;

impl Augmentation {
    /// Returns a changed copy of powers in dBm, `[rows, receivers]`.
    pub fn apply(&self, rss: &Tensor) -> Result<Tensor> {
        let floor = f64::from(NOT_HEARD_DBM);
        let rows = rss.size()[0];
        let per_row = |tensor: Tensor| tensor.f_view([rows, 1]);
        let options = (Kind::Float, rss.device());
        let mut heard = rss.f_gt(floor)?;
        if self.drop_receivers > 0.0 {
            let share = per_row(Tensor::f_rand([rows], options)?)?
                .f_mul_scalar(2.0 * self.drop_receivers)?;
            let kept = heard.f_logical_and(&rss.f_rand_like()?.f_ge_tensor(&share)?)?;
            let enough = kept
                .f_sum_dim_intlist([1i64].as_slice(), true, Kind::Int64)?
                .f_ge(RECEIVERS_KEPT)?;
            heard = kept.f_where_self(&enough, &heard)?;
        }
        let mut changed = rss.shallow_clone();
        if self.noise_db > 0.0 {
            changed = changed.f_add(&rss.f_randn_like()?.f_mul_scalar(self.noise_db)?)?;
        }
        if self.gain_db > 0.0 {
            changed = changed
                .f_add(&per_row(Tensor::f_randn([rows], options)?)?.f_mul_scalar(self.gain_db)?)?;
        }
        // A power that was heard stays above "not heard", however weak the change makes it.
        Ok(changed
            .f_clamp_min(floor + 0.01)?
            .f_where_scalarother(&heard, floor)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Tensor {
        let heard = Tensor::full([50, 20], -80.0, (Kind::Float, tch::Device::Cpu));
        let silent = Tensor::full([50, 9], -101.0, (Kind::Float, tch::Device::Cpu));
        Tensor::cat(&[heard, silent], 1)
    }

    fn heard(rss: &Tensor) -> i64 {
        rss.f_gt(-101.0).unwrap().sum(Kind::Int64).int64_value(&[])
    }

    #[test]
    fn no_augmentation_changes_nothing() {
        let none = Augmentation {
            drop_receivers: 0.0,
            noise_db: 0.0,
            gain_db: 0.0,
        };
        assert_eq!(none.apply(&rows()).unwrap(), rows());
    }

    #[test]
    fn noise_leaves_the_silent_silent_and_the_heard_heard() {
        let noise = Augmentation {
            drop_receivers: 0.0,
            noise_db: 30.0,
            gain_db: 30.0,
        };
        let changed = noise.apply(&rows()).unwrap();
        assert_eq!(heard(&changed), 50 * 20);
        assert_ne!(changed, rows());
    }

    #[test]
    fn receivers_go_silent_at_the_rate_asked_for_and_some_are_kept() {
        tch::manual_seed(0);
        let drop = |share| Augmentation {
            drop_receivers: share,
            noise_db: 0.0,
            gain_db: 0.0,
        };
        let some = heard(&drop(0.2).apply(&rows()).unwrap()) as f64 / (50.0 * 20.0);
        assert!((some - 0.8).abs() < 0.05, "{some}");
        let fewest = drop(0.5).apply(&rows()).unwrap().f_gt(-101.0).unwrap();
        let fewest = fewest
            .sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)
            .min()
            .int64_value(&[]);
        assert!(fewest >= 4, "{fewest}");
    }
}
