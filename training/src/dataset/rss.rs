//! Received signal strengths of one transmitter at known places, as published for the POWDER test bed.
//!
//! A folder contains `single_tx.csv` (one row per time stamp, one column of dBm per receiver, the transmitter's
//! latitude and longitude), `receivers.json` (id to `[lat, lon]`, or null for receivers that move) and `splits.json`
//! (name to time stamps). Receivers that move are left out. Nothing is repaired: the first invalid value ends the
//! reading with an error that names file, line and column.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tch::Tensor;

use super::split::{Split, SplitConfig};
use crate::{
    error::{Error, Result},
    geo::{LatLon, LocalFrame},
};

/// Value in the data for "this receiver did not hear the transmitter or took no part", in dBm.
pub const NOT_HEARD_DBM: f32 = -101.0;

const SAMPLES: &str = "single_tx.csv";
const RECEIVERS: &str = "receivers.json";
const SPLITS: &str = "splits.json";

/// A receiver that does not move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receiver {
    /// Name of the receiver and of the data's column.
    pub id: String,
    /// Position of the receiver.
    #[serde(flatten)]
    pub position: LatLon,
}

/// Received powers of the transmitter at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Time of the recording, as written in the file.
    pub timestamp: String,
    /// One power per receiver in dBm, uncalibrated; [`NOT_HEARD_DBM`] or less means not heard.
    pub rss_dbm: Vec<f32>,
    /// Position of the transmitter.
    pub position: LatLon,
}

/// Recordings and their division.
#[derive(Debug, Clone)]
pub struct RssDataset {
    /// The folder of the data.
    pub path: PathBuf,
    /// The receivers, in the order of the data's columns.
    pub receivers: Vec<Receiver>,
    /// All rows, in the file's order.
    pub recordings: Vec<Recording>,
    /// Settings of the division.
    pub split_config: SplitConfig,
    /// Rows for training, validation and test.
    pub split: Split,
}

impl RssDataset {
    /// Reads a folder and divides its rows.
    pub fn load(path: &Path, config: SplitConfig) -> Result<Self> {
        if !path.is_dir() {
            let expected =
                "a dataset is a folder with single_tx.csv, receivers.json and splits.json";
            return Err(Error::Missing {
                path: path.to_owned(),
                expected,
            });
        }
        let positions = read_receivers(&path.join(RECEIVERS))?;
        let (receivers, recordings) = read_recordings(&path.join(SAMPLES), &positions)?;
        let test = test_rows(&path.join(SPLITS), &config.test, &recordings)?;
        let frame = local_frame(&receivers).ok_or_else(|| Error::Split {
            reason: format!(
                "{} names no receiver with a fixed position",
                path.join(RECEIVERS).display()
            ),
        })?;
        let points: Vec<_> = recordings
            .iter()
            .map(|row| frame.to_local(row.position))
            .collect();
        let split = Split::by_square(&points, &test, &config)?;
        Ok(Self {
            path: path.to_owned(),
            receivers,
            recordings,
            split_config: config,
            split,
        })
    }

    /// Returns the readings of some rows as a tensor of dBm, `[rows, receivers]`.
    pub fn rss(&self, rows: &[usize]) -> Result<Tensor> {
        let values: Vec<f32> = rows
            .iter()
            .flat_map(|&row| self.recordings[row].rss_dbm.iter().copied())
            .collect();
        Ok(Tensor::f_from_slice(&values)?
            .f_view([rows.len() as i64, self.receivers.len() as i64])?)
    }

    /// Returns the transmitter's positions of some rows.
    pub fn positions(&self, rows: &[usize]) -> Vec<LatLon> {
        rows.iter()
            .map(|&row| self.recordings[row].position)
            .collect()
    }
}

/// Returns the map around the middle of the receivers, if there are any.
pub fn local_frame(receivers: &[Receiver]) -> Option<LocalFrame> {
    let positions: Vec<_> = receivers.iter().map(|receiver| receiver.position).collect();
    LatLon::mean(&positions).map(|origin| LocalFrame { origin })
}

