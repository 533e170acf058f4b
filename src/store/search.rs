//! MLflow's language of filters and orders for searching runs: text in, typed comparisons out.
//!
//! The grammar, the operators that each kind of field has and the rules for quotes are those of MLflow's
//! `utils/search_utils.py`; what the stock client refuses is refused here with the part that is wrong.

use crate::run::ViewType;

/// A search for runs, checked and ready for a store.
#[derive(Clone, Debug, PartialEq)]
pub struct RunQuery {
    /// Experiments to look in.
    pub experiment_ids: Vec<String>,
    /// All of these hold for a run that is found.
    pub filter: Filter,
    /// Orders, the first one first; behind them MLflow sorts by start time, latest first, then run id.
    pub order_by: Vec<OrderBy>,
    /// Active, deleted or all runs.
    pub view: ViewType,
    /// At most so many runs.
    pub max_results: usize,
    /// Only runs whose latest value of the metric that is sorted by first is a number: what a search for the
    /// best run wants. A server need not be told, as it puts the others last.
    pub numbers_only: bool,
}

/// A filter: comparisons that all must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// The text as it was given: what a server is sent.
    pub text: String,
    /// Its comparisons.
    pub comparisons: Vec<Comparison>,
}

/// One comparison of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What is compared.
    pub field: Field,
    /// How.
    pub operator: Operator,
    /// With what.
    pub operand: Operand,
}

/// What a run has that can be compared and sorted by.
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
    /// Its name.
    Name,
    /// Its digest.
    Digest,
    /// Its context tag (`mlflow.data.context`).
    Context,
}

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `LIKE`
    Like,
    /// `ILIKE`
    ILike,
    /// `IN`
    In,
    /// `NOT IN`
    NotIn,
    /// `IS NULL`
    IsNull,
    /// `IS NOT NULL`
    IsNotNull,
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A number, for metrics.
    Number(f64),
    /// A whole number, for times.
    Integer(i64),
    /// A text.
    Text(String),
    /// Texts, for `IN` and `NOT IN`.
    Texts(Vec<String>),
    /// Nothing, for `IS NULL` and `IS NOT NULL`.
    Nothing,
}

/// One order of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderBy {
    /// The text as it was given: what a server is sent.
    pub text: String,
    /// What is sorted by. Runs without it, and NaN, come last either way.
    pub field: Field,
    /// Smallest first.
    pub ascending: bool,
}
