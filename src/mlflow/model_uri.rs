//! Model URIs: they name artifacts of a run, a version of a registered model, a logged model, or a location.

use super::{
    artifact_path::ArtifactPath,
    invalid::Invalid,
    model::{Alias, LATEST, ModelName, Stage, parse_version},
};
use crate::net::secret::without_credentials;

/// Longest location of a version's files: the width of the store's column.
const MAX_LOCATION_LENGTH: usize = 500;
const WHAT: &str = "model URI";
const MODELS_FORM: &str = "the forms are models:/<name>/<version>, models:/<name>/<stage>, models:/<name>/latest, \
                           models:/<name>@<alias> and models:/<model id>";

/// The source of a model that a model URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// Artifacts of a run.
    Run {
        /// Id of the run.
        run_id: String,
        /// Folder or file below the artifact URI of the run.
        path: ArtifactPath,
    },
    /// A registered or a logged model.
    Model(ModelUri),
    /// An artifact URI.
    Location(String),
}

/// The model that a `models:/` URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelUri {
    /// A version of a registered model.
    Version {
        /// Name of the registered model.
        name: ModelName,
        /// The version of the model.
        pick: Pick,
        /// Folder or file in the version; the root for all files.
        path: ArtifactPath,
    },
    /// A model that MLflow 3 has logged.
    Logged(String),
}

/// The choice of a version of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The version of this number.
    Number(i64),
    /// The newest version in this stage.
    Stage(Stage),
    /// The version that this alias points to.
    Alias(Alias),
    /// The newest version of all stages.
    Latest,
}

impl From<Alias> for Pick {
    fn from(alias: Alias) -> Self {
        if alias.is_latest() {
            Self::Latest
        } else {
            Self::Alias(alias)
        }
    }
}

impl ModelSource {
    /// Reads `runs:/<run id>/<path>` (also the incorrect `runs://<run id>/<path>`), a `models:/` URI, a path or
    /// another artifact URI.
    ///
    /// # Errors
    /// [`Invalid::Value`] when the URI is empty, has another form, or has a path that leads out of the run or model.
    pub(crate) fn parse(uri: &str) -> Result<Self, Invalid> {
        if uri.trim().is_empty() {
            return Err(Invalid::value(WHAT, uri, "it must name where the model is"));
        }
        if let Some(rest) = uri.strip_prefix("runs:") {
            let rest = rest.trim_matches('/');
            let (run_id, path) = rest.split_once('/').unwrap_or((rest, ""));
            if run_id.is_empty() {
                let form = "the form is runs:/<run id>/<path>";
                return Err(Invalid::value(WHAT, uri, form));
            }
            return Ok(Self::Run {
                run_id: run_id.to_owned(),
                path: ArtifactPath::parse(path)?,
            });
        }
        if uri.starts_with("models:") {
            return ModelUri::parse(uri).map(Self::Model);
        }
        let location = absolute(uri);
        check_location(&location)?;
        Ok(Self::Location(location))
    }
}

impl ModelUri {
    fn parse(uri: &str) -> Result<Self, Invalid> {
        let wrong = |reason: &str| Invalid::value(WHAT, uri, reason);
        let rest = uri.strip_prefix("models:/").unwrap_or_default();
        if rest.starts_with('/') {
            return Err(wrong(
                "models:// would name another registry: write models:/, with one slash",
            ));
        }
        let rest = rest.trim_end_matches('/');
        let (first, others) = rest.split_once('/').unwrap_or((rest, ""));
        if first.trim().is_empty() {
            return Err(wrong(MODELS_FORM));
        }
        if let Some((name, alias)) = first.rsplit_once('@') {
            let alias: Alias = alias.parse()?;
            return Ok(Self::Version {
                name: name.parse()?,
                pick: alias.into(),
                path: ArtifactPath::parse(others)?,
            });
        }
        if others.is_empty() {
            return Ok(Self::Logged(first.to_owned()));
        }
        let (suffix, path) = others.split_once('/').unwrap_or((others, ""));
        let pick = if suffix.bytes().all(|byte| byte.is_ascii_digit()) {
            Pick::Number(parse_version(suffix)?)
        } else if suffix.eq_ignore_ascii_case(LATEST) {
            Pick::Latest
        } else {
            Pick::Stage(suffix.parse()?)
        };
        Ok(Self::Version {
            name: first.parse()?,
            pick,
            path: ArtifactPath::parse(path)?,
        })
    }
}

/// Checks that a location can hold the files of a version.
///
/// # Errors
/// [`Invalid::Value`] for a URI with two schemes, as `s3://s3://bucket/model`, a URI without a bucket or host where its
/// scheme needs one, a text with a NUL, and a text that is longer than MLflow's column.
pub(crate) fn check_location(uri: &str) -> Result<(), Invalid> {
    // A URI that is not valid may contain credentials too.
    let wrong = |reason: String| Err(Invalid::value(WHAT, &without_credentials(uri), reason));
    if uri.contains('\0') {
        return wrong("it has a NUL character".to_owned());
    }
    if uri.chars().count() > MAX_LOCATION_LENGTH {
        return wrong("a location must have at most 500 characters, MLflow's limit".to_owned());
    }
    let Some((scheme, rest)) = uri
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
    else {
        return Ok(());
    };
    if let Some((second, path)) = rest
        .split_once("://")
        .filter(|(second, _)| is_scheme(second))
    {
        return wrong(format!(
            "it has two schemes: write {} where that is meant",
            without_credentials(&format!("{second}://{path}"))
        ));
    }
    let needs_bucket = ["s3", "gs", "http", "https"].contains(&scheme);
    if needs_bucket && rest.split('/').next().is_none_or(str::is_empty) {
        return wrong(format!("the form is {scheme}://<bucket or host>/<path>"));
    }
    Ok(())
}

