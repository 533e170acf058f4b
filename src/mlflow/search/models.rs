//! Searches for model versions and registered models.

use super::grammar::{
    ComparisonOf, FieldName, FilterOf, Operand, OperandKind, Operator, OrderOf, Searched,
};
use crate::mlflow::model::ModelName;

/// A filter of model versions.
pub(crate) type VersionFilter = FilterOf<VersionField>;
/// An order of model versions.
pub(crate) type VersionOrder = OrderOf<VersionField>;
/// A filter of registered models.
pub(crate) type ModelFilter = FilterOf<ModelField>;
/// An order of registered models.
pub(crate) type ModelOrder = OrderOf<ModelField>;

/// Tag of prompts, which MLflow keeps among the registered models. A search finds prompts only where its filter asks
/// for them.
pub(crate) const PROMPT_TAG: &str = "mlflow.prompt.is_prompt";

const TEXT: [Operator; 4] = [
    Operator::Equal,
    Operator::NotEqual,
    Operator::Like,
    Operator::ILike,
];
const TEXT_OR_LIST: [Operator; 6] = [
    Operator::Equal,
    Operator::NotEqual,
    Operator::Like,
    Operator::ILike,
    Operator::In,
    Operator::NotIn,
];
const NUMBER: [Operator; 6] = [
    Operator::Equal,
    Operator::NotEqual,
    Operator::Greater,
    Operator::GreaterOrEqual,
    Operator::Less,
    Operator::LessOrEqual,
];

/// A search for model versions, checked and ready for a registry.
#[derive(Clone, Debug, PartialEq)]
pub struct VersionQuery {
    /// Filter that is true for every version that is found.
    pub filter: VersionFilter,
    /// Orders, the first one first. After them MLflow sorts by name, then by version, highest first. Without any order
    /// MLflow sorts by the last update first, latest first.
    pub order_by: Vec<VersionOrder>,
    /// Greatest number of versions to find.
    pub max_results: usize,
}

/// A search for registered models, checked and ready for a registry.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelQuery {
    /// Filter that is true for every model that is found.
    pub filter: ModelFilter,
    /// Orders, the first one first; after them MLflow sorts by name.
    pub order_by: Vec<ModelOrder>,
    /// Greatest number of models to find.
    pub max_results: usize,
}

/// A field of a model version that can be compared or sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionField {
    /// Name of the model.
    Name,
    /// Number of the version.
    Version,
    /// Id of the run that made the version.
    RunId,
    /// Source of the version.
    Source,
    /// Time of the creation; for orders.
    Created,
    /// Time of the last update; for orders.
    Updated,
    /// A tag.
    Tag(String),
}

/// A field of a registered model that can be compared or sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelField {
    /// Name of the model.
    Name,
    /// Time of the last update; for orders.
    Updated,
    /// A tag.
    Tag(String),
}

impl VersionFilter {
    /// Returns a filter for all versions of a model; where [`super::grammar::is_exact`] returns false for the name, the
    /// filter may find versions of other models, too.
    pub fn of_model(name: &ModelName) -> Self {
        let (operator, operand, text) = super::grammar::equal("name", name.as_str());
        let field = VersionField::Name;
        Self {
            text,
            comparisons: vec![ComparisonOf {
                field,
                operator,
                operand: Operand::Text(operand),
            }],
        }
    }
}

/// A field of an object in a registry.
pub trait RegistryField {
    /// Returns the key of the tag, if the field is a tag.
    fn tag(&self) -> Option<&str>;
}

impl RegistryField for VersionField {
    fn tag(&self) -> Option<&str> {
        match self {
            Self::Tag(key) => Some(key),
            _ => None,
        }
    }
}

impl RegistryField for ModelField {
    fn tag(&self) -> Option<&str> {
        match self {
            Self::Tag(key) => Some(key),
            _ => None,
        }
    }
}

impl<F: RegistryField> FilterOf<F> {
    /// Returns true where the filter asks for prompts: the first comparison with the tag of prompts decides.
    pub fn is_for_prompts(&self) -> bool {
        let mut comparisons = self.comparisons.iter();
        let first = comparisons.find(|it| it.field.tag() == Some(PROMPT_TAG));
        first.is_some_and(|it| match (&it.operator, &it.operand) {
            (Operator::Equal, Operand::Text(text)) => text.eq_ignore_ascii_case("true"),
            (Operator::NotEqual, Operand::Text(text)) => text.eq_ignore_ascii_case("false"),
            _ => false,
        })
    }
}

