//! Garbage collection.

use std::{path::PathBuf, time::Duration};

use pyo3::prelude::*;

use super::{
    arguments::Named,
    calls,
    results::gc::{GarbageItem, SparedItem},
};
use crate::{
    config::{s3::S3Config, tracker, uri::Destination},
    gc::{
        collect,
        report::CollectConfig,
        rules::{KeepBest, Retention, What},
    },
    mlflow::{invalid::Invalid, run::Best},
    net::secret::{Secret, without_password},
};

/// Deleted items, items that stay although they looked like garbage, and places that could not be searched, each with
/// the reason.
type Garbage = (Vec<GarbageItem>, Vec<SparedItem>, Vec<(String, String)>);

/// Looks for garbage in a store, and deletes it where `delete` is true.
#[pyfunction]
pub(crate) fn collect_garbage(py: Python<'_>, config: CollectConfig) -> PyResult<Garbage> {
    let report = calls::waiting(py, |keep_waiting| collect::collect(&config, keep_waiting))?;
    let items = report.items.into_iter().map(Into::into);
    let spared = report.spared.into_iter().map(Into::into);
    let failures = report.failures.into_iter();
    let failures = failures.map(|(uri, why)| (without_password(&uri), why));
    Ok((items.collect(), spared.collect(), failures.collect()))
}

impl<'py> FromPyObject<'_, 'py> for CollectConfig {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = Named::of(given)?;
        let destination = |what, name| {
            let uri: Option<String> = given.get(name)?;
            let uri = uri.filter(|uri| !uri.is_empty());
            let parsed = uri.map(|uri| Destination::parse(what, &uri));
            parsed.transpose().map_err(PyErr::from)
        };
        let secret = |name| Ok::<_, PyErr>(given.get::<Option<String>>(name)?.map(Secret::from));
        let tracking_uri: String = given.get("tracking_uri")?;
        let experiments: Option<Vec<String>> = given.get("experiments")?;
        Ok(Self {
            tracking: Destination::parse("tracking URI", &tracking_uri)?,
            artifact_server: destination("artifact server", "artifact_server")?,
            registry: destination("registry URI", "registry_uri")?,
            s3: S3Config {
                endpoint_url: given.get("s3_endpoint_url")?,
                access_key_id: secret("s3_access_key_id")?,
                secret_access_key: secret("s3_secret_access_key")?,
            },
            heimdall_dir: heimdall_dir(given.get("heimdall_dir")?)?,
            experiments: experiments.unwrap_or_default(),
            older_than: age("older_than", given.get("older_than")?)?,
            uploads_older_than: age("uploads_older_than", given.get("uploads_older_than")?)?,
            orphans: given.get("orphans")?,
            retention: retention(&given)?,
            purge: given.get("purge")?,
            delete: given.get("delete")?,
        })
    }
}

/// Returns the folder of the journals: the given one, which must exist, or that of the environment.
fn heimdall_dir(given: Option<PathBuf>) -> Result<PathBuf, Invalid> {
    match given {
        // A typing error must not look like a folder without journals.
        Some(dir) if !dir.is_dir() => {
            let shown = dir.display().to_string();
            Err(Invalid::setting(
                "folder of journals",
                &shown,
                "there is no such folder",
            ))
        }
        Some(dir) => Ok(dir),
        None => Ok(tracker::heimdall_dir()),
    }
}

fn age(what: &'static str, seconds: f64) -> Result<Duration, Invalid> {
    Duration::try_from_secs_f64(seconds).map_err(|error| {
        let reason = format!("it must be an age from 0 on, in seconds or as 30d ({error})");
        Invalid::value(what, &seconds.to_string(), reason)
    })
}

/// Returns the rules that the arguments describe; `None` where they describe none.
fn retention(given: &Named<'_, '_>) -> PyResult<Option<Retention>> {
    let what = match given.get::<String>("what")?.as_str() {
        "artifacts" => What::Artifacts,
        "runs" => What::Runs,
        other => {
            let reason = "it must be artifacts or runs";
            return Err(Invalid::value("what", other, reason).into());
        }
    };
    let best = keep_best(given)?;
    let newer_than: Option<f64> = given.get("keep_newer_than")?;
    let newer_than = newer_than.map(|seconds| age("keep_newer_than", seconds));
    let newer_than = newer_than.transpose()?;
    let registered = given.get("keep_registered")?;
    let has_rules = best.is_some() || newer_than.is_some() || registered;
    Ok(has_rules.then_some(Retention {
        best,
        newer_than,
        registered,
        what,
    }))
}

fn keep_best(given: &Named<'_, '_>) -> PyResult<Option<KeepBest>> {
    let maximize: bool = given.get("maximize")?;
    match (given.get::<Option<i64>>("keep_best")?, given.get("metric")?) {
        (None, None) => Ok(None),
        (Some(count), Some(metric)) => {
            let at_least_one = usize::try_from(count).ok().filter(|count| *count > 0);
            let count = at_least_one.ok_or_else(|| {
                let reason = "it must be a number from 1 on";
                Invalid::value("keep_best", &count.to_string(), reason)
            })?;
            let best = if maximize { Best::Max } else { Best::Min };
            Ok(Some(KeepBest {
                count,
                metric,
                best,
            }))
        }
        (count, metric) => {
            let value = count.map(|count| count.to_string()).or(metric);
            let reason =
                "the number of runs to keep and the metric that orders them must come together";
            Err(Invalid::value("keep_best", &value.unwrap_or_default(), reason).into())
        }
    }
}
