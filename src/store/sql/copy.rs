//! CopyRows in the binary form of PostgreSQL's COPY, the fastest way into a table.
//!
//! Format: PostgreSQL's documentation of COPY, "Binary Format".

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// The rest of the header: no flags, no extension.
const NOTHING: [u8; 8] = [0; 8];
const END: i16 = -1;

/// CopyRows, encoded one after the other.
#[derive(Debug)]
pub(crate) struct CopyRows {
    bytes: Vec<u8>,
    columns: i16,
}

impl CopyRows {
    pub(crate) fn new(columns: i16) -> Self {
        Self {
            bytes: [SIGNATURE, &NOTHING].concat(),
            columns,
        }
    }

    /// Begins a row; the caller adds one field for each column.
    pub(crate) fn row(&mut self) -> &mut Self {
        self.bytes.extend(self.columns.to_be_bytes());
        self
    }

    /// Adds a `varchar` or `text`. A text that is too long for the format is too long for the server as well.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.field(text.as_bytes())
    }

    /// Adds a `bigint`.
    pub(crate) fn int(&mut self, number: i64) -> &mut Self {
        self.field(&number.to_be_bytes())
    }

    /// Adds a `double precision`.
    pub(crate) fn float(&mut self, number: f64) -> &mut Self {
        self.field(&number.to_be_bytes())
    }

    /// Adds a `boolean`.
    pub(crate) fn bool(&mut self, flag: bool) -> &mut Self {
        self.field(&[u8::from(flag)])
    }

    fn field(&mut self, bytes: &[u8]) -> &mut Self {
        let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend(END.to_be_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_fields_with_their_lengths() {
        let mut rows = CopyRows::new(2);
        rows.row().text("é").bool(true);
        let bytes = rows.finish();
        assert_eq!(&bytes[..11], SIGNATURE);
        assert_eq!(
            &bytes[19..],
            [0, 2, 0, 0, 0, 2, 0xC3, 0xA9, 0, 0, 0, 1, 1, 0xFF, 0xFF]
        );
    }
}