/// The meaning of a name for registered models and their versions: an attribute or the key of a tag.
enum Named<'a> {
    Attribute(&'a str),
    Tag(&'a str),
}

/// Reads a name. The stock parser takes attributes and kinds without quotes only.
fn named<'a>(name: &FieldName<'a>) -> Result<Named<'a>, String> {
    let is_quoted = |text: &str| text.starts_with(['`', '"', '\'']);
    match name.kind {
        None if is_quoted(name.whole) => Err("an attribute stands without quotes".to_owned()),
        None => Ok(Named::Attribute(name.key)),
        Some("attribute") if name.whole == format!("attribute.{}", name.key) => {
            Ok(Named::Attribute(name.key))
        }
        Some("tags" | "tag") if !is_quoted(name.whole) => Ok(Named::Tag(name.key)),
        Some(_) => Err("a field is an attribute, or begins with tags".to_owned()),
    }
}

impl Searched for VersionField {
    const FORM: &'static str = "a comparison is written name = 'm', version_number > 3, run_id = '…', source_path LIKE \
                                's3://%' or tags.`a b` = 'x', and several are joined by AND";
    const MANY: &'static str = "model versions";

    fn compared(name: &FieldName<'_>) -> Result<Self, String> {
        match named(name)? {
            Named::Tag(key) => Ok(Self::Tag(key.to_owned())),
            Named::Attribute("name") => Ok(Self::Name),
            Named::Attribute("version_number") => Ok(Self::Version),
            Named::Attribute("run_id") => Ok(Self::RunId),
            Named::Attribute("source_path") => Ok(Self::Source),
            Named::Attribute(_) => Err(
                "attributes of a model version are name, version_number, run_id and source_path"
                    .to_owned(),
            ),
        }
    }

    fn sorted(name: &FieldName<'_>) -> Result<Self, String> {
        match named(name)? {
            Named::Attribute("name") => Ok(Self::Name),
            Named::Attribute("version_number") => Ok(Self::Version),
            Named::Attribute("creation_timestamp") => Ok(Self::Created),
            Named::Attribute("last_updated_timestamp") => Ok(Self::Updated),
            _ => Err(
                "model versions are sorted by name, version_number, creation_timestamp and \
                 last_updated_timestamp"
                    .to_owned(),
            ),
        }
    }

    fn operators(&self) -> &'static [Operator] {
        match self {
            Self::Name | Self::RunId => &TEXT_OR_LIST,
            Self::Source | Self::Tag(_) => &TEXT,
            Self::Version | Self::Created | Self::Updated => &NUMBER,
        }
    }

    fn operand(&self) -> OperandKind {
        match self {
            Self::Version | Self::Created | Self::Updated => OperandKind::Whole,
            _ => OperandKind::Text,
        }
    }
}

impl Searched for ModelField {
    const FORM: &'static str =
        "a comparison is written name LIKE 'm%' or tags.`a b` = 'x', and several are joined by AND";
    const MANY: &'static str = "registered models";

    fn compared(name: &FieldName<'_>) -> Result<Self, String> {
        match named(name)? {
            Named::Tag(key) => Ok(Self::Tag(key.to_owned())),
            Named::Attribute("name") => Ok(Self::Name),
            Named::Attribute(_) => {
                Err("registered models are found by their name and tags".to_owned())
            }
        }
    }

    fn sorted(name: &FieldName<'_>) -> Result<Self, String> {
        match name.whole {
            "name" => Ok(Self::Name),
            "timestamp" | "last_updated_timestamp" => Ok(Self::Updated),
            _ => Err(
                "registered models are sorted by name and last_updated_timestamp (timestamp)"
                    .to_owned(),
            ),
        }
    }

