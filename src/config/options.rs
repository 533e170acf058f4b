//! Options of a tracker, from arguments and environment variables.

use std::{fmt, str::FromStr, time::Duration};

use crate::{
    journal::config::{Durability, JournalConfig},
    mlflow::invalid::Invalid,
};

/// The mode of delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Records are delivered at once.
    #[default]
    Online,
    /// Records wait in the journal for `heimdall sync`; no store is contacted.
    Offline,
}

impl FromStr for Mode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "online" => Ok(Self::Online),
            "offline" => Ok(Self::Offline),
            _ => Err(Invalid::setting(
                "mode",
                text,
                "it must be \"online\" or \"offline\"",
            )),
        }
    }
}

/// The ranks of a distributed training that record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranks {
    /// Only rank 0 records.
    #[default]
    Zero,
    /// All ranks record into the run of rank 0.
    All,
    /// Each rank records runs of its own.
    Each,
}

impl FromStr for Ranks {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "zero" => Ok(Self::Zero),
            "all" => Ok(Self::All),
            "each" => Ok(Self::Each),
            _ => Err(Invalid::setting(
                "ranks",
                text,
                "it must be \"zero\", \"all\" or \"each\"",
            )),
        }
    }
}

impl FromStr for Durability {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "process" => Ok(Self::Process),
            "power" => Ok(Self::Power),
            _ => Err(Invalid::setting(
                "durability",
                text,
                "it must be \"process\" or \"power\"",
            )),
        }
    }
}

/// Options of a tracker.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Mode of delivery.
    pub mode: Mode,
    /// URIs of further destinations.
    pub mirrors: Vec<String>,
    /// Ranks that record.
    pub ranks: Ranks,
    /// Rank of this process in a distributed training; 0 where the process is alone.
    pub rank: u32,
    /// Kind of failure that an accepted record survives.
    pub durability: Durability,
    /// Longest time to wait for the stores at construction.
    pub connect_timeout: Duration,
    /// Longest time for which the end of a run waits until the store has it.
    pub end_timeout: Duration,
    /// Longest time to wait for the delivery after a SIGTERM.
    pub term_grace: Duration,
    /// Greatest size of the journal on the disk, in bytes.
    pub journal_limit: u64,
    /// Greatest size of the journal in memory while the disk takes nothing, in bytes.
    pub memory_limit: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            mirrors: Vec::new(),
            ranks: Ranks::default(),
            rank: 0,
            durability: Durability::default(),
            connect_timeout: Duration::from_secs(5),
            end_timeout: Duration::from_secs(10),
            term_grace: TERM_GRACE,
            journal_limit: JournalConfig::DISK_LIMIT,
            memory_limit: JournalConfig::MEMORY_LIMIT,
        }
    }
}

/// Options that the caller has given as arguments; they replace those of the environment.
#[derive(Clone, Debug, Default)]
pub struct GivenOptions {
    /// `mode`.
    pub mode: Option<String>,
    /// `mirrors`.
    pub mirrors: Option<Vec<String>>,
    /// `ranks`.
    pub ranks: Option<String>,
    /// `durability`.
    pub durability: Option<String>,
    /// True where the program uses a library that joins the tasks of Slurm to one training.
    pub joins_tasks: bool,
}

