//! NumPy's array files, without pickle.

use std::{fs::File, io::Read, path::Path};

use realfft::num_complex::Complex64;

use crate::error::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy writes one or two hundred bytes.
const LONGEST_HEADER: usize = 1 << 16;
/// Larger files are no recordings; it bounds the memory.
const LARGEST_FILE: u64 = 1 << 34;
const EXPECTED: &str = "it must be an array file of NumPy (.npy)";

/// Numbers of one or two dimensions, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// One or two lengths.
    pub shape: Vec<usize>,
    /// The values; real ones have an imaginary part of 0.
    pub values: Vec<Complex64>,
    /// True unless the file has complex numbers.
    pub real: bool,
}

/// Reads a file of NumPy.
///
/// # Errors
/// [`Error::Missing`], [`Error::Io`], or [`Error::File`] for another format.
pub fn read_npy(path: &Path) -> Result<Array> {
    parse_npy(&read_bytes(path)?).map_err(|reason| Error::file(path, reason))
}

/// Returns the bytes of a file.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::reading(path, EXPECTED, error);
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > LARGEST_FILE {
        let reason = format!("it has {size} bytes; it must have at most {LARGEST_FILE}");
        return Err(Error::file(path, reason));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(LARGEST_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// Reads the bytes of a file of NumPy.
///
/// # Errors
/// The reason why it cannot be read, without the file.
pub fn parse_npy(bytes: &[u8]) -> Result<Array, String> {
    let (header, data) = split_header(bytes)?;
    let kind = Kind::of(&text_of(header, "descr")?)?;
    let fortran = match value_of(header, "fortran_order")? {
        it if it.starts_with("True") => true,
        it if it.starts_with("False") => false,
        _ => return Err("fortran_order in its header must be True or False".to_owned()),
    };
    let shape = shape_of(header)?;
    let count = shape
        .iter()
        .try_fold(1_usize, |product, &it| product.checked_mul(it));
    let wanted = count.and_then(|count| count.checked_mul(kind.size()));
    if wanted != Some(data.len()) {
        return Err(format!(
            "its header says shape {shape:?} of {} bytes each, but {} bytes follow",
            kind.size(),
            data.len()
        ));
    }
    let mut values: Vec<_> = data
        .chunks_exact(kind.size())
        .map(|it| kind.value(it))
        .collect();
    if let (true, &[rows, columns]) = (fortran, shape.as_slice()) {
        let source = |at: usize| values[(at % columns) * rows + at / columns];
        values = (0..values.len()).map(source).collect();
    }
    let real = !matches!(kind, Kind::C8 | Kind::C16);
    Ok(Array {
        shape,
        values,
        real,
    })
}

fn split_header(bytes: &[u8]) -> Result<(&str, &[u8]), String> {
    let cut = || format!("{EXPECTED}, and it ends within its header");
    let rest = bytes.strip_prefix(MAGIC).ok_or(EXPECTED)?;
    let (&[major, _], rest) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
    let (length, rest) = match major {
        1 => {
            let (size, rest) = rest.split_first_chunk().ok_or_else(cut)?;
            (usize::from(u16::from_le_bytes(*size)), rest)
        }
        2 | 3 => {
            let (size, rest) = rest.split_first_chunk().ok_or_else(cut)?;
            (u32::from_le_bytes(*size) as usize, rest)
        }
        _ => {
            return Err(format!(
                "its format version is {major}; it must be 1, 2 or 3"
            ));
        }
    };
    if length > LONGEST_HEADER {
        return Err(format!(
            "its header has {length} bytes; it must have at most {LONGEST_HEADER}"
        ));
    }
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header must be text".to_owned())?;
    Ok((header, data))
}

/// Returns the text of the header from the value of a key on.
fn value_of<'a>(header: &'a str, key: &str) -> Result<&'a str, String> {
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    let found = quoted.iter().find_map(|it| header.split_once(it.as_str()));
    found
        .and_then(|(_, rest)| rest.trim_start().strip_prefix(':'))
        .map(str::trim_start)
        .ok_or_else(|| format!("its header must have {key:?}"))
}

fn text_of(header: &str, key: &str) -> Result<String, String> {
    let value = value_of(header, key)?;
    let quote = value.chars().next().filter(|it| "'\"".contains(*it));
    quote
        .and_then(|quote| value[1..].split_once(quote))
        .map(|(text, _)| text.to_owned())
        .ok_or_else(|| format!("{key} in its header must be one type of numbers, not a structure"))
}

fn shape_of(header: &str) -> Result<Vec<usize>, String> {
    let value = value_of(header, "shape")?;
    let inside = value.strip_prefix('(').and_then(|it| it.split_once(')'));
    let lengths = inside.and_then(|(inside, _)| {
        let numbers = inside.split(',').map(str::trim).filter(|it| !it.is_empty());
        numbers
            .map(|it| it.parse().ok())
            .collect::<Option<Vec<usize>>>()
    });
    match lengths {
        Some(lengths) if (1..=2).contains(&lengths.len()) && !lengths.contains(&0) => Ok(lengths),
        _ => {
            let shown: String = value.chars().take(40).collect();
            Err(format!(
                "its shape must have one or two lengths above 0, not {shown}"
            ))
        }
    }
}

