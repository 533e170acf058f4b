//! The grammar: comparisons joined by AND, and orders.

use std::fmt;

use crate::mlflow::invalid::Invalid;

/// The fields of a kind of object that can be searched for.
pub trait Searched: Clone + PartialEq + fmt::Debug {
    /// The form of a comparison, for messages.
    const FORM: &'static str;
    /// Plural name of the objects, for messages.
    const MANY: &'static str;

    /// Returns the field of a filter that a name means.
    ///
    /// # Errors
    /// The reason where the name means no field.
    fn compared(name: &FieldName<'_>) -> Result<Self, String>;

    /// Returns the field of an order that a name means.
    ///
    /// # Errors
    /// The reason where the name means no field.
    fn sorted(name: &FieldName<'_>) -> Result<Self, String>;

    /// Returns the operators that the field can be compared by.
    fn operators(&self) -> &'static [Operator];

    /// Returns the kind of operand that the field is compared with, unless the operator takes a list or nothing.
    fn operand(&self) -> OperandKind;
}

/// The name of a field as it is written in a filter or an order.
#[derive(Clone, Copy, Debug)]
pub struct FieldName<'a> {
    /// The whole name.
    pub whole: &'a str,
    /// The word before the first dot, without quotes.
    pub kind: Option<&'a str>,
    /// The rest of the name after the dot, without quotes.
    pub key: &'a str,
}

/// The kind of operand that a field is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandKind {
    /// A number.
    Number,
    /// A time: a number, usually a whole one.
    Time,
    /// A whole number, which may stand in quotes.
    Whole,
    /// A text in quotes.
    Text,
}

/// A filter: comparisons that must all be true.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterOf<F> {
    /// The text as it was given; this text is sent to a server.
    pub text: String,
    /// Comparisons of the filter.
    pub comparisons: Vec<ComparisonOf<F>>,
}

impl<F> Default for FilterOf<F> {
    fn default() -> Self {
        Self {
            text: String::new(),
            comparisons: Vec::new(),
        }
    }
}

/// One comparison of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparisonOf<F> {
    /// Field that is compared.
    pub field: F,
    /// Operator of the comparison.
    pub operator: Operator,
    /// Operand that the field is compared with.
    pub operand: Operand,
}

/// The operator of a comparison.
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

/// The operand of a comparison.
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
pub struct OrderOf<F> {
    /// The text as it was given; this text is sent to a server.
    pub text: String,
    /// Field that is sorted by. Runs without the field, and NaN, come last in both directions.
    pub field: F,
    /// True where the smallest value comes first.
    pub ascending: bool,
}

