//! One file of the journal: a header that names the format, then frames.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    Entry, FORMAT_VERSION,
    frame::{self, Decoded},
};

/// Bytes before the first frame.
pub const HEADER_LEN: u64 = 12;
/// A segment that has grown over this is followed by a new one.
pub const ROTATE_AT: u64 = 8 << 20;

const MAGIC: [u8; 8] = *b"HEIMDALJ";
/// How much is read at a time; a longer frame is read whole.
const READ_CHUNK: u64 = 1 << 20;

/// Path of segment `number` in a journal's folder.
pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.segment"))
}

/// Number of the segment at `path`, if it is one.
pub fn number(path: &Path) -> Option<u64> {
    (path.extension()? == "segment")
        .then(|| path.file_stem()?.to_str()?.parse().ok())
        .flatten()
}

/// The end of a segment that is being written.
#[derive(Debug)]
pub struct Tail {
    file: File,
    offset: u64,
}

impl Tail {
    /// Creates an empty segment.
    ///
    /// # Errors
    /// Those of the file system, also when the segment is there already.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut header = [0; HEADER_LEN as usize];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        if let Err(error) = file.write_all_at(&header, 0) {
            // On a full disk a file still gets its name, which must be free for the next attempt.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(Self {
            file,
            offset: HEADER_LEN,
        })
    }

    /// Where the next frame will begin.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes. They are in the kernel when this returns, so the end of the process leaves them.
    ///
    /// # Errors
    /// Those of the file system; the offset then stays, and the next append overwrites what was torn.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// Entries read from one segment.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The intact entries, in order.
    pub entries: Vec<Entry>,
    /// Where the next read begins.
    pub offset: u64,
    /// Bytes that were no record and have been passed over.
    pub skipped: u64,
}

/// Reads some entries of the segment at `path`, from `offset` and before `end`.
///
/// # Errors
/// Those of the file system, and [`io::ErrorKind::InvalidData`] for a file of another kind or version.
pub fn read(path: &Path, offset: u64, end: u64) -> io::Result<Chunk> {
    let mut file = File::open(path)?;
    if offset == HEADER_LEN {
        check_header(&mut file)?;
    }
    let mut read = Chunk {
        offset,
        ..Chunk::default()
    };
    let mut chunk = READ_CHUNK;
    loop {
        let wanted = (end - offset).min(chunk);
        let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
        file.seek(SeekFrom::Start(offset))?;
        file.by_ref().take(wanted).read_to_end(&mut bytes)?;
        let all = bytes.len() as u64 >= end - offset || (bytes.len() as u64) < wanted;
        let mut at = 0;
        while at < bytes.len() {
            match frame::decode(&bytes[at..]) {
                Decoded::Frame(entry, length) => {
                    read.entries.push(entry);
                    at += length;
                }
                Decoded::Damaged(length) => {
                    read.skipped += length as u64;
                    at += length;
                }
                // What no more bytes can complete is a torn tail, or a damaged length: look behind it.
                Decoded::Incomplete if all => {
                    read.skipped += 1;
                    at += 1;
                }
                Decoded::Incomplete => break,
            }
        }
        if at > 0 || all {
            read.offset = offset + at as u64;
            return Ok(read);
        }
        chunk *= 4;
    }
}

fn check_header(file: &mut File) -> io::Result<()> {
    let mut header = [0; HEADER_LEN as usize];
    file.read_exact(&mut header)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if header[..8] != MAGIC || version != FORMAT_VERSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is no journal segment of format {FORMAT_VERSION}"),
        ));
    }
    Ok(())
}
