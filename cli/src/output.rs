//! The two standard streams: the program's bytes unchanged, with our own lines between them.
//!
//! One thread writes, so that a slow reader delays only the network.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use remoteprocess_proto::v1::{Data, Gap};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

mod controlled;
mod form;
mod label;
mod lines;
mod object;
mod screen;
mod stamp;
mod target;
mod terminal;
mod writer;

pub(crate) use controlled::Controlled;
pub use form::{Control, Form, Hashes};
pub use label::{Label, Prefix};
pub use target::Target;

use remoteprocess_client::Sink;
pub use remoteprocess_client::SinkError as Error;

use crate::exit::Record;
use writer::{Item, QUEUE, Writer};

/// Time for a terminal to take the last bytes before rproc exits.
const RESTORE: Duration = Duration::from_secs(1);
/// How long a slow reader may delay the last answer.
const LAST: Duration = Duration::from_secs(1);

/// Where the program's output and our lines go. Cheap to clone.
#[derive(Clone)]
pub struct Output {
    queue: mpsc::Sender<Item>,
    broken: Arc<Mutex<Option<io::Error>>>,
    source: u32,
    sources: Arc<AtomicU32>,
}

impl Output {
    /// Starts the writer of one process's bytes.
    pub fn new(stdout: Target, stderr: Target) -> Self {
        Self::formed(Form::Bytes { is_stamped: false }, stdout, stderr)
    }

