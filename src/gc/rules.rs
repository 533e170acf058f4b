//! Rules for deleting and keeping: pure functions of the answers of the store, the registry and the journals.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::location::{Location, is_run_id};
use crate::{
    mlflow::run::{Best, RunInfo},
    store::{registry::VersionFiles, tracking::LoggedModelFiles},
};

/// Everything that must not be deleted: the targets of registered versions and logged models, and runs in journals.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    /// Locations that something points to, with a description of the pointer.
    pointed: HashMap<Location, String>,
    /// All folders above the pointed locations.
    above: HashMap<Location, String>,
    /// Ids of runs that something names, with a description of the pointer.
    runs: HashMap<String, String>,
    /// Runs that a journal has records of or holds open; the flag is true where the journal's process is alive.
    journaled: BTreeMap<String, bool>,
}

impl Guard {
    /// Makes a guard of runs that are in journals; the flag is true where the journal's process is alive.
    pub(crate) fn new(journaled: BTreeMap<String, bool>) -> Self {
        Self {
            journaled,
            ..Self::default()
        }
    }

    /// Adds the target of a registered version. Waits on the disk.
    pub(crate) fn add_version(&mut self, version: &VersionFiles) {
        let what = format!("version {} of model {:?}", version.version, version.name);
        if let Some(run_id) = &version.run_id {
            self.runs.insert(run_id.to_lowercase(), what.clone());
        }
        self.add(&version.source, &what);
        if let Some(location) = &version.location {
            self.add(location, &what);
        }
    }

    /// Adds the target of a logged model of MLflow 3. Waits on the disk.
    pub(crate) fn add_logged_model(&mut self, model: &LoggedModelFiles) {
        self.add(
            &model.artifact_location,
            &format!("logged model {}", model.model_id),
        );
    }

    fn add(&mut self, uri: &str, what: &str) {
        // A URI that is not understood (`runs:/…`, a scheme of a plugin) may still contain a run's id.
        for name in uri.split(|c: char| !c.is_ascii_hexdigit()) {
            if name.len() == 32 {
                self.runs.insert(name.to_lowercase(), what.to_owned());
            }
        }
        for place in Location::all_of(uri) {
            for above in place.ancestors() {
                self.above.insert(above, what.to_owned());
            }
            self.pointed.insert(place, what.to_owned());
        }
    }

    /// Returns the reason why nothing of a run may be deleted, for the run's ids and for the given places; `None` where
    /// it may be deleted.
    pub(crate) fn holds<'a>(
        &self,
        mut run_ids: impl Iterator<Item = &'a str> + Clone,
        places: &[Location],
    ) -> Option<String> {
        for run_id in run_ids.clone() {
            match self.journaled.get(run_id) {
                Some(true) => {
                    return Some("it is in the journal of a process that lives".to_owned());
                }
                Some(false) => {
                    return Some(
                        "a journal has records of it: `heimdall sync` delivers them".to_owned(),
                    );
                }
                None => {}
            }
        }
        let by_id = run_ids.find_map(|run_id| self.runs.get(run_id));
        let by_place = || {
            places.iter().find_map(|place| {
                let below = self.above.get(place);
                below.or_else(|| place.ancestors().find_map(|it| self.pointed.get(&it)))
            })
        };
        let what = by_id.or_else(by_place)?;
        Some(format!("{what} points to it"))
    }
}

/// Rules by which runs of an experiment are kept; runs that no rule keeps are deleted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retention {
    /// Keeps the best runs.
    pub best: Option<KeepBest>,
    /// Keeps runs that ended within this time.
    pub newer_than: Option<Duration>,
    /// Keeps only registered runs. Other rules keep them as well; this one is for when no other rule is given.
    pub registered: bool,
    /// Part of the other runs that is deleted.
    pub what: What,
}

/// Keeps the best runs by the latest value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct KeepBest {
    /// Number of runs to keep.
    pub count: usize,
    /// Key of the metric.
    pub metric: String,
    /// Direction in which the metric is better.
    pub best: Best,
}

/// Part of a run that is deleted when no rule keeps the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum What {
    /// Only the artifacts; the run with its params and metrics stays.
    #[default]
    Artifacts,
    /// The whole run: it is marked as deleted, as MLflow does, and can be restored.
    Runs,
}

