//! The answers of a tracking server, with the fields that are read, and what requests share.
//!
//! 64-bit integers are numbers or strings. The words NaN, Infinity and -Infinity stand for numbers that JSON cannot
//! write.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, json};

use crate::{
    mlflow::run::{DatasetInput, MetricPoint, RunInfo, ViewType},
    store::{registry, tracking},
};

pub(crate) fn view_word(view: ViewType) -> &'static str {
    match view {
        ViewType::ActiveOnly => "ACTIVE_ONLY",
        ViewType::DeletedOnly => "DELETED_ONLY",
        ViewType::All => "ALL",
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Integer(i64),
    Float(f64),
    Text(String),
}

pub(crate) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(match Option::<Number>::deserialize(deserializer)? {
        None => None,
        Some(Number::Integer(number)) => Some(number),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a time or a step that came as a float"
        )]
        Some(Number::Float(number)) => Some(number as i64),
        Some(Number::Text(text)) => Some(text.parse().map_err(D::Error::custom)?),
    })
}

fn float<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(match Option::<Number>::deserialize(deserializer)? {
        None => f64::NAN,
        #[expect(
            clippy::cast_precision_loss,
            reason = "what JSON calls a number is a double"
        )]
        Some(Number::Integer(number)) => number as f64,
        Some(Number::Float(number)) => number,
        // Rust's `parse` reads all three words.
        Some(Number::Text(text)) => text.parse().map_err(D::Error::custom)?,
    })
}

/// A key and its value.
#[derive(Deserialize)]
pub(crate) struct Pair {
    pub key: String,
    #[serde(default)]
    pub value: String,
}

/// Returns keys and values in the collection that the caller needs.
fn pairs<C: FromIterator<(String, String)>>(pairs: Vec<Pair>) -> C {
    pairs.into_iter().map(|it| (it.key, it.value)).collect()
}

/// Returns a key and its value as requests contain them.
pub(crate) fn pair(key: &str, value: &str) -> Value {
    json!({"key": key, "value": value})
}

#[derive(Deserialize)]
pub(crate) struct Metric {
    #[serde(default)]
    key: String,
    #[serde(default, deserialize_with = "float")]
    value: f64,
    #[serde(default, deserialize_with = "integer")]
    timestamp: Option<i64>,
    #[serde(default, deserialize_with = "integer")]
    step: Option<i64>,
}

