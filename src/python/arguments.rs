//! Arguments of calls: texts, names, numbers and times, checked when Python hands them over.

use std::{borrow::Cow, time::Duration};

use pyo3::{
    conversion::FromPyObjectOwned,
    exceptions::PyTypeError,
    prelude::*,
    types::{PyBool, PyDict, PyString},
};

use super::values;
use crate::{
    mlflow::{
        invalid::Invalid,
        key::Key,
        model::{self, Alias, ModelName, Stage, TagValue},
        run::{Best, DatasetInput, NewRun, ViewType},
        search::{
            grammar::{FilterOf, OrderOf, Searched},
            models::{ModelQuery, VersionQuery},
        },
    },
    tracker::{queries::Search, registry::Registration, runs::ClientRun},
};

/// Names of the tag keys in the registry, for errors.
pub(crate) const MODEL_TAG_KEY: &str = "registered model tag key";
pub(crate) const VERSION_TAG_KEY: &str = "model version tag key";

/// Returns a text as UTF-8. `what` is the name of the argument in an error.
///
/// # Errors
/// [`Invalid::Value`] for a text with half a character.
pub(crate) fn utf8<'a>(
    what: &'static str,
    text: &'a Bound<'_, PyString>,
) -> Result<Cow<'a, str>, Invalid> {
    text.to_cow()
        .map_err(|_| half_character(what, &text.to_string_lossy()))
}

/// Returns the error for a text that has no form in UTF-8; `shown` identifies the text.
pub(crate) fn half_character(what: &'static str, shown: &str) -> Invalid {
    let reason =
        "it has a lone surrogate, half a character, which UTF-8 has no form for: remove it";
    Invalid::value(what, shown, reason)
}

fn text(what: &'static str, given: Borrowed<'_, '_, PyAny>) -> PyResult<String> {
    match given.cast::<PyString>() {
        Ok(text) => Ok(utf8(what, &text)?.into_owned()),
        Err(_) => Err(values::wrong_type(what, "", "a str", &given)),
    }
}

/// Defines a type for an argument that is a text, with its name in errors.
macro_rules! text_argument {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name(pub String);

        impl<'py> FromPyObject<'_, 'py> for $name {
            type Error = PyErr;

            fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
                text($what, given).map(Self)
            }
        }
    )*};
}

text_argument! {
    /// Id of a run.
    RunId = "run id";
    /// Id or name of a run.
    RunIdOrName = "run";
    /// Id or name of an experiment.
    ExperimentIdOrName = "experiment";
    /// Key of a metric.
    MetricKey = "metric key";
    /// Key of a tag.
    RunTagKey = "tag key";
    /// Path of a file among the artifacts of a run.
    ArtifactFile = "artifact file";
    /// Path of a file or folder among the artifacts of a run.
    ArtifactTree = "artifact path";
    /// Filter of a search.
    Filter = "filter";
}

/// URI of a model: a text, or a path object.
pub(crate) struct ModelUri(pub String);

impl<'py> FromPyObject<'_, 'py> for ModelUri {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let path = given.py().import("os")?.call_method1("fspath", (given,))?;
        text("model URI", path.as_borrowed()).map(Self)
    }
}

/// Time that a call may wait, given in seconds; infinity is [`Duration::MAX`].
#[derive(Clone, Copy)]
pub(crate) struct Seconds(pub Duration);

impl Seconds {
    fn new(what: &'static str, seconds: f64) -> Result<Self, Invalid> {
        if seconds == f64::INFINITY {
            return Ok(Self(Duration::MAX));
        }
        let checked = Duration::try_from_secs_f64(seconds);
        checked.map(Self).map_err(|_| {
            let reason = "it must be a number of seconds, 0 or more";
            Invalid::value(what, &seconds.to_string(), reason)
        })
    }
}

impl<'py> FromPyObject<'_, 'py> for Seconds {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self::new("timeout", given.extract()?)?)
    }
}

/// Number of a model version: an int, or a text of digits.
#[derive(Clone, Copy)]
pub(crate) struct VersionNumber(pub i64);

impl<'py> FromPyObject<'_, 'py> for VersionNumber {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let number = given.str()?;
        Ok(Self(model::parse_version(&number.to_string_lossy())?))
    }
}

/// Step from which the points of a resumed run are recorded anew: an int of 0 or more.
#[derive(Clone, Copy)]
pub(crate) struct FromStep(pub i64);

impl<'py> FromPyObject<'_, 'py> for FromStep {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let number = (!given.is_instance_of::<PyBool>()).then(|| given.extract::<i64>());
        match number {
            Some(Ok(step @ 0..)) => Ok(Self(step)),
            _ => {
                let reason = format!("it must be an integer from 0 to {}", i64::MAX);
                let shown = given.repr()?;
                Err(Invalid::value("from_step", &shown.to_string_lossy(), reason).into())
            }
        }
    }
}