fn read_json<T: DeserializeOwned>(path: &Path, expected: &'static str) -> Result<T> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::reading(path, expected, source))?;
    serde_json::from_str(&text)
        .map_err(|source| Error::malformed(path, source.line() as u64, source.to_string()))
}

/// Reads the fixed receivers of `receivers.json`.
fn read_receivers(path: &Path) -> Result<BTreeMap<String, LatLon>> {
    let listed: BTreeMap<String, Option<[f64; 2]>> = read_json(
        path,
        "it must map each receiver to [latitude, longitude] or null",
    )?;
    let mut fixed = BTreeMap::new();
    for (id, position) in listed {
        let Some([lat, lon]) = position else { continue };
        let position = LatLon::new(lat, lon).ok_or_else(|| {
            let reason = format!(
                "receiver {id:?} is at [{lat}, {lon}], which is no [latitude, longitude] in degrees"
            );
            Error::malformed(path, 1, reason)
        })?;
        fixed.insert(id, position);
    }
    Ok(fixed)
}

/// Returns the rows that a named split of `splits.json` holds out.
fn test_rows(path: &Path, name: &str, recordings: &[Recording]) -> Result<Vec<usize>> {
    let mut splits: BTreeMap<String, Vec<String>> = read_json(
        path,
        "it must map the name of each split to its time stamps",
    )?;
    let Some(timestamps) = splits.remove(name) else {
        let known = splits.into_keys().collect();
        return Err(Error::UnknownSplit {
            path: path.to_owned(),
            name: name.to_owned(),
            known,
        });
    };
    let recorded: HashSet<&str> = recordings
        .iter()
        .map(|row| row.timestamp.as_str())
        .collect();
    if let Some(stranger) = timestamps
        .iter()
        .find(|stamp| !recorded.contains(stamp.as_str()))
    {
        let reason = format!(
            "split {name:?} names the time stamp {stranger:?}, which {SAMPLES} does not have"
        );
        return Err(Error::malformed(path, 1, reason));
    }
    let held_out: HashSet<&str> = timestamps.iter().map(String::as_str).collect();
    let rows = recordings.iter().enumerate();
    Ok(rows
        .filter(|(_, row)| held_out.contains(row.timestamp.as_str()))
        .map(|(index, _)| index)
        .collect())
}

/// Reads the rows of `single_tx.csv`, and the receivers in the order of its columns.
fn read_recordings(
    path: &Path,
    positions: &BTreeMap<String, LatLon>,
) -> Result<(Vec<Receiver>, Vec<Recording>)> {
    let file = File::open(path)
        .map_err(|source| Error::reading(path, "the recordings, one row each", source))?;
    parse_recordings(path, file, positions)
}

/// A column to read, and its index.
struct Column {
    name: String,
    index: usize,
}

impl Column {
    fn find(path: &Path, header: &HashMap<&str, usize>, name: &str) -> Result<Self> {
        match header.get(name) {
            Some(&index) => Ok(Self {
                name: name.to_owned(),
                index,
            }),
            None => Err(Error::malformed(
                path,
                1,
                format!("column {name:?} is missing"),
            )),
        }
    }

    fn text<'a>(&self, record: &'a csv::StringRecord) -> &'a str {
        record.get(self.index).unwrap_or_default().trim()
    }

    fn number(&self, path: &Path, line: u64, record: &csv::StringRecord) -> Result<f64> {
        let text = self.text(record);
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(Error::malformed(
                path,
                line,
                format!("column {:?} is {text:?}, not a number", self.name),
            )),
        }
    }
}

