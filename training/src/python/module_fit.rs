//! The function `fit_module`: the loop around a module of PyTorch, or around its layers.

use pyo3::{
    prelude::*,
    types::{PyDict, PyIterator},
};
use tch::Tensor;

use super::{
    errors::{from_python, to_python},
    optimizers::{GroupRate, PythonOptimizer},
    outlets::Signals,
    sequential::network,
    tensors::{unwrap, wrap},
};
use crate::{
    batches::{Batch, Batches},
    callbacks::{BatchEnd, Callback, Epoch, Flow, Plan, Snapshot},
    error::Result,
    fit::{FitReport, Training, fit},
    fit_config::{FitConfig, Position},
    learner::{Learner, StateDict, Supervised},
    loss::check_loss,
    optim::Optimizer,
};

/// A training as Python describes it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Job {
    /// Object with the steps and hooks of the training.
    steps: Py<PyAny>,
    /// Layers of a native network, and the name of its loss; `None` where Python runs the network.
    native: Option<Py<PyAny>>,
    /// Optimiser of PyTorch.
    optimizer: Py<PyAny>,
    /// Parameters by group, where the optimiser's arithmetic is done here.
    groups: Option<Vec<Vec<Py<PyAny>>>>,
    has_validation: bool,
    batches_per_epoch: Option<usize>,
    max_epochs: usize,
    accumulate_grad_batches: usize,
    gradient_clip_val: Option<f64>,
    num_threads: usize,
    val_check_interval: Option<usize>,
    grad_norm_every: usize,
    /// True where the steps want to see the gradients before they are clipped.
    has_gradient_hook: bool,
    first_epoch: usize,
    first_step: usize,
    first_batch: usize,
}

#[pyfunction]
pub(crate) fn fit_module<'py>(py: Python<'py>, job: Job) -> PyResult<Bound<'py, PyDict>> {
    let report = run(py, job).map_err(|error| to_python(py, error))?;
    let answer = PyDict::new(py);
    let epochs = report.epochs.len();
    answer.set_item("epochs", epochs)?;
    answer.set_item("step", report.epochs.last().map_or(0, |epoch| epoch.step))?;
    answer.set_item("stopped", report.stopped)?;
    answer.set_item("seconds", report.seconds)?;
    Ok(answer)
}

fn run(py: Python<'_>, job: Job) -> Result<FitReport> {
    let config = FitConfig {
        max_epochs: job.max_epochs,
        accumulate_grad_batches: job.accumulate_grad_batches,
        gradient_clip_val: job.gradient_clip_val,
        seed: None,
        num_threads: job.num_threads,
        first: Position {
            epoch: job.first_epoch,
            step: job.first_step,
            batch: job.first_batch,
        },
        val_check_interval: job.val_check_interval,
        grad_norm_every: job.grad_norm_every,
    };
    let mut optimizer = PythonOptimizer::new(py, job.optimizer, job.groups).map_err(from_python)?;
    let schedule = optimizer.schedule(py);
    let native = job.native.map(|native| network(native.bind(py)));
    let native = native.transpose().map_err(from_python)?;
    let steps = &job.steps;
    let mut hooks = Hooks {
        steps: steps.clone_ref(py),
        sees_gradients: job.has_gradient_hook,
    };
    let mut parts = Parts {
        optimizer: &mut optimizer,
        schedule: &schedule,
        hooks: &mut hooks,
        config: &config,
    };
    let source = |py, name| Source::new(py, steps, name, job.batches_per_epoch);
    let mut train = source(py, "train_batches");
    let mut val = job.has_validation.then(|| source(py, "val_batches"));
    py.detach(move || match native {
        Some((network, loss)) => {
            let mut learner = Supervised::new(&network, &loss, Vec::new);
            parts.fit::<Batch>(&mut learner, &mut train, val.as_mut())
        }
        None => {
            let mut learner = Python::attach(|py| PythonLearner(steps.clone_ref(py)));
            parts.fit::<Py<PyAny>>(&mut learner, &mut train, val.as_mut())
        }
    })
}

