//! Places that artifact URIs lead to, so that two URIs can be compared whatever their spelling.

use std::path::{Component, Path};

use crate::config::uri::{ArtifactUri, Cloud};

/// A folder or file: a disk, a bucket or a server, and the path to it there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    root: String,
    names: Vec<String>,
}

impl Location {
    /// Returns the location that a URI leads to; `None` for a URI that is not understood.
    pub(crate) fn of(uri: &str) -> Option<Self> {
        match ArtifactUri::parse(uri).ok()? {
            ArtifactUri::Local(path) => Some(Self::of_path(&path)),
            ArtifactUri::Object(place) => {
                let cloud = match place.cloud {
                    Cloud::S3 => "s3",
                    Cloud::Google => "gs",
                    Cloud::Azure => "azure",
                };
                let account = place.account.as_deref().unwrap_or_default();
                Some(Self {
                    root: format!("{cloud}://{}@{account}", place.bucket),
                    names: names(&place.prefix),
                })
            }
            ArtifactUri::Server(uri) => {
                let path = uri.strip_prefix("mlflow-artifacts:")?;
                // The URI may have the server's address or not: the proxy that is queried is the one that has the
                // files.
                let path = match path.strip_prefix("//") {
                    Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
                    None => path,
                };
                let names = names(path);
                let climbs = names.iter().any(|name| matches!(name.as_str(), "." | ".."));
                (!climbs).then_some(Self {
                    root: "mlflow-artifacts:".to_owned(),
                    names,
                })
            }
        }
    }

    /// Returns the location that a URI leads to, and the location after following links on a local disk. Waits on the
    /// disk.
    pub(crate) fn all_of(uri: &str) -> Vec<Self> {
        let mut places: Vec<Self> = Self::of(uri).into_iter().collect();
        if let Ok(ArtifactUri::Local(path)) = ArtifactUri::parse(uri)
            && let Ok(path) = path.canonicalize()
        {
            let led = Self::of_path(&path);
            if !places.contains(&led) {
                places.push(led);
            }
        }
        places
    }

    fn of_path(path: &Path) -> Self {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        });
        Self {
            root: "file:".to_owned(),
            names: names.collect(),
        }
    }

    /// Returns the location of a path below this one.
    pub(crate) fn join(&self, path: &str) -> Self {
        let mut place = self.clone();
        place.names.extend(names(path));
        place
    }

    /// Iterates over the location and all folders above it, the root last.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        (0..=self.names.len()).rev().map(|length| Self {
            root: self.root.clone(),
            names: self.names[..length].to_vec(),
        })
    }

    /// Returns true where one location is the other or lies below it. The guard answers the same question for many
    /// locations at once.
    #[cfg(test)]
    pub(crate) fn relates_to(&self, other: &Self) -> bool {
        let common = self.names.len().min(other.names.len());
        self.root == other.root && self.names[..common] == other.names[..common]
    }
}

fn names(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Returns true where a name is that of a run's folder: 32 hexadecimal digits, in lower case as MLflow writes them.
pub(crate) fn is_run_id(name: &str) -> bool {
    name.len() == 32
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Returns true where the artifacts of a run are at the place that MLflow gives the runs of an experiment, in a folder
/// of this run alone: below the location, by the run's id.
pub(crate) fn is_folder_of_run(uri: &str, location: &str, run_id: &str) -> bool {
    match (Location::of(uri), Location::of(location)) {
        (Some(place), Some(location)) => {
            is_run_id(run_id) && place == location.join(&format!("{run_id}/artifacts"))
        }
        _ => false,
    }
}

/// Returns true where a link between the location of an experiment and a folder below it leads elsewhere. Waits on the
/// disk.
pub(crate) fn is_led_elsewhere(uri: &str, location: &str) -> bool {
    let (Ok(ArtifactUri::Local(path)), Ok(ArtifactUri::Local(location))) =
        (ArtifactUri::parse(uri), ArtifactUri::parse(location))
    else {
        return false;
    };
    match (path.canonicalize(), location.canonicalize()) {
        (Ok(led), Ok(root)) => path
            .strip_prefix(&location)
            .map_or(true, |below| led != root.join(below)),
        // A path that does not exist leads nowhere.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn one_place_has_many_spellings() {
        for same in [
            ["/a/b", "file:///a/b/"],
            ["/a/b c", "file:///a/b%20c"],
            ["/a/x/../b", "/a/b"],
            ["s3://bucket/a", "s3a://bucket/a/"],
            ["mlflow-artifacts:/1/a", "mlflow-artifacts://host:5000/1/a/"],
        ] {
            let [one, other] = same.map(|uri| Location::of(uri).unwrap());
            assert_eq!(one, other, "{same:?}");
        }
        for unknown in ["", "dbfs:/a", "s3://s3://a/b", "mlflow-artifacts:/1/../2"] {
            assert_eq!(Location::of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_only_begins_alike_is_another_place() {
        let place = |uri| Location::of(uri).unwrap();
        assert!(place("s3://b/run").relates_to(&place("s3://b/run/model")));
        assert!(place("s3://b/run/model").relates_to(&place("s3://b")));
        for [one, other] in [
            ["s3://b/run", "s3://b/run2"],
            ["s3://b/run", "s3://c/run"],
            ["s3://b/run", "gs://b/run"],
            ["/b/run", "s3://b/run"],
        ] {
            assert!(!place(one).relates_to(&place(other)), "{one} {other}");
        }
    }

    #[test]
    fn a_folder_is_a_runs_where_its_id_says_so() {
        let location = "s3://bucket/mlflow/1";
        assert!(is_folder_of_run(
            &format!("{location}/{RUN}/artifacts"),
            &format!("{location}/"),
            RUN
        ));
        for wrong in [
            format!("{location}/{RUN}"),
            format!("{location}/artifacts"),
            format!("s3://bucket/mlflow/2/{RUN}/artifacts"),
            format!("s3://other/mlflow/1/{RUN}/artifacts"),
            format!("{location}/{RUN}/artifacts/model"),
            location.to_owned(),
            "s3://bucket".to_owned(),
        ] {
            assert!(!is_folder_of_run(&wrong, location, RUN), "{wrong}");
        }
        assert!(!is_folder_of_run(
            "s3://b/1/models/artifacts",
            "s3://b/1",
            "models"
        ));
    }

    #[test]
    fn a_link_out_of_the_location_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("location");
        std::fs::create_dir_all(location.join("own/artifacts")).unwrap();
        std::fs::create_dir_all(dir.path().join("apart/artifacts")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("apart"), location.join("led")).unwrap();
        let root = location.display().to_string();
        assert!(!is_led_elsewhere(&format!("{root}/own/artifacts"), &root));
        assert!(!is_led_elsewhere(&format!("{root}/none/artifacts"), &root));
        assert!(is_led_elsewhere(&format!("{root}/led/artifacts"), &root));
        // An experiment's location may itself be a link, because the experiment says so.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&location, &link).unwrap();
        let root = link.display().to_string();
        assert!(!is_led_elsewhere(&format!("{root}/own/artifacts"), &root));
        assert_eq!(Location::all_of(&root).len(), 2);
    }
}
