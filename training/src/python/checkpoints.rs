//! Checkpoint files in Lightning's format, written and read by `torch` itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};
use tch::Tensor;

use super::{
    errors::from_python,
    model::json,
    tensors::{unwrap, wrap},
};
use crate::{
    callbacks::{Checkpoint, CheckpointStore},
    error::{Error, Result},
    optim::AdamW,
};

/// The version of Lightning whose layout the files have; its loaders require a version.
const LIGHTNING_LAYOUT: &str = "2.6.0";

/// Checkpoint files through `torch.save` and `torch.load(weights_only=True)`.
pub(crate) struct TorchFiles;

impl CheckpointStore for TorchFiles {
    fn save(&mut self, path: &Path, checkpoint: &Checkpoint<'_>) -> Result<()> {
        let unfinished = PathBuf::from(format!("{}.unfinished", path.display()));
        Python::attach(|py| -> PyResult<()> {
            let contents = contents(py, checkpoint)?;
            py.import("torch")?
                .call_method1("save", (contents, &unfinished))
                .map(drop)
        })
        .map_err(from_python)?;
        let put_in_place = || -> io::Result<()> {
            fs::File::open(&unfinished)?.sync_all()?;
            fs::rename(&unfinished, path)
        };
        put_in_place().map_err(|source| Error::Io {
            path: path.to_owned(),
            action: "written",
            source,
        })
    }

    fn load(&mut self, path: &Path) -> Result<Vec<(String, Tensor)>> {
        let refused = |reason: String| Error::Checkpoint {
            path: path.to_owned(),
            reason,
        };
        if !path.is_file() {
            return Err(refused("there is no such file".to_owned()));
        }
        let read = |py: Python<'_>| -> PyResult<Vec<(String, Tensor)>> {
            let options = PyDict::new(py);
            options.set_item("weights_only", true)?;
            options.set_item("map_location", "cpu")?;
            let contents = py
                .import("torch")?
                .call_method("load", (path,), Some(&options))?;
            let mut tensors = Vec::new();
            for item in contents
                .get_item("state_dict")?
                .call_method0("items")?
                .try_iter()?
            {
                let (name, tensor): (String, Bound<'_, PyAny>) = item?.extract()?;
                tensors.push((name, unwrap(&tensor)?));
            }
            Ok(tensors)
        };
        Python::attach(read).map_err(|error| refused(format!("it cannot be read: {error}")))
    }
}

fn contents<'py>(py: Python<'py>, checkpoint: &Checkpoint<'_>) -> PyResult<Bound<'py, PyDict>> {
    let Checkpoint { epoch, learner } = checkpoint;
    let state_dict = PyDict::new(py);
    for entry in learner.model.state().entries() {
        state_dict.set_item(
            &entry.name,
            wrap(py, &entry.tensor)?.call_method0("detach")?,
        )?;
    }
    let hyper_parameters = PyDict::new(py);
    hyper_parameters.set_item("model", json(py, learner.model.config())?)?;
    hyper_parameters.set_item("trainer", json(py, learner.config)?)?;
    let metrics = PyDict::new(py);
    for (name, value) in &epoch.metrics {
        metrics.set_item(name, value)?;
    }
    let contents = PyDict::new(py);
    contents.set_item("epoch", epoch.index)?;
    contents.set_item("global_step", epoch.step)?;
    contents.set_item("pytorch-lightning_version", LIGHTNING_LAYOUT)?;
    contents.set_item("state_dict", state_dict)?;
    contents.set_item(
        "optimizer_states",
        [optimizer_state(py, learner.optimizer, epoch.lr)?],
    )?;
    contents.set_item("lr_schedulers", PyList::empty(py))?;
    contents.set_item("hyper_parameters", hyper_parameters)?;
    contents.set_item("metrics", metrics)?;
    Ok(contents)
}

/// Returns the result of `torch.optim.AdamW.state_dict()` for two groups: first the parameters that decay, then the
/// others.
fn optimizer_state<'py>(
    py: Python<'py>,
    optimizer: &AdamW,
    lr: f64,
) -> PyResult<Bound<'py, PyDict>> {
    let torch = py.import("torch")?;
    let config = optimizer.config();
    let state = PyDict::new(py);
    let groups = PyList::empty(py);
    let mut index = 0;
    for decays in [true, false] {
        let members = PyList::empty(py);
        for (parameter, moments) in optimizer.parameters().iter().zip(optimizer.moments()) {
            if AdamW::decays(parameter) != decays {
                continue;
            }
            let entry = PyDict::new(py);
            entry.set_item(
                "step",
                torch.call_method1("tensor", (optimizer.steps() as f64,))?,
            )?;
            entry.set_item("exp_avg", wrap(py, &moments.exp_avg)?)?;
            entry.set_item("exp_avg_sq", wrap(py, &moments.exp_avg_sq)?)?;
            state.set_item(index, entry)?;
            members.append(index)?;
            index += 1;
        }
        let group = PyDict::new(py);
        group.set_item("lr", lr)?;
        group.set_item("betas", (config.betas[0], config.betas[1]))?;
        group.set_item("eps", config.eps)?;
        group.set_item(
            "weight_decay",
            if decays { config.weight_decay } else { 0.0 },
        )?;
        group.set_item("amsgrad", false)?;
        group.set_item("maximize", false)?;
        group.set_item("foreach", py.None())?;
        group.set_item("capturable", false)?;
        group.set_item("differentiable", false)?;
        group.set_item("fused", py.None())?;
        group.set_item("decoupled_weight_decay", true)?;
        group.set_item("params", members)?;
        groups.append(group)?;
    }
    let whole = PyDict::new(py);
    whole.set_item("state", state)?;
    whole.set_item("param_groups", groups)?;
    Ok(whole)
}
