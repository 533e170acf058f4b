//! Sources of batches.

use tch::Tensor;

use crate::{
    error::{Error, Result},
    rng::Rng,
};

/// Rows for one step.
#[derive(Debug)]
pub struct Batch {
    /// Inputs of the network; the first axis is the row.
    pub inputs: Vec<Tensor>,
    /// Targets of the loss and of the metrics; the first axis is the row.
    pub targets: Vec<Tensor>,
}

impl Batch {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        let first = self.inputs.first();
        first.map_or(0, |tensor| {
            tensor.size().first().map_or(1, |&rows| rows as usize)
        })
    }
}

/// A source of batches, one epoch after the other.
pub trait Batches<B> {
    /// Returns the number of batches in an epoch; `None` where that is not known before.
    fn per_epoch(&self) -> Option<usize>;

    /// Begins an epoch.
    fn begin(&mut self, epoch: usize) -> Result<()>;

    /// Returns the next batch of the epoch; `None` at its end.
    fn next(&mut self) -> Result<Option<B>>;
}

/// The order of the rows of an epoch, in batches of equal length.
///
/// The rows that are left after the last whole batch are not used in this epoch; the order is drawn anew each time, so
/// that the next epoch leaves out other rows. A short last batch would give BatchNorm statistics of few rows, and a
/// batch of one row none at all. If there are fewer rows than one batch, all of them are one batch.
#[derive(Debug, Clone, Copy)]
pub struct ShuffledRows {
    rows: usize,
    size: usize,
}

impl ShuffledRows {
    /// Makes batches of `size` rows out of `rows` rows.
    pub fn new(rows: usize, size: usize) -> Result<Self> {
        if size < 2 {
            return Err(Error::configuration(
                "batch_size",
                size,
                "it must be at least 2, because BatchNorm cannot use a single row",
            ));
        }
        if rows < 2 {
            return Err(Error::Split {
                reason: format!("{rows} training rows, at least 2 are needed"),
            });
        }
        Ok(Self {
            rows,
            size: size.min(rows),
        })
    }

    /// Returns the number of batches in an epoch.
    pub fn per_epoch(self) -> usize {
        self.rows / self.size
    }

    /// Returns the batches of one epoch; the seed and the number of the epoch determine them.
    pub fn epoch(self, seed: u64, epoch: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.rows).collect();
        Rng::new(seed, epoch as u64).shuffle(&mut order);
        order
            .chunks_exact(self.size)
            .map(<[usize]>::to_vec)
            .collect()
    }
}

/// The rows of some tensors, in batches.
#[derive(Debug)]
pub struct TensorBatches {
    inputs: Vec<Tensor>,
    targets: Vec<Tensor>,
    order: Order,
    left: std::vec::IntoIter<Vec<usize>>,
}

/// The order in which rows become batches.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// Another one in each epoch, which the seed determines.
    Shuffled {
        /// The rows and the length of a batch.
        rows: ShuffledRows,
        /// Seed of the order.
        seed: u64,
    },
    /// All rows as one batch, in their order.
    Whole,
}

impl TensorBatches {
    /// Makes batches of the rows of tensors, which all have the same number of rows.
    pub fn new(inputs: Vec<Tensor>, targets: Vec<Tensor>, order: Order) -> Self {
        Self {
            inputs,
            targets,
            order,
            left: Vec::new().into_iter(),
        }
    }

    fn of(&self, select: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Batch> {
        Ok(Batch {
            inputs: self.inputs.iter().map(&select).collect::<Result<_>>()?,
            targets: self.targets.iter().map(&select).collect::<Result<_>>()?,
        })
    }
}

impl Batches<Batch> for TensorBatches {
    fn per_epoch(&self) -> Option<usize> {
        Some(match self.order {
            Order::Shuffled { rows, .. } => rows.per_epoch(),
            Order::Whole => 1,
        })
    }

    fn begin(&mut self, epoch: usize) -> Result<()> {
        let batches = match self.order {
            Order::Shuffled { rows, seed } => rows.epoch(seed, epoch),
            Order::Whole => vec![Vec::new()],
        };
        self.left = batches.into_iter();
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Batch>> {
        let Some(rows) = self.left.next() else {
            return Ok(None);
        };
        if matches!(self.order, Order::Whole) {
            return self.of(|tensor| Ok(tensor.shallow_clone())).map(Some);
        }
        let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
        let rows = Tensor::f_from_slice(&rows)?;
        self.of(|tensor| Ok(tensor.f_index_select(0, &rows)?))
            .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_rows_of_inputs_and_targets_stay_together() {
        let inputs = Tensor::arange(10, (tch::Kind::Float, tch::Device::Cpu));
        let targets = &inputs * 2.0;
        let order = Order::Shuffled {
            rows: ShuffledRows::new(10, 3).unwrap(),
            seed: 1,
        };
        let mut batches = TensorBatches::new(vec![inputs], vec![targets], order);
        batches.begin(0).unwrap();
        let mut seen = 0;
        while let Some(batch) = batches.next().unwrap() {
            assert_eq!(batch.rows(), 3);
            assert_eq!(&batch.inputs[0] * 2.0, batch.targets[0]);
            seen += 1;
        }
        assert_eq!(Some(seen), batches.per_epoch());
    }

    proptest! {
        #[test]
        fn an_epoch_has_no_row_twice_and_no_short_batch(n in 2usize..300, size in 2usize..70, seed: u64) {
            let batches = ShuffledRows::new(n, size).unwrap();
            let epoch = batches.epoch(seed, 3);
            prop_assert_eq!(epoch.len(), batches.per_epoch());
            prop_assert!(epoch.iter().all(|batch| batch.len() == size.min(n)));
            let rows: BTreeSet<usize> = epoch.iter().flatten().copied().collect();
            prop_assert_eq!(rows.len(), epoch.len() * size.min(n));
            prop_assert!(rows.into_iter().all(|row| row < n));
        }
    }
}
