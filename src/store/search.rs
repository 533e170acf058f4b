//! MLflow's language of filters and orders for searching runs: text in, typed comparisons out.
//!
//! The grammar, the operators that each kind of field has and the rules for quotes are those of MLflow's
//! `utils/search_utils.py`; what the stock client refuses is refused here with the part that is wrong.

use std::fmt;

use crate::{error::Error, run::ViewType};

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

/// Words that name each kind of field; the first of a kind is the one that messages use.
const METRIC: [&str; 2] = ["metrics", "metric"];
const PARAM: [&str; 4] = ["params", "parameters", "param", "parameter"];
const TAG: [&str; 2] = ["tags", "tag"];
const ATTRIBUTE: [&str; 4] = ["attributes", "attribute", "attr", "run"];
const DATASET: [&str; 2] = ["datasets", "dataset"];

const ATTRIBUTES: &str =
    "run_id, run_name, status, start_time (created), end_time, artifact_uri, user_id";
const FORM: &str = "a comparison is written metrics.`val/loss` < 0.5, params.lr = '0.01', tags.phase LIKE \
                    'train%', status = 'FINISHED' or datasets.name = 'powder', and several are joined by AND";

impl Filter {
    /// Reads a filter; a blank one has no comparisons.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the part that is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parser = Parser::new("filter", text);
        let mut comparisons = Vec::new();
        loop {
            // The stock parser takes any number of ANDs between comparisons, and so scripts have them.
            while parser.skip_word("AND") {}
            if parser.is_at_end() {
                break;
            }
            comparisons.push(parser.comparison()?);
        }
        Ok(Self {
            text: text.trim().to_owned(),
            comparisons,
        })
    }
}

impl OrderBy {
    /// Reads one order: a field, then ASC or DESC.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the part that is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parser = Parser::new("order_by", text);
        let field = parser.field()?;
        if matches!(field, Field::Dataset(_)) {
            return Err(parser.wrong(text, "runs are not sorted by their datasets"));
        }
        let descending = parser.skip_word("DESC");
        if !descending {
            parser.skip_word("ASC");
        }
        if !parser.is_at_end() {
            let rest = parser.rest().to_owned();
            return Err(parser.wrong(&rest, "after the field comes ASC, DESC or nothing"));
        }
        Ok(Self {
            text: text.trim().to_owned(),
            field,
            ascending: !descending,
        })
    }

    /// Reads several orders, the first one first.
    ///
    /// # Errors
    /// Those of [`OrderBy::parse`], and a field that is there twice.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, Error> {
        let mut orders: Vec<Self> = Vec::with_capacity(texts.len());
        for text in texts {
            let order = Self::parse(text)?;
            if orders.iter().any(|other| other.field == order.field) {
                let reason = "runs are sorted by a field once only";
                return Err(Error::invalid("order_by", text, reason));
            }
            orders.push(order);
        }
        Ok(orders)
    }

    /// The order by a metric.
    pub fn metric(key: &str, ascending: bool) -> Self {
        let direction = if ascending { "ASC" } else { "DESC" };
        // A key has no quotes: they are not among the characters that MLflow takes. A server peels off one pair of
        // them before it trims what is left, so a blank at the end needs a second pair.
        let quoted = match key.ends_with(' ') {
            true => format!("'`{key}`'"),
            false => format!("`{key}`"),
        };
        Self {
            text: format!("metrics.{quoted} {direction}"),
            field: Field::Metric(key.to_owned()),
            ascending,
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Like => "LIKE",
            Self::ILike => "ILIKE",
            Self::In => "IN",
            Self::NotIn => "NOT IN",
            Self::IsNull => "IS NULL",
            Self::IsNotNull => "IS NOT NULL",
        })
    }
}

impl Attribute {
    fn is_number(self) -> bool {
        matches!(self, Self::StartTime | Self::EndTime)
    }
}

