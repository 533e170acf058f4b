//! The collection of garbage, as Python asks for it.

use std::{path::PathBuf, time::Duration};

use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};

use super::{errors::to_python, tracker::waiting};
use crate::{
    config::{s3::S3Config, tracker, uri::Destination},
    error::{Error, Result},
    gc::{
        collect,
        report::{Order, Report},
        rules::{KeepBest, Retention, What},
    },
    mlflow::run::Best,
    net::secret::Secret,
};

/// Looks for garbage in a store, and deletes it where `delete` says so. Ages are seconds.
#[pyfunction]
#[pyo3(signature = (tracking_uri, registry_uri=None, s3_endpoint_url=None, s3_access_key_id=None,
    s3_secret_access_key=None, experiments=None, older_than=0.0, uploads_older_than=86_400.0, orphans=false,
    keep_best=None, metric=None, maximize=false, keep_newer_than=None, keep_registered=false,
    what="artifacts", purge=false,
    delete=false, heimdall_dir=None, artifact_server=None))]
#[expect(clippy::too_many_arguments, reason = "what Python gives by keywords")]
pub fn collect_garbage<'py>(
    py: Python<'py>,
    tracking_uri: &str,
    registry_uri: Option<&str>,
    s3_endpoint_url: Option<String>,
    s3_access_key_id: Option<String>,
    s3_secret_access_key: Option<String>,
    experiments: Option<Vec<String>>,
    older_than: f64,
    uploads_older_than: f64,
    orphans: bool,
    keep_best: Option<i64>,
    metric: Option<String>,
    maximize: bool,
    keep_newer_than: Option<f64>,
    keep_registered: bool,
    what: &str,
    purge: bool,
    delete: bool,
    heimdall_dir: Option<PathBuf>,
    artifact_server: Option<&str>,
) -> PyResult<Bound<'py, PyDict>> {
    let order = || -> Result<Order> {
        let registry = registry_uri.filter(|uri| !uri.is_empty());
        Ok(Order {
            tracking: Destination::parse("tracking URI", tracking_uri)?,
            artifact_server: artifact_server
                .map(|uri| Destination::parse("artifact server", uri))
                .transpose()?,
            registry: registry
                .map(|uri| Destination::parse("registry URI", uri))
                .transpose()?,
            s3: S3Config {
                endpoint_url: s3_endpoint_url,
                access_key_id: s3_access_key_id.map(Secret::from),
                secret_access_key: s3_secret_access_key.map(Secret::from),
            },
            heimdall_dir: match heimdall_dir {
                // A typing error must not look like a folder without journals.
                Some(dir) if !dir.is_dir() => {
                    return Err(Error::configuration(
                        "folder of journals",
                        &dir.display().to_string(),
                        "there is no such folder",
                    ));
                }
                Some(dir) => dir,
                None => tracker::heimdall_dir(),
            },
            experiments: experiments.unwrap_or_default(),
            older_than: age("older_than", older_than)?,
            uploads_older_than: age("uploads_older_than", uploads_older_than)?,
            orphans,
            retention: retention(
                keep_best,
                metric,
                maximize,
                keep_newer_than,
                keep_registered,
                what,
            )?,
            purge,
            delete,
        })
    };
    let order = order().map_err(|error| to_python(py, &error))?;
    let report = waiting(py, |keep_waiting| collect::collect(&order, keep_waiting))?;
    answer(py, report)
}

fn age(what: &'static str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| {
        let reason = format!("it is an age from 0 on, in seconds or as 30d ({error})");
        Error::invalid(what, &seconds.to_string(), reason)
    })
}

/// The rules that arguments make; none where they make none.
fn retention(
    keep_best: Option<i64>,
    metric: Option<String>,
    maximize: bool,
    keep_newer_than: Option<f64>,
    registered: bool,
    what: &str,
) -> Result<Option<Retention>> {
    let what = match what {
        "artifacts" => What::Artifacts,
        "runs" => What::Runs,
        other => return Err(Error::invalid("what", other, "it is artifacts or runs")),
    };
    let best = match (keep_best, metric) {
        (None, None) => None,
        (Some(count), Some(metric)) => Some(KeepBest {
            count: usize::try_from(count)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| {
                    Error::invalid("keep_best", &count.to_string(), "it is a number from 1 on")
                })?,
            metric,
            best: if maximize { Best::Max } else { Best::Min },
        }),
        (count, metric) => {
            let value = count.map(|count| count.to_string()).or(metric);
            return Err(Error::invalid(
                "keep_best",
                &value.unwrap_or_default(),
                "how many runs are kept and the metric that says which come together",
            ));
        }
    };
    let newer_than = keep_newer_than.map(|seconds| age("keep_newer_than", seconds));
    let newer_than = newer_than.transpose()?;
    let has_rules = best.is_some() || newer_than.is_some() || registered;
    Ok(has_rules.then_some(Retention {
        best,
        newer_than,
        registered,
        what,
    }))
}

fn answer(py: Python<'_>, report: Report) -> PyResult<Bound<'_, PyDict>> {
    let items = PyList::empty(py);
    for it in report.items {
        let item = PyDict::new(py);
        item.set_item("kind", it.kind.as_str())?;
        item.set_item("experiment", it.experiment)?;
        item.set_item("run_id", it.run_id)?;
        item.set_item("uri", it.uri)?;
        item.set_item("files", it.files)?;
        item.set_item("bytes", it.bytes)?;
        item.set_item("reason", it.reason)?;
        item.set_item("run_goes", it.purges)?;
        item.set_item("deleted", it.deleted)?;
        item.set_item("error", it.error)?;
        items.append(item)?;
    }
    let spared = PyList::empty(py);
    for it in report.spared {
        let item = PyDict::new(py);
        item.set_item("kind", it.kind.as_str())?;
        item.set_item("experiment", it.experiment)?;
        item.set_item("run_id", it.run_id)?;
        item.set_item("uri", it.uri)?;
        item.set_item("reason", it.reason)?;
        spared.append(item)?;
    }
    let answer = PyDict::new(py);
    answer.set_item("items", items)?;
    answer.set_item("spared", spared)?;
    answer.set_item("failures", report.failures)?;
    Ok(answer)
}
