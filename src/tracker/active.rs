//! The active runs of a tracker, and the rule by which a caller finds its own run among them.

use std::{collections::HashMap, sync::Arc};

use super::{call::Caller, observers::Observers};
use crate::mlflow::{
    key::Key,
    run::{RunId, RunInfo},
};

/// Params of a run that were logged so far.
pub(crate) type Params = HashMap<Key, String>;

/// An active run.
#[derive(Debug)]
pub(crate) struct ActiveRun {
    pub id: RunId,
    /// Active run in which this run was started.
    pub parent: Option<RunId>,
    /// Params logged so far, to refuse a change before it is written.
    pub params: Params,
    /// The run as it was when it was resumed; `None` where it was not resumed.
    pub before: Option<Arc<RunInfo>>,
    /// True where this process ends the run. A fork, or another rank, leaves that to the process that has started the
    /// run.
    pub is_owned: bool,
    pub observers: Observers,
}

impl ActiveRun {
    /// Returns a run that this process has started or resumed.
    pub(crate) fn owned(id: RunId, parent: Option<RunId>, observers: Observers) -> Self {
        Self {
            is_owned: true,
            observers,
            ..Self::attached_to(id, parent)
        }
    }

    /// Returns a run that another process has started and will end.
    pub(crate) fn attached_to(id: RunId, parent: Option<RunId>) -> Self {
        Self {
            id,
            parent,
            params: Params::new(),
            before: None,
            is_owned: false,
            observers: Observers::default(),
        }
    }

    /// Returns this run in a process that has not started it.
    pub(crate) fn attached(&self) -> Self {
        Self {
            params: self.params.clone(),
            before: self.before.clone(),
            ..Self::attached_to(self.id, self.parent)
        }
    }
}

/// The active runs of a tracker, in the order of their starts.
///
/// A run belongs to the thread or task that has started it, and to the threads and tasks that were started there later.
/// All others see the outermost run.
#[derive(Debug, Default)]
pub(crate) struct ActiveRuns(Vec<ActiveRun>);

impl ActiveRuns {
    /// Returns the active runs as a fork of the process has them.
    pub(crate) fn attached(&self) -> Self {
        Self(self.0.iter().map(ActiveRun::attached).collect())
    }

    /// Returns the run of every caller, where all callers have the same; an error where they have not.
    pub(crate) fn only(&self) -> Result<Option<RunId>, AreSeveral> {
        match self.0.as_slice() {
            [] => Ok(None),
            [run] => Ok(Some(run.id)),
            _ => Err(AreSeveral),
        }
    }

    /// Returns the innermost run of a caller; for a caller without a run of its own, the outermost run.
    pub(crate) fn of(&self, caller: &Caller) -> Option<RunId> {
        self.own_of(caller)
            .or_else(|| self.0.first().map(|run| run.id))
    }

    /// Returns the innermost run that a caller has started or was given.
    pub(crate) fn own_of(&self, caller: &Caller) -> Option<RunId> {
        let own = caller.runs.iter().rev().find(|run| self.has(**run));
        own.copied()
    }

    /// Returns the runs of a caller, from the outermost to its innermost.
    pub(crate) fn path_of(&self, caller: &Caller) -> Vec<RunId> {
        let innermost = self.of(caller);
        let parents = std::iter::successors(innermost, |run| self.get(*run)?.parent);
        let mut path: Vec<RunId> = parents.take_while(|run| self.has(*run)).collect();
        path.reverse();
        path
    }

    /// Returns the ids of all active runs, in the order of their starts.
    pub(crate) fn ids(&self) -> Vec<RunId> {
        self.0.iter().map(|run| run.id).collect()
    }

    /// Returns true where a run is active.
    pub(crate) fn has(&self, run: RunId) -> bool {
        self.get(run).is_some()
    }

    /// Returns an active run.
    pub(crate) fn get(&self, run: RunId) -> Option<&ActiveRun> {
        self.0.iter().find(|active| active.id == run)
    }