impl Field {
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

/// Reads a text from its beginning.
struct Parser<'a> {
    what: &'static str,
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(what: &'static str, text: &'a str) -> Self {
        Self { what, text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest().is_empty()
    }

    fn wrong(&self, part: &str, reason: impl Into<String>) -> Error {
        Error::invalid(self.what, part, reason)
    }

    /// Skips a word of the language, in any case, and says whether it was there.
    fn skip_word(&mut self, word: &str) -> bool {
        self.skip_blanks();
        let rest = self.rest();
        let is_there = rest
            .get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
            && !rest[word.len()..].starts_with(is_name);
        if is_there {
            self.at += word.len();
        }
        is_there
    }

    fn comparison(&mut self) -> Result<Comparison, Error> {
        let field = self.field()?;
        let operator = self.operator(&field)?;
        let operand = match (operator, &field) {
            (Operator::IsNull | Operator::IsNotNull, _) => Operand::Nothing,
            (Operator::In | Operator::NotIn, _) => Operand::Texts(self.list()?),
            (_, Field::Metric(_)) => Operand::Number(self.number()?.1),
            (_, Field::Attribute(attribute)) if attribute.is_number() => {
                let (text, number) = self.number()?;
                text.parse()
                    .map_or(Operand::Number(number), Operand::Integer)
            }
            _ => Operand::Text(self.quoted_text()?),
        };
        Ok(Comparison {
            field,
            operator,
            operand,
        })
    }

    /// A kind and a key, either of which may be quoted; a name alone is an attribute.
    fn field(&mut self) -> Result<Field, Error> {
        self.skip_blanks();
        let start = self.at;
        let mut kind = None;
        let mut segment = self.at;
        loop {
            match self.rest().chars().next() {
                Some(quote @ ('`' | '"' | '\'')) if self.at == segment => {
                    let inside = &self.rest()[1..];
                    // Two back-quotes inside of back-quotes are part of the key.
                    let Some(end) = closing(inside, quote) else {
                        let reason = format!("its {quote} is not closed");
                        return Err(self.wrong(self.rest(), reason));
                    };
                    self.at += end + 2;
                }
                Some('.') if kind.is_none() => {
                    kind = Some(unquoted(&self.text[start..self.at]));
                    self.at += 1;
                    segment = self.at;
                }
                Some(c) if is_name(c) || c == '.' => self.at += c.len_utf8(),
                _ => break,
            }
        }
        let whole = &self.text[start..self.at];
        if whole.is_empty() {
            return Err(self.wrong(self.rest(), format!("a field is missing here; {FORM}")));
        }
        let key = unquoted(&self.text[segment..self.at]);
        if key.is_empty() {
            return Err(self.wrong(whole, "it has no key"));
        }
        let key = key.to_owned();
        let attribute = |name: &str| {
            attribute(name)
                .map(Field::Attribute)
                .ok_or_else(|| self.wrong(whole, format!("attributes of a run are {ATTRIBUTES}")))
        };
        match kind {
            None => attribute(&key),
            Some(kind) if METRIC.contains(&kind) => Ok(Field::Metric(key)),
            Some(kind) if PARAM.contains(&kind) => Ok(Field::Param(key)),
            Some(kind) if TAG.contains(&kind) => Ok(Field::Tag(key)),
            Some(kind) if ATTRIBUTE.contains(&kind) => attribute(&key),
            Some(kind) if DATASET.contains(&kind) => match key.as_str() {
                "name" => Ok(Field::Dataset(DatasetField::Name)),
                "digest" => Ok(Field::Dataset(DatasetField::Digest)),
                "context" => Ok(Field::Dataset(DatasetField::Context)),
                _ => Err(self.wrong(whole, "datasets have a name, a digest and a context")),
            },
            Some(_) => Err(self.wrong(
                whole,
                format!(
                    "a field begins with one of {}, {}, {}, {}, {}",
                    METRIC[0], PARAM[0], TAG[0], ATTRIBUTE[0], DATASET[0]
                ),
            )),
        }
    }

    fn operator(&mut self, field: &Field) -> Result<Operator, Error> {
        self.skip_blanks();
        let start = self.at;
        let found = self.any_operator();
        let allowed = field.operators();
        match found.filter(|operator| allowed.contains(operator)) {
            Some(operator) => Ok(operator),
            None => {
                let allowed: Vec<String> = allowed.iter().map(Operator::to_string).collect();
                let reason = format!(
                    "this is compared by one of {}; a key with other characters than letters, digits, _ \
                     and . stands in `back-quotes`",
                    allowed.join(", ")
                );
                Err(self.wrong(&self.text[start..], reason))
            }
        }
    }

    fn any_operator(&mut self) -> Option<Operator> {
        let symbols = [
            ("!=", Operator::NotEqual),
            (">=", Operator::GreaterOrEqual),
            ("<=", Operator::LessOrEqual),
            (">", Operator::Greater),
            ("<", Operator::Less),
            ("=", Operator::Equal),
        ];
        for (symbol, operator) in symbols {
            if let Some(after) = self.rest().strip_prefix(symbol) {
                self.at += symbol.len();
                // `==` and `<>` are no operators of this language.
                return (!after.starts_with(['=', '<', '>', '!'])).then_some(operator);
            }
        }
        if self.skip_word("LIKE") {
            Some(Operator::Like)
        } else if self.skip_word("ILIKE") {
            Some(Operator::ILike)
        } else if self.skip_word("IN") {
            Some(Operator::In)
        } else if self.skip_word("NOT") {
            self.skip_word("IN").then_some(Operator::NotIn)
        } else if self.skip_word("IS") {
            let negated = self.skip_word("NOT");
            self.skip_word("NULL").then_some(if negated {
                Operator::IsNotNull
            } else {
                Operator::IsNull
            })
        } else {
            None
        }
    }

    fn number(&mut self) -> Result<(&'a str, f64), Error> {
        self.skip_blanks();
        let rest = self.rest();
        let end = rest
            .find(|c: char| {
                c.is_whitespace() || matches!(c, '(' | ')' | ',' | ';' | '\'' | '"' | '`')
            })
            .unwrap_or(rest.len());
        let text = &rest[..end];
        let is_plain = text
            .bytes()
            .all(|c| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'-'));
        match text.parse::<f64>() {
            Ok(number) if is_plain && number.is_finite() => {
                self.at += end;
                Ok((text, number))
            }
            _ => {
                let part = if text.is_empty() { rest } else { text };
                Err(self.wrong(
                    part,
                    "this is compared with a number such as 0.5, -3 or 1e-4",
                ))
            }
        }
    }

