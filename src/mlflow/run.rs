//! A run: its id, its name, its status, and what is read back of it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::invalid::Invalid;

/// Tag that holds the name of a run.
pub const RUN_NAME_TAG: &str = "mlflow.runName";
/// Tag that holds the id of the run that a run is nested in.
pub const PARENT_RUN_TAG: &str = "mlflow.parentRunId";
/// Tag that holds the description of a run.
pub const NOTE_TAG: &str = "mlflow.note.content";

/// Id of a run: 32 hexadecimal digits, as MLflow makes them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(Uuid);

impl RunId {
    /// A new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Its sixteen bytes.
    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RunId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| Invalid::value("run id", text, "a run id is 32 hexadecimal digits"))
    }
}

/// Status of a run, as MLflow spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunStatus {
    /// Still being written to.
    Running,
    /// Ended well.
    Finished,
    /// Ended by an error, or its process died.
    Failed,
    /// Ended by the user or the scheduler.
    Killed,
}

impl RunStatus {
    /// The word in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }

    /// Reads a status that ends a run, in any case.
    ///
    /// # Errors
    /// [`Invalid::Value`] for anything but FINISHED, FAILED and KILLED.
    pub fn parse_final(text: &str) -> Result<Self, Invalid> {
        [Self::Finished, Self::Failed, Self::Killed]
            .into_iter()
            .find(|status| status.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                Invalid::value("run status", text, "a run ends FINISHED, FAILED or KILLED")
            })
    }
}

/// A run to start.
#[derive(Clone, Debug, Default)]
pub struct NewRun {
    /// Its name; a random one when it has none.
    pub name: Option<String>,
    /// Its tags; they win over those that every run has.
    pub tags: Vec<(String, String)>,
    /// Whether it may start while another run is active, which it is then nested in.
    pub nested: bool,
    /// Id of the run that it is nested in, where no run is active.
    pub parent: Option<String>,
    /// What people should know of it.
    pub description: Option<String>,
    /// Id or name of the run to go on with; a new run where it is not given.
    pub run_id: Option<String>,
}

/// A run as the store has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunInfo {
    /// Id of the run.
    pub run_id: String,
    /// Its name.
    pub run_name: String,
    /// Id of its experiment.
    pub experiment_id: String,
    /// Who runs it.
    pub user_id: String,
    /// Status word.
    pub status: String,
    /// Start, milliseconds since 1970.
    pub start_time: Option<i64>,
    /// End, milliseconds since 1970; `None` while it runs.
    pub end_time: Option<i64>,
    /// `active` or `deleted`.
    pub lifecycle_stage: String,
    /// Where its artifacts are.
    pub artifact_uri: String,
    /// Params by key.
    pub params: BTreeMap<String, String>,
    /// Latest value of each metric by key.
    pub metrics: BTreeMap<String, f64>,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
    /// Datasets that it was given.
    pub inputs: Vec<DatasetInput>,
}

/// A point of a metric's history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricPoint {
    /// Its value; NaN is NaN.
    pub value: f64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Step.
    pub step: i64,
}

/// A dataset that is an input of a run, with MLflow's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInput {
    /// Name, up to 500 characters.
    pub name: String,
    /// Digest of its content, up to 36 characters.
    pub digest: String,
    /// Kind of source, for example `local`.
    pub source_type: String,
    /// Source, as JSON.
    pub source: String,
    /// Schema, as JSON.
    pub schema: Option<String>,
    /// Profile, as JSON.
    pub profile: Option<String>,
    /// Tags of the input; `mlflow.data.context` says what it was for.
    pub tags: Vec<(String, String)>,
}

/// Which of runs or experiments are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ViewType {
    /// Those that are not deleted.
    #[default]
    ActiveOnly,
    /// The deleted ones.
    DeletedOnly,
    /// All.
    All,
}

impl FromStr for ViewType {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "active_only" => Ok(Self::ActiveOnly),
            "deleted_only" => Ok(Self::DeletedOnly),
            "all" => Ok(Self::All),
            _ => Err(Invalid::value(
                "view",
                text,
                "it is active_only, deleted_only or all",
            )),
        }
    }
}

/// Whether a run or an experiment is deleted; MLflow keeps what is deleted until it is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleStage {
    /// Not deleted.
    Active,
    /// Deleted.
    Deleted,
}

impl LifecycleStage {
    /// The word in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deleted => "deleted",
        }
    }
}

/// Which end of a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best {
    /// Smallest value.
    Min,
    /// Largest value.
    Max,
}

/// A name for a run that was given none: adjective, radio word, number, like MLflow's random names.
pub(crate) fn random_name() -> String {
    const ADJECTIVES: [&str; 24] = [
        "amber", "bold", "brisk", "calm", "clear", "coherent", "crisp", "distant", "eager", "fair",
        "gentle", "keen", "lively", "lucid", "mellow", "narrow", "nimble", "polar", "quiet",
        "sharp", "steady", "swift", "tidal", "vivid",
    ];
    const NOUNS: [&str; 24] = [
        "antenna", "band", "beacon", "burst", "carrier", "chirp", "coil", "delay", "dipole",
        "echo", "fading", "filter", "ground", "heron", "horizon", "lobe", "mast", "mixer", "phase",
        "pilot", "pulse", "relay", "signal", "wave",
    ];
    let mut rng = rand::rng();
    let adjective = ADJECTIVES.choose(&mut rng).unwrap_or(&ADJECTIVES[0]);
    let noun = NOUNS.choose(&mut rng).unwrap_or(&NOUNS[0]);
    format!("{adjective}-{noun}-{}", rand::random_range(0..1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_prints_as_32_hexadecimal_digits_and_parses_back() {
        let id = RunId::random();
        let text = id.to_string();
        assert_eq!(text.len(), 32);
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        );
        assert_eq!(text.parse::<RunId>().unwrap(), id);
    }

    #[test]
    fn only_final_statuses_end_a_run() {
        assert_eq!(RunStatus::parse_final("FAILED").unwrap(), RunStatus::Failed);
        assert_eq!(RunStatus::parse_final("killed").unwrap(), RunStatus::Killed);
        for wrong in ["", "RUNNING", "DONE", "FINISHED "] {
            let error = RunStatus::parse_final(wrong).unwrap_err().to_string();
            assert!(
                error.contains(wrong) && error.contains("FINISHED, FAILED or KILLED"),
                "{error}"
            );
        }
    }

    #[test]
    fn random_names_have_three_parts() {
        assert_eq!(random_name().split('-').count(), 3);
    }
}