impl<F: Searched> FilterOf<F> {
    /// Reads a filter; a blank one has no comparisons.
    ///
    /// # Errors
    /// [`Invalid::Value`] with the part that is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mut parser = Parser::new("filter", text);
        let mut comparisons = Vec::new();
        loop {
            // The stock parser takes any number of ANDs between comparisons, so scripts may have several.
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

impl<F: Searched> OrderOf<F> {
    /// Reads one order: a field, then ASC or DESC.
    ///
    /// # Errors
    /// [`Invalid::Value`] with the part that is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mut parser = Parser::new("order_by", text);
        let field = parser.field::<F>(F::sorted)?;
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
    /// The errors of [`OrderOf::parse`], and [`Invalid::Value`] for a field that is given twice.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, Invalid> {
        let mut orders: Vec<Self> = Vec::with_capacity(texts.len());
        for text in texts {
            let order = Self::parse(text)?;
            if orders.iter().any(|other| other.field == order.field) {
                let reason = format!("{} are sorted by a field once only", F::MANY);
                return Err(Invalid::value("order_by", text, reason));
            }
            orders.push(order);
        }
        Ok(orders)
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

/// A parser, which reads a text from its beginning.
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

    fn wrong(&self, part: &str, reason: impl Into<String>) -> Invalid {
        Invalid::value(self.what, part, reason)
    }

    /// Skips a keyword in upper or lower case; returns true where the keyword was there.
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

    fn comparison<F: Searched>(&mut self) -> Result<ComparisonOf<F>, Invalid> {
        let field = self.field::<F>(F::compared)?;
        let operator = self.operator(&field)?;
        let operand = match (operator, field.operand()) {
            (Operator::IsNull | Operator::IsNotNull, _) => Operand::Nothing,
            (Operator::In | Operator::NotIn, _) => Operand::Texts(self.list()?),
            (_, OperandKind::Number) => Operand::Number(self.number()?.1),
            (_, OperandKind::Time) => {
                let (text, number) = self.number()?;
                text.parse()
                    .map_or(Operand::Number(number), Operand::Integer)
            }
            (_, OperandKind::Whole) => Operand::Integer(self.whole()?),
            (_, OperandKind::Text) => Operand::Text(self.quoted_text()?),
        };
        Ok(ComparisonOf {
            field,
            operator,
            operand,
        })
    }

    /// Reads a kind and a key, either of which may be quoted; a name alone is an attribute.
    fn field<F: Searched>(
        &mut self,
        named: impl Fn(&FieldName<'_>) -> Result<F, String>,
    ) -> Result<F, Invalid> {
        self.skip_blanks();
        let start = self.at;
        let mut kind = None;
        let mut segment = self.at;
        loop {
            match self.rest().chars().next() {
                Some(quote @ ('`' | '"' | '\'')) if self.at == segment => {
                    let inside = &self.rest()[1..];
                    // A doubled back-quote inside back-quotes is part of the key.
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
            return Err(self.wrong(self.rest(), format!("a field is missing here; {}", F::FORM)));
        }
        let key = unquoted(&self.text[segment..self.at]);
        if key.is_empty() {
            return Err(self.wrong(whole, "it has no key"));
        }
        named(&FieldName { whole, kind, key }).map_err(|reason| self.wrong(whole, reason))
    }

    fn operator<F: Searched>(&mut self, field: &F) -> Result<Operator, Invalid> {
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

    fn number(&mut self) -> Result<(&'a str, f64), Invalid> {
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

    /// Reads a whole number, alone or in quotes, as the stock parser takes both.
    fn whole(&mut self) -> Result<i64, Invalid> {
        self.skip_blanks();
        let start = self.rest();
        let text = match start.chars().next() {
            Some('\'' | '"') => self.quoted_text()?,
            _ => self.number()?.0.to_owned(),
        };
        let whole = text.trim().parse();
        whole.map_err(|_| self.wrong(&text, "this is compared with a whole number such as 3"))
    }

    fn quoted_text(&mut self) -> Result<String, Invalid> {
        self.skip_blanks();
        let rest = self.rest();
        let Some(quote @ ('\'' | '"')) = rest.chars().next() else {
            return Err(self.wrong(rest, "this is compared with a text in 'quotes'"));
        };
        let Some(end) = closing(&rest[1..], quote) else {
            return Err(self.wrong(rest, format!("its {quote} is not closed")));
        };
        self.at += end + 2;
        // Doubled and escaped quotes are not changed, as in the stock parser.
        Ok(rest[1..=end].to_owned())
    }

    fn list(&mut self) -> Result<Vec<String>, Invalid> {
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

/// Returns the position of the closing quote. A doubled quote is inside, and so is an escaped quote where another quote
/// follows later.
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

/// Returns an operator and an operand for "the field is this text", and the text of the filter. The language has no
/// form for a text with both kinds of quotes: for it the filter has a pattern, which finds other texts, too.
pub(crate) fn equal(field: &str, text: &str) -> (Operator, String, String) {
    let (operator, operand) = if is_exact(text) {
        (Operator::Equal, text.to_owned())
    } else {
        (Operator::Like, text.replace(['\'', '"', '\\'], "_"))
    };
    let quote = if operand.contains('\'') { '"' } else { '\'' };
    let filter = format!("{field} {operator} {quote}{operand}{quote}");
    (operator, operand, filter)
}

/// Returns true where MLflow's language can quote a text.
pub(crate) fn is_exact(text: &str) -> bool {
    !(text.contains('\'') && text.contains('"'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mlflow::search::runs::{
        Attribute, Comparison, DatasetField, Field, Filter, OrderBy,
    };

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
