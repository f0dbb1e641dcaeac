use std::fs::File;
use std::io::{self, IoSlice, IsTerminal, Write};
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};

use super::form::Control;

/// One of the two standard streams.
pub struct Target {
    write: Box<dyn Write + Send>,
    /// How a terminal handles control sequences; `None` if this is no terminal.
    pub(super) control: Option<Control>,
    /// Whether the last write did not end a line.
    pub(super) is_mid_line: bool,
}

impl Target {
    /// A stream to any writer, byte for byte.
    pub fn plain(write: impl Write + Send + 'static) -> Self {
        Self {
            write: Box::new(write),
            control: None,
            is_mid_line: false,
        }
    }

    /// A file descriptor of this program. `control` is for a terminal.
    pub fn descriptor(descriptor: BorrowedFd<'_>, control: Control) -> io::Result<Self> {
        let is_terminal = descriptor.is_terminal();
        let mut target = Self::plain(Descriptor(File::from(descriptor.try_clone_to_owned()?)));
        target.control = is_terminal.then_some(control);
        Ok(target)
    }

    /// Whether our lines must begin at the left edge of a terminal.
    pub(super) const fn is_terminal(&self) -> bool {
        self.control.is_some()
    }

    /// Writes all of it, in as few calls as the system allows.
    pub(super) fn write_all(&mut self, chunks: &[Bytes]) -> io::Result<()> {
        let Some(last) = chunks.iter().rev().find_map(|bytes| bytes.last()) else {
            return Ok(());
        };
        self.is_mid_line = *last != b'\n';
        let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let mut slices = slices.as_mut_slice();
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.write.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The parent process may have made the descriptor non-blocking: then this waits until it takes more.
struct Descriptor(File);

impl Descriptor {
    fn patiently(&mut self, mut write: impl FnMut(&mut File) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            match write(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                other => return other,
            }
        }
    }
}

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|file| file.write(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.patiently(|file| file.write_vectored(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