impl Metric {
    pub(crate) fn point(&self) -> MetricPoint {
        MetricPoint {
            value: self.value,
            timestamp: self.timestamp.unwrap_or_default(),
            step: self.step.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct OneExperiment {
    pub experiment: Experiment,
}

#[derive(Deserialize)]
pub(crate) struct CreatedExperiment {
    pub experiment_id: String,
}

#[derive(Deserialize)]
pub(crate) struct Experiment {
    experiment_id: String,
    name: String,
    #[serde(default)]
    artifact_location: String,
    #[serde(default)]
    lifecycle_stage: String,
    #[serde(default, deserialize_with = "integer")]
    creation_time: Option<i64>,
    #[serde(default, deserialize_with = "integer")]
    last_update_time: Option<i64>,
    #[serde(default)]
    tags: Vec<Pair>,
}

impl From<Experiment> for tracking::Experiment {
    fn from(it: Experiment) -> Self {
        Self {
            id: it.experiment_id,
            name: it.name,
            artifact_location: it.artifact_location,
            lifecycle_stage: it.lifecycle_stage,
            creation_time: it.creation_time,
            last_update_time: it.last_update_time,
            tags: pairs(it.tags),
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct OneRun {
    pub run: Run,
}

#[derive(Deserialize)]
pub(crate) struct Run {
    info: Info,
    #[serde(default)]
    data: Data,
    #[serde(default)]
    inputs: Inputs,
}

#[derive(Deserialize)]
struct Info {
    run_id: String,
    #[serde(default)]
    run_name: String,
    #[serde(default)]
    experiment_id: String,
    #[serde(default)]
    user_id: String,
    #[serde(default)]
    status: String,
    #[serde(default, deserialize_with = "integer")]
    start_time: Option<i64>,
    #[serde(default, deserialize_with = "integer")]
    end_time: Option<i64>,
    #[serde(default)]
    lifecycle_stage: String,
    #[serde(default)]
    artifact_uri: String,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    metrics: Vec<Metric>,
    #[serde(default)]
    params: Vec<Pair>,
    #[serde(default)]
    tags: Vec<Pair>,
}

#[derive(Default, Deserialize)]
struct Inputs {
    #[serde(default)]
    dataset_inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    tags: Vec<Pair>,
    dataset: Dataset,
}

#[derive(Deserialize)]
struct Dataset {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    source_type: String,
    #[serde(default)]
    source: String,
    schema: Option<String>,
    profile: Option<String>,
}

impl Run {
    /// Returns the largest step among the latest points of the metrics whose keys begin with `prefix`.
    pub(crate) fn latest_step(&self, prefix: &str) -> Option<i64> {
        let metrics = self.data.metrics.iter();
        let found = metrics.filter(|metric| metric.key.starts_with(prefix));
        found.map(|metric| metric.point().step).max()
    }
}

impl From<Run> for RunInfo {
    fn from(it: Run) -> Self {
        let mut inputs: Vec<DatasetInput> = it
            .inputs
            .dataset_inputs
            .into_iter()
            .map(|input| DatasetInput {
                name: input.dataset.name,
                digest: input.dataset.digest,
                source_type: input.dataset.source_type,
                source: input.dataset.source,
                schema: input.dataset.schema,
                profile: input.dataset.profile,
                tags: pairs(input.tags),
            })
            .collect();
        inputs.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        Self {
            run_id: it.info.run_id,
            run_name: it.info.run_name,
            experiment_id: it.info.experiment_id,
            user_id: it.info.user_id,
            status: it.info.status,
            start_time: it.info.start_time,
            end_time: it.info.end_time,
            lifecycle_stage: it.info.lifecycle_stage,
            artifact_uri: it.info.artifact_uri,
            params: pairs(it.data.params),
            metrics: it
                .data
                .metrics
                .into_iter()
                .map(|metric| (metric.key, metric.value))
                .collect(),
            tags: pairs(it.data.tags),
            inputs,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct OneVersion {
    pub model_version: ModelVersion,
}

#[derive(Deserialize)]
pub(crate) struct ModelVersion {
    name: String,
    #[serde(default, deserialize_with = "integer")]
    version: Option<i64>,
    #[serde(default, deserialize_with = "integer")]
    creation_timestamp: Option<i64>,
    #[serde(default, deserialize_with = "integer")]
    last_updated_timestamp: Option<i64>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    user_id: String,
    #[serde(default)]
    current_stage: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    run_id: String,
    #[serde(default)]
    run_link: String,
    #[serde(default = "ready")]
    status: String,
    #[serde(default)]
    status_message: String,
    #[serde(default)]
    tags: Vec<Pair>,
    #[serde(default)]
    aliases: Vec<String>,
}

/// Returns the default status, which a server leaves out.
fn ready() -> String {
    registry::READY.to_owned()
}

impl From<ModelVersion> for registry::ModelVersion {
    fn from(it: ModelVersion) -> Self {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let mut aliases = it.aliases;
        aliases.sort();
        Self {
            name: it.name,
            version: it.version.unwrap_or_default(),
            creation_time: it.creation_timestamp,
            last_updated_time: it.last_updated_timestamp,
            description: it.description,
            user_id: given(it.user_id),
            stage: given(it.current_stage).unwrap_or_else(|| "None".to_owned()),
            source: it.source,
            run_id: given(it.run_id),
            run_link: given(it.run_link),
            status: it.status,
            status_message: given(it.status_message),
            tags: pairs(it.tags),
            aliases,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct OneModel {
    pub registered_model: RegisteredModel,
}

#[derive(Deserialize)]
pub(crate) struct RegisteredModel {
    name: String,
    #[serde(default, deserialize_with = "integer")]
    creation_timestamp: Option<i64>,
    #[serde(default, deserialize_with = "integer")]
    last_updated_timestamp: Option<i64>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    latest_versions: Vec<ModelVersion>,
    #[serde(default)]
    tags: Vec<Pair>,
    #[serde(default)]
    aliases: Vec<Alias>,
}

#[derive(Deserialize)]
struct Alias {
    alias: String,
    #[serde(default, deserialize_with = "integer")]
    version: Option<i64>,
}

impl From<RegisteredModel> for registry::RegisteredModel {
    fn from(it: RegisteredModel) -> Self {
        let aliases = it
            .aliases
            .into_iter()
            .map(|it| (it.alias, it.version.unwrap_or_default()))
            .collect();
        let mut latest: Vec<registry::ModelVersion> =
            it.latest_versions.into_iter().map(Into::into).collect();
        latest.sort_by_key(|version| version.version);
        let mut model = Self {
            name: it.name,
            creation_time: it.creation_timestamp,
            last_updated_time: it.last_updated_timestamp,
            description: it.description,
            latest_versions: Vec::new(),
            tags: pairs(it.tags),
            aliases,
        };
        // A server leaves the aliases of these versions out.
        for version in &mut latest {
            model.put_aliases(version);
        }
        model.latest_versions = latest;
        model
    }
}

#[derive(Deserialize)]
pub(crate) struct DownloadUri {
    #[serde(default)]
    pub artifact_uri: String,
}

#[derive(Deserialize)]
pub(crate) struct OneLoggedModel {
    pub model: LoggedModel,
}

#[derive(Deserialize)]
pub(crate) struct LoggedModel {
    pub info: LoggedModelInfo,
}

#[derive(Deserialize)]
pub(crate) struct LoggedModelInfo {
    model_id: String,
    #[serde(default)]
    artifact_uri: String,
    #[serde(default)]
    pub source_run_id: String,
    #[serde(default, deserialize_with = "integer")]
    pub creation_timestamp_ms: Option<i64>,
    #[serde(default)]
    pub tags: Vec<Pair>,
}

impl From<LoggedModel> for registry::LoggedModel {
    fn from(it: LoggedModel) -> Self {
        Self {
            model_id: it.info.model_id,
            artifact_uri: it.info.artifact_uri,
            run_id: Some(it.info.source_run_id).filter(|id| !id.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pages::ListPage;
    use super::*;

    #[test]
    fn numbers_come_as_numbers_strings_and_words() {
        let history: ListPage<Metric> = serde_json::from_str(
            r#"{"metrics": [{"key": "a", "value": 1, "timestamp": "5", "step": -1},
                {"key": "a", "value": "NaN"}, {"key": "a", "value": "-Infinity", "step": "7"}]}"#,
        )
        .unwrap();
        let points: Vec<MetricPoint> = history.items.iter().map(Metric::point).collect();
        assert_eq!(
            (points[0].value, points[0].timestamp, points[0].step),
            (1.0, 5, -1)
        );
        assert!(points[1].value.is_nan());
        assert_eq!((points[2].value, points[2].step), (f64::NEG_INFINITY, 7));
    }
}
