//! Batches of metrics, params and tags within the limits of MLflow's REST API.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::wire::pair;
use crate::mlflow::run::{DatasetInput, RunId};

/// Most metrics that MLflow accepts in a batch.
const MAX_METRICS: usize = 1_000;
/// Most params, and most tags, that MLflow accepts in a batch.
const MAX_PARAMS_OR_TAGS: usize = 100;
/// Longest list of items of a request, in bytes of JSON: MLflow accepts requests of 1 MB.
const MAX_BYTES: usize = 900_000;

/// Metrics, params and tags of one run, collected for as few requests as MLflow's limits allow.
#[derive(Default)]
pub(crate) struct LogBatch {
    pub(crate) run: Option<RunId>,
    pub(crate) metrics: Vec<Value>,
    pub(crate) params: Vec<Value>,
    pub(crate) tags: BTreeMap<String, String>,
}

impl LogBatch {
    /// Returns the bodies of the requests, and how many of them have params or tags; these come first, and the bodies
    /// with metrics only follow.
    pub(crate) fn requests(self, run_id: &str) -> (usize, Vec<Value>) {
        let tags = self
            .tags
            .into_iter()
            .map(|(key, value)| pair(&key, &value))
            .collect();
        let mut bodies = Vec::new();
        for (field, items, limit) in [
            ("params", self.params, MAX_PARAMS_OR_TAGS),
            ("tags", tags, MAX_PARAMS_OR_TAGS),
            ("metrics", self.metrics, MAX_METRICS),
        ] {
            for items in packed(items, limit) {
                bodies.push((field, items));
            }
        }
        let first = bodies
            .iter()
            .filter(|(field, _)| *field != "metrics")
            .count();
        let bodies = bodies
            .into_iter()
            .map(|(field, items)| {
                let mut body = json!({"run_id": run_id});
                body[field] = items.into();
                body
            })
            .collect();
        (first, bodies)
    }
}

/// Splits items into lists of at most `limit` items that do not exceed the size of a request.
fn packed(items: Vec<Value>, limit: usize) -> Vec<Vec<Value>> {
    let mut lists: Vec<Vec<Value>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = item.to_string().len() + 1;
        match lists.last_mut() {
            Some(list) if list.len() < limit && bytes + size <= MAX_BYTES => {
                bytes += size;
                list.push(item);
            }
            _ => {
                bytes = size;
                lists.push(vec![item]);
            }
        }
    }
    lists
}

/// Returns a number as MLflow's JSON writes it.
pub(crate) fn number(value: f64) -> Value {
    if value.is_nan() {
        "NaN".into()
    } else if value == f64::INFINITY {
        "Infinity".into()
    } else if value == f64::NEG_INFINITY {
        "-Infinity".into()
    } else {
        value.into()
    }
}

pub(crate) fn dataset(input: &DatasetInput) -> Value {
    let tags: Vec<Value> = input
        .tags
        .iter()
        .map(|(key, value)| pair(key, value))
        .collect();
    json!({
        "tags": tags,
        "dataset": {
            "name": input.name,
            "digest": input.digest,
            "source_type": input.source_type,
            "source": input.source,
            "schema": input.schema,
            "profile": input.profile,
        },
    })
}
