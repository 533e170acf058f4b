//! Downloads: several files at a time, long files in ranges that can be resumed, and never outside of the target
//! folder.
//!
//! A file arrives under a name of its own beside its target, and is renamed when it is whole. The part of a long file
//! that an interrupted download has fetched stays there, with a note of the file's version; the next download fetches
//! the missing ranges. Where the store has a checksum of the whole file, the two are compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use futures_util::{StreamExt, TryStreamExt, future, stream};
use tokio::sync::Semaphore;

use super::{
    completed::CompletedFiles,
    part_file::{PartFile, RemoteVersion, is_part},
};
use crate::{
    artifacts::{
        buffers::pieces,
        checksum::Checksum,
        error::{ArtifactError, damaged},
        store::{ArtifactStore, Content, FileInfo, FileState},
    },
    mlflow::artifact_path::ArtifactPath,
    net::retry::{Backoff, retry_transient},
};

/// Length of a range.
const RANGE: u64 = 8 << 20;
/// Bytes that are read or written at a time. All bytes in transit have to fit into the processor's cache: with 1 MiB,
/// the same download took a third more processor time.
const CHUNK: u64 = 256 << 10;
/// Most ranges, and files without ranges, that are in transit at a time, of all files together; also the most files
/// that are begun at a time.
const TOGETHER: usize = 16;
/// Attempts at a range while the store cannot answer.
const ATTEMPTS: u32 = 6;
/// Pause after the first attempt; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Downloads a file, or a folder with everything below it, to its path below `dst`, and returns that place.
///
/// # Errors
/// [`ArtifactError::NotFound`] where there is no such file or folder; [`ArtifactError::BadName`] for names that would
/// lie outside of `dst`; [`ArtifactError::Damaged`] where the bytes that arrive differ from the bytes that the store
/// has.
pub(crate) async fn download(
    store: Arc<dyn ArtifactStore>,
    path: &ArtifactPath,
    dst: &Path,
) -> Result<PathBuf, ArtifactError> {
    let files = with_retries(|| store.files(path)).await?;
    let (files, is_folder) = match files.is_empty() {
        false => (artifacts(files), true),
        true if path.as_str().is_empty() => (files, true),
        true => {
            let state = with_retries(|| store.head(path)).await?;
            let (path, size) = (path.clone(), Some(state.size));
            (vec![FileInfo { path, size }], false)
        }
    };
    let failed = |source| io_error(path, dst, source);
    fs::create_dir_all(dst).map_err(failed)?;
    let root = dst.canonicalize().map_err(failed)?;
    check_names(&files, dst)?;
    let room = Semaphore::new(TOGETHER);
    let completed = is_folder.then(|| CompletedFiles::load(&root, path));
    let fetches = files.into_iter().map(|info| {
        let (store, root, completed, room) = (&*store, &root, completed.as_ref(), &room);
        async move { fetch(store, &info, root, completed, room).await }
    });
    stream::iter(fetches)
        .buffer_unordered(TOGETHER)
        .try_collect::<Vec<()>>()
        .await?;
    if let Some(completed) = completed {
        completed.remove();
    }
    let target = below(&root, path);
    if is_folder {
        fs::create_dir_all(&target).map_err(failed)?;
    }
    Ok(target)
}

fn io_error(path: &ArtifactPath, target: &Path, source: io::Error) -> ArtifactError {
    ArtifactError::Io {
        artifact: path.as_str().to_owned(),
        target: target.to_owned(),
        source,
    }
}

fn below(root: &Path, path: &ArtifactPath) -> PathBuf {
    match path.as_str() {
        "" => root.to_owned(),
        path => root.join(path),
    }
}

/// Iterates over the folders that contain a path, the outermost first.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// Returns the files that are artifacts. Consoles of object stores mark a folder by an empty object in its place. A
/// user who logs a folder into which an interrupted download wrote may also log the rest of that download.
fn artifacts(files: Vec<FileInfo>) -> Vec<FileInfo> {
    let parents: BTreeSet<String> = files
        .iter()
        .flat_map(|info| parents(info.path.as_str()).map(str::to_owned))
        .collect();
    let is_mark = |info: &FileInfo| info.size == Some(0) && parents.contains(info.path.as_str());
    let is_artifact = |info: &FileInfo| !is_mark(info) && !is_part(info.path.name());
    files.into_iter().filter(is_artifact).collect()
}