    fn operators(&self) -> &'static [Operator] {
        match self {
            Self::Name => &TEXT_OR_LIST,
            Self::Tag(_) => &TEXT,
            Self::Updated => &NUMBER,
        }
    }

    fn operand(&self) -> OperandKind {
        match self {
            Self::Updated => OperandKind::Whole,
            Self::Name | Self::Tag(_) => OperandKind::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> (VersionField, Operator, Operand) {
        let filter = VersionFilter::parse(text).unwrap();
        let [one] = filter.comparisons.as_slice() else {
            panic!("{text}")
        };
        (one.field.clone(), one.operator, one.operand.clone())
    }

    #[test]
    fn comparisons_of_versions_are_read_as_the_stock_parser_reads_them() {
        use Operator::*;
        let text = |text: &str| Operand::Text(text.into());
        for (filter, expected) in [
            ("name = 'm'", (VersionField::Name, Equal, text("m"))),
            (
                "attribute.name ILIKE 'M%'",
                (VersionField::Name, ILike, text("M%")),
            ),
            (
                "version_number >= 3",
                (VersionField::Version, GreaterOrEqual, Operand::Integer(3)),
            ),
            (
                "version_number != '3'",
                (VersionField::Version, NotEqual, Operand::Integer(3)),
            ),
            (
                "run_id IN ('a', 'b')",
                (
                    VersionField::RunId,
                    In,
                    Operand::Texts(vec!["a".into(), "b".into()]),
                ),
            ),
            (
                "source_path LIKE 's3://%'",
                (VersionField::Source, Like, text("s3://%")),
            ),
            (
                "tags.`a b` = 'x'",
                (VersionField::Tag("a b".into()), Equal, text("x")),
            ),
            (
                "tag.a.b != 'x'",
                (VersionField::Tag("a.b".into()), NotEqual, text("x")),
            ),
        ] {
            assert_eq!(version(filter), expected, "{filter}");
        }
    }

    #[test]
    fn what_versions_and_models_do_not_have_is_refused_with_what_they_have() {
        for (filter, hint) in [
            ("stage = 'Production'", "name, version_number, run_id"),
            ("`name` = 'm'", "without quotes"),
            ("attributes.name = 'm'", "begins with tags"),
            ("metrics.a > 1", "begins with tags"),
            ("`tags`.a = 'x'", "begins with tags"),
            ("version_number = 1.5", "a whole number"),
            ("version_number LIKE '1'", "one of =, !=, >"),
            ("source_path IN ('x')", "one of =, !=, LIKE"),
            ("tags.a IS NULL", "one of =, !=, LIKE"),
            ("name = m", "'quotes'"),
            ("name = 'a' OR name = 'b'", "name, version_number, run_id"),
        ] {
            let error = VersionFilter::parse(filter).unwrap_err().to_string();
            assert!(error.contains(hint), "{filter}: {error}");
        }
        for wrong in [
            "run_id = 'x'",
            "version_number = 1",
            "name > 'x'",
            "tags.a IN ('x')",
        ] {
            assert!(ModelFilter::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn orders_name_what_mlflow_sorts_by() {
        let order = VersionOrder::parse("creation_timestamp DESC").unwrap();
        assert_eq!(
            (order.field, order.ascending),
            (VersionField::Created, false)
        );
        let order = VersionOrder::parse("attribute.version_number").unwrap();
        assert_eq!(
            (order.field, order.ascending),
            (VersionField::Version, true)
        );
        let order = ModelOrder::parse("timestamp asc").unwrap();
        assert_eq!((order.field, order.ascending), (ModelField::Updated, true));
        for wrong in ["run_id", "tags.a", "name up", ""] {
            assert!(VersionOrder::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["version_number", "creation_timestamp", "tags.a"] {
            assert!(ModelOrder::parse(wrong).is_err(), "{wrong}");
        }
        let twice = [
            "timestamp".to_owned(),
            "last_updated_timestamp DESC".to_owned(),
        ];
        let error = ModelOrder::parse_all(&twice).unwrap_err().to_string();
        assert!(
            error.contains("registered models are sorted by a field once"),
            "{error}"
        );
    }

    #[test]
    fn only_a_filter_that_asks_for_prompts_finds_them() {
        for (filter, is_for_prompts) in [
            ("", false),
            ("name = 'm'", false),
            ("tags.`mlflow.prompt.is_prompt` = 'True'", true),
            ("tags.`mlflow.prompt.is_prompt` != 'false'", true),
            ("tags.`mlflow.prompt.is_prompt` != 'true'", false),
            ("tags.`mlflow.prompt.is_prompt` LIKE 'true'", false),
        ] {
            let parsed = VersionFilter::parse(filter).unwrap();
            assert_eq!(parsed.is_for_prompts(), is_for_prompts, "{filter}");
            let parsed = ModelFilter::parse(filter).unwrap();
            assert_eq!(parsed.is_for_prompts(), is_for_prompts, "{filter}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(
            text in "(name|tags|version_number|attribute|run_id|[ .`'\"()=<>!\\\\,;a-z0-9é-])*"
        ) {
            let _ = (VersionFilter::parse(&text), ModelFilter::parse(&text));
            let _ = (VersionOrder::parse(&text), ModelOrder::parse(&text));
        }

        #[test]
        fn the_filter_for_a_model_reads_back(name in "[^/:\\x00]{1,20}") {
            prop_assume!(!name.contains('\\') && !name.trim().is_empty());
            if let Ok(name) = name.parse::<ModelName>() {
                let filter = VersionFilter::of_model(&name);
                prop_assert_eq!(VersionFilter::parse(&filter.text).unwrap(), filter);
            }
        }
    }
}
