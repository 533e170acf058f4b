//! Searches for runs.

use super::grammar::{ComparisonOf, FieldName, FilterOf, OperandKind, Operator, OrderOf, Searched};
use crate::mlflow::run::ViewType;

/// A filter of runs.
pub(crate) type Filter = FilterOf<Field>;
/// A comparison of a filter of runs.
pub(crate) type Comparison = ComparisonOf<Field>;
/// An order of runs.
pub(crate) type OrderBy = OrderOf<Field>;

/// A search for runs, checked and ready for a store.
#[derive(Clone, Debug, PartialEq)]
pub struct RunQuery {
    /// Ids of the experiments to search.
    pub experiment_ids: Vec<String>,
    /// Filter that is true for every run that is found.
    pub filter: Filter,
    /// Orders, the first one first; after them MLflow sorts by start time, latest first, then by run id.
    pub order_by: Vec<OrderBy>,
    /// Active, deleted or all runs.
    pub view: ViewType,
    /// Greatest number of runs to find.
    pub max_results: usize,
    /// True for a search that finds only runs whose latest value of the first metric that is sorted by is a number, as
    /// a search for the best run does. A server is not told this, as it sorts the other runs last.
    pub numbers_only: bool,
}

/// A field of a run that can be compared or sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Latest value of a metric.
    Metric(String),
    /// A param.
    Param(String),
    /// A tag.
    Tag(String),
    /// An attribute of the run itself.
    Attribute(Attribute),
    /// A property of a dataset that is an input of the run.
    Dataset(DatasetField),
}

/// Attributes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Id.
    RunId,
    /// Name.
    RunName,
    /// Status word.
    Status,
    /// Start, milliseconds since 1970.
    StartTime,
    /// End, milliseconds since 1970.
    EndTime,
    /// Artifact URI.
    ArtifactUri,
    /// User.
    UserId,
}

/// Properties of a dataset input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatasetField {
    /// Name of the dataset.
    Name,
    /// Digest of the dataset.
    Digest,
    /// Context tag of the input (`mlflow.data.context`).
    Context,
}

/// Words that name each kind of field; messages use the first word of a kind.
const METRIC: [&str; 2] = ["metrics", "metric"];
const PARAM: [&str; 4] = ["params", "parameters", "param", "parameter"];
const TAG: [&str; 2] = ["tags", "tag"];
const ATTRIBUTE: [&str; 4] = ["attributes", "attribute", "attr", "run"];
const DATASET: [&str; 2] = ["datasets", "dataset"];

const ATTRIBUTES: &str =
    "run_id, run_name, status, start_time (created), end_time, artifact_uri, user_id";
impl OrderBy {
    /// Returns the order by a metric.
    pub fn metric(key: &str, ascending: bool) -> Self {
        let direction = if ascending { "ASC" } else { "DESC" };
        // A key has no quotes, as MLflow does not take these characters. A server removes one pair of quotes and then
        // trims the rest, so a blank at the end needs a second pair of quotes.
        let quoted = if key.ends_with(' ') {
            format!("'`{key}`'")
        } else {
            format!("`{key}`")
        };
        Self {
            text: format!("metrics.{quoted} {direction}"),
            field: Field::Metric(key.to_owned()),
            ascending,
        }
    }
}

impl Attribute {
    fn is_number(self) -> bool {
        matches!(self, Self::StartTime | Self::EndTime)
    }
}

impl Searched for Field {
    const FORM: &'static str = "a comparison is written metrics.`val/loss` < 0.5, params.lr = '0.01', tags.phase LIKE \
                                'train%', status = 'FINISHED' or datasets.name = 'powder', and several are joined by AND";
    const MANY: &'static str = "runs";

    fn compared(name: &FieldName<'_>) -> Result<Self, String> {
        let key = name.key.to_owned();
        let attribute = |name: &str| {
            attribute(name)
                .map(Self::Attribute)
                .ok_or_else(|| format!("attributes of a run are {ATTRIBUTES}"))
        };
        match name.kind {
            None => attribute(&key),
            Some(kind) if METRIC.contains(&kind) => Ok(Self::Metric(key)),
            Some(kind) if PARAM.contains(&kind) => Ok(Self::Param(key)),
            Some(kind) if TAG.contains(&kind) => Ok(Self::Tag(key)),
            Some(kind) if ATTRIBUTE.contains(&kind) => attribute(&key),
            Some(kind) if DATASET.contains(&kind) => match key.as_str() {
                "name" => Ok(Self::Dataset(DatasetField::Name)),
                "digest" => Ok(Self::Dataset(DatasetField::Digest)),
                "context" => Ok(Self::Dataset(DatasetField::Context)),
                _ => Err("datasets have a name, a digest and a context".to_owned()),
            },
            Some(_) => Err(format!(
                "a field begins with one of {}, {}, {}, {}, {}",
                METRIC[0], PARAM[0], TAG[0], ATTRIBUTE[0], DATASET[0]
            )),
        }
    }

    fn sorted(name: &FieldName<'_>) -> Result<Self, String> {
        match Self::compared(name)? {
            Self::Dataset(_) => Err("runs are not sorted by their datasets".to_owned()),
            field => Ok(field),
        }
    }

    fn operand(&self) -> OperandKind {
        match self {
            Self::Metric(_) => OperandKind::Number,
            Self::Attribute(attribute) if attribute.is_number() => OperandKind::Time,
            _ => OperandKind::Text,
        }
    }

    fn operators(&self) -> &'static [Operator] {
        use Operator::{
            Equal, Greater, GreaterOrEqual, ILike, In, IsNotNull, IsNull, Less, LessOrEqual, Like,
            NotEqual, NotIn,
        };
        const NUMBER: [Operator; 6] = [Equal, NotEqual, Greater, GreaterOrEqual, Less, LessOrEqual];
        match self {
            Self::Metric(_) => &NUMBER,
            Self::Attribute(attribute) if attribute.is_number() => &NUMBER,
            Self::Param(_) | Self::Tag(_) => &[Equal, NotEqual, Like, ILike, IsNull, IsNotNull],
            Self::Attribute(Attribute::RunId) | Self::Dataset(_) => {
                &[Equal, NotEqual, Like, ILike, In, NotIn]
            }
            Self::Attribute(_) => &[Equal, NotEqual, Like, ILike],
        }
    }
}

fn attribute(name: &str) -> Option<Attribute> {
    Some(match name {
        "run_id" => Attribute::RunId,
        "run_name" | "run name" | "Run name" | "Run Name" => Attribute::RunName,
        "status" => Attribute::Status,
        "start_time" | "created" | "Created" => Attribute::StartTime,
        "end_time" => Attribute::EndTime,
        "artifact_uri" => Attribute::ArtifactUri,
        "user_id" => Attribute::UserId,
        _ => return None,
    })
}
