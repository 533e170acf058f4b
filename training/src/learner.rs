//! The seam between the loop and what it trains: a learner turns a batch into a loss.
//!
//! [`Supervised`] is the learner of a [`Network`] with a [`Loss`] and [`Metric`]s. A Lightning module is another one: it
//! has a network, a loss and metrics of its own.

use tch::Tensor;

use crate::{batches::Batch, error::Result};

/// Named tensors.
pub trait StateDict {
    /// Returns all tensors by name, as PyTorch's `state_dict()`.
    fn state_dict(&self) -> Result<Vec<(String, Tensor)>>;
}

/// Turns batches of a kind into losses. The loop knows nothing else of a network.
pub trait Learner<B>: StateDict {
    /// Returns the loss of a training batch, which the gradients are computed of.
    fn training_step(&mut self, batch: &B) -> Result<Tensor>;

    /// Looks at a batch of the validation, without gradients.
    fn validation_step(&mut self, batch: &B) -> Result<()>;

    /// Returns the metrics of the training batches since the last call, by their full names.
    fn training_metrics(&mut self) -> Result<Vec<(String, f64)>>;

    /// Returns the metrics of the validation batches since the last call, by their full names.
    fn validation_metrics(&mut self) -> Result<Vec<(String, f64)>>;
}

/// A network: tensors in, tensors out.
pub trait Network: StateDict {
    /// Runs the network. `train` enables dropout and the statistics of the batch.
    fn forward(&self, inputs: &[Tensor], train: bool) -> Result<Vec<Tensor>>;
}

/// A loss: one number from the outputs of a network and their targets, the smaller the better.
pub trait Loss {
    /// Returns the mean loss of the rows of a batch, as a tensor of one element.
    fn loss(&self, outputs: &[Tensor], targets: &[Tensor]) -> Result<Tensor>;
}

impl<F: Fn(&[Tensor], &[Tensor]) -> Result<Tensor>> Loss for F {
    fn loss(&self, outputs: &[Tensor], targets: &[Tensor]) -> Result<Tensor> {
        self(outputs, targets)
    }
}

/// A measure of the quality of outputs, over all batches of an epoch.
pub trait Metric {
    /// Adds the outputs of a batch, and their targets.
    fn update(&mut self, outputs: &[Tensor], targets: &[Tensor]) -> Result<()>;

    /// Returns names and values over everything that was added, and begins anew.
    fn compute(&mut self) -> Result<Vec<(String, f64)>>;
}

/// Metrics that are measured beside the loss.
pub type Metrics = Vec<Box<dyn Metric>>;

/// A network with a loss and metrics.
pub struct Supervised<'a> {
    network: &'a dyn Network,
    loss: &'a dyn Loss,
    training: Seen,
    validation: Seen,
}

impl<'a> Supervised<'a> {
    /// Makes a learner. `metrics` makes the metrics, once for the training and once for the validation.
    pub fn new(
        network: &'a dyn Network,
        loss: &'a dyn Loss,
        metrics: impl Fn() -> Metrics,
    ) -> Self {
        Self {
            network,
            loss,
            training: Seen::new(metrics()),
            validation: Seen::new(metrics()),
        }
    }
}

impl Learner<Batch> for Supervised<'_> {
    fn training_step(&mut self, batch: &Batch) -> Result<Tensor> {
        let outputs = self.network.forward(&batch.inputs, true)?;
        let loss = self.loss.loss(&outputs, &batch.targets)?;
        self.training.add(batch, &loss, &outputs)?;
        Ok(loss)
    }

    fn validation_step(&mut self, batch: &Batch) -> Result<()> {
        let outputs = self.network.forward(&batch.inputs, false)?;
        let loss = self.loss.loss(&outputs, &batch.targets)?;
        self.validation.add(batch, &loss, &outputs)
    }

    fn training_metrics(&mut self) -> Result<Vec<(String, f64)>> {
        self.training.metrics("train")
    }

    fn validation_metrics(&mut self) -> Result<Vec<(String, f64)>> {
        self.validation.metrics("val")
    }
}

impl StateDict for Supervised<'_> {
    fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        self.network.state_dict()
    }
}

/// The batches of an epoch so far.
struct Seen {
    rows: usize,
    /// Losses of the batches with their numbers of rows; they are read at the end, so that no step waits for a device.
    losses: Vec<(usize, Tensor)>,
    metrics: Metrics,
}

impl Seen {
    fn new(metrics: Metrics) -> Self {
        Self {
            rows: 0,
            losses: Vec::new(),
            metrics,
        }
    }

    fn add(&mut self, batch: &Batch, loss: &Tensor, outputs: &[Tensor]) -> Result<()> {
        self.rows += batch.rows();
        self.losses.push((batch.rows(), loss.f_detach()?));
        for metric in &mut self.metrics {
            metric.update(outputs, &batch.targets)?;
        }
        Ok(())
    }

    fn metrics(&mut self, prefix: &str) -> Result<Vec<(String, f64)>> {
        let mut sum = 0.0;
        for (rows, loss) in self.losses.drain(..) {
            sum += rows as f64 * loss.f_double_value(&[])?;
        }
        let rows = std::mem::take(&mut self.rows);
        if rows == 0 {
            return Ok(Vec::new());
        }
        let mut found = vec![(format!("{prefix}/loss"), sum / rows as f64)];
        for metric in &mut self.metrics {
            let values = metric.compute()?;
            found.extend(
                values
                    .into_iter()
                    .map(|(name, value)| (format!("{prefix}/{name}"), value)),
            );
        }
        Ok(found)
    }
}
