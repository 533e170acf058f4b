//! Optimisers of PyTorch: those whose arithmetic is done here, and all others, which Python does.

use pyo3::prelude::*;
use tch::Tensor;

use super::{errors::from_python, tensors::unwrap};
use crate::{
    error::Result,
    optim::{AdamW, AdamWConfig, Moments, Optimizer, OptimizerState},
    schedule::Schedule,
};

/// An optimiser object of PyTorch. Its groups have the learning rates, which a scheduler may change.
pub(super) struct PythonOptimizer {
    object: Py<PyAny>,
    /// Optimisers of the groups, where the arithmetic is done here.
    native: Option<Vec<AdamW>>,
}

impl PythonOptimizer {
    /// Takes an optimiser over. `groups` has the parameters of each group of a `torch.optim.AdamW`, whose arithmetic is
    /// then done here.
    pub(super) fn new(
        py: Python<'_>,
        object: Py<PyAny>,
        groups: Option<Vec<Vec<Py<PyAny>>>>,
    ) -> PyResult<Self> {
        let native = groups.map(|groups| {
            let settings = object.bind(py).getattr("param_groups")?;
            let groups = groups.iter().enumerate();
            groups
                .map(|(index, parameters)| {
                    adamw(object.bind(py), &settings.get_item(index)?, parameters)
                })
                .collect::<PyResult<_>>()
        });
        Ok(Self {
            native: native.transpose()?,
            object,
        })
    }

    /// Returns the learning rates of the first group.
    pub(super) fn schedule(&self, py: Python<'_>) -> GroupRate {
        GroupRate(self.object.clone_ref(py))
    }

    fn call(&self, name: &str) -> Result<()> {
        Python::attach(|py| self.object.call_method0(py, name).map(drop)).map_err(from_python)
    }
}

fn adamw(
    optimizer: &Bound<'_, PyAny>,
    group: &Bound<'_, PyAny>,
    parameters: &[Py<PyAny>],
) -> PyResult<AdamW> {
    let py = group.py();
    let config = AdamWConfig {
        betas: group.get_item("betas")?.extract()?,
        eps: group.get_item("eps")?.extract()?,
        weight_decay: group.get_item("weight_decay")?.extract()?,
        decays_vectors: true,
    };
    let tensors = parameters.iter().map(|it| unwrap(it.bind(py)));
    let mut adamw = AdamW::new(tensors.collect::<PyResult<_>>()?, config);
    let state = optimizer.getattr("state")?;
    let moments = parameters.iter().map(|parameter| {
        let entry = state.call_method1("get", (parameter,))?;
        if entry.is_none() || entry.len()? == 0 {
            return Ok(None);
        }
        let step = entry.get_item("step")?.call_method0("__int__")?.extract()?;
        Ok(Some(Moments {
            step,
            exp_avg: unwrap(&entry.get_item("exp_avg")?)?,
            exp_avg_sq: unwrap(&entry.get_item("exp_avg_sq")?)?,
        }))
    });
    adamw.restore(moments.collect::<PyResult<_>>()?);
    Ok(adamw)
}

/// Returns the learning rate of a group.
fn rate(optimizer: &Bound<'_, PyAny>, group: usize) -> PyResult<f64> {
    let group = optimizer.getattr("param_groups")?.get_item(group)?;
    // It is a tensor where the user has made it one.
    group.get_item("lr")?.call_method0("__float__")?.extract()
}

impl Optimizer for PythonOptimizer {
    fn step(&mut self, _lr: f64) -> Result<()> {
        let Some(native) = &mut self.native else {
            return self.call("step");
        };
        for (index, group) in native.iter_mut().enumerate() {
            let lr = Python::attach(|py| rate(self.object.bind(py), index)).map_err(from_python)?;
            group.step(lr)?;
        }
        Ok(())
    }

    fn zero_grad(&mut self) -> Result<()> {
        match &mut self.native {
            Some(native) => native.iter_mut().try_for_each(AdamW::zero_grad),
            None => self.call("zero_grad"),
        }
    }

    fn gradients(&mut self) -> Result<Vec<Tensor>> {
        if let Some(native) = &mut self.native {
            let gradients = native.iter_mut().map(AdamW::gradients);
            let gradients: Vec<_> = gradients.collect::<Result<_>>()?;
            return Ok(gradients.into_iter().flatten().collect());
        }
        Python::attach(|py| {
            let mut gradients = Vec::new();
            for group in self.object.bind(py).getattr("param_groups")?.try_iter()? {
                for parameter in group?.get_item("params")?.try_iter()? {
                    let gradient = parameter?.getattr("grad")?;
                    if !gradient.is_none() {
                        gradients.push(unwrap(&gradient)?);
                    }
                }
            }
            Ok(gradients)
        })
        .map_err(from_python)
    }

    fn state(&self) -> Result<OptimizerState> {
        let mut groups = Vec::new();
        for native in self.native.iter().flatten() {
            groups.extend(native.state()?.groups);
        }
        Ok(OptimizerState { groups })
    }
}

/// The learning rate that the first group of an optimiser has now.
pub(super) struct GroupRate(Py<PyAny>);

impl Schedule for GroupRate {
    fn lr(&self, _step: usize) -> f64 {
        Python::attach(|py| rate(self.0.bind(py), 0).unwrap_or(f64::NAN))
    }
}
