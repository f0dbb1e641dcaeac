use crate::v1::Stream;

/// The two output streams, in the order of [`Stream::index`].
pub const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Stream {
    /// Place in [`STREAMS`]; an unspecified stream counts as stdout.
    pub fn index(self) -> usize {
        match self {
            Self::Stdout | Self::Unspecified => 0,
            Self::Stderr => 1,
        }
    }

    /// The name that users see; an unspecified stream counts as stdout.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout | Self::Unspecified => "stdout",
            Self::Stderr => "stderr",
        }
    }
}