/// Refuses a file that has the same name as a folder: an object store can have both, a disk cannot.
fn check_names(files: &[FileInfo], dst: &Path) -> Result<(), ArtifactError> {
    let names: BTreeSet<&str> = files.iter().map(|info| info.path.as_str()).collect();
    for name in &names {
        if let Some(parent) = parents(name).find(|parent| names.contains(parent)) {
            return Err(ArtifactError::Io {
                artifact: (*name).to_owned(),
                target: dst.join(parent),
                source: io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("{parent:?} is a file in the store as well"),
                ),
            });
        }
    }
    Ok(())
}

async fn fetch(
    store: &dyn ArtifactStore,
    info: &FileInfo,
    root: &Path,
    completed: Option<&CompletedFiles>,
    room: &Semaphore,
) -> Result<(), ArtifactError> {
    let folder = folder_of(root, &info.path)?;
    let target = below(root, &info.path);
    let failed = |source| io_error(&info.path, &target, source);
    if target.is_dir() && !target.is_symlink() && info.size != Some(0) {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let attempt = async |is_second: bool| {
        // The listed file may have been replaced by a file of another length since.
        let state = if info.size.unwrap_or_default() <= RANGE && !is_second {
            None
        } else {
            Some(with_retries(|| store.head(&info.path)).await?)
        };
        let version = state.as_ref().and_then(|state| state.version.clone());
        let noted = completed.zip(version);
        if let Some((completed, version)) = &noted
            && completed.has(&info.path, version, &target)
        {
            return Ok(());
        }
        // Each attempt has a new place: bytes of a damaged file are thrown away.
        let part_file = PartFile::take(&folder, &info.path).map_err(failed)?;
        let length = match fetch_to_part(store, info, state, &part_file, room).await {
            Err(error @ ArtifactError::Damaged { .. }) => {
                part_file.discard();
                return Err(error);
            }
            arrived => arrived?,
        };
        part_file.publish(&target, length).map_err(failed)?;
        if let Some((completed, version)) = &noted {
            completed.add(&info.path, length, version, &target);
        }
        Ok(())
    };
    match attempt(false).await {
        // The bytes were usually damaged in transit, or the file was replaced meanwhile.
        Err(ArtifactError::Damaged { .. }) => attempt(true).await,
        // This is the mark of an empty folder.
        Err(ArtifactError::NotFound { .. }) if completed.is_some() && info.size == Some(0) => {
            fs::create_dir_all(&target).map_err(failed)
        }
        outcome => outcome,
    }
}

/// Fetches a file to beside its target, compares it with the store's checksum, and returns its length.
async fn fetch_to_part(
    store: &dyn ArtifactStore,
    info: &FileInfo,
    state: Option<FileState>,
    part_file: &PartFile,
    room: &Semaphore,
) -> Result<u64, ArtifactError> {
    let size = state.as_ref().map(|state| state.size);
    let size = size.or(info.size).unwrap_or_default();
    let length = match state {
        Some(FileState {
            size,
            version: Some(version),
            ..
        }) => {
            let checksum = with_retries(|| store.checksum(&info.path, Some(&version))).await?;
            let crc = checksum.as_ref().and_then(Checksum::crc);
            let remote = RemoteVersion::new(size, &version, checksum.is_some());
            let crcs = fetch_in_ranges(store, &info.path, &remote, part_file, crc, room).await?;
            match checksum {
                Some(checksum) if crc.is_some() => {
                    // This takes a second for 100 GiB.
                    let compared = tokio::task::spawn_blocking(|| checksum.compare_parts(crcs));
                    let compared = compared
                        .await
                        .unwrap_or_else(|panic| Err(panic.to_string()));
                    compared.map_err(|reason| damaged(store.uri(), &info.path, reason))?;
                }
                Some(checksum) => compare(store, &info.path, part_file, size, checksum).await?,
                None => {}
            }
            size
        }
        // A file without a version cannot be fetched in ranges, because a newer version would not be noticed.
        _ => fetch_whole(store, &info.path, size, part_file, room).await?,
    };
    if length == size {
        Ok(length)
    } else {
        Err(damaged(
            store.uri(),
            &info.path,
            format!("{length} bytes have arrived of {size}"),
        ))
    }
}

/// Reads the arrived bytes of a file once more, and compares them with a checksum that cannot be computed from those of
/// ranges.
async fn compare(
    store: &dyn ArtifactStore,
    path: &ArtifactPath,
    part_file: &PartFile,
    length: u64,
    checksum: Checksum,
) -> Result<(), ArtifactError> {
    let content = pieces(Arc::clone(part_file.file()), 0..length, CHUNK).map_err(|error| {
        damaged(
            store.uri(),
            path,
            format!("what has arrived cannot be read: {error}"),
        )
    });
    let content = checksum.compared(content, |reason| damaged(store.uri(), path, reason));
    pin!(content).try_for_each(|_| future::ready(Ok(()))).await
}

/// Returns the folder of a file below `root`, and creates it if it does not exist. Does not follow a link in its place,
/// because a link could lead anywhere.
fn folder_of(root: &Path, path: &ArtifactPath) -> Result<PathBuf, ArtifactError> {
    let mut folder = root.to_owned();
    let Some((parents, _)) = path.as_str().rsplit_once('/') else {
        return Ok(folder);
    };
    for part in parents.split('/') {
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error(path, &folder, error));
            }
            _ => {}
        }
        let is_folder = fs::symlink_metadata(&folder).is_ok_and(|it| it.is_dir());
        if !is_folder {
            let source = io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is a file or a link, which is not followed: remove it",
            );
            return Err(io_error(path, &folder, source));
        }
    }
    Ok(folder)
}

