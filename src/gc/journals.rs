//! Runs that journals on this machine still have records of.

use std::{collections::BTreeMap, path::Path, time::Duration};

use crate::{
    error::{Error, Result},
    journal::{abandoned, layout, reader},
};

/// Returns the runs that the journals below a folder have records of or hold open, each with whether the journal's
/// process is alive. Waits on the disk.
///
/// # Errors
/// [`Error::Configuration`] where a journal cannot be read, because it may have records of any run.
pub(crate) fn journaled(heimdall_dir: &Path) -> Result<BTreeMap<String, bool>> {
    let unreadable = |dir: &Path, reason: String| {
        Error::configuration(
            "journal",
            &dir.display().to_string(),
            format!(
                "it may have records of any run, and cannot be read ({reason}): deliver it with `heimdall sync`, or \
                 move it away"
            ),
        )
    };
    let mut runs = BTreeMap::new();
    let dirs = layout::folders(heimdall_dir);
    for dir in dirs.map_err(|error| unreadable(heimdall_dir, error.to_string()))? {
        match runs_of_steadily(&dir) {
            Ok(found) => {
                let is_alive = abandoned::is_alive(&dir);
                for run in found {
                    *runs.entry(run).or_default() |= is_alive;
                }
            }
            // The journal has been delivered meanwhile.
            Err(_) if layout::is_none(&dir) => {}
            Err(reason) => return Err(unreadable(&dir, reason)),
        }
    }
    Ok(runs)
}

/// Calls [`runs_of`], and tries again for a while, because a process that delivers a journal removes files that another
/// process is reading.
fn runs_of_steadily(dir: &Path) -> Result<Vec<String>, String> {
    const LOOKS: usize = 20;
    const PAUSE: Duration = Duration::from_millis(50);

    for number in 0..LOOKS {
        let seen = runs_of(dir);
        // The process that delivered the journal may just have ended.
        if seen.is_ok() || (number > 0 && !abandoned::is_alive(dir)) {
            return seen;
        }
        std::thread::sleep(PAUSE);
    }
    runs_of(dir)
}

/// Returns the runs that a journal has records of or holds open, or the reason why it cannot be read.
fn runs_of(dir: &Path) -> Result<Vec<String>, String> {
    let manifest = layout::manifest(dir).ok_or("its manifest.json is damaged or forbidden")?;
    let mut runs = Vec::new();
    for destination in 0..manifest.destinations.len() {
        runs.extend(reader::saved(dir, destination).open_runs.into_keys());
        let mut damage = Vec::new();
        let looked = reader::peek(dir, destination, |batch| {
            damage.extend(batch.damage.first().cloned());
            let entries = batch.entries.iter();
            runs.extend(entries.map(|placed| placed.entry.record.run().to_string()));
        });
        looked.map_err(|error| error.to_string())?;
        if let Some(damage) = damage.into_iter().next() {
            return Err(damage);
        }
    }
    Ok(runs)
}
