//! Describes a segment in words, for people.

use std::{fs::File, path::Path};

use super::{error::JournalError, record::Record, segment};

/// Longest value that is shown, in characters.
const SHOWN: usize = 200;

/// Calls `line` with each line that describes the segment at `path`, until it returns false. Waits on the disk.
///
/// # Errors
/// [`JournalError::Io`] for a file that cannot be read or is no segment.
pub fn inspect(path: &Path, line: &mut dyn FnMut(&str) -> bool) -> Result<(), JournalError> {
    let failed = |source| JournalError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut offset = segment::HEADER_LEN;
    let mut expected = None;
    loop {
        let chunk = segment::read(&file, offset, length.max(offset)).map_err(failed)?;
        for (number, entry, _) in &chunk.entries {
            if let Some(expected) = expected
                && *number > expected
                && !line(&format!("! {} records are missing", number - expected))
            {
                return Ok(());
            }
            expected = Some(number + 1);
            let shown = format!(
                "{number} {} run {} {}",
                utc(entry.at),
                entry.record.run(),
                described(&entry.record)
            );
            if !line(&shown) {
                return Ok(());
            }
        }
        if chunk.skipped > 0 && !line(&format!("! {} bytes are damaged", chunk.skipped)) {
            return Ok(());
        }
        if chunk.offset >= length || chunk.offset == offset {
            return Ok(());
        }
        offset = chunk.offset;
    }
}

/// Describes a record, its values shortened.
fn described(record: &Record) -> String {
    match record {
        Record::Metrics {
            step,
            timestamp,
            values,
            ..
        } => {
            let values = values
                .iter()
                .map(|(key, value)| format!("{}={value}", key.as_str()));
            let values = values.collect::<Vec<_>>().join(" ");
            format!("metrics step={step} timestamp={timestamp} {values}")
        }
        Record::Params { values, .. } => format!("params {}", pairs(values)),
        Record::Tags { values, .. } => format!("tags {}", pairs(values)),
        Record::Artifact { path, size, .. } => {
            format!("artifact {} ({size} bytes)", path.as_str())
        }
        other => other.summary(),
    }
}

fn pairs(values: &[(crate::mlflow::key::Key, String)]) -> String {
    let shown = values.iter().map(|(key, value)| {
        let short: String = value.chars().take(SHOWN).collect();
        let more = if short.len() < value.len() { "…" } else { "" };
        format!("{}={short:?}{more}", key.as_str())
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Formats milliseconds since 1970 as a time in UTC, with the calendar of Howard Hinnant's `civil_from_days`.
fn utc(ms: i64) -> String {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let z = days + 719_468;
    let (era, of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (seconds, millis) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_people_read_it() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(1_709_164_800_001), "2024-02-29T00:00:00.001Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59.999Z");
    }
}
