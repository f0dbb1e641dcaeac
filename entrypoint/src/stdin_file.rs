//! The program's input, if it is a file: a key of a ConfigMap or Secret, which the kubelet has mounted.
//!
//! The program reads the file itself, so nothing of it is ever in the memory of this process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat};

/// Opens it for reading, at its first byte. Returns at once, whatever is there.
///
/// # Errors
/// The file is missing, this user may not read it, or it is not a regular file.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    // In an image of the user, without the volume, it could be a pipe without a writer, or a terminal.
    let without_side_effects = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | without_side_effects;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    // The program inherits the flags, and sees those of a file that was opened with `<`.
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, mknodat};
    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    #[test]
    fn it_is_read_from_its_first_byte_each_time_as_the_kubelet_mounts_it() {
        let volume = tempfile::tempdir().unwrap();
        let path = volume.path().join("stdin");
        fs::create_dir(volume.path().join("..2026")).unwrap();
        fs::write(volume.path().join("..2026/stdin"), "a\0b").unwrap();
        symlink("..2026", volume.path().join("..data")).unwrap();
        symlink("..data/stdin", &path).unwrap();
        for _ in 0..2 {
            let file = open(&path).unwrap();
            assert!(fcntl_getfd(&file).unwrap().contains(FdFlags::CLOEXEC));
            let flags = fcntl_getfl(&file).unwrap();
            assert_eq!(flags & (OFlags::RWMODE | OFlags::NONBLOCK), OFlags::RDONLY);
            let mut bytes = [0; 9];
            assert_eq!(rustix::io::read(&file, &mut bytes[..]).unwrap(), 3);
            assert_eq!(&bytes[..3], b"a\0b");
        }
    }

    #[test]
    fn anything_but_a_regular_file_is_refused_at_once() {
        let volume = tempfile::tempdir().unwrap();
        let path = volume.path().join("stdin");
        let refused = || open(&path).unwrap_err();
        assert_eq!(refused().kind(), io::ErrorKind::NotFound);
        fs::create_dir(&path).unwrap();
        assert!(refused().to_string().contains("not a regular file"));
        fs::remove_dir(&path).unwrap();
        // Nothing writes to it, so a plain open would wait forever.
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(refused().to_string().contains("not a regular file"));
        fs::remove_file(&path).unwrap();
        symlink(&path, &path).unwrap();
        assert!(refused().raw_os_error() == Some(libc::ELOOP));
    }
}