/// Returns true where a run has ended.
pub(crate) fn has_ended(run: &RunInfo) -> bool {
    matches!(run.status.as_str(), "FINISHED" | "FAILED" | "KILLED")
}

/// Returns the ended runs that no rule keeps, each with the reason, in the given order.
pub(crate) fn unkept<'a>(
    runs: &'a [RunInfo],
    rules: &Retention,
    now: i64,
) -> Vec<(&'a RunInfo, String)> {
    let ended: Vec<&RunInfo> = runs.iter().filter(|run| has_ended(run)).collect();
    let best = rules.best.as_ref().map(|rule| (rule, best(&ended, rule)));
    let mut unkept = Vec::new();
    for run in ended {
        let mut reasons = Vec::new();
        if let Some((rule, best)) = &best {
            if best.contains(&run.run_id.as_str()) {
                continue;
            }
            let (metric, count) = (&rule.metric, rule.count);
            reasons.push(match run.metrics.get(metric) {
                Some(value) => format!("{metric} {value} is not among the {count} best"),
                None => format!("it has no {metric}"),
            });
        }
        if let Some(newer_than) = rules.newer_than {
            // A run whose time is not known counts as new.
            let Some(at) = run.end_time.or(run.start_time) else {
                continue;
            };
            let age = now.saturating_sub(at);
            if age <= millis(newer_than) {
                continue;
            }
            reasons.push(format!("it ended {} ago", shown(age)));
        }
        if reasons.is_empty() && rules.registered {
            reasons.push("no registered version is of it".to_owned());
        }
        // Without rules, nothing is deleted.
        if !reasons.is_empty() {
            unkept.push((run, reasons.join(", ")));
        }
    }
    unkept
}

/// Returns the ids of the best runs. A run without a number for the metric is never among them; of equal runs, the
/// earlier one is better.
fn best<'a>(runs: &[&'a RunInfo], rule: &KeepBest) -> Vec<&'a str> {
    let mut ranked: Vec<(f64, &RunInfo)> = runs
        .iter()
        .filter_map(|run| Some((*run.metrics.get(&rule.metric)?, *run)))
        .filter(|(value, _)| !value.is_nan())
        .collect();
    ranked.sort_by(|(a, run_a), (b, run_b)| {
        let order = a.partial_cmp(b).unwrap_or(Ordering::Equal);
        let order = match rule.best {
            Best::Min => order,
            Best::Max => order.reverse(),
        };
        let tie = (run_a.start_time, &run_a.run_id).cmp(&(run_b.start_time, &run_b.run_id));
        order.then(tie)
    });
    let best = ranked.into_iter().take(rule.count);
    best.map(|(_, run)| run.run_id.as_str()).collect()
}

/// Returns true where something has at least the age `than`. Returns false for an unknown time.
pub(crate) fn is_older(at: Option<i64>, than: Duration, now: i64) -> bool {
    at.is_some_and(|at| now.saturating_sub(at) >= millis(than))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Formats a time span for people.
pub(crate) fn shown(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("min", 60)] {
        if seconds >= length {
            return format!("{} {unit}", seconds / length);
        }
    }
    format!("{seconds} s")
}