fn parse_recordings(
    path: &Path,
    source: impl std::io::Read,
    positions: &BTreeMap<String, LatLon>,
) -> Result<(Vec<Receiver>, Vec<Recording>)> {
    let mut reader = csv::Reader::from_reader(source);
    let header = reader
        .headers()
        .map_err(|source| csv_error(path, source))?
        .clone();
    let columns: HashMap<&str, usize> = header
        .iter()
        .enumerate()
        .map(|(index, name)| (name, index))
        .collect();
    let timestamp = Column::find(path, &columns, "timestamp")?;
    let latitude = Column::find(path, &columns, "tx_x_coord")?;
    let longitude = Column::find(path, &columns, "tx_y_coord")?;
    let mut powers = positions
        .keys()
        .map(|id| Column::find(path, &columns, id))
        .collect::<Result<Vec<_>>>()?;
    powers.sort_by_key(|column| column.index);
    let receivers = powers
        .iter()
        .filter_map(|column| {
            positions.get(&column.name).map(|&position| Receiver {
                id: column.name.clone(),
                position,
            })
        })
        .collect();

    let mut recordings = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|source| csv_error(path, source))?;
        let line = record.position().map_or(0, csv::Position::line);
        let (lat, lon) = (
            latitude.number(path, line, &record)?,
            longitude.number(path, line, &record)?,
        );
        let position = LatLon::new(lat, lon).ok_or_else(|| {
            let reason = format!("the transmitter is at ({lat}, {lon}), which is no latitude and longitude in degrees");
            Error::malformed(path, line, reason)
        })?;
        let rss_dbm = powers
            .iter()
            .map(|column| column.number(path, line, &record).map(|value| value as f32))
            .collect::<Result<_>>()?;
        recordings.push(Recording {
            timestamp: timestamp.text(&record).to_owned(),
            rss_dbm,
            position,
        });
    }
    if recordings.is_empty() {
        return Err(Error::malformed(
            path,
            1,
            "there is no row below the header",
        ));
    }
    Ok((receivers, recordings))
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(1, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::Io {
            path: path.to_owned(),
            action: "read",
            source,
        },
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => Error::malformed(
            path,
            line,
            format!("the row has {len} columns, the header has {expected_len}"),
        ),
        csv::ErrorKind::Utf8 { err, .. } => {
            Error::malformed(path, line, format!("not UTF-8: {err}"))
        }
        other => Error::malformed(path, line, format!("not CSV: {other:?}")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Loads the recordings that are part of the repository.
    pub(crate) fn powder(test: &str) -> RssDataset {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/powder_rss_462mhz");
        RssDataset::load(
            &path,
            SplitConfig {
                test: test.to_owned(),
                ..SplitConfig::default()
            },
        )
        .unwrap()
    }

    fn one_receiver() -> BTreeMap<String, LatLon> {
        BTreeMap::from([(
            "rx".to_owned(),
            LatLon {
                lat: 40.0,
                lon: -111.0,
            },
        )])
    }

    fn parse(text: &str) -> Result<(Vec<Receiver>, Vec<Recording>)> {
        parse_recordings(Path::new("rows.csv"), text.as_bytes(), &one_receiver())
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_shipped_recordings_are_read_whole() {
        let dataset = powder("grid_test");
        assert_eq!(dataset.recordings.len(), 5006);
        assert_eq!(dataset.receivers.len(), 29);
        assert_eq!(dataset.split.test.len(), 666);
        let heard = |row: &Recording| {
            row.rss_dbm
                .iter()
                .filter(|&&dbm| dbm > NOT_HEARD_DBM)
                .count()
        };
        assert_eq!(dataset.recordings.iter().map(heard).min(), Some(8));
        assert_eq!(dataset.recordings.iter().map(heard).max(), Some(23));
        assert_eq!(dataset.rss(&[0, 1]).unwrap().size(), [2, 29]);
    }

    #[test]
    fn a_row_is_read_with_its_columns_in_any_order() {
        let (receivers, rows) =
            parse("rx,tx_y_coord,bus,tx_x_coord,timestamp\n-80.5,-111.8,-1,40.7,noon\n").unwrap();
        assert_eq!(receivers[0].id, "rx");
        let position = LatLon {
            lat: 40.7,
            lon: -111.8,
        };
        assert_eq!(
            rows,
            [Recording {
                timestamp: "noon".to_owned(),
                rss_dbm: vec![-80.5],
                position
            }]
        );
    }

    #[test]
    fn a_missing_column_is_named() {
        assert_eq!(
            message("timestamp,tx_x_coord,tx_y_coord\n"),
            "rows.csv, line 1: column \"rx\" is missing"
        );
    }

    #[test]
    fn a_value_that_is_no_number_is_quoted_with_its_line_and_column() {
        let head = "timestamp,rx,tx_x_coord,tx_y_coord\na,-90,40,-111\n";
        assert_eq!(
            message(&format!("{head}b,loud,40,-111\n")),
            "rows.csv, line 3: column \"rx\" is \"loud\", not a number"
        );
        assert!(message(&format!("{head}b,nan,40,-111\n")).contains("\"nan\", not a number"));
        assert!(message(&format!("{head}b,,40,-111\n")).contains("\"\", not a number"));
    }

    #[test]
    fn a_row_of_another_length_is_refused() {
        assert_eq!(
            message("timestamp,rx,tx_x_coord,tx_y_coord\na,-90,40\n"),
            "rows.csv, line 2: the row has 3 columns, the header has 4"
        );
    }

    #[test]
    fn a_position_outside_the_globe_is_refused() {
        let text = message("timestamp,rx,tx_x_coord,tx_y_coord\na,-90,-111,40\n");
        assert!(
            text.contains("line 2") && text.contains("(-111, 40)"),
            "{text}"
        );
    }

    #[test]
    fn a_file_without_rows_is_refused() {
        assert!(message("timestamp,rx,tx_x_coord,tx_y_coord\n").contains("no row"));
        assert!(message("").contains("\"timestamp\" is missing"));
    }

    #[test]
    fn an_unknown_split_names_those_there_are() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/powder_rss_462mhz");
        let config = SplitConfig {
            test: "grid".to_owned(),
            ..SplitConfig::default()
        };
        let text = RssDataset::load(&path, config).unwrap_err().to_string();
        assert!(
            text.contains("no split \"grid\"") && text.contains("grid_test"),
            "{text}"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_says_what_should_be() {
        let error = RssDataset::load(Path::new("no/such"), SplitConfig::default()).unwrap_err();
        assert!(matches!(error, Error::Missing { .. }));
        assert!(error.to_string().starts_with("no/such does not exist"));
    }

    #[test]
    fn broken_json_is_reported_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(RECEIVERS);
        std::fs::write(&path, "{\n \"rx\": [1, 2, 3]\n}").unwrap();
        let text = read_receivers(&path).unwrap_err().to_string();
        assert!(text.contains("receivers.json, line 2"), "{text}");
    }

    proptest! {
        #[test]
        fn whatever_the_file_holds_reading_it_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_recordings(Path::new("any"), bytes.as_slice(), &one_receiver());
        }

        #[test]
        fn whatever_follows_a_good_header_is_read_or_refused(body in "[0-9a-z,.\"\n-]{0,200}") {
            if let Ok((_, rows)) = parse(&format!("timestamp,rx,tx_x_coord,tx_y_coord\n{body}")) {
                prop_assert!(rows.iter().all(|row| row.rss_dbm.len() == 1 && row.rss_dbm[0].is_finite()));
            }
        }

        #[test]
        fn what_was_written_is_what_is_read(
            written in proptest::collection::vec(("[a-z0-9: -]{1,20}", -120f32..0.0, -90f64..=90.0, -180f64..=180.0), 1..20)
        ) {
            let body: String = written
                .iter()
                .map(|(stamp, dbm, lat, lon)| format!("\"{stamp}\",{dbm},{lat},{lon}\n"))
                .collect();
            let (_, rows) = parse(&format!("timestamp,rx,tx_x_coord,tx_y_coord\n{body}")).unwrap();
            prop_assert_eq!(rows.len(), written.len());
            for (row, (stamp, dbm, lat, lon)) in rows.iter().zip(&written) {
                prop_assert_eq!(&row.timestamp, stamp.trim());
                prop_assert_eq!(row.rss_dbm[0], *dbm);
                prop_assert_eq!(row.position, LatLon { lat: *lat, lon: *lon });
            }
        }
    }
}
