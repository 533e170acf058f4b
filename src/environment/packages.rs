//! The packages that an interpreter would import, read from the folders that installers leave beside them.
//! `importlib.metadata` reads the same folders; this does it without stopping the interpreter.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::secrets::masked_url;

/// Lists the packages in these folders as `pip freeze` does, by name.
pub(crate) fn list(folders: &[PathBuf]) -> String {
    let mut lines: BTreeMap<String, String> = BTreeMap::new();
    for folder in folders {
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            if let Some((name, line)) = package(&entry.path()) {
                // Python imports from the folder that comes first.
                lines.entry(name).or_insert(line);
            }
        }
    }
    lines.into_values().map(|line| line + "\n").collect()
}

/// Returns the normalised name of the package that a folder describes, and its line.
fn package(about: &Path) -> Option<(String, String)> {
    let metadata = match about.extension()?.to_str()? {
        "dist-info" => about.join("METADATA"),
        "egg-info" if about.is_dir() => about.join("PKG-INFO"),
        "egg-info" => about.to_owned(),
        _ => return None,
    };
    let (mut name, mut version) = (None, None);
    for line in BufReader::new(File::open(metadata).ok()?).lines() {
        let line = line.ok()?;
        match line.split_once(':') {
            Some(("Name", text)) => name = Some(text.trim().to_owned()),
            Some(("Version", text)) => version = Some(text.trim().to_owned()),
            // The description follows an empty line.
            _ if line.is_empty() => break,
            _ => {}
        }
        if name.is_some() && version.is_some() {
            break;
        }
    }
    let (name, version) = (name?, version?);
    let line = from_elsewhere(&name, &version, &about.join("direct_url.json"))
        .unwrap_or_else(|| format!("{name}=={version}"));
    let normalised = name.to_lowercase().replace(['_', '.'], "-");
    Some((normalised, line))
}

/// Returns the line of a package that was not installed from an index.
fn from_elsewhere(name: &str, version: &str, direct_url: &Path) -> Option<String> {
    let origin: Value = serde_json::from_slice(&fs::read(direct_url).ok()?).ok()?;
    let url = masked_url(origin["url"].as_str()?);
    Some(match &origin["vcs_info"] {
        Value::Object(vcs) => {
            let text = |key| vcs.get(key).and_then(Value::as_str).unwrap_or_default();
            format!("{name} @ {}+{url}@{}", text("vcs"), text("commit_id"))
        }
        _ if origin["dir_info"]["editable"] == true => {
            format!("{name}=={version}  # editable: {url}")
        }
        _ => format!("{name} @ {url}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(folder: &Path, about: &str, metadata: &str, direct_url: Option<&str>) {
        let about = folder.join(about);
        fs::create_dir_all(&about).unwrap();
        fs::write(about.join("METADATA"), metadata).unwrap();
        if let Some(text) = direct_url {
            fs::write(about.join("direct_url.json"), text).unwrap();
        }
    }

    #[test]
    fn packages_are_listed_by_name_and_the_first_of_a_name_wins() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        install(
            first.path(),
            "b-1.dist-info",
            "Metadata-Version: 2.1\nName: B\nVersion: 1\n",
            None,
        );
        install(
            second.path(),
            "b-2.dist-info",
            "Name: b\nVersion: 2\n",
            None,
        );
        install(
            second.path(),
            "a-3.dist-info",
            "Name: a\nVersion: 3\n\nName: not\n",
            None,
        );
        install(
            second.path(),
            "broken-1.dist-info",
            "Name: broken\n\nVersion: 1\n",
            None,
        );
        install(second.path(), "other", "Name: other\nVersion: 1\n", None);
        let folders = [first.path().into(), second.path().into(), "/nowhere".into()];
        assert_eq!(list(&folders), "a==3\nB==1\n");
    }

    #[test]
    fn a_package_from_elsewhere_says_from_where_and_not_with_which_password() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = |name| format!("Name: {name}\nVersion: 1\n");
        for (name, direct_url) in [
            (
                "git",
                r#"{"url": "https://me:hush@x/y.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}"#,
            ),
            (
                "mine",
                r#"{"url": "file:///src/mine", "dir_info": {"editable": true}}"#,
            ),
            ("wheel", r#"{"url": "file:///w.whl", "archive_info": {}}"#),
        ] {
            let about = format!("{name}-1.dist-info");
            install(dir.path(), &about, &metadata(name), Some(direct_url));
        }
        assert_eq!(
            list(&[dir.path().into()]),
            "git @ git+https://***@x/y.git@abc\nmine==1  # editable: file:///src/mine\nwheel @ file:///w.whl\n"
        );
    }
}
