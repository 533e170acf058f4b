//! Runs: id, name, status, and the data that is read from a store.

use std::{collections::BTreeMap, fmt, str::FromStr};

use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::invalid::Invalid;

/// Tag that holds the name of a run.
pub(crate) const RUN_NAME_TAG: &str = "mlflow.runName";
/// Tag that holds the id of the parent run.
pub(crate) const PARENT_RUN_TAG: &str = "mlflow.parentRunId";
/// Tag that holds the description of a run.
pub(crate) const NOTE_TAG: &str = "mlflow.note.content";

/// Id of a run: 32 hexadecimal digits, as MLflow makes them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(Uuid);

impl RunId {
    /// Returns a new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the sixteen bytes of the id.
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
            .map_err(|_| Invalid::value("run id", text, "a run id must be 32 hexadecimal digits"))
    }
}

/// Status of a run, as MLflow spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunStatus {
    /// The run is still being written to.
    Running,
    /// The run has ended well.
    Finished,
    /// The run has ended by an error, or its process has died.
    Failed,
    /// The run has been ended by the user or the scheduler.
    Killed,
}

impl RunStatus {
    /// Returns the word in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }

    /// Reads a status that a client may set, in upper or lower case.
    ///
    /// # Errors
    /// [`Invalid::Value`] for anything but RUNNING, FINISHED, FAILED and KILLED.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.eq_ignore_ascii_case(Self::Running.as_str()) {
            return Ok(Self::Running);
        }
        Self::parse_final(text)
    }

    /// Reads a status that ends a run, in upper or lower case.
    ///
    /// # Errors
    /// [`Invalid::Value`] for anything but FINISHED, FAILED and KILLED.
    pub fn parse_final(text: &str) -> Result<Self, Invalid> {
        [Self::Finished, Self::Failed, Self::Killed]
            .into_iter()
            .find(|status| status.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                Invalid::value(
                    "run status",
                    text,
                    "a run must end FINISHED, FAILED or KILLED",
                )
            })
    }

    /// Returns the status of runs whose process exits with an error code, after Ctrl-C or not; `None` where the code
    /// tells of no error.
    pub(crate) fn of_exit_code(code: i32, was_interrupted: bool) -> Option<Self> {
        /// Python's own code where it cannot flush its output, as in a pipe that is closed.
        const NOT_FLUSHED: i32 = 120;
        match code {
            0 | NOT_FLUSHED => None,
            // By convention 128 and the number of the signal that has ended the program: SIGHUP, SIGINT, SIGTERM.
            129 | 130 | 143 => Some(Self::Killed),
            _ if was_interrupted => Some(Self::Killed),
            _ => Some(Self::Failed),
        }
    }
}

/// A run to start.
#[derive(Clone, Debug, Default)]
pub struct NewRun {
    /// Name of the run; a random name where none is given.
    pub name: Option<String>,
    /// Tags of the run; they replace the default tags with the same keys.
    pub tags: Vec<(String, String)>,
    /// True where the run may start while another run is active; the active run is then the parent.
    pub nested: bool,
    /// Id of the parent run, where no run is active.
    pub parent: Option<String>,
    /// Description for people.
    pub description: Option<String>,
    /// Id or name of the run to continue; none for a new run.
    pub run_id: Option<String>,
    /// First step whose points are deleted when the run is resumed; none keeps all points.
    pub from_step: Option<i64>,
}

/// A run as the store has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunInfo {
    /// Id of the run.
    pub run_id: String,
    /// Name of the run.
    pub run_name: String,
    /// Id of the experiment.
    pub experiment_id: String,
    /// Name of the user that runs it.
    pub user_id: String,
    /// Status word.
    pub status: String,
    /// Start, milliseconds since 1970.
    pub start_time: Option<i64>,
    /// End, milliseconds since 1970; `None` while it runs.
    pub end_time: Option<i64>,
    /// `active` or `deleted`.
    pub lifecycle_stage: String,
    /// URI of the artifacts.
    pub artifact_uri: String,
    /// Params by key.
    pub params: BTreeMap<String, String>,
    /// Latest value of each metric by key.
    pub metrics: BTreeMap<String, f64>,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
    /// Datasets that were logged as inputs.
    pub inputs: Vec<DatasetInput>,
}

/// A point of a metric's history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricPoint {
    /// Value as it was logged, NaN included.
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
    /// Tags of the input; `mlflow.data.context` names its purpose.
    pub tags: Vec<(String, String)>,
}

/// The runs or experiments that a query includes, by lifecycle stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ViewType {
    /// Runs or experiments that are not deleted.
    #[default]
    ActiveOnly,
    /// Deleted runs or experiments.
    DeletedOnly,
    /// All runs or experiments.
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
                "it must be active_only, deleted_only or all",
            )),
        }
    }
}

/// The lifecycle stage of a run or an experiment; MLflow keeps a deleted one until garbage collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleStage {
    /// The run or experiment is not deleted.
    Active,
    /// The run or experiment is deleted.
    Deleted,
}

impl LifecycleStage {
    /// Returns the word in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deleted => "deleted",
        }
    }
}

/// The direction in which a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best {
    /// The smallest value is the best.
    Min,
    /// The largest value is the best.
    Max,
}

/// Returns a name for a run without one: adjective, radio word and number, like MLflow's random names.
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
