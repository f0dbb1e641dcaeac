//! The two standard streams: the program's bytes as they are, our own lines between them.
//!
//! One thread writes, so that a reader who does not read holds back the network and nothing else.

use std::fs::File;
use std::io::{self, IoSlice, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use remoteprocess_proto::v1::{Data, Stream};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::{mpsc, oneshot};

mod stamp;
mod terminal;

use stamp::Stamp;
use terminal::TerminalFilter;

/// Frames between the network and the writer: 4 MiB at the most.
const QUEUE: usize = 64;

/// Why nothing more can be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reader of the pipe has gone, as with `| head -1`.
    #[error("nobody reads the output any more")]
    Closed,
    /// The disk is full, or the like.
    #[error("cannot write the output: {0}")]
    Write(String),
}

/// One of the two streams and what is done to its bytes.
pub struct Sink {
    write: Box<dyn Write + Send>,
    is_terminal: bool,
    filter: Option<TerminalFilter>,
    stamp: Option<Stamp>,
    is_mid_line: bool,
}

impl Sink {
    /// A stream to any writer, byte for byte.
    pub fn plain(write: impl Write + Send + 'static) -> Self {
        Self {
            write: Box::new(write),
            is_terminal: false,
            filter: None,
            stamp: None,
            is_mid_line: false,
        }
    }

    /// A file descriptor of this program. A terminal gets no control bytes unless `raw`.
    ///
    /// # Errors
    /// The descriptor is closed.
    pub fn descriptor(descriptor: BorrowedFd<'_>, raw: bool) -> io::Result<Self> {
        let is_terminal = descriptor.is_terminal();
        let mut sink = Self::plain(Descriptor(File::from(descriptor.try_clone_to_owned()?)));
        sink.is_terminal = is_terminal;
        sink.filter = (is_terminal && !raw).then(TerminalFilter::default);
        Ok(sink)
    }

    /// Puts the time before each line.
    #[must_use]
    pub fn stamped(mut self) -> Self {
        self.stamp = Some(Stamp::default());
        self
    }

    fn is_transparent(&self) -> bool {
        self.filter.is_none() && self.stamp.is_none()
    }

    fn transform(&mut self, bytes: &[u8], time_unix_nanos: i64) -> Vec<u8> {
        let mut out = match &mut self.filter {
            Some(filter) => filter.apply(bytes),
            None => bytes.to_vec(),
        };
        if let Some(stamp) = &mut self.stamp {
            out = stamp.apply(&out, time_unix_nanos);
        }
        out
    }
}

/// Where the program's output and our lines go.
pub struct Output {
    queue: mpsc::Sender<Item>,
    broken: Arc<Mutex<Option<io::Error>>>,
}

enum Item {
    Data(Data),
    Line(String),
    /// A line after Ctrl-C, which the terminal has shown as `^C`.
    Answer(String),
    Flush(oneshot::Sender<()>),
}

impl Output {
    /// Starts the writer.
    #[must_use]
    pub fn new(stdout: Sink, stderr: Sink) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let broken = Arc::new(Mutex::new(None));
        let writer = Writer {
            items,
            stdout,
            stderr,
            waiting: Vec::new(),
            current: Stream::Stdout,
        };
        let failure = broken.clone();
        std::thread::spawn(move || writer.run(&failure));
        Self { queue, broken }
    }

    /// The standard streams of this program.
    ///
    /// # Errors
    /// One of them is closed.
    pub fn standard(raw: bool, timestamps: bool) -> io::Result<Self> {
        let stdout = Sink::descriptor(io::stdout().as_fd(), raw)?;
        let stderr = Sink::descriptor(io::stderr().as_fd(), raw)?;
        Ok(if timestamps {
            Self::new(stdout.stamped(), stderr.stamped())
        } else {
            Self::new(stdout, stderr)
        })
    }

    /// Queues bytes of the program; waits while the queue is full.
    ///
    /// # Errors
    /// An earlier write failed.
    pub async fn data(&self, data: Data) -> Result<(), Error> {
        self.send(Item::Data(data)).await
    }

    /// Queues a message of ours for standard error; each of its lines begins with `rproc:`.
    ///
    /// # Errors
    /// An earlier write failed.
    pub async fn line(&self, text: &str) -> Result<(), Error> {
        self.send(Item::Line(prefixed(text))).await
    }

    /// Answers a signal without waiting, past a queue that is full because nobody reads.
    pub fn answer(&self, text: &str) {
        if self.queue.try_send(Item::Answer(prefixed(text))).is_err() {
            // Where standard error is closed too, nobody listens.
            let _ = io::stderr().write_all(prefixed(text).as_bytes());
        }
    }

    /// Returns when everything that was queued is written.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn flush(&self) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        self.send(Item::Flush(done)).await?;
        if wait.await.is_err() {
            // The writer closes the queue once it has told its error.
            self.queue.closed().await;
            return Err(self.error());
        }
        Ok(())
    }

    async fn send(&self, item: Item) -> Result<(), Error> {
        self.queue.send(item).await.map_err(|_| self.error())
    }

    fn error(&self) -> Error {
        match self.broken.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Error::Write(error.to_string()),
            _ => Error::Closed,
        }
    }
}

