//! One file of the journal: a header with the format's version, then frames, then blank space.

use std::{
    fs::{File, OpenOptions},
    io::{self},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use super::{
    config::Durability,
    frame::{self, Decoded},
    mapped::{Map, does_not_fit},
    record::Entry,
};

/// Version of the frames and their content; a reader accepts no other version.
pub(crate) const FORMAT_VERSION: u32 = 2;

/// Bytes before the first frame.
pub(crate) const HEADER_LEN: u64 = 12;
/// Shorter lengths that are tried where the disk has no room for a whole segment.
const SHORT: [u64; 2] = [1 << 20, 1 << 17];

const MAGIC: [u8; 8] = *b"HEIMDALJ";
/// Bytes that are read at a time; a longer frame is read whole.
const READ_CHUNK: u64 = 1 << 20;

/// The end of a segment that is still written.
#[derive(Debug)]
pub(crate) struct Tail {
    file: Arc<File>,
    map: Option<Map>,
    length: u64,
    offset: u64,
}

impl Tail {
    /// Creates an empty segment of `length` bytes, or a shorter one on a disk that is nearly full, with room for at
    /// least `least` bytes of frames.
    ///
    /// # Errors
    /// Errors of the file system, also when the segment exists already.
    pub(crate) fn create(path: &Path, length: u64, least: u64) -> io::Result<Self> {
        let least = least + HEADER_LEN;
        let shorter = SHORT.into_iter().filter(|short| *short < length);
        let mut lengths = std::iter::once(length).chain(shorter);
        loop {
            let length = lengths.next().unwrap_or(least);
            let created = Self::try_create(path, length.max(least));
            let is_full = created.as_ref().is_err_and(|error| {
                matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            });
            if !is_full || length <= least {
                return created;
            }
        }
    }

    fn try_create(path: &Path, length: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        let mut header = [0; HEADER_LEN as usize];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        let mapped = Map::new(&file, length).and_then(|map| {
            // If no blocks can be reserved, the file still gets its length, because readers depend on the length.
            map.is_none().then(|| file.set_len(length)).transpose()?;
            file.write_all_at(&header, 0).map(|()| map)
        });
        match mapped {
            Ok(map) => Ok(Self {
                file: Arc::new(file),
                map,
                length,
                offset: HEADER_LEN,
            }),
            Err(error) => {
                // A full disk still creates the file's name, and the name must be free for the next attempt.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Copies this segment to another path, where writing continues.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn copied(&self, path: &Path) -> io::Result<Self> {
        let mut copy = Self::try_create(path, self.length)?;
        copy_bytes(&self.file, &copy.file, self.offset)?;
        copy.offset = self.offset;
        Ok(copy)
    }

    /// Returns the offset at which the next frame will begin.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the number of bytes that the segment occupies on the disk.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the file, to read from.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns true where the segment has room for a frame of `length` bytes.
    pub(crate) fn takes(&self, length: usize) -> bool {
        self.offset + length as u64 <= self.length
    }

    /// Makes the kernel load the segment's pages now.
    pub(crate) fn populate(&self) {
        if let Some(map) = &self.map {
            map.populate();
        }
    }

    /// Appends a frame. When this returns, the kernel has the frame, so it survives the end of the process; with
    /// [`Durability::Power`] the frame is on the disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::WriteZero`] for a frame that does not [fit](Self::takes) into the segment, and errors of the
    /// file system. The offset then stays, and the next append overwrites the torn frame.
    pub(crate) fn append(&mut self, frame: &[u8], durability: Durability) -> io::Result<()> {
        if !self.takes(frame.len()) {
            return Err(does_not_fit(frame.len(), self.offset, self.length));
        }
        // The offset is below the length of the mapping, which is a usize.
        let at = usize::try_from(self.offset).map_err(io::Error::other)?;
        match &mut self.map {
            Some(map) => map.put(at, frame)?,
            None => self.file.write_all_at(frame, self.offset)?,
        }
        if durability == Durability::Power {
            match &self.map {
                Some(map) => map.sync(at, frame.len())?,
                None => self.file.sync_data()?,
            }
        }
        self.offset += frame.len() as u64;
        Ok(())
    }
}

/// Copies the first `length` bytes of a file that may have no name any more.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn copy_bytes(from: &File, to: &File, length: u64) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let wanted = usize::try_from(length - at).map_or(bytes.len(), |left| left.min(bytes.len()));
        let read = from.read_at(&mut bytes[..wanted], at)?;
        if read == 0 {
            break;
        }
        to.write_all_at(&bytes[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

/// A source from which a segment is read.
pub(crate) trait ReadAt {
    /// Reads some bytes from `offset` on; reads none at the end.
    ///
    /// # Errors
    /// Errors of the file system.
    fn read_some(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_some(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(bytes, offset)
    }
}

impl ReadAt for [u8] {
    fn read_some(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..));
        let mut rest = rest.unwrap_or_default();
        io::Read::read(&mut rest, bytes)
    }
}

/// Frames read from one segment.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Entries of the intact frames, in order, each with its number and the position to save once it is delivered: the
    /// end of its frame if it is the frame's last entry, otherwise the frame's start.
    pub entries: Vec<(u64, Entry, u64)>,
    /// Offset at which the next read begins.
    pub offset: u64,
    /// Number of skipped bytes that were whole frames once, or that lie before other whole frames.
    pub skipped: u64,
}

/// Reads some frames of a segment, from `offset` and before `end`.
///
/// # Errors
/// Errors of the file system, and [`io::ErrorKind::InvalidData`] for a file of another kind or version.
pub(crate) fn read(file: &(impl ReadAt + ?Sized), offset: u64, end: u64) -> io::Result<Chunk> {
    if offset == HEADER_LEN {
        check_header(file)?;
    }
    let mut read = Chunk {
        offset,
        ..Chunk::default()
    };
    let mut chunk = READ_CHUNK;
    loop {
        let wanted = (end - offset).min(chunk);
        let bytes = bytes_at(file, offset, wanted)?;
        let all = bytes.len() as u64 >= end - offset || (bytes.len() as u64) < wanted;
        let mut at = 0;
        let mut damage = Damage::default();
        while at < bytes.len() {
            let length = match frame::decode(&bytes[at..]) {
                Decoded::Frame {
                    number,
                    entries,
                    length,
                } => {
                    read.skipped += std::mem::take(&mut damage).bytes;
                    let before = offset + at as u64;
                    let last = entries.len();
                    let placed = (number..).zip(entries).zip(1..);
                    read.entries.extend(placed.map(|((number, entry), count)| {
                        let is_last = count == last;
                        (
                            number,
                            entry,
                            before + if is_last { length as u64 } else { 0 },
                        )
                    }));
                    length
                }
                Decoded::Blank(length) => length,
                Decoded::Damaged(length) => {
                    damage.add(without_blank_end(&bytes[at..at + length]));
                    length
                }
                // If no further bytes can complete the frame, it is a torn tail or has a damaged length. The search
                // continues behind it.
                Decoded::Incomplete if all => {
                    damage.add(&bytes[at..]);
                    damage.bytes -= (bytes.len() - at - 1) as u64;
                    1
                }
                Decoded::Incomplete => break,
            };
            at += length;
        }
        if at > 0 || all {
            read.offset = offset + at as u64;
            if damage.bytes > 0 && (damage.was_whole || !is_blank(file, read.offset, end)?) {
                read.skipped += damage.bytes;
            }
            return Ok(read);
        }
        chunk *= 4;
    }
}

/// Bytes that are no frame, up to the next one.
#[derive(Default)]
struct Damage {
    bytes: u64,
    /// True where the bytes were a whole frame. The marker is written last, so bytes with a marker were whole. Bytes
    /// without a marker were being written when the process died, and nobody was told that they are kept.
    was_whole: bool,
}

impl Damage {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.was_whole |= frame::has_marker(bytes);
    }
}

fn without_blank_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    &bytes[..end.map_or(0, |last| last + 1)]
}

/// Returns true where nothing has been written from `offset` to `end`.
fn is_blank(file: &(impl ReadAt + ?Sized), mut offset: u64, end: u64) -> io::Result<bool> {
    while offset < end {
        let bytes = bytes_at(file, offset, (end - offset).min(READ_CHUNK))?;
        if frame::blank(&bytes) < bytes.len() {
            return Ok(false);
        }
        if bytes.is_empty() {
            break;
        }
        offset += bytes.len() as u64;
    }
    Ok(true)
}

fn bytes_at(file: &(impl ReadAt + ?Sized), offset: u64, wanted: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(wanted).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_some(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn check_header(file: &(impl ReadAt + ?Sized)) -> io::Result<()> {
    let header = bytes_at(file, 0, HEADER_LEN)?;
    if header.len() < HEADER_LEN as usize {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let reason = if header[..8] != MAGIC {
        "it is no journal segment".to_owned()
    } else if version != FORMAT_VERSION {
        format!(
            "it is a journal segment of format {version}, and this version reads {FORMAT_VERSION}"
        )
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_does_not_fit_is_an_error_and_the_next_one_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        for is_mapped in [true, false] {
            let path = dir.path().join(is_mapped.to_string());
            let mut tail = Tail::create(&path, 1 << 14, 0).unwrap();
            if !is_mapped {
                tail.map = None;
            }
            let before = tail.offset();
            let error = tail
                .append(&vec![1; 1 << 14], Durability::Process)
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WriteZero);
            assert_eq!(tail.offset(), before);
            tail.append(&[1; 64], Durability::Process).unwrap();
            assert_eq!(tail.offset(), before + 64);
            let length = std::fs::metadata(&path).unwrap().len();
            assert_eq!(length, 1 << 14, "nothing was written behind the end");
        }
    }
}