/// Default of the longest time to wait for the delivery after a SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(10);
/// Variables by which launchers tell a process its rank and the number of processes: torchrun, Open MPI, MPICH. A rank
/// without a number of processes is left over from another program.
const WORLDS: [[&str; 2]; 3] = [
    ["RANK", "WORLD_SIZE"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["PMI_RANK", "PMI_SIZE"],
];
/// The same of Slurm, whose tasks may as well be trainings of their own.
const SLURM: [&str; 2] = ["SLURM_PROCID", "SLURM_NTASKS"];
/// Variables of processes that Lightning itself starts: their local rank and the number of their node.
const LOCAL_RANK_VARIABLES: [&str; 2] = ["LOCAL_RANK", "NODE_RANK"];

impl Options {
    /// Returns true on a rank that records nothing.
    pub fn is_silent(&self) -> bool {
        self.rank > 0 && self.ranks == Ranks::Zero
    }

    /// Returns true on the rank 0 whose runs the other ranks record into.
    pub fn leads(&self) -> bool {
        self.rank == 0 && self.ranks == Ranks::All
    }

    /// Returns true on a rank that records into the run of rank 0.
    pub fn attaches(&self) -> bool {
        self.rank > 0 && self.ranks == Ranks::All
    }

    /// Returns the options of the caller, else of the environment, else the defaults.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for a word that the option does not have and for a text that is not a number.
    pub fn new(given: GivenOptions) -> Result<Self, Invalid> {
        Self::from_variables(given, |name| std::env::var(name).ok())
    }

    fn from_variables(
        given: GivenOptions,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Invalid> {
        let defaults = Self::default();
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let mirrors = given.mirrors.unwrap_or_else(|| {
            let uris = set("MLFLOW_MIRROR_URIS").unwrap_or_default();
            let uris = uris.split([',', ' ', '\n', '\t']);
            uris.filter(|uri| !uri.is_empty())
                .map(str::to_owned)
                .collect()
        });
        let seconds = |name, default: Duration| {
            let given = number(name, &set)?;
            Ok::<_, Invalid>(given.map_or(default, |seconds| {
                Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
            }))
        };
        Ok(Self {
            mode: word(given.mode.or_else(|| set("HEIMDALL_MODE")))?.unwrap_or_default(),
            mirrors,
            ranks: word(given.ranks.or_else(|| set("HEIMDALL_RANKS")))?.unwrap_or_default(),
            rank: rank(&set, given.joins_tasks),
            durability: word(given.durability.or_else(|| set("HEIMDALL_DURABILITY")))?
                .unwrap_or_default(),
            connect_timeout: seconds("HEIMDALL_CONNECT_TIMEOUT", defaults.connect_timeout)?,
            end_timeout: seconds("HEIMDALL_END_TIMEOUT", defaults.end_timeout)?,
            term_grace: seconds("HEIMDALL_TERM_GRACE", defaults.term_grace)?,
            journal_limit: number("HEIMDALL_JOURNAL_LIMIT", &set)?
                .map_or(defaults.journal_limit, |bytes: f64| bytes as u64),
            memory_limit: number("HEIMDALL_MEMORY_LIMIT", &set)?
                .map_or(defaults.memory_limit, |bytes: f64| bytes as usize),
        })
    }
}

fn word<T: FromStr<Err = Invalid>>(text: Option<String>) -> Result<Option<T>, Invalid> {
    text.map(|text| text.parse()).transpose()
}

fn number(
    name: &'static str,
    set: &impl Fn(&str) -> Option<String>,
) -> Result<Option<f64>, Invalid> {
    let Some(text) = set(name) else {
        return Ok(None);
    };
    let parsed = text.trim().parse::<f64>().ok();
    match parsed.filter(|number| number.is_finite() && *number >= 0.0) {
        Some(number) => Ok(Some(number)),
        None => Err(Invalid::setting(
            name,
            &text,
            "it must be a number of at least 0",
        )),
    }
}

/// Returns the rank of this process in a training of several processes that belong together; else 0.
fn rank(set: &impl Fn(&str) -> Option<String>, joins_tasks: bool) -> u32 {
    let number = |name: &str| set(name)?.trim().parse::<u32>().ok();
    let in_world = |[rank, size]: [&str; 2]| {
        let (rank, size) = (number(rank)?, number(size)?);
        (size > 1 && rank < size).then_some(rank)
    };
    if let Some(rank) = WORLDS.into_iter().find_map(in_world) {
        return rank;
    }
    // Unrelated tasks of one `srun` have numbers too: they are ranks where something joins them.
    if (joins_tasks || set("MASTER_ADDR").is_some())
        && let Some(rank) = in_world(SLURM)
    {
        return rank;
    }
    if number("WORLD_SIZE").is_none_or(|size| size < 2) {
        return 0;
    }
    // The first process of the first node is rank 0. The ranks of the other processes need not be exact, only not 0.
    let local = LOCAL_RANK_VARIABLES.into_iter().filter_map(number);
    local.fold(0, u32::saturating_add)
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Offline => "offline",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(given: GivenOptions, variables: &[(&str, &str)]) -> Result<Options, Invalid> {
        Options::from_variables(given, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_is_the_defaults() {
        let found = options(GivenOptions::default(), &[("HEIMDALL_MODE", "")]).unwrap();
        assert_eq!(found, Options::default());
    }

    #[test]
    fn an_argument_wins_over_its_variable() {
        let given = GivenOptions {
            mode: Some("Offline".into()),
            mirrors: Some(vec![]),
            ..GivenOptions::default()
        };
        let variables = [
            ("HEIMDALL_MODE", "online"),
            ("MLFLOW_MIRROR_URIS", "sqlite:///a.db, http://b"),
            ("HEIMDALL_JOURNAL_LIMIT", "1e6"),
        ];
        let found = options(given, &variables).unwrap();
        assert_eq!((found.mode, found.mirrors.len()), (Mode::Offline, 0));
        assert_eq!(found.journal_limit, 1_000_000);
        let found = options(GivenOptions::default(), &variables).unwrap();
        assert_eq!(found.mirrors, ["sqlite:///a.db", "http://b"]);
    }

    #[test]
    fn a_word_or_number_that_is_none_is_named() {
        for variable in [
            ("HEIMDALL_MODE", "sometimes"),
            ("HEIMDALL_RANKS", "1"),
            ("HEIMDALL_DURABILITY", "high"),
            ("HEIMDALL_CONNECT_TIMEOUT", "soon"),
            ("HEIMDALL_TERM_GRACE", "none"),
            ("HEIMDALL_JOURNAL_LIMIT", "-1"),
        ] {
            let error = options(GivenOptions::default(), &[variable]).unwrap_err();
            assert!(error.to_string().contains(variable.1), "{error}");
        }
    }

    #[test]
    fn the_rank_is_the_launchers() {
        for (variables, rank) in [
            (&[][..], 0),
            (
                &[("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")],
                3,
            ),
            (
                &[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")],
                2,
            ),
            (&[("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")], 1),
            (
                &[("LOCAL_RANK", "0"), ("NODE_RANK", "1"), ("WORLD_SIZE", "2")],
                1,
            ),
            (
                &[
                    ("SLURM_PROCID", "2"),
                    ("SLURM_NTASKS", "4"),
                    ("MASTER_ADDR", "a"),
                ],
                2,
            ),
            // These processes belong to no training of several.
            (&[("RANK", "3")], 0),
            (&[("RANK", "3"), ("WORLD_SIZE", "1")], 0),
            (&[("NODE_RANK", "1"), ("LOCAL_RANK", "1")], 0),
            (&[("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4")], 0),
        ] {
            let found = options(GivenOptions::default(), variables).unwrap();
            assert_eq!(found.rank, rank, "{variables:?}");
        }
        let joined = GivenOptions {
            joins_tasks: true,
            ..GivenOptions::default()
        };
        let tasks = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4")];
        assert_eq!(options(joined, &tasks).unwrap().rank, 2);
    }
}