/// Our own lines, each marked as ours, ready for standard error.
#[must_use]
pub fn prefixed(text: &str) -> String {
    text.lines()
        .map(|line| format!("rproc: {}\n", crate::render::escape(line)).replace(": \n", ":\n"))
        .collect()
}

struct Writer {
    items: mpsc::Receiver<Item>,
    stdout: Sink,
    stderr: Sink,
    /// Bytes for `current` that go out in one call.
    waiting: Vec<Bytes>,
    current: Stream,
}

impl Writer {
    /// Writes until nobody queues any more. An error is told before anybody can see that the queue is closed.
    fn run(mut self, broken: &Mutex<Option<io::Error>>) {
        let mut batch = Vec::with_capacity(QUEUE);
        while self.items.blocking_recv_many(&mut batch, QUEUE) > 0 {
            let mut items = batch.drain(..);
            let written = items.try_for_each(|item| self.take(item)).and_then(|()| self.write());
            if let Err(error) = written {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return;
            }
        }
    }

    fn take(&mut self, item: Item) -> io::Result<()> {
        match item {
            Item::Data(data) => {
                if data.stream() != self.current {
                    self.write()?;
                    self.current = data.stream();
                }
                let bytes = self.prepare(data);
                self.waiting.push(bytes);
            }
            Item::Line(line) => {
                self.write()?;
                self.write_line(&line)?;
            }
            Item::Answer(line) => {
                self.write()?;
                self.stderr.is_mid_line |= self.stderr.is_terminal;
                self.write_line(&line)?;
            }
            Item::Flush(done) => {
                self.write()?;
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
        Ok(())
    }

    fn sink(&mut self, stream: Stream) -> &mut Sink {
        if stream == Stream::Stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        }
    }

    fn prepare(&mut self, data: Data) -> Bytes {
        let sink = self.sink(data.stream());
        if sink.is_transparent() {
            data.bytes
        } else {
            sink.transform(&data.bytes, data.time_unix_nanos).into()
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let sink = self.sink(self.current);
        if let Some(last) = waiting.iter().rev().find_map(|bytes| bytes.last()) {
            sink.is_mid_line = *last != b'\n';
            let mut slices: Vec<IoSlice<'_>> = waiting.iter().map(|bytes| IoSlice::new(bytes)).collect();
            write_all(&mut sink.write, &mut slices)?;
        }
        Ok(())
    }

    /// Our line begins a line: also where both streams end up on one terminal.
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        let is_one_terminal = self.stdout.is_terminal && self.stderr.is_terminal;
        if self.stderr.is_mid_line || (is_one_terminal && self.stdout.is_mid_line) {
            self.stderr.write.write_all(b"\n")?;
        }
        self.stderr.is_mid_line = false;
        if is_one_terminal {
            self.stdout.is_mid_line = false;
        }
        self.stderr.write.write_all(line.as_bytes())
    }
}

fn write_all(write: &mut Box<dyn Write + Send>, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match write.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whoever started us may have made the descriptor non-blocking: then wait until it takes more.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Short writes are what pipes do.
            let taken = bytes.len().min(3);
            self.0.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn data(stream: Stream, text: &'static str) -> Data {
        Data {
            stream: stream.into(),
            bytes: Bytes::from_static(text.as_bytes()),
            ..Data::default()
        }
    }

    #[tokio::test]
    async fn bytes_arrive_whole_and_our_lines_begin_lines() {
        let (out, err) = (Shared::default(), Shared::default());
        let output = Output::new(Sink::plain(out.clone()), Sink::plain(err.clone()));
        for (stream, text) in [
            (Stream::Stdout, "one\ntw"),
            (Stream::Stderr, "oops"),
            (Stream::Stdout, "o\n"),
        ] {
            output.data(data(stream, text)).await.unwrap();
        }
        output.line("first\nsecond \u{1b}[2J").await.unwrap();
        output.flush().await.unwrap();
        assert_eq!(out.0.lock().unwrap().as_slice(), b"one\ntwo\n");
        assert_eq!(
            String::from_utf8(err.0.lock().unwrap().clone()).unwrap(),
            "oops\nrproc: first\nrproc: second \\u{1b}[2J\n"
        );
    }

    #[tokio::test]
    async fn a_closed_pipe_is_told_from_a_full_disk() {
        let output = Output::new(Sink::plain(Gone), Sink::plain(Shared::default()));
        output.data(data(Stream::Stdout, "x")).await.unwrap();
        assert!(matches!(output.flush().await, Err(Error::Closed)));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Output::new(Sink::plain(full), Sink::plain(Shared::default()));
        output.data(data(Stream::Stdout, "x")).await.unwrap();
        assert!(matches!(output.flush().await, Err(Error::Write(_))));
    }
}
