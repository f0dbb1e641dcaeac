use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use remoteprocess_proto::v1::{Data, Gap, Stream};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::controlled::Controlled;
use super::form::{Form, Hashes};
use super::label::Label;
use super::lines::{Line, Lines};
use super::object::Objects;
use super::stamp::Stamp;
use super::target::Target;
use crate::exit::Record;
use crate::interact::terminal::is_raw;

/// Maximum number of frames between the network and the writer: at most 4 MiB.
pub(super) const QUEUE: usize = 64;

/// The messages to the writer. The number identifies the source.
pub(super) enum Item {
    Open(u32, Label),
    Attempt(u32, u32),
    Data(u32, Data),
    Gap(u32, Gap),
    Exit(u32, Box<Record>),
    Close(u32),
    Line(String),
    /// A line after Ctrl-C, which the terminal has shown as `^C`.
    Answer(String),
    Flush(oneshot::Sender<()>),
    /// The user leaves: the terminal is restored to the state that a shell expects.
    Restore(oneshot::Sender<()>),
    Hashes(oneshot::Sender<Hashes>),
}

/// One process whose output is written.
#[derive(Default)]
struct Source {
    label: Label,
    prefix: String,
    attempt: Option<u32>,
    streams: [Channel; 2],
}

/// What must be remembered of one stream from chunk to chunk.
#[derive(Default)]
struct Channel {
    controlled: Controlled,
    stamp: Stamp,
    lines: Lines,
    hash: Sha256,
}

/// The thread that writes.
pub(super) struct Writer {
    items: mpsc::Receiver<Item>,
    form: Form,
    stdout: Target,
    stderr: Target,
    sources: HashMap<u32, Source>,
    /// Bytes for `current` that are written in one call.
    waiting: Vec<Bytes>,
    current: Stream,
}

impl Writer {
    pub(super) fn new(items: mpsc::Receiver<Item>, form: Form, stdout: Target, stderr: Target) -> Self {
        Self {
            items,
            form,
            stdout,
            stderr,
            sources: HashMap::from([(0, Source::default())]),
            waiting: Vec::new(),
            current: Stream::Stdout,
        }
    }