/// Alias to give to a version; names with a meaning in MLflow are refused.
pub(crate) struct NewAlias(pub Alias);

impl<'py> FromPyObject<'_, 'py> for NewAlias {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(Alias::parse_new(&text("alias", given)?)?))
    }
}

/// Description of a model or of a version.
pub(crate) struct Description(pub String);

impl<'py> FromPyObject<'_, 'py> for Description {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(model::parse_description(&text(
            "description",
            given,
        )?)?))
    }
}

/// Defines a type of argument that is the key of a tag in the registry.
macro_rules! tag_key_argument {
    ($($(#[$doc:meta])* $name:ident = $what:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name(pub Key);

        impl<'py> FromPyObject<'_, 'py> for $name {
            type Error = PyErr;

            fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
                let key = text($what, given)?;
                Ok(Self(Key::parse($what, &key)?))
            }
        }
    )*};
}

tag_key_argument! {
    /// Key of a tag of a registered model.
    ModelTagKey = MODEL_TAG_KEY;
    /// Key of a tag of a model version.
    VersionTagKey = VERSION_TAG_KEY;
}

/// Defines an argument by the parser of its text.
macro_rules! parsed_argument {
    ($($type:ty = $what:literal;)*) => {$(
        impl<'py> FromPyObject<'_, 'py> for $type {
            type Error = PyErr;

            fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
                Ok(text($what, given)?.parse::<$type>()?)
            }
        }
    )*};
}

parsed_argument! {
    ModelName = "model name";
    Alias = "alias";
    Stage = "stage";
    ViewType = "view";
}

impl<'py> FromPyObject<'_, 'py> for Best {
    type Error = PyErr;

    /// Accepts `min` and `max`, as the built-in functions or as words.
    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let builtins = given.py().import("builtins")?;
        for (name, best) in [("min", Self::Min), ("max", Self::Max)] {
            if given.is(builtins.getattr(name)?) || given.eq(name)? {
                return Ok(best);
            }
        }
        let shown = given.repr()?.to_string();
        let reason = "it must be min or max, the function or the word";
        Err(Invalid::value("compare_fn", &shown, reason).into())
    }
}

/// One text or several.
pub(crate) struct Texts(pub Vec<String>);

impl<'py> FromPyObject<'_, 'py> for Texts {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match given.cast::<PyString>() {
            Ok(one) => Ok(Self(vec![one.extract()?])),
            Err(_) => given.extract().map(Self),
        }
    }
}

/// Most results of a search.
pub(crate) struct MaxResults(pub usize);

impl<'py> FromPyObject<'_, 'py> for MaxResults {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let count: i64 = given.extract()?;
        let checked = usize::try_from(count);
        Ok(Self(checked.map_err(|_| {
            let reason = "it must be 0 or more, or None";
            Invalid::value("max_results", &count.to_string(), reason)
        })?))
    }
}

/// The arguments of a registry search; the allowed fields are those of the searched objects.
pub(crate) struct RegistrySearch {
    filter: Option<Filter>,
    max_results: Option<MaxResults>,
    order_by: Option<Texts>,
}

impl RegistrySearch {
    /// Makes a search from these arguments.
    pub(crate) fn new(
        filter: Option<Filter>,
        max_results: Option<MaxResults>,
        order_by: Option<Texts>,
    ) -> Self {
        Self {
            filter,
            max_results,
            order_by,
        }
    }

    /// Returns the search for registered models.
    pub(crate) fn of_models(self) -> PyResult<ModelQuery> {
        let (filter, order_by, max_results) = self.parse()?;
        Ok(ModelQuery {
            filter,
            order_by,
            max_results,
        })
    }

    /// Returns the search for model versions.
    pub(crate) fn of_versions(self) -> PyResult<VersionQuery> {
        let (filter, order_by, max_results) = self.parse()?;
        Ok(VersionQuery {
            filter,
            order_by,
            max_results,
        })
    }

    fn parse<F: Searched>(self) -> PyResult<(FilterOf<F>, Vec<OrderOf<F>>, usize)> {
        let filter = self.filter.map_or_else(String::new, |filter| filter.0);
        let order_by = self.order_by.map_or_else(Vec::new, |texts| texts.0);
        let max_results = self.max_results.map_or(usize::MAX, |count| count.0);
        let orders = OrderOf::parse_all(&order_by)?;
        Ok((FilterOf::parse(&filter)?, orders, max_results))
    }
}

/// Arguments of a function with many arguments, by name: the Python layer documents them, defines the signature, and
/// hands them over in a dict.
pub(crate) struct Named<'a, 'py>(Borrowed<'a, 'py, PyDict>);