fn is_scheme(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Returns the absolute path of a path, as a later reader works in another folder; returns a URI unchanged.
fn absolute(uri: &str) -> String {
    let has_scheme = uri
        .split_once(':')
        .is_some_and(|(scheme, _)| is_scheme(scheme));
    if has_scheme {
        return uri.to_owned();
    }
    match std::path::absolute(uri) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(_) => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str, pick: Pick, path: &str) -> ModelSource {
        ModelSource::Model(ModelUri::Version {
            name: name.parse().unwrap(),
            pick,
            path: ArtifactPath::parse(path).unwrap(),
        })
    }

    #[test]
    fn both_spellings_of_a_run_uri_name_the_run() {
        for uri in [
            "runs:/abc/models/m",
            "runs://abc/models/m",
            "runs:/abc/models/m/",
        ] {
            let ModelSource::Run { run_id, path } = ModelSource::parse(uri).unwrap() else {
                panic!("{uri}")
            };
            assert_eq!((run_id.as_str(), path.as_str()), ("abc", "models/m"));
        }
        for wrong in ["", " ", "runs:/", "runs:", "runs:/abc/../x"] {
            assert!(ModelSource::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_models_uri_names_a_version_by_number_stage_alias_or_as_the_latest() {
        let alias = |alias: &str| Pick::Alias(alias.parse().unwrap());
        for (uri, expected) in [
            ("models:/m/3", named("m", Pick::Number(3), "")),
            ("models:/m/3/", named("m", Pick::Number(3), "")),
            ("models:/a b@c/3", named("a b", alias("c"), "3")),
            (
                "models:/m/production",
                named("m", Pick::Stage(Stage::Production), ""),
            ),
            ("models:/m/None", named("m", Pick::Stage(Stage::None), "")),
            ("models:/m/Latest", named("m", Pick::Latest, "")),
            ("models:/m@latest", named("m", Pick::Latest, "")),
            ("models:/m@champion", named("m", alias("champion"), "")),
            ("models:/a@b@c", named("a@b", alias("c"), "")),
            (
                "models:/m/3/data/model.pth",
                named("m", Pick::Number(3), "data/model.pth"),
            ),
            (
                "models:/m@champion/data",
                named("m", alias("champion"), "data"),
            ),
            (
                "models:/m-0123abc",
                ModelSource::Model(ModelUri::Logged("m-0123abc".into())),
            ),
        ] {
            assert_eq!(ModelSource::parse(uri).unwrap(), expected, "{uri}");
        }
        for wrong in [
            "models:",
            "models:/",
            "models:m/1",
            "models://m/1",
            "models:///m/1",
            "models:/ /1",
            "models:/m@",
            "models:/@a",
            "models:/m@a b",
            "models:/m/0",
            "models:/m/Live",
            "models:/m/1/../../x",
            "models:/m/99999999999999999999",
            "models:/a:b/1",
            "models:/m//1",
        ] {
            assert!(ModelSource::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_location_has_one_scheme_and_fits() {
        for uri in [
            "s3://bucket/a b/ü",
            "file:///m",
            "/m",
            "mlflow-artifacts:/1/x",
            "dbfs:/x",
            "gs://b",
        ] {
            assert_eq!(
                ModelSource::parse(uri).unwrap(),
                ModelSource::Location(uri.into())
            );
        }
        for (wrong, hint) in [
            ("s3://s3://bucket/m", "two schemes: write s3://bucket/m"),
            ("file://s3://bucket/m", "two schemes"),
            ("s3:///m", "s3://<bucket or host>/<path>"),
            ("s3://", "s3://<bucket or host>/<path>"),
            ("/m\0", "NUL"),
        ] {
            let error = ModelSource::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
        assert!(ModelSource::parse(&format!("/{}", "m".repeat(500))).is_err());
    }

    #[test]
    fn a_path_is_registered_from_the_root_on() {
        let ModelSource::Location(path) = ModelSource::parse("some/model").unwrap() else {
            panic!()
        };
        assert!(
            path.starts_with('/') && path.ends_with("/some/model"),
            "{path}"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(models:|runs:|s3:|/|@|latest|Production|[0-9]|\\PC){0,12}") {
            let _ = ModelSource::parse(&text);
        }

        #[test]
        fn the_uri_of_a_version_names_it(name in "[^/:@\\x00]{1,30}", version in 1i64..) {
            prop_assume!(name.parse::<ModelName>().is_ok());
            let source = ModelSource::parse(&format!("models:/{name}/{version}")).unwrap();
            prop_assert_eq!(source, named(&name, Pick::Number(version), ""));
        }
    }
}