    fn quoted_text(&mut self) -> Result<String, Error> {
        self.skip_blanks();
        let rest = self.rest();
        let Some(quote @ ('\'' | '"')) = rest.chars().next() else {
            return Err(self.wrong(rest, "this is compared with a text in 'quotes'"));
        };
        let Some(end) = closing(&rest[1..], quote) else {
            return Err(self.wrong(rest, format!("its {quote} is not closed")));
        };
        self.at += end + 2;
        // Doubled and escaped quotes stay as they are, as they do in the stock parser.
        Ok(rest[1..=end].to_owned())
    }

    fn list(&mut self) -> Result<Vec<String>, Error> {
        let start = self.rest();
        let form = "a list is written ('a', 'b')";
        if !self.skip_symbol('(') {
            return Err(self.wrong(start.trim(), form));
        }
        let mut texts = Vec::new();
        loop {
            if self.skip_symbol(')') {
                break;
            }
            texts.push(self.quoted_text()?);
            if !self.skip_symbol(',') {
                if self.skip_symbol(')') {
                    break;
                }
                return Err(self.wrong(start.trim(), form));
            }
        }
        if texts.is_empty() {
            return Err(self.wrong(start.trim(), "the list has nothing in it"));
        }
        Ok(texts)
    }

    fn skip_symbol(&mut self, symbol: char) -> bool {
        self.skip_blanks();
        let is_there = self.rest().starts_with(symbol);
        if is_there {
            self.at += symbol.len_utf8();
        }
        is_there
    }
}

/// Where the quote is closed: doubled ones, and escaped ones that another one follows, are inside.
fn closing(inside: &str, quote: char) -> Option<usize> {
    let mut escaped = None;
    let mut characters = inside.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if c == '\\' && quote != '`' && characters.peek().is_some_and(|(_, next)| *next == quote) {
            escaped = characters.next().map(|(at, _)| at);
        } else if c == quote {
            if characters.peek().is_some_and(|(_, next)| *next == quote) {
                characters.next();
            } else {
                return Some(at);
            }
        }
    }
    escaped
}