impl<'a, 'py> Named<'a, 'py> {
    /// Returns the arguments in a dict.
    pub(crate) fn of(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(given.cast::<PyDict>().map_err(PyErr::from)?))
    }

    /// Returns an argument. An omitted argument is `None`.
    pub(crate) fn get<T: FromPyObjectOwned<'py>>(&self, name: &str) -> PyResult<T> {
        let py = self.0.py();
        let given = self.0.get_item(name)?;
        let given = given.unwrap_or_else(|| py.None().into_bound(py));
        given.extract().map_err(|error: T::Error| {
            let error: PyErr = error.into();
            // The argument is named as PyO3 names an argument of an extension's function.
            if error.get_type(py).is(py.get_type::<PyTypeError>()) {
                let named = format!("argument '{name}': {}", error.value(py));
                PyTypeError::new_err(named)
            } else {
                error
            }
        })
    }

    /// Returns a text, or nothing where the argument is `None`. `what` is its name in an error.
    pub(crate) fn text(&self, what: &'static str, name: &str) -> PyResult<Option<String>> {
        let given: Option<Bound<'py, PyString>> = self.get(name)?;
        let text = given
            .as_ref()
            .map(|given| utf8(what, given).map(Cow::into_owned));
        Ok(text.transpose()?)
    }
}

impl<'py> FromPyObject<'_, 'py> for NewRun {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = Named::of(given)?;
        Ok(Self {
            name: given.text("run name", "run_name")?,
            tags: given
                .get::<Option<values::Tags>>("tags")?
                .unwrap_or_default()
                .0,
            nested: given.get("nested")?,
            parent: given.text("parent run", "parent_run_id")?,
            description: given.text("description", "description")?,
            run_id: given.text("run id", "run_id")?,
            from_step: None,
        })
    }
}

impl<'py> FromPyObject<'_, 'py> for ClientRun {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = Named::of(given)?;
        let text = |what, name| Ok::<_, PyErr>(given.text(what, name)?.unwrap_or_default());
        Ok(Self {
            experiment: text("experiment", "experiment")?,
            name: text("run name", "run_name")?,
            user: text("user", "user_id")?,
            start_time: given.get("start_time")?,
            tags: given.get::<values::Tags>("tags")?.0,
        })
    }
}

impl<'py> FromPyObject<'_, 'py> for DatasetInput {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = Named::of(given)?;
        let text = |what, name| Ok::<_, PyErr>(given.text(what, name)?.unwrap_or_default());
        Ok(Self {
            name: text("dataset name", "name")?,
            digest: text("dataset digest", "digest")?,
            source_type: text("dataset source type", "source_type")?,
            source: text("dataset source", "source")?,
            schema: given.text("dataset schema", "schema")?,
            profile: given.text("dataset profile", "profile")?,
            tags: given.get::<values::Tags>("tags")?.0,
        })
    }
}

impl<'py> FromPyObject<'_, 'py> for Search {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = Named::of(given)?;
        let order_by: Option<Texts> = given.get("order_by")?;
        let max_results: Option<MaxResults> = given.get("max_results")?;
        Ok(Self {
            filter: given.text("filter", "filter")?.unwrap_or_default(),
            order_by: order_by.map_or_else(Vec::new, |texts| texts.0),
            max_results: max_results.map(|count| count.0),
            view: given.get("view")?,
            experiments: given.get("experiment_names")?,
        })
    }
}

impl<'py> FromPyObject<'_, 'py> for Registration {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = Named::of(given)?;
        let timeout: Option<f64> = given.get("await_registration_for")?;
        let tags = given.get::<Option<values::Tags>>("tags")?;
        Ok(Self {
            name: given.get("model_name")?,
            uri: given.get::<ModelUri>("model_uri")?.0,
            description: given.get::<Description>("description")?.0,
            tags: model_tags(VERSION_TAG_KEY, tags)?,
            timeout: Seconds::new("await_registration_for", timeout.unwrap_or_default())?.0,
        })
    }
}

/// Checks tags of a model or of a version.
///
/// # Errors
/// [`Invalid`] for a key or a value that MLflow would refuse.
pub(crate) fn model_tags(
    what: &'static str,
    tags: Option<values::Tags>,
) -> Result<Vec<(Key, TagValue)>, Invalid> {
    let tags = tags.unwrap_or_default().0.into_iter();
    tags.map(|(key, value)| {
        let value = TagValue::parse(&key, value)?;
        Ok((Key::parse(what, &key)?, value))
    })
    .collect()
}

/// Checks a tag of a model or of a version.
///
/// # Errors
/// The errors of [`model_tags`].
pub(crate) fn model_tag(
    what: &'static str,
    key: &Bound<'_, PyString>,
    value: &Bound<'_, PyAny>,
) -> PyResult<(Key, TagValue)> {
    let (key, value) = values::tag(key, value)?;
    let value = TagValue::parse(&key, value)?;
    Ok((Key::parse(what, &key)?, value))
}