/// Type of the numbers of a file.
#[derive(Debug, Clone, Copy)]
enum Kind {
    I1,
    I2,
    I4,
    F4,
    F8,
    C8,
    C16,
}

impl Kind {
    fn of(descr: &str) -> Result<Self, String> {
        Ok(match descr {
            "|i1" => Self::I1,
            "<i2" => Self::I2,
            "<i4" => Self::I4,
            "<f4" => Self::F4,
            "<f8" => Self::F8,
            "<c8" => Self::C8,
            "<c16" => Self::C16,
            "|O" => {
                return Err(
                    "it has pickled objects, which are never read; it must have numbers".to_owned(),
                );
            }
            _ => {
                return Err(format!(
                    "its type {descr:?} must be complex64, complex128, float32, float64, int8, int16 or int32, \
                     little-endian"
                ));
            }
        })
    }

    fn size(self) -> usize {
        match self {
            Self::I1 => 1,
            Self::I2 => 2,
            Self::I4 | Self::F4 => 4,
            Self::F8 | Self::C8 => 8,
            Self::C16 => 16,
        }
    }

    /// Returns the value of `size` bytes.
    fn value(self, bytes: &[u8]) -> Complex64 {
        let (re, im) = match (self, bytes) {
            (Self::I1, &[a]) => (f64::from(a.cast_signed()), 0.0),
            (Self::I2, &[a, b]) => (f64::from(i16::from_le_bytes([a, b])), 0.0),
            (Self::I4, &[a, b, c, d]) => (f64::from(i32::from_le_bytes([a, b, c, d])), 0.0),
            (Self::F4, bytes) => (single(bytes), 0.0),
            (Self::F8, bytes) => (double(bytes), 0.0),
            (Self::C8, bytes) => (single(&bytes[..4]), single(&bytes[4..])),
            (Self::C16, bytes) => (double(&bytes[..8]), double(&bytes[8..])),
            _ => (f64::NAN, f64::NAN),
        };
        Complex64::new(re, im)
    }
}

fn single(bytes: &[u8]) -> f64 {
    bytes
        .try_into()
        .map_or(f64::NAN, |it| f64::from(f32::from_le_bytes(it)))
}

fn double(bytes: &[u8]) -> f64 {
    bytes.try_into().map_or(f64::NAN, f64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::{Complex64, parse_npy};
    use proptest::prelude::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn numbers_are_read_in_both_orders() {
        let data: Vec<u8> = (1..=6_i16).flat_map(i16::to_le_bytes).collect();
        let read = |order| {
            let header = format!("{{'descr': '<i2', 'fortran_order': {order}, 'shape': (2, 3), }}");
            let array = parse_npy(&file(&header, &data)).unwrap();
            assert!(array.real && array.shape == [2, 3]);
            array
                .values
                .iter()
                .map(|it| it.re as i64)
                .collect::<Vec<_>>()
        };
        assert_eq!(read("False"), [1, 2, 3, 4, 5, 6]);
        assert_eq!(read("True"), [1, 3, 5, 2, 4, 6]);
        let complex: Vec<u8> = [1.5_f32, -2.0]
            .iter()
            .flat_map(|it| it.to_le_bytes())
            .collect();
        let array = parse_npy(&file(
            "{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }",
            &complex,
        ));
        assert_eq!(array.unwrap().values, [Complex64::new(1.5, -2.0)]);
    }

    #[test]
    fn other_content_is_refused_with_the_reason() {
        let refused = |descr: &str, shape: &str| {
            let header =
                format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}");
            parse_npy(&file(&header, &[0; 8])).unwrap_err()
        };
        assert!(refused("'|O'", "(1,)").contains("pickled objects"));
        assert!(refused("'>f4'", "(2,)").contains("little-endian"));
        assert!(refused("[('a', '<f4')]", "(2,)").contains("not a structure"));
        assert!(refused("'<f4'", "(1, 2, 1)").contains("one or two lengths"));
        assert!(refused("'<f4'", "(3,)").contains("8 bytes follow"));
        assert!(refused("'<f4'", "(4611686018427387904, 4)").contains("8 bytes follow"));
        assert!(
            parse_npy(b"PK")
                .unwrap_err()
                .contains("array file of NumPy")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), header in ".{0,120}") {
            let _ = parse_npy(&bytes);
            let _ = parse_npy(&[b"\x93NUMPY\x01\x00", &bytes[..]].concat());
            let _ = parse_npy(&file(&header, &bytes));
            let key = format!("{{'descr': '{header}', 'fortran_order': True, 'shape': ({header})}}");
            let _ = parse_npy(&file(&key, &bytes));
        }
    }
}