/// The parts of a training that do not depend on the kind of its batches.
struct Parts<'a> {
    optimizer: &'a mut PythonOptimizer,
    schedule: &'a GroupRate,
    hooks: &'a mut Hooks,
    config: &'a FitConfig,
}

impl Parts<'_> {
    fn fit<B>(
        &mut self,
        learner: &mut dyn Learner<B>,
        train: &mut Source,
        val: Option<&mut Source>,
    ) -> Result<FitReport>
    where
        Source: Batches<B>,
    {
        let training = Training {
            learner,
            train,
            val: val.map(|val| val as &mut dyn Batches<B>),
            optimizer: self.optimizer,
            schedule: self.schedule,
            callbacks: &mut [&mut Signals::new(), self.hooks],
            hyper_parameters: serde_json::Value::Null,
        };
        fit(training, self.config)
    }
}

/// A module of PyTorch that Python runs.
struct PythonLearner(Py<PyAny>);

impl Learner<Py<PyAny>> for PythonLearner {
    fn training_step(&mut self, batch: &Py<PyAny>) -> Result<Tensor> {
        let loss =
            Python::attach(|py| unwrap(&self.0.bind(py).call_method1("training_step", (batch,))?));
        let loss = loss.map_err(from_python)?;
        check_loss(&loss)?;
        Ok(loss)
    }

    fn validation_step(&mut self, batch: &Py<PyAny>) -> Result<()> {
        Python::attach(|py| {
            self.0
                .call_method1(py, "validation_step", (batch,))
                .map(drop)
        })
        .map_err(from_python)
    }

    // Python has the metrics, and those of an epoch are complete at its end.
    fn training_metrics(&mut self) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }

    fn validation_metrics(&mut self) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }
}

impl StateDict for PythonLearner {
    fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        // Python writes the checkpoints of such a module.
        Ok(Vec::new())
    }
}

/// Batches that a method of the steps iterates over.
struct Source {
    steps: Py<PyAny>,
    method: &'static str,
    per_epoch: Option<usize>,
    iterator: Option<Py<PyIterator>>,
}

impl Source {
    fn new(
        py: Python<'_>,
        steps: &Py<PyAny>,
        method: &'static str,
        per_epoch: Option<usize>,
    ) -> Self {
        Self {
            steps: steps.clone_ref(py),
            method,
            per_epoch,
            iterator: None,
        }
    }

    fn begin(&mut self, epoch: usize) -> Result<()> {
        let begun = Python::attach(|py| {
            let batches = self.steps.bind(py).call_method1(self.method, (epoch,))?;
            Ok(batches.try_iter()?.unbind())
        });
        self.iterator = Some(begun.map_err(from_python)?);
        Ok(())
    }

    fn next<T>(
        &mut self,
        read: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
    ) -> Result<Option<T>> {
        let Some(iterator) = &self.iterator else {
            return Ok(None);
        };
        let next = Python::attach(|py| {
            let next = iterator.clone_ref(py).into_bound(py).next();
            next.map(|batch| read(&batch?)).transpose()
        });
        let next = next.map_err(from_python)?;
        if next.is_none() {
            self.iterator = None;
        }
        Ok(next)
    }
}

impl Batches<Py<PyAny>> for Source {
    fn per_epoch(&self) -> Option<usize> {
        self.per_epoch
    }

    fn begin(&mut self, epoch: usize) -> Result<()> {
        Source::begin(self, epoch)
    }

    fn next(&mut self) -> Result<Option<Py<PyAny>>> {
        Source::next(self, |batch| Ok(batch.clone().unbind()))
    }
}

impl Batches<Batch> for Source {
    fn per_epoch(&self) -> Option<usize> {
        self.per_epoch
    }