fn unquoted(text: &str) -> &str {
    for quote in ['\'', '"', '`'] {
        let inside = text
            .strip_prefix(quote)
            .and_then(|text| text.strip_suffix(quote));
        if let Some(inside) = inside {
            return inside;
        }
    }
    text
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_understood_or_refused() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/search");
        for file in std::fs::read_dir(corpus).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap_or_default();
            let _ = (
                Filter::parse(&text),
                OrderBy::parse_all(std::slice::from_ref(&text)),
            );
        }
    }

    fn one(text: &str) -> Comparison {
        let mut filter = Filter::parse(text).unwrap();
        assert_eq!(filter.comparisons.len(), 1, "{text}");
        filter.comparisons.remove(0)
    }

    fn comparison(field: Field, operator: Operator, operand: Operand) -> Comparison {
        Comparison {
            field,
            operator,
            operand,
        }
    }

    #[test]
    fn comparisons_are_read_as_the_stock_parser_reads_them() {
        use Operator::*;
        let text = |text: &str| Operand::Text(text.into());
        let texts = |texts: &[&str]| Operand::Texts(texts.iter().map(|it| (*it).into()).collect());
        let metric = |key: &str| Field::Metric(key.into());
        let param = |key: &str| Field::Param(key.into());
        let tag = |key: &str| Field::Tag(key.into());
        for (filter, field, operator, operand) in [
            ("metrics.a>1e5", metric("a"), Greater, Operand::Number(1e5)),
            ("metrics.a > 1.", metric("a"), Greater, Operand::Number(1.0)),
            (
                "metric.a <= -.5",
                metric("a"),
                LessOrEqual,
                Operand::Number(-0.5),
            ),
            ("`metrics`.a = 1", metric("a"), Equal, Operand::Number(1.0)),
            (
                "metrics.`val/a b` != 1",
                metric("val/a b"),
                NotEqual,
                Operand::Number(1.0),
            ),
            (
                "metrics.\"a b\" >= 1",
                metric("a b"),
                GreaterOrEqual,
                Operand::Number(1.0),
            ),
            ("metrics.a.b < 1", metric("a.b"), Less, Operand::Number(1.0)),
            ("params.`a` = \"it's\"", param("a"), Equal, text("it's")),
            ("params.a = 'it''s'", param("a"), Equal, text("it''s")),
            ("params.a = '\\'x'", param("a"), Equal, text("\\'x")),
            ("params.a = 'x\\'", param("a"), Equal, text("x\\")),
            ("params.a = ''", param("a"), Equal, text("")),
            ("param.'a' = 'x\ny'", param("a"), Equal, text("x\ny")),
            ("parameters.ä like '%x'", param("ä"), Like, text("%x")),
            ("params.`a``b` = 'x'", param("a``b"), Equal, text("x")),
            (
                "tags.mlflow.source.name iLike 'x'",
                tag("mlflow.source.name"),
                ILike,
                text("x"),
            ),
            ("tag.a is null", tag("a"), IsNull, Operand::Nothing),
            (
                "tags.a IS  NOT\tNULL",
                tag("a"),
                IsNotNull,
                Operand::Nothing,
            ),
            (
                "created > 5",
                Field::Attribute(Attribute::StartTime),
                Greater,
                Operand::Integer(5),
            ),
            (
                "end_time < 1.5",
                Field::Attribute(Attribute::EndTime),
                Less,
                Operand::Number(1.5),
            ),
            (
                "run.status = 'RUNNING'",
                Field::Attribute(Attribute::Status),
                Equal,
                text("RUNNING"),
            ),
            (
                "`run name` = 'x'",
                Field::Attribute(Attribute::RunName),
                Equal,
                text("x"),
            ),
            (
                "run_id IN ('a', \"b\",)",
                Field::Attribute(Attribute::RunId),
                In,
                texts(&["a", "b"]),
            ),
            (
                "attr.run_id not in('a')",
                Field::Attribute(Attribute::RunId),
                NotIn,
                texts(&["a"]),
            ),
            (
                "dataset.context = 'train'",
                Field::Dataset(DatasetField::Context),
                Equal,
                text("train"),
            ),
            (
                "datasets.name IN ('x')",
                Field::Dataset(DatasetField::Name),
                In,
                texts(&["x"]),
            ),
        ] {
            assert_eq!(
                one(filter),
                comparison(field, operator, operand),
                "{filter}"
            );
        }
    }

    #[test]
    fn comparisons_are_joined_by_and_in_any_case() {
        for (filter, count) in [
            ("", 0),
            (" \n", 0),
            ("metrics.a = 1 and params.b = 'x'AND tags.c = 'AND'", 3),
            ("AND metrics.a = 1 AND", 1),
        ] {
            let parsed = Filter::parse(filter).unwrap();
            assert_eq!(parsed.comparisons.len(), count, "{filter}");
        }
    }

    #[test]
    fn what_the_stock_parser_refuses_is_refused_with_what_is_right() {
        for (filter, hint) in [
            ("metrics.a > '1'", "a number"),
            ("metrics.a > inf", "a number"),
            ("metrics.a > 1_000", "a number"),
            ("metrics.a > 0x10", "a number"),
            ("metrics.a >", "a number"),
            ("metrics.a is null", "one of =, !="),
            ("metrics.a/b > 1", "`back-quotes`"),
            ("metrics.a-b > 1", "`back-quotes`"),
            ("metrics.`a > 1", "not closed"),
            ("metrics. > 1", "no key"),
            ("Metrics.a > 1", "begins with one of metrics, params"),
            ("a > 1", "attributes of a run are run_id"),
            ("params.a = x", "'quotes'"),
            ("params.a = `x`", "'quotes'"),
            ("params.a = 1", "'quotes'"),
            ("params.a = 'x", "not closed"),
            ("params.a == 'x'", "one of =, !=, LIKE"),
            ("params.a <> 'x'", "one of =, !=, LIKE"),
            ("params.a IN ('x')", "one of =, !=, LIKE"),
            ("params.a not like 'x'", "one of =, !=, LIKE"),
            ("status IN ('x')", "one of =, !=, LIKE"),
            ("start_time > '5'", "a number"),
            ("run_id IN ()", "nothing in it"),
            ("run_id IN ('a' 'b')", "('a', 'b')"),
            ("datasets.size = 'x'", "a name, a digest and a context"),
            ("metrics.a = 1 OR metrics.b = 2", "attributes of a run"),
            ("(metrics.a = 1)", "a field is missing"),
            ("metrics.a = 1; metrics.b = 2", "a field is missing"),
            ("1 < metrics.a", "attributes of a run"),
        ] {
            let error = Filter::parse(filter).unwrap_err().to_string();
            assert!(
                error.starts_with("filter") && error.contains(hint),
                "{filter}: {error}"
            );
        }
    }

    #[test]
    fn orders_name_a_field_and_a_direction() {
        let order = |text: &str| OrderBy::parse(text).map(|order| (order.field, order.ascending));
        let metric = |key: &str| Field::Metric(key.to_owned());
        assert_eq!(order("metrics.a").unwrap(), (metric("a"), true));
        assert_eq!(
            order("metrics.`a/b c` dEsc").unwrap(),
            (metric("a/b c"), false)
        );
        assert_eq!(
            order(" tags.asc  ASC ").unwrap(),
            (Field::Tag("asc".into()), true)
        );
        let start = Field::Attribute(Attribute::StartTime);
        assert_eq!(order("Created DESC").unwrap(), (start, false));
        for wrong in [
            "",
            "metrics.a/b",
            "metrics.a up",
            "metrics.a, metrics.b",
            "timestamp",
            "datasets.name",
        ] {
            let error = order(wrong).unwrap_err().to_string();
            assert!(error.starts_with("order_by"), "{error}");
        }
        let twice = ["metrics.a".to_owned(), "metric.a DESC".to_owned()];
        assert!(OrderBy::parse_all(&twice).is_err());
    }

    #[test]
    fn the_order_by_a_metric_reads_back() {
        let order = OrderBy::metric("val/my loss", false);
        assert_eq!(OrderBy::parse(&order.text).unwrap(), order);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(metrics|params|tags|run_id|[ .`'\"()=<>!\\\\,;a-z0-9é-])*") {
            let _ = Filter::parse(&text);
            let _ = OrderBy::parse(&text);
        }

        #[test]
        fn what_stands_in_quotes_comes_out_of_them(key in "[^`\\x00]{1,20}", value in "[^'\\\\]{0,20}") {
            let found = one(&format!("params.`{key}` = '{value}'"));
            prop_assert_eq!(found.field, Field::Param(key));
            prop_assert_eq!(found.operand, Operand::Text(value));
        }
    }
}