/// Returns the run that a path below an experiment's artifact location belongs to; `None` where it belongs to no run.
pub(crate) fn run_of(path: &str) -> Option<&str> {
    let (run_id, rest) = path.split_once('/')?;
    let is_below = rest == "artifacts" || rest.starts_with("artifacts/");
    (is_below && is_run_id(run_id)).then_some(run_id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(id: u32, status: &str, loss: Option<f64>, end_time: Option<i64>) -> RunInfo {
        RunInfo {
            run_id: format!("{id:032x}"),
            status: status.to_owned(),
            start_time: Some(0),
            end_time,
            metrics: loss
                .map(|loss| ("loss".to_owned(), loss))
                .into_iter()
                .collect(),
            ..RunInfo::default()
        }
    }

    fn version(source: &str) -> VersionFiles {
        VersionFiles {
            name: "m".to_owned(),
            version: 1,
            source: source.to_owned(),
            ..VersionFiles::default()
        }
    }

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn is_held(guard: &Guard, run_id: &str) -> bool {
        let place = Location::of(&format!("s3://bucket/1/{run_id}/artifacts")).unwrap();
        guard.holds([run_id].into_iter(), &[place]).is_some()
    }

    #[test]
    fn a_version_below_at_or_above_a_run_holds_it() {
        for source in [
            format!("s3://bucket/1/{A}/artifacts/model"),
            format!("s3://bucket/1/{A}/artifacts"),
            format!("s3://bucket/1/{A}"),
            format!("runs:/{A}/model"),
            format!("dbfs:/somewhere/{A}/artifacts/model"),
        ] {
            let mut guard = Guard::default();
            guard.add_version(&version(&source));
            assert!(is_held(&guard, A), "{source}");
            assert!(!is_held(&guard, B), "{source}");
        }
        let mut guard = Guard::default();
        guard.add_version(&version("s3://bucket/1"));
        assert!(is_held(&guard, A) && is_held(&guard, B));
    }

    #[test]
    fn the_run_and_the_location_of_a_version_count_as_well() {
        let mut guard = Guard::default();
        guard.add_version(&VersionFiles {
            run_id: Some(A.to_owned()),
            location: Some(format!("s3a://bucket/1/{B}/artifacts/x/")),
            ..version("models:/other/1")
        });
        assert!(is_held(&guard, A) && is_held(&guard, B));
    }

    #[test]
    fn a_run_in_a_journal_is_held_by_each_of_its_ids() {
        let guard = Guard::new([(A.to_owned(), true), (B.to_owned(), false)].into());
        let held = |ids: &[&str]| guard.holds(ids.iter().copied(), &[]).unwrap_or_default();
        assert!(held(&["x", A]).contains("lives"));
        assert!(held(&[B]).contains("heimdall sync"));
        assert_eq!(held(&["x"]), "");
    }

    #[test]
    fn rules_keep_what_they_say() {
        let runs = [
            run(1, "FINISHED", Some(0.3), Some(10)),
            run(2, "FINISHED", Some(0.1), Some(20)),
            run(3, "FINISHED", Some(f64::NAN), Some(30)),
            run(4, "RUNNING", Some(0.0), None),
            run(5, "FAILED", None, Some(99_000)),
        ];
        let ids = |rules: &Retention| {
            let unkept = unkept(&runs, rules, 100_000).into_iter();
            unkept
                .map(|(run, _)| u32::from_str_radix(&run.run_id, 16).unwrap())
                .collect::<Vec<_>>()
        };
        let keep_best = |best, count| {
            Some(KeepBest {
                count,
                metric: "loss".to_owned(),
                best,
            })
        };
        let min = Retention {
            best: keep_best(Best::Min, 1),
            ..Retention::default()
        };
        assert_eq!(ids(&min), [1, 3, 5]);
        let max = Retention {
            best: keep_best(Best::Max, 1),
            ..Retention::default()
        };
        assert_eq!(ids(&max), [2, 3, 5]);
        let both = Retention {
            newer_than: Some(Duration::from_secs(60)),
            ..min
        };
        assert_eq!(ids(&both), [1, 3]);
        let registered = Retention {
            registered: true,
            ..Retention::default()
        };
        assert_eq!(ids(&registered), [1, 2, 3, 5]);
        assert!(
            ids(&Retention::default()).is_empty(),
            "no rule, nothing goes"
        );
    }

    #[test]
    fn of_equals_the_earlier_one_is_kept() {
        let mut runs = [
            run(1, "FINISHED", Some(0.5), Some(1)),
            run(2, "FINISHED", Some(0.5), Some(1)),
        ];
        runs[0].start_time = Some(7);
        let rules = Retention {
            best: Some(KeepBest {
                count: 1,
                metric: "loss".to_owned(),
                best: Best::Max,
            }),
            ..Retention::default()
        };
        let unkept = unkept(&runs, &rules, 0);
        assert_eq!(unkept[0].0.run_id, runs[0].run_id);
        assert_eq!(unkept.len(), 1);
    }

    #[test]
    fn a_path_belongs_to_a_run_by_its_first_two_names() {
        assert_eq!(run_of(&format!("{A}/artifacts/m/a")), Some(A));
        for other in [
            format!("models/m-{A}/artifacts/a"),
            format!("{A}/artifacts2/a"),
            format!("{A}/meta.yaml"),
            format!("x{A}/artifacts/a"),
            A.to_owned(),
        ] {
            assert_eq!(run_of(&other), None, "{other}");
        }
    }

    /// Generates URIs from few names, so that some of them are equal or nested.
    fn uri() -> impl Strategy<Value = String> {
        let root = prop_oneof![
            Just("s3://b"),
            Just("s3a://b"),
            Just("s3://c"),
            Just("/b"),
            Just("file:///b"),
            Just("mlflow-artifacts:/b"),
            Just("runs:"),
        ];
        let name = prop_oneof![
            Just("1"),
            Just("2"),
            Just(A),
            Just(B),
            Just("artifacts"),
            Just("m")
        ];
        (root, proptest::collection::vec(name, 0..5), any::<bool>()).prop_map(
            |(root, names, slash)| {
                let slash = if slash { "/" } else { "" };
                format!("{root}/{}{slash}", names.join("/"))
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_that_a_version_points_to_may_be_deleted(
            sources in proptest::collection::vec((uri(), proptest::option::of(uri())), 0..4),
            models in proptest::collection::vec(uri(), 0..2),
            target in uri(),
            run_id in prop_oneof![Just(A), Just(B), Just("cccccccccccccccccccccccccccccccc")],
        ) {
            let mut guard = Guard::default();
            let mut all = models.clone();
            for (source, location) in &sources {
                guard.add_version(&VersionFiles { location: location.clone(), ..version(source) });
                all.push(source.clone());
                all.extend(location.clone());
            }
            for location in &models {
                guard.add_logged_model(&LoggedModelFiles {
                    model_id: "m-1".to_owned(),
                    artifact_location: location.clone(),
                });
            }
            let place = Location::of(&target);
            let places: Vec<Location> = place.iter().cloned().collect();
            let meets = all.iter().any(|uri| {
                let meets = Location::of(uri).zip(place.clone()).is_some_and(|(a, b)| a.relates_to(&b));
                meets || uri.contains(run_id)
            });
            prop_assert_eq!(guard.holds([run_id].into_iter(), &places).is_some(), meets);
        }

        #[test]
        fn the_best_and_the_newer_are_never_among_those_that_go(
            runs in proptest::collection::vec(
                (
                    prop_oneof![Just("FINISHED"), Just("FAILED"), Just("RUNNING"), Just("SCHEDULED")],
                    proptest::option::of(prop_oneof![Just(f64::NAN), Just(f64::INFINITY), -3.0..3.0]),
                    proptest::option::of(0i64..100_000),
                ),
                0..12,
            ),
            count in 0usize..5,
            maximize: bool,
            newer_than in proptest::option::of(0u64..100),
        ) {
            let runs: Vec<RunInfo> = runs
                .iter()
                .zip(0..)
                .map(|((status, loss, end), id)| run(id, status, *loss, *end))
                .collect();
            let rules = Retention {
                best: Some(KeepBest {
                    count,
                    metric: "loss".to_owned(),
                    best: if maximize { Best::Max } else { Best::Min },
                }),
                newer_than: newer_than.map(Duration::from_secs),
                registered: false,
                what: What::Runs,
            };
            let go: Vec<&str> = unkept(&runs, &rules, 100_000)
                .iter()
                .map(|(run, _)| run.run_id.as_str())
                .collect();
            let is_gone = |run: &RunInfo| go.contains(&run.run_id.as_str());
            prop_assert!(runs.iter().filter(|run| !has_ended(run)).all(|run| !is_gone(run)));
            if let Some(newer_than) = newer_than {
                let new = |run: &&RunInfo| {
                    run.end_time.or(run.start_time).is_none_or(|at| 100_000 - at <= 1_000 * newer_than as i64)
                };
                prop_assert!(runs.iter().filter(new).all(|run| !is_gone(run)));
            }
            let value = |run: &RunInfo| run.metrics.get("loss").copied().filter(|it| !it.is_nan());
            let better = |a: f64, b: f64| if maximize { a > b } else { a < b };
            for run in runs.iter().filter(|run| is_gone(run)) {
                if let Some(mine) = value(run) {
                    // As many runs as are kept must be at least as good.
                    let ahead = runs.iter().filter(|other| {
                        has_ended(other) && !better(mine, value(other).unwrap_or(f64::NAN))
                            && value(other).is_some() && other.run_id != run.run_id
                    });
                    prop_assert!(ahead.count() >= count);
                }
            }
        }
    }
}