    fn begin(&mut self, epoch: usize) -> Result<()> {
        Source::begin(self, epoch)
    }

    fn next(&mut self) -> Result<Option<Batch>> {
        Source::next(self, |batch| {
            // A DataLoader gives lists, a plain loop mostly tuples.
            let [input, target]: [Bound<'_, PyAny>; 2] = batch.extract()?;
            Ok(Batch {
                inputs: vec![unwrap(&input)?],
                targets: vec![unwrap(&target)?],
            })
        })
    }
}

/// The hooks of the steps, which Python has for callbacks, checkpoints and metrics.
struct Hooks {
    steps: Py<PyAny>,
    sees_gradients: bool,
}

impl Callback for Hooks {
    fn on_fit_start(&mut self, _plan: &Plan) -> Result<()> {
        self.call("on_fit_start")
    }

    fn on_before_optimizer_step(&mut self) -> Result<()> {
        if self.sees_gradients {
            self.call("on_before_optimizer_step")?;
        }
        Ok(())
    }

    fn on_train_batch_end(&mut self, batch: &BatchEnd, snapshot: &Snapshot<'_>) -> Result<()> {
        Python::attach(|py| {
            let steps = self.steps.bind(py);
            let arguments = (batch.step, batch.grad_norm);
            let asks = steps.call_method1("on_train_batch_end", arguments)?;
            if batch.has_stepped && asks.is_truthy()? {
                let state = optimizer_tensors(py, snapshot.optimizer)?;
                steps.call_method1("save_inside", (batch.epoch, batch.step, state))?;
            }
            Ok(())
        })
        .map_err(from_python)
    }

    fn on_validation_end(&mut self, epoch: &mut Epoch, snapshot: &Snapshot<'_>) -> Result<Flow> {
        self.report("on_validation_end", epoch, snapshot)
    }

    fn on_epoch_end(&mut self, epoch: &mut Epoch, snapshot: &Snapshot<'_>) -> Result<Flow> {
        self.report("on_epoch_end", epoch, snapshot)
    }

    fn on_fit_end(&mut self) -> Result<()> {
        self.call("on_fit_end")
    }
}

impl Hooks {
    fn call(&self, name: &str) -> Result<()> {
        Python::attach(|py| self.steps.call_method0(py, name).map(drop)).map_err(from_python)
    }

    /// Hands an epoch and the state of the optimiser over; the answer is the reason for an end of the training.
    fn report(&self, name: &str, epoch: &Epoch, snapshot: &Snapshot<'_>) -> Result<Flow> {
        let stopped = Python::attach(|py| {
            let metrics = PyDict::new(py);
            for (name, value) in &epoch.metrics {
                metrics.set_item(name, value)?;
            }
            let state = optimizer_tensors(py, snapshot.optimizer)?;
            let arguments = (epoch.index, epoch.step, epoch.lr, metrics, state);
            let answer = self.steps.call_method1(py, name, arguments)?;
            answer.extract::<Option<String>>(py)
        });
        Ok(match stopped.map_err(from_python)? {
            Some(reason) => Flow::Stop(reason),
            None => Flow::Continue,
        })
    }
}

/// Returns the state of each parameter of a native optimiser: step and running means, in the order of the groups.
fn optimizer_tensors<'py>(
    py: Python<'py>,
    optimizer: &dyn Optimizer,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let state = optimizer.state().map_err(|error| to_python(py, error))?;
    let parameters = state.groups.iter().flat_map(|group| &group.parameters);
    parameters
        .map(|parameter| {
            let entry = PyDict::new(py);
            for (name, tensor) in &parameter.tensors {
                entry.set_item(*name, wrap(py, tensor)?)?;
            }
            if let Some(step) = parameter.step.filter(|_| !parameter.tensors.is_empty()) {
                entry.set_item("step", step)?;
            }
            Ok(entry)
        })
        .collect()
}