    /// Returns an active run, to change it.
    pub(crate) fn get_mut(&mut self, run: RunId) -> Option<&mut ActiveRun> {
        self.0.iter_mut().find(|active| active.id == run)
    }

    /// Adds a run.
    pub(crate) fn push(&mut self, run: ActiveRun) {
        self.0.push(run);
    }

    /// Takes one run. Runs that are nested in it stay.
    pub(crate) fn take(&mut self, run: RunId) -> Option<ActiveRun> {
        let place = self.0.iter().position(|active| active.id == run)?;
        Some(self.0.remove(place))
    }

    /// Takes a run and the runs that are nested in it, the innermost first.
    pub(crate) fn take_with_nested(&mut self, run: RunId) -> Vec<ActiveRun> {
        let mut taken: Vec<RunId> = Vec::new();
        // A nested run stands behind the run in which it was started.
        for active in &self.0 {
            let is_nested = active.parent.is_some_and(|parent| taken.contains(&parent));
            if active.id == run || is_nested {
                taken.push(active.id);
            }
        }
        let innermost_first = taken.iter().rev();
        innermost_first.filter_map(|run| self.take(*run)).collect()
    }

    /// Takes the run that was started last.
    pub(crate) fn pop(&mut self) -> Option<ActiveRun> {
        self.0.pop()
    }

    /// Returns the ids of the runs that this process ends.
    pub(crate) fn owned(&self) -> Vec<RunId> {
        let owned = self.0.iter().filter(|run| run.is_owned);
        owned.map(|run| run.id).collect()
    }
}

/// Several runs are active: a caller has to be known to say which of them is its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AreSeveral;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(digit: u8) -> RunId {
        format!("{digit:032x}").parse().expect("32 digits")
    }

    fn caller(runs: &[u8]) -> Caller {
        Caller {
            runs: runs.iter().copied().map(run).collect(),
        }
    }

    /// Outer run 1, in it 2 with 3 in it, and 4.
    fn tree() -> ActiveRuns {
        let mut runs = ActiveRuns::default();
        for (id, parent) in [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(1))] {
            runs.push(ActiveRun::attached_to(run(id), parent.map(run)));
        }
        runs
    }

    #[test]
    fn a_caller_has_its_innermost_run_and_a_stranger_the_outermost() {
        let runs = tree();
        assert_eq!(runs.of(&caller(&[1, 2, 3])), Some(run(3)));
        assert_eq!(runs.of(&caller(&[1, 4])), Some(run(4)));
        assert_eq!(runs.of(&caller(&[])), Some(run(1)));
        // A run that has ended is passed over.
        assert_eq!(runs.of(&caller(&[1, 2, 9])), Some(run(2)));
        assert_eq!(runs.of(&caller(&[8, 9])), Some(run(1)));
        assert_eq!(ActiveRuns::default().of(&caller(&[1])), None);
    }

    #[test]
    fn the_path_of_a_caller_leads_from_the_outermost_run_to_its_own() {
        let path = |own: &[u8]| tree().path_of(&caller(own));
        assert_eq!(path(&[1, 2, 3]), [run(1), run(2), run(3)]);
        assert_eq!(path(&[4]), [run(1), run(4)]);
        assert_eq!(path(&[]), [run(1)]);
    }

    #[test]
    fn the_end_of_a_run_takes_its_nested_runs_and_no_others() {
        let mut runs = tree();
        let taken: Vec<RunId> = runs
            .take_with_nested(run(2))
            .iter()
            .map(|run| run.id)
            .collect();
        assert_eq!(taken, [run(3), run(2)]);
        assert_eq!(runs.ids(), [run(1), run(4)]);
        assert!(runs.take_with_nested(run(2)).is_empty());
        assert_eq!(runs.take_with_nested(run(1)).len(), 2);
        assert!(runs.ids().is_empty());
    }
}