    /// Starts the writer.
    pub fn formed(form: Form, stdout: Target, stderr: Target) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let broken = Arc::new(Mutex::new(None));
        let writer = Writer::new(items, form, stdout, stderr);
        let failure = broken.clone();
        std::thread::spawn(move || writer.run(&failure));
        Self {
            queue,
            broken,
            source: 0,
            sources: Arc::default(),
        }
    }

    /// The standard streams of this program.
    pub fn standard(form: Form, control: Control) -> io::Result<Self> {
        let stdout = Target::descriptor(io::stdout().as_fd(), control)?;
        let stderr = Target::descriptor(io::stderr().as_fd(), control)?;
        Ok(Self::formed(form, stdout, stderr))
    }

    /// The same streams for the output of one process among several.
    pub async fn open(&self, label: Label) -> Result<Self, Error> {
        let source = self.sources.fetch_add(1, Ordering::Relaxed) + 1;
        self.send(Item::Open(source, label)).await?;
        Ok(Self { source, ..self.clone() })
    }

    /// Queues the end of the process, for programs that read it.
    pub async fn exit(&self, record: Record) -> Result<(), Error> {
        self.send(Item::Exit(self.source, Box::new(record))).await
    }

    /// Signals that no more output of this process comes for now.
    pub async fn close(&self) -> Result<(), Error> {
        self.send(Item::Close(self.source)).await
    }

    /// Queues a message for standard error; each of its lines begins with `rproc:`.
    pub async fn line(&self, text: &str) -> Result<(), Error> {
        self.send(Item::Line(prefixed(text))).await
    }

    /// Answers a signal at once, bypassing a queue that is full because the output is not read.
    pub fn answer(&self, text: &str) {
        if self.queue.try_send(Item::Answer(prefixed(text))).is_err() {
            // If standard error is closed too, the message has no reader.
            let _ = io::stderr().write_all(prefixed(text).as_bytes());
        }
    }

    /// Queues the last answer: rproc then exits, and the process keeps running. A reader that no longer reads does not
    /// delay that.
    pub async fn answer_last(&self, text: &str) {
        self.answer(text);
        let _ = timeout(LAST, self.flush()).await;
    }

    /// Restores the terminal to the state that a shell expects: main screen, visible cursor, no mouse input. What was
    /// queued is written first. A terminal that takes nothing does not delay the exit.
    pub async fn restore(&self) {
        let (done, wait) = oneshot::channel();
        let restored = async {
            self.send(Item::Restore(done)).await?;
            self.answered(wait).await
        };
        // A terminal that cannot be written needs nothing.
        let _ = timeout(RESTORE, restored).await;
    }

    /// Returns when everything that was queued is written.
    pub async fn flush(&self) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        self.send(Item::Flush(done)).await?;
        self.answered(wait).await
    }

    /// The hashes of [`Form::Hash`] for the first process.
    pub async fn hashes(&self) -> Result<Hashes, Error> {
        let (done, wait) = oneshot::channel();
        self.send(Item::Hashes(done)).await?;
        self.answered(wait).await
    }

    async fn answered<T>(&self, wait: oneshot::Receiver<T>) -> Result<T, Error> {
        // An item that is queued while the writer ends may stay in the queue and get no answer.
        tokio::select! {
            biased;
            Ok(answer) = wait => Ok(answer),
            // The writer closes the queue after it has reported its error.
            () = self.queue.closed() => Err(self.error()),
        }
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

impl Sink for Output {
    async fn attempt(&mut self, attempt: u32) -> Result<(), Error> {
        self.send(Item::Attempt(self.source, attempt)).await
    }

    async fn data(&mut self, data: Data) -> Result<(), Error> {
        self.send(Item::Data(self.source, data)).await
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), Error> {
        self.send(Item::Gap(self.source, gap)).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        Output::flush(self).await
    }
}

/// Whether standard output shows colors: a terminal, unless `NO_COLOR` is set (no-color.org).
pub fn shows_colors() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes our own lines to standard error, which may be closed.
pub fn complain(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(prefixed(text).as_bytes());
}

/// Our own lines, each marked as ours, for standard error.
pub fn prefixed(text: &str) -> String {
    text.lines()
        .map(|line| format!("rproc: {}\n", crate::render::escape(line)).replace(": \n", ":\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use remoteprocess_proto::v1::{Cursor, Stream};
    use std::fs::File;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Pipes may write only a part.
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
        let mut output = Output::new(Target::plain(out.clone()), Target::plain(err.clone()));
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
    async fn a_closed_pipe_is_distinguished_from_a_full_disk() {
        let mut output = Output::new(Target::plain(Gone), Target::plain(Shared::default()));
        output.data(data(Stream::Stdout, "x")).await.unwrap();
        assert!(matches!(output.flush().await, Err(Error::Closed)));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut output = Output::new(Target::plain(full), Target::plain(Shared::default()));
        output.data(data(Stream::Stdout, "x")).await.unwrap();
        assert!(matches!(output.flush().await, Err(Error::Write(_))));
    }

    async fn lines(form: Form, frames: &[(usize, Stream, &'static str)]) -> (String, String) {
        let (out, err) = (Shared::default(), Shared::default());
        let output = Output::formed(form, Target::plain(out.clone()), Target::plain(err.clone()));
        let mut sources = Vec::new();
        for name in ["a", "b"] {
            let label = Label {
                namespace: "n".into(),
                process: name.into(),
            };
            sources.push(output.open(label).await.unwrap());
        }
        for (source, stream, text) in frames {
            sources[*source].data(data(*stream, text)).await.unwrap();
        }
        for source in &sources {
            source.close().await.unwrap();
        }
        output.flush().await.unwrap();
        let text = |shared: Shared| String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        (text(out), text(err))
    }

    fn at(offset: u64, text: &'static str) -> Data {
        Data {
            offset,
            ..data(Stream::Stdout, text)
        }
    }

    async fn controlled(control: Option<Control>, frames: Vec<Data>) -> String {
        let out = Shared::default();
        let mut sink = Target::plain(out.clone());
        sink.control = control;
        let mut output = Output::new(sink, Target::plain(Shared::default()));
        for frame in frames {
            output.data(frame).await.unwrap();
        }
        output.restore().await;
        output.flush().await.unwrap();
        String::from_utf8(out.0.lock().unwrap().clone()).unwrap()
    }

    #[tokio::test]
    async fn coming_back_to_a_terminal_types_nothing_into_the_program() {
        // tmux sends DA1 and DA2 at its start; the last query here is new.
        let frames = || vec![at(100, "a\x1b[c\x1b[>"), at(108, "cb\x1b[6nlive\x1b[c")];
        let live_from = Cursor { stdout: 110, stderr: 0 };
        let typed = Control::Typed { live_from };
        assert_eq!(controlled(Some(typed), frames()).await, "ab\x1b[6nlive\x1b[c");
        assert_eq!(controlled(Some(Control::Watched), frames()).await, "ablive");
        let whole = "a\x1b[c\x1b[>cb\x1b[6nlive\x1b[c";
        assert_eq!(controlled(None, frames()).await, whole, "a pipe gets every byte");
        assert!(controlled(Some(Control::Shown), frames()).await.contains("^[[c"));
    }

    #[tokio::test]
    async fn the_screen_is_usable_after_you_leave_a_full_screen_program() {
        let frames = || vec![at(0, "\x1b[?1049h\x1b[?25l\x1b[?1002hprogram")];
        let control = Control::Watched;
        let out = controlled(Some(control), frames()).await;
        assert!(out.ends_with("program\x1b[?25h\x1b[?1002l\x1b[?1049l"), "{out:?}");
        assert!(
            controlled(None, frames()).await.ends_with("program"),
            "a pipe gets nothing else"
        );
    }

    const NAMED: Form = Form::Lines {
        is_stamped: false,
        prefix: Some(Prefix {
            with_namespace: false,
            is_colored: false,
        }),
    };

    #[tokio::test]
    async fn lines_of_several_processes_stay_whole() {
        let frames = [
            (0, Stream::Stdout, "one\ntw"),
            (1, Stream::Stdout, "eins\nzw"),
            (1, Stream::Stderr, "oh"),
            (0, Stream::Stdout, "o\n"),
            (1, Stream::Stdout, "ei"),
        ];
        let (out, err) = lines(NAMED, &frames).await;
        assert_eq!(out, "[a] one\n[b] eins\n[a] two\n[b] zwei\n");
        assert_eq!(err, "[b] oh\n");
        let bare = Form::Lines {
            is_stamped: false,
            prefix: None,
        };
        assert_eq!(lines(bare, &frames).await.0, "one\neins\ntwo\nzwei\n");
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_cut_where_one_sees_it() {
        let long: &'static str = "x".repeat(70_000).leak();
        let (out, _) = lines(NAMED, &[(0, Stream::Stdout, long), (1, Stream::Stdout, "whole\n")]).await;
        let rows: Vec<&str> = out.lines().collect();
        assert!(rows[0].starts_with("[a] xxx") && rows[0].ends_with("x…"));
        assert_eq!(rows[1], "[b] whole");
        assert!(rows[2].starts_with("[a] …x") && rows[2].ends_with('x'));
        assert_eq!(rows.concat().matches('x').count(), 70_000);
    }

    #[tokio::test]
    async fn the_time_follows_the_name() {
        let form = Form::Lines {
            is_stamped: true,
            prefix: Some(Prefix {
                with_namespace: true,
                is_colored: false,
            }),
        };
        let (out, _) = lines(form, &[(1, Stream::Stdout, "x\n")]).await;
        assert_eq!(out, "[n/b] 1970-01-01T00:00:00.000000000Z x\n");
    }

    #[tokio::test]
    async fn hashes_are_those_of_the_bytes() {
        let err = Shared::default();
        let mut output = Output::formed(Form::Hash, Target::plain(Gone), Target::plain(err.clone()));
        for part in ["ab", "c"] {
            output.data(data(Stream::Stdout, part)).await.unwrap();
        }
        output.line("said").await.unwrap();
        let hashes = output.hashes().await.unwrap();
        // FIPS 180-2, appendix B.1, and the hash of nothing.
        assert_eq!(
            hex::encode(hashes[0]),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex::encode(hashes[1]),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(err.0.lock().unwrap().as_slice(), b"rproc: said\n");
    }
}
