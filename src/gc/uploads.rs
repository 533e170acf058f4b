//! Uploads that were begun and never finished: parts at S3 stores, half files in local folders.

use std::{collections::HashSet, time::Duration};

use super::{
    location::Location,
    report::{Findings, GarbageItem, Kind, SparedItem},
    rules::{Guard, is_older, run_of, shown},
};
use crate::artifacts::store::UnfinishedUpload;

/// Sorts the unfinished uploads below the artifact location of an experiment. `seen` has the uploads of other
/// locations, because locations may be nested.
pub(crate) fn sort(
    uploads: Vec<UnfinishedUpload>,
    (experiment, location): (&str, &str),
    guard: &Guard,
    (older_than, now): (Duration, i64),
    seen: &mut HashSet<(Vec<Location>, String)>,
    found: &mut Findings,
) {
    for upload in uploads {
        let uri = format!(
            "{}/{}",
            location.trim_end_matches('/'),
            upload.path.as_str()
        );
        let places = Location::all_of(&uri);
        if !seen.insert((places.clone(), upload.id.clone())) {
            continue;
        }
        let run_id = run_of(upload.path.as_str()).map(str::to_owned);
        let age = upload.begun.map(|begun| shown(now.saturating_sub(begun)));
        let held = if is_older(upload.begun, older_than, now) {
            guard.holds(run_id.as_deref().into_iter(), &places)
        } else {
            // A process may still be working on the upload.
            Some(match &age {
                Some(age) => format!("it was begun {age} ago only"),
                None => "the store does not say when it was begun".to_owned(),
            })
        };
        let item = GarbageItem {
            kind: Kind::Upload,
            experiment: experiment.to_owned(),
            run_id,
            uri,
            files: 1,
            bytes: upload.bytes,
            reason: format!("an upload begun {} ago", age.unwrap_or_default()),
            purges: false,
            deleted: false,
            error: None,
            location: location.to_owned(),
            upload: Some(upload),
            aliases: Vec::new(),
        };
        match held {
            None => found.items.push(item),
            Some(why) => found.spared.push(SparedItem::of(&item, why)),
        }
    }
}
