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
    errors::{from_python, to_python},
    settings::as_dict,
    tensors::{unwrap, wrap},
};
use crate::{
    callbacks::{Checkpoint, CheckpointStore},
    error::{Error, Result},
    optim::{Optimizer, OptimizerGroup, ParameterState, Setting},
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
    let Checkpoint { epoch, snapshot } = checkpoint;
    let state_dict = PyDict::new(py);
    for (name, tensor) in snapshot
        .network
        .state_dict()
        .map_err(|it| to_python(py, it))?
    {
        state_dict.set_item(name, wrap(py, &tensor)?.call_method0("detach")?)?;
    }
    let hyper_parameters = as_dict(py, snapshot.hyper_parameters)?;
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
        [optimizer_state(py, snapshot.optimizer, epoch.lr)?],
    )?;
    contents.set_item("lr_schedulers", PyList::empty(py))?;
    contents.set_item("hyper_parameters", hyper_parameters)?;
    contents.set_item("metrics", metrics)?;
    Ok(contents)
}

/// Returns the result of `torch.optim.Optimizer.state_dict()`.
fn optimizer_state<'py>(
    py: Python<'py>,
    optimizer: &dyn Optimizer,
    lr: f64,
) -> PyResult<Bound<'py, PyDict>> {
    let found = optimizer.state().map_err(|error| to_python(py, error))?;
    let state = PyDict::new(py);
    let groups = PyList::empty(py);
    let mut index = 0;
    for OptimizerGroup {
        settings,
        parameters,
    } in found.groups
    {
        let members = PyList::empty(py);
        for parameter in parameters {
            if let Some(entry) = parameter_state(py, &parameter)? {
                state.set_item(index, entry)?;
            }
            members.append(index)?;
            index += 1;
        }
        let group = PyDict::new(py);
        group.set_item("lr", lr)?;
        for (name, value) in settings {
            match value {
                Setting::Number(value) => group.set_item(name, value)?,
                Setting::Pair([first, second]) => group.set_item(name, (first, second))?,
                Setting::Switch(value) => group.set_item(name, value)?,
            }
        }
        for name in ["amsgrad", "maximize", "capturable", "differentiable"] {
            group.set_item(name, false)?;
        }
        group.set_item("foreach", py.None())?;
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

/// Returns the state of one parameter; `None` before its first step.
fn parameter_state<'py>(
    py: Python<'py>,
    parameter: &ParameterState,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    if parameter.tensors.is_empty() {
        return Ok(None);
    }
    let entry = PyDict::new(py);
    if let Some(step) = parameter.step {
        let torch = py.import("torch")?;
        entry.set_item("step", torch.call_method1("tensor", (step as f64,))?)?;
    }
    for (name, tensor) in &parameter.tensors {
        entry.set_item(*name, wrap(py, tensor)?)?;
    }
    Ok(Some(entry))
}