    /// Writes until every sender of the queue is gone. An error is published before the queue is closed.
    pub(super) fn run(mut self, broken: &Mutex<Option<io::Error>>) {
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
            Item::Open(number, label) => self.open(number, label),
            Item::Attempt(number, attempt) => self.source(number).attempt = Some(attempt),
            Item::Data(number, data) => return self.data(number, data),
            Item::Gap(number, gap) => return self.gap(number, &gap),
            Item::Exit(number, record) => return self.exit(number, &record),
            Item::Close(number) => {
                self.finish(number, Stream::Stdout)?;
                self.finish(number, Stream::Stderr)?;
                self.restore(number)?;
                self.sources.remove(&number);
            }
            Item::Line(line) => {
                self.write()?;
                self.write_line(&line)?;
            }
            Item::Answer(line) => {
                self.write()?;
                self.stderr.is_mid_line |= self.stderr.is_terminal();
                self.write_line(&line)?;
            }
            // The requester may be gone.
            Item::Flush(done) => {
                self.write()?;
                let _ = done.send(());
            }
            Item::Restore(done) => {
                let numbers: Vec<u32> = self.sources.keys().copied().collect();
                numbers.into_iter().try_for_each(|number| self.restore(number))?;
                self.write()?;
                let _ = done.send(());
            }
            Item::Hashes(done) => {
                let hashes = self.source(0).streams.each_ref().map(|channel| channel.hash.clone());
                let _ = done.send(hashes.map(|hash| hash.finalize().into()));
            }
        }
        Ok(())
    }

    fn open(&mut self, number: u32, label: Label) {
        let prefix = match self.form {
            Form::Lines {
                prefix: Some(prefix), ..
            } => label.before(prefix),
            _ => String::new(),
        };
        let source = self.source(number);
        (source.label, source.prefix) = (label, prefix);
    }

    fn source(&mut self, number: u32) -> &mut Source {
        self.sources.entry(number).or_default()
    }

    fn data(&mut self, number: u32, mut data: Data) -> io::Result<()> {
        let stream = data.stream();
        let control = self.sink(stream).control.filter(|_| self.form != Form::Json);
        let form = self.form;
        let source = self.source(number);
        let channel = &mut source.streams[usize::from(stream == Stream::Stderr)];
        if form == Form::Hash {
            channel.hash.update(&data.bytes);
            return Ok(());
        }
        if let Some(control) = control {
            data.bytes = channel.controlled.apply(control, &data);
        }
        if let Form::Bytes { is_stamped } = form {
            if is_stamped {
                data.bytes = channel.stamp.apply(&data.bytes, data.time_unix_nanos).into();
            }
            return self.queue(stream, data.bytes);
        }
        let mut out = Vec::with_capacity(data.bytes.len() * 2);
        let mut lines = std::mem::take(&mut channel.lines);
        lines.take(&data, |line| source.render(form, stream, line, &mut out));
        source.streams[usize::from(stream == Stream::Stderr)].lines = lines;
        self.queue_rendered(stream, out)
    }

    fn gap(&mut self, number: u32, gap: &Gap) -> io::Result<()> {
        self.finish(number, gap.stream())?;
        if self.form == Form::Json {
            let mut out = Vec::new();
            self.source(number).objects().gap(gap, &mut out);
            self.queue(Stream::Stdout, out.into())?;
        }
        Ok(())
    }

    fn exit(&mut self, number: u32, record: &Record) -> io::Result<()> {
        self.finish(number, Stream::Stdout)?;
        self.finish(number, Stream::Stderr)?;
        if self.form == Form::Json {
            let mut out = Vec::new();
            self.source(number).objects().exit(record, &mut out);
            self.queue(Stream::Stdout, out.into())?;
        }
        Ok(())
    }

    /// Restores a terminal from the changes of this source.
    fn restore(&mut self, number: u32) -> io::Result<()> {
        for (index, stream) in remoteprocess_proto::STREAMS.into_iter().enumerate() {
            let Some(source) = self.sources.get_mut(&number) else {
                return Ok(());
            };
            let restored = source.streams[index].controlled.restore();
            self.queue(stream, restored.into())?;
        }
        Ok(())
    }

    /// Writes an unfinished line without its end.
    fn finish(&mut self, number: u32, stream: Stream) -> io::Result<()> {
        let form = self.form;
        let Some(source) = self.sources.get_mut(&number) else {
            return Ok(());
        };
        let mut lines = std::mem::take(&mut source.streams[usize::from(stream == Stream::Stderr)].lines);
        let mut out = Vec::new();
        lines.finish(|line| source.render(form, stream, line, &mut out));
        self.queue_rendered(stream, out)
    }

    /// Objects all go to standard output; each names its stream.
    fn queue_rendered(&mut self, stream: Stream, out: Vec<u8>) -> io::Result<()> {
        let target = if self.form == Form::Json {
            Stream::Stdout
        } else {
            stream
        };
        self.queue(target, out.into())
    }

    fn queue(&mut self, target: Stream, bytes: Bytes) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if target != self.current {
            self.write()?;
            self.current = target;
        }
        self.waiting.push(bytes);
        Ok(())
    }

    fn sink(&mut self, stream: Stream) -> &mut Target {
        if stream == Stream::Stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let written = self.sink(self.current).write_all(&waiting);
        self.waiting = waiting;
        self.waiting.clear();
        written
    }

    /// Our message starts a new line, also if both streams go to one terminal.
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        let is_one_terminal = self.stdout.is_terminal() && self.stderr.is_terminal();
        let is_mid_line = self.stderr.is_mid_line || (is_one_terminal && self.stdout.is_mid_line);
        let mut line = format!("{}{line}", if is_mid_line { "\n" } else { "" });
        if self.stderr.is_terminal() && is_raw() {
            line = line.replace('\n', "\r\n");
        }
        if is_one_terminal {
            self.stdout.is_mid_line = false;
        }
        self.stderr.write_all(&[line.into()])
    }
}

impl Source {
    fn objects(&self) -> Objects<'_> {
        Objects {
            label: &self.label,
            attempt: self.attempt,
        }
    }

    fn render(&self, form: Form, stream: Stream, line: Line<'_>, out: &mut Vec<u8>) {
        let Form::Lines { is_stamped, .. } = form else {
            return self.objects().output(stream, line, out);
        };
        out.extend_from_slice(self.prefix.as_bytes());
        if is_stamped {
            let time = Timestamp::from_nanosecond(line.time_unix_nanos.into()).unwrap_or_default();
            out.extend_from_slice(format!("{time:.9} ").as_bytes());
        }
        if line.is_continued {
            out.extend_from_slice(CUT.as_bytes());
        }
        out.extend_from_slice(line.bytes);
        if !line.is_ended() {
            // Cut, or the last line of the program, which has no line end.
            let is_cut = line.bytes.len() == super::lines::LONGEST;
            out.extend_from_slice(if is_cut { CUT.as_bytes() } else { b"" });
            out.push(b'\n');
        }
    }
}

/// Marks where a line was cut.
const CUT: &str = "…";