async fn fetch_whole(
    store: &dyn ArtifactStore,
    path: &ArtifactPath,
    size: u64,
    part_file: &PartFile,
    room: &Semaphore,
) -> Result<u64, ArtifactError> {
    let failed = |source| io_error(path, part_file.path(), source);
    let _permit = room.acquire().await;
    with_retries(|| async {
        let file = part_file.restart().map_err(failed)?;
        let content = store.read(path, None, None).await?;
        let (length, _) = write(content, file, 0..size, None, failed).await?;
        Ok(length)
    })
    .await
}

/// Fetches the missing ranges of a file. Returns the CRC and the length of each range, in order; without `crc`, all
/// CRCs are 0.
async fn fetch_in_ranges(
    store: &dyn ArtifactStore,
    path: &ArtifactPath,
    remote: &RemoteVersion,
    part_file: &PartFile,
    crc: Option<CrcAlgorithm>,
    room: &Semaphore,
) -> Result<Vec<(u64, u64)>, ArtifactError> {
    let failed = |source| io_error(path, part_file.path(), source);
    let (file, done) = part_file.resume(remote).map_err(failed)?;
    let ranges = (0..remote.size.div_ceil(RANGE)).map(|number| {
        let range = number * RANGE..remote.size.min((number + 1) * RANGE);
        let expected = range.end - range.start;
        let is_noted = done.contains(&number);
        async move {
            let _permit = room.acquire().await;
            if is_noted {
                // A range that was fetched earlier is read once more if there is a CRC to compare: in a power loss, the
                // bytes that were not on the disk yet are lost.
                if let Ok(crc) = written(file, range.clone(), crc).await {
                    return Ok::<_, ArtifactError>((number, (crc, expected)));
                }
            }
            let crc = with_retries(|| async {
                let content = store
                    .read(path, Some(range.clone()), Some(&remote.version))
                    .await?;
                let (arrived, crc) = write(content, file, range.clone(), crc, failed).await?;
                if arrived == expected {
                    Ok(crc)
                } else {
                    let reason = format!("{arrived} bytes have arrived of {expected}");
                    Err(damaged(store.uri(), path, reason))
                }
            })
            .await?;
            part_file.add(number);
            Ok((number, (crc, expected)))
        }
    });
    let ranges = stream::iter(ranges).buffer_unordered(TOGETHER);
    let crcs: BTreeMap<u64, (u64, u64)> = ranges.try_collect().await?;
    Ok(crcs.into_values().collect())
}

/// Returns the CRC of a range that has arrived already.
async fn written(
    file: &Arc<File>,
    range: Range<u64>,
    crc: Option<CrcAlgorithm>,
) -> io::Result<u64> {
    let Some(crc) = crc else { return Ok(0) };
    let content = pieces(Arc::clone(file), range, CHUNK);
    let add = |mut sum: Digest, bytes: Bytes| {
        sum.update(&bytes);
        future::ready(Ok(sum))
    };
    let sum = pin!(content).try_fold(Digest::new(crc), add).await?;
    Ok(sum.finalize())
}

/// Writes the arriving bytes of a range to their place, and returns their length and CRC. Writes nothing behind the
/// range.
async fn write(
    mut content: Content,
    file: &Arc<File>,
    range: Range<u64>,
    crc: Option<CrcAlgorithm>,
    failed: impl Fn(io::Error) -> ArtifactError,
) -> Result<(u64, u64), ArtifactError> {
    let room = CHUNK.min(range.end - range.start) as usize;
    let (mut gathered, mut at) = (BytesMut::with_capacity(room), range.start);
    let mut sum = crc.map(Digest::new);
    loop {
        let chunk = content.try_next().await?;
        gathered.extend_from_slice(chunk.as_deref().unwrap_or_default());
        if chunk.is_some() && gathered.len() < CHUNK as usize {
            continue;
        }
        let length = gathered.len() as u64;
        if length > range.end - at {
            return Ok((at + length - range.start, 0));
        }
        let (file, bytes) = (Arc::clone(file), gathered);
        let written = tokio::task::spawn_blocking(move || {
            if let Some(sum) = &mut sum {
                sum.update(&bytes);
            }
            file.write_all_at(&bytes, at)?;
            Ok::<_, io::Error>((bytes, sum))
        });
        (gathered, sum) = written
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(&failed)?;
        gathered.clear();
        at += length;
        if chunk.is_none() {
            let crc = sum.map(|sum| sum.finalize()).unwrap_or_default();
            return Ok((at - range.start, crc));
        }
    }
}

