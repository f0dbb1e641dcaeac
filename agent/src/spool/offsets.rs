//! The two streams, and an offset in each.

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1 of the program, or both when merged.
    Stdout,
    /// File descriptor 2 of the program.
    Stderr,
}

impl From<Stream> for remoteprocess_entrypoint::message::Stream {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

impl From<Stream> for remoteprocess_proto::v1::Stream {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

impl Stream {
    /// Both streams, in the order of every array that is indexed by stream.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    pub(super) const fn file_name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An offset for each stream, in bytes from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Offsets {
    /// Offset in stdout.
    pub stdout: u64,
    /// Offset in stderr.
    pub stderr: u64,
}

impl Offsets {
    /// The offset of one stream.
    pub const fn of(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    /// Sets the offset of one stream.
    pub const fn set(&mut self, stream: Stream, offset: u64) {
        match stream {
            Stream::Stdout => self.stdout = offset,
            Stream::Stderr => self.stderr = offset,
        }
    }

    /// The sum of both, in bytes.
    pub const fn total(&self) -> u64 {
        self.stdout + self.stderr
    }

    pub(super) fn map2(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            stdout: f(self.stdout, other.stdout),
            stderr: f(self.stderr, other.stderr),
        }
    }
}
