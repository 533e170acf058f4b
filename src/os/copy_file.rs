//! A copy of a file, by the cheapest way that its file system has.

use std::{
    fs, io,
    os::fd::{AsFd, IntoRawFd},
    path::Path,
};

/// Copies what a file has, and its permissions, to a path; says how many bytes those are. Copies that share their
/// blocks are made where the file system has them.
///
/// # Errors
/// Those of the file system; a disk without room says so before anything is copied.
#[cfg(not(target_os = "linux"))]
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    fs::copy(from, to)
}

/// As above.
#[cfg(target_os = "linux")]
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    let mut source = fs::File::open(from)?;
    let metadata = source.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    let mut target = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(metadata.permissions().mode())
        .open(to)?;
    target.set_permissions(metadata.permissions())?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(target.metadata()?.len());
    }
    let size = metadata.len();
    reserve(&target, size)?;
    // By `copy_file_range`: nothing comes through this process.
    let copied = io::copy(&mut source, &mut target)?;
    if copied < size {
        target.set_len(copied)?;
    }
    settle(&target)?;
    Ok(copied)
}

/// Sees to it that what was written arrives. Network file systems tell of a full disk when a descriptor is closed, and
/// the end of a [`fs::File`] tells nobody; the disks of this machine have said so long before.
///
/// # Errors
/// Those of the file system.
pub(crate) fn settle(file: &fs::File) -> io::Result<()> {
    let twin = file.as_fd().try_clone_to_owned()?.into_raw_fd();
    // SAFETY: the descriptor is of this function alone, and is not used again.
    #[allow(unsafe_code)]
    match unsafe { libc::close(twin) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the disk find blocks for a whole file at once, which costs it a quarter less than one after another. Left out
/// where the file system cannot.
#[cfg(target_os = "linux")]
fn reserve(file: &fs::File, size: u64) -> io::Result<()> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };

    /// Shorter files are not worth the call.
    const WORTH: u64 = 1 << 20;

    if size < WORTH {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_the_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for (size, mode) in [(0, 0o600), (10, 0o444), ((1 << 20) + 7, 0o751)] {
            let content = (0..size).map(|byte| byte as u8).collect::<Vec<_>>();
            fs::write(&from, &content).unwrap();
            fs::write(&to, b"what was there before").unwrap();
            fs::set_permissions(&from, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(copy(&from, &to).unwrap(), size);
            assert_eq!(fs::read(&to).unwrap(), content);
            assert_eq!(
                fs::metadata(&to).unwrap().permissions().mode() & 0o777,
                mode
            );
            fs::remove_file(&from).unwrap();
            fs::remove_file(&to).unwrap();
        }
        assert!(copy(&from, &to).is_err());
        assert_eq!(
            copy(dir.path(), &to).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(!to.exists());
    }
}