/// Retries a read where waiting may help, at most [`ATTEMPTS`] times.
async fn with_retries<T, F: Future<Output = Result<T, ArtifactError>>>(
    attempt: impl FnMut() -> F,
) -> Result<T, ArtifactError> {
    let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    retry_transient(ATTEMPTS, backoff, attempt, ArtifactError::is_transient).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::{download::part_file::name_of, local::LocalArtifacts};

    fn artifact(path: &str) -> ArtifactPath {
        ArtifactPath::parse(path).unwrap()
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work)
    }

    fn store(root: &Path) -> Arc<dyn ArtifactStore> {
        Arc::new(LocalArtifacts::new(root.to_owned()))
    }

    #[test]
    fn a_folder_and_a_long_file_arrive_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (root, dst) = (dir.path().join("root"), dir.path().join("dst"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        let long: Vec<u8> = (0..RANGE * 2 + 5).map(|n| (n % 251) as u8).collect();
        fs::write(root.join("a/long"), &long).unwrap();
        fs::write(root.join("a/b/empty"), "").unwrap();
        let folder = run(download(store(&root), &artifact("a"), &dst)).unwrap();
        assert_eq!(fs::read(folder.join("long")).unwrap(), long);
        assert_eq!(fs::read(folder.join("b/empty")).unwrap(), b"");
        let left = fs::read_dir(&folder).unwrap().count();
        assert_eq!(left, 2, "no part is left");
        let missing = run(download(store(&root), &artifact("c"), &dst)).unwrap_err();
        assert!(matches!(missing, ArtifactError::NotFound { .. }));
    }

    #[test]
    fn an_interrupted_download_fetches_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (root, dst) = (dir.path().join("root"), dir.path().join("dst"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&dst).unwrap();
        let size = RANGE * 2 + 5;
        fs::write(root.join("long"), vec![1; size as usize]).unwrap();
        let state = run(store(&root).head(&artifact("long"))).unwrap();
        // The noted first range gets other bytes than the store has, so that the test sees which are kept.
        let mut part = vec![0; size as usize];
        part[..RANGE as usize].fill(2);
        let remote = RemoteVersion::new(size, &state.version.unwrap(), false);
        let note = format!("{}\n0\n1", serde_json::to_string(&remote).unwrap());
        part.extend_from_slice(note.as_bytes());
        fs::write(dst.join(name_of(&artifact("long"), "")), part).unwrap();
        let file = run(download(store(&root), &artifact("long"), &dst)).unwrap();
        let content = fs::read(file).unwrap();
        assert!(content[..RANGE as usize].iter().all(|byte| *byte == 2));
        assert!(content[RANGE as usize..].iter().all(|byte| *byte == 1));
        assert_eq!(fs::read_dir(&dst).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, dst) = (dir.path().join("root"), dir.path().join("dst"));
        let outside = dir.path().join("outside");
        for folder in [&root.join("a"), &dst, &outside] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(root.join("a/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, dst.join("a")).unwrap();
        assert!(run(download(store(&root), &artifact("a"), &dst)).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        // A link that is the target itself is replaced, and the link's own target stays unchanged.
        fs::write(root.join("b"), "new").unwrap();
        fs::write(outside.join("b"), "old").unwrap();
        std::os::unix::fs::symlink(outside.join("b"), dst.join("b")).unwrap();
        run(download(store(&root), &artifact("b"), &dst)).unwrap();
        assert_eq!(fs::read_to_string(dst.join("b")).unwrap(), "new");
        assert_eq!(fs::read_to_string(outside.join("b")).unwrap(), "old");
    }

    #[test]
    fn a_name_that_is_a_file_and_a_folder_is_refused() {
        let info = |path: &str| FileInfo {
            path: artifact(path),
            size: Some(1),
        };
        assert!(check_names(&[info("a"), info("a/b")], Path::new("/d")).is_err());
        assert!(check_names(&[info("a"), info("ab/b")], Path::new("/d")).is_ok());
    }
}
