//! A row of an answer, read as stock MLflow reads it: numbers that another writer has stored as another type of number or
//! as a text are numbers.

use sqlx::{
    Row as _, TypeInfo, ValueRef,
    error::BoxDynError,
    postgres::{PgRow, PgValueFormat, PgValueRef},
    sqlite::SqliteRow,
};

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

/// A row of an answer.
#[derive(Debug)]
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A number as it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Int(i64),
    Float(f64),
}

impl Row {
    pub(crate) fn text(&self, column: usize) -> Result<Option<String>> {
        match self {
            Self::Sqlite(row) => row.try_get_unchecked(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    /// Returns the text, or an empty text for NULL.
    pub(crate) fn string(&self, column: usize) -> Result<String> {
        Ok(self.text(column)?.unwrap_or_default())
    }

    /// Returns a whole number; what follows the point of another one is left out.
    pub(crate) fn int(&self, column: usize) -> Result<Option<i64>> {
        Ok(self.number(column)?.map(|number| match number {
            Number::Int(number) => number,
            Number::Float(number) => number as i64,
        }))
    }

    pub(crate) fn float(&self, column: usize) -> Result<Option<f64>> {
        Ok(self.number(column)?.map(|number| match number {
            Number::Int(number) => number as f64,
            Number::Float(number) => number,
        }))
    }

    pub(crate) fn bool(&self, column: usize) -> Result<bool> {
        let is_bool = match self {
            Self::Sqlite(_) => false,
            Self::Postgres(row) => row.try_get_raw(column)?.type_info().name() == "BOOL",
        };
        match self {
            Self::Postgres(row) if is_bool => {
                Ok(row.try_get::<Option<bool>, _>(column)?.unwrap_or_default())
            }
            _ => Ok(self.int(column)?.unwrap_or_default() != 0),
        }
    }

    fn number(&self, column: usize) -> Result<Option<Number>> {
        match self {
            Self::Sqlite(row) => of_sqlite(row, column),
            Self::Postgres(row) => of_postgres(row, column),
        }
    }
}

/// A column of SQLite has values of any type, whatever its declaration says.
fn of_sqlite(row: &SqliteRow, column: usize) -> Result<Option<Number>> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let kind = value.type_info().name().to_owned();
    Ok(Some(match kind.as_str() {
        "REAL" => Number::Float(row.try_get_unchecked(column)?),
        "TEXT" | "BLOB" => {
            let text: String = row.try_get_unchecked(column)?;
            parsed(&text).ok_or_else(|| not_a_number(column, &text))?
        }
        _ => Number::Int(row.try_get_unchecked(column)?),
    }))
}

fn of_postgres(row: &PgRow, column: usize) -> Result<Option<Number>> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let kind = value.type_info().name().to_owned();
    Ok(Some(match kind.as_str() {
        "INT2" => Number::Int(row.try_get::<i16, _>(column)?.into()),
        "INT4" => Number::Int(row.try_get::<i32, _>(column)?.into()),
        "FLOAT4" => Number::Float(row.try_get::<f32, _>(column)?.into()),
        "FLOAT8" => Number::Float(row.try_get(column)?),
        "NUMERIC" => numeric(&value).map_err(|source| decoding(column, source))?,
        "TEXT" | "VARCHAR" | "BPCHAR" => {
            let text: String = row.try_get(column)?;
            parsed(&text).ok_or_else(|| not_a_number(column, &text))?
        }
        _ => Number::Int(row.try_get(column)?),
    }))
}

fn parsed(text: &str) -> Option<Number> {
    let text = text.trim();
    let whole = text.parse().map(Number::Int);
    whole.or_else(|_| text.parse().map(Number::Float)).ok()
}

/// Reads PostgreSQL's NUMERIC: digits to the base 10,000, the weight of the first one, and a sign.
fn numeric(value: &PgValueRef<'_>) -> Result<Number, BoxDynError> {
    if value.format() == PgValueFormat::Text {
        let text = value.as_str()?;
        return parsed(text).ok_or_else(|| format!("{text:?} is no number").into());
    }
    let bytes = value.as_bytes()?;
    let word = |place: usize| {
        let pair = bytes.get(2 * place..2 * place + 2);
        let pair = pair.ok_or("the number ends too early")?;
        Ok::<_, BoxDynError>(i16::from_be_bytes([pair[0], pair[1]]))
    };
    let (digits, weight, sign) = (word(0)?, word(1)?, word(2)? as u16);
    if !matches!(sign, 0 | 0x4000) {
        let number = match sign {
            0xD000 => f64::INFINITY,
            0xF000 => f64::NEG_INFINITY,
            _ => f64::NAN,
        };
        return Ok(Number::Float(number));
    }
    let (mut whole, mut number, mut is_whole) = (Some(0_i64), 0.0, true);
    for place in 0..digits.max(weight.saturating_add(1)) {
        let digit = if place < digits {
            word(4 + usize::try_from(place)?)?
        } else {
            0
        };
        number += f64::from(digit) * 10_000_f64.powi(i32::from(weight) - i32::from(place));
        if place <= weight {
            whole = whole
                .and_then(|it| it.checked_mul(10_000))
                .and_then(|it| it.checked_add(digit.into()));
        } else {
            is_whole &= digit == 0;
        }
    }
    let is_negative = sign == 0x4000;
    Ok(match whole {
        // A time in milliseconds has more digits than are exact in a float.
        Some(whole) if is_whole => Number::Int(if is_negative { -whole } else { whole }),
        _ => Number::Float(if is_negative { -number } else { number }),
    })
}

fn not_a_number(column: usize, text: &str) -> sqlx::Error {
    let start: String = text.chars().take(40).collect();
    decoding(
        column,
        format!("{start:?} stands where a number must be").into(),
    )
}

fn decoding(column: usize, source: BoxDynError) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_number_is_the_number() {
        assert_eq!(parsed(" 12 "), Some(Number::Int(12)));
        assert_eq!(parsed("1.5e3"), Some(Number::Float(1500.0)));
        assert_eq!(parsed("yesterday"), None);
    }

    #[tokio::test]
    async fn sqlite_s_values_are_read_whatever_their_type() {
        let pool = sqlx::SqlitePool::connect("sqlite::memory:").await.unwrap();
        let row = sqlx::query("SELECT 1.75, '12', NULL, 7, 'x', 3")
            .fetch_one(&pool)
            .await
            .unwrap();
        let row = Row::Sqlite(row);
        assert_eq!(row.int(0).unwrap(), Some(1));
        assert_eq!(row.int(1).unwrap(), Some(12));
        assert_eq!(row.float(2).unwrap(), None);
        assert_eq!(row.float(3).unwrap(), Some(7.0));
        assert!(row.int(4).unwrap_err().to_string().contains("\"x\""));
        assert_eq!(row.text(5).unwrap().as_deref(), Some("3"));
        assert!(row.bool(5).unwrap());
    }
}
