//! The calling script or notebook: its user, its interpreter, its environment, its rank.

use std::path::PathBuf;

use pyo3::prelude::*;

use crate::{
    config::{
        s3::S3Config,
        tracker::{FreshSchema, TrackerConfig},
    },
    environment::{capture::Interpreter, run_tags::RunContext},
    error::{Error, Result},
    mlflow::run::RunId,
    net::secret::Secret,
    tracker::runs::RankExchange,
};

/// The ranks of a distributed training, which exchange the ids of runs through Python code.
pub(crate) const RANKS: RankExchange<'static> = RankExchange {
    run_of_rank_zero: &run_of_rank_zero,
    tell_other_ranks: &tell_other_ranks,
};

/// Returns the context of the runs of this process. Runs `git` once.
pub(crate) fn context(py: Python<'_>) -> PyResult<RunContext> {
    let ((source, in_notebook), user) = (source(py)?, user(py)?);
    let hostname = py.import("socket")?.call_method0("gethostname")?;
    Ok(RunContext::of(
        user,
        source,
        in_notebook,
        hostname.extract()?,
    ))
}

fn run_of_rank_zero() -> Result<RunId> {
    let run = Python::attach(|py| -> PyResult<String> {
        let ranks = py.import("heimdall_tracking._ranks")?;
        ranks.call_method0("run_of_rank_zero")?.extract()
    });
    Ok(run.map_err(raised)?.parse()?)
}

fn tell_other_ranks(run: RunId) -> Result<()> {
    Python::attach(|py| -> PyResult<()> {
        let ranks = py.import("heimdall_tracking._ranks")?;
        ranks.call_method1("tell_other_ranks", (run.to_string(),))?;
        Ok(())
    })
    .map_err(raised)
}

fn raised(error: PyErr) -> Error {
    Error::Ranks(Box::new(error))
}

/// Returns the account at the tracking server, else the login name, as MLflow does.
fn user(py: Python<'_>) -> PyResult<String> {
    if let Ok(account) = std::env::var("MLFLOW_TRACKING_USERNAME")
        && !account.trim().is_empty()
    {
        return Ok(account.trim().to_owned());
    }
    match py.import("getpass")?.call_method0("getuser") {
        Ok(user) => user.extract(),
        // The user of a container need not have a name.
        Err(_) => Ok("unknown".to_owned()),
    }
}

/// Returns the running script or notebook, and true for a notebook, distinguished in the same way as in MLflow.
fn source(py: Python<'_>) -> PyResult<(String, bool)> {
    if in_notebook(py).unwrap_or(false) {
        let name = ["JPY_SESSION_NAME", "__vsc_ipynb_file__", "IPYNB_FILE"]
            .into_iter()
            .find_map(|variable| std::env::var(variable).ok());
        return Ok((name.unwrap_or_else(|| "notebook".to_owned()), true));
    }
    let argv: Vec<String> = py
        .import("sys")?
        .getattr("argv")?
        .extract()
        .unwrap_or_default();
    let script = argv.into_iter().next().filter(|script| !script.is_empty());
    Ok((script.unwrap_or_else(|| "python".to_owned()), false))
}

/// Returns true in the shell of a kernel. A script may import `ipykernel` without running in a kernel.
fn in_notebook(py: Python<'_>) -> PyResult<bool> {
    let modules = py.import("sys")?.getattr("modules")?;
    if !modules.contains("IPython")? {
        return Ok(false);
    }
    let shell = modules.get_item("IPython")?.call_method0("get_ipython")?;
    Ok(!shell.is_none() && shell.hasattr("kernel")?)
}

/// Returns the release that `HEIMDALL_MLFLOW_VERSION` names, otherwise that of the mlflow package that this interpreter
/// would import. The package is found by the name of its folder, because `importlib.metadata` takes longer than the
/// rest of an import.
pub(crate) fn fresh_schema(py: Python<'_>) -> PyResult<FreshSchema> {
    if let Some(version) = std::env::var("HEIMDALL_MLFLOW_VERSION")
        .ok()
        .filter(|version| !version.is_empty())
    {
        return Ok(FreshSchema::Named(version));
    }
    let sys = py.import("sys")?;
    let folders: Vec<String> = sys
        .getattr("path")?
        .try_iter()?
        .filter_map(|folder| folder.ok()?.extract().ok())
        .collect();
    let Some(python) = sys.getattr("executable")?.extract::<Option<PathBuf>>()? else {
        return Ok(FreshSchema::Newest);
    };
    let installed = folders.iter().find_map(|folder| {
        let folder = if folder.is_empty() { "." } else { folder };
        std::fs::read_dir(folder).ok()?.find_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let name = name.strip_suffix(".dist-info")?;
            Some(name.strip_prefix("mlflow-")?.to_owned())
        })
    });
    Ok(match installed {
        Some(version) => FreshSchema::Installed { version, python },
        None => FreshSchema::Newest,
    })
}

/// Sets the variables that stock MLflow and boto3 in this process read, where they are not set: the tracker's own URIs
/// and keys.
pub(crate) fn set_environment(
    py: Python<'_>,
    tracking: &Secret,
    registry: &Secret,
    s3: &S3Config,
) -> PyResult<()> {
    let environ = py.import("os")?.getattr("environ")?;
    let set = |name: &str, value: &str| environ.call_method1("setdefault", (name, value));
    set("MLFLOW_TRACKING_URI", tracking.reveal())?;
    if registry != tracking {
        set("MLFLOW_REGISTRY_URI", registry.reveal())?;
    }
    if let Some(endpoint) = s3.endpoint_url.as_deref().filter(|url| !url.is_empty()) {
        set("MLFLOW_S3_ENDPOINT_URL", endpoint)?;
    }
    // A key is useless with the secret or token of another key.
    let names = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ];
    let keys = [&s3.access_key_id, &s3.secret_access_key].map(Option::as_ref);
    if let [Some(id), Some(secret)] = keys
        && !environ.contains(names[0])?
        && !environ.contains(names[1])?
        && !environ.contains(names[2])?
    {
        set(names[0], id.reveal())?;
        set(names[1], secret.reveal())?;
    }
    Ok(())
}

/// Returns the interpreter, where the environment of runs is to be recorded.
pub(crate) fn interpreter(py: Python<'_>, config: &TrackerConfig) -> PyResult<Option<Interpreter>> {
    if config.wants_environment()? {
        this_interpreter(py).map(Some)
    } else {
        Ok(None)
    }
}

fn this_interpreter(py: Python<'_>) -> PyResult<Interpreter> {
    let (sys, platform) = (py.import("sys")?, py.import("platform")?);
    let path = sys.getattr("path")?.try_iter()?;
    // Entries of the path that are no paths are left out.
    let path: Vec<PathBuf> = path
        .filter_map(|folder| folder.ok()?.extract().ok())
        .collect();
    let arguments: Vec<String> = sys.getattr("orig_argv")?.extract().unwrap_or_default();
    let executable = sys.getattr("executable")?.extract::<Option<String>>()?;
    Ok(Interpreter::new(
        platform.call_method0("python_version")?.extract()?,
        platform.call_method0("python_implementation")?.extract()?,
        executable.unwrap_or_default(),
        path,
        &arguments,
    ))
}
