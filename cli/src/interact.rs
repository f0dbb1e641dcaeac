//! The input of a process: keys or a file, and the size of the window.

use std::io::{self, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use remoteprocess_proto::v1::{ProcessKey, WindowSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::tcgetwinsize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

mod keys;
pub mod signals;
mod stdin;
pub mod terminal;

pub use keys::{DEFAULT_DETACH_KEYS, DetachKeys};
pub use stdin::check as check_stdin;

use keys::Keys;
use remoteprocess_client::Dial;
use remoteprocess_client::attach::{SHORTER, Writer};
use remoteprocess_client::stream::{self, Local};
use terminal::RawTerminal;

/// Bytes read from standard input at a time.
const READ: usize = 16 * 1024;
/// Number of keyboard reads that are buffered while there is no connection, so that the detach keys are still seen.
const TYPED: usize = 4096;
/// How long to try to tell the relay that the input is free.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long the first of the detach keys waits for the next one.
const NEXT_KEY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};
/// Ctrl-C, as a terminal in raw mode delivers it.
const INTERRUPT: u8 = 3;

/// How to interact.
#[derive(Clone, Debug)]
pub struct Manner {
    /// The process is at a terminal.
    pub tty: bool,
    /// Keys that detach from it.
    pub detach_keys: DetachKeys,
    /// Take the input away from the current writer.
    pub take_over: bool,
    /// Whether a full-screen program should draw its screen again.
    pub redraw: bool,
}

/// Why the interaction cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream to the process has failed for good.
    #[error(transparent)]
    Stream(#[from] stream::Error),
    /// Standard input cannot be read to its end.
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
}

/// An event that ends an interaction, or its input.
#[derive(Debug)]
pub enum Event {
    /// The detach keys were typed.
    Detached,
    /// Ctrl-C was typed, and there is no process yet that could receive it.
    Interrupted,
    /// Nothing can be written anymore, and why.
    Lost(Error),
}

/// A running interaction. Dropping it restores the terminal.
pub struct Interaction {
    events: mpsc::Receiver<Event>,
    /// Keeps `events` open if nothing is sent.
    sender: mpsc::Sender<Event>,
    raw: Option<RawTerminal>,
    leaving: watch::Sender<bool>,
    writing: Option<JoinHandle<()>>,
    has_begun: Arc<AtomicBool>,
}

impl Interaction {
    /// No interaction: the process is only watched.
    pub fn none() -> Self {
        let (sender, events) = mpsc::channel(4);
        Self {
            events,
            sender,
            raw: None,
            leaving: watch::Sender::new(false),
            writing: None,
            has_begun: Arc::default(),
        }
    }

    /// Passes standard input to the process from now on; for a terminal and a process at one, key by key.
    pub fn start<D: Dial + 'static>(dial: D, process: ProcessKey, manner: Manner) -> io::Result<Self> {
        let mut writer = Writer::new(dial, process, manner.take_over, manner.redraw);
        let is_raw = manner.tty && io::stdin().is_terminal();
        let keys = is_raw.then(|| (manner.detach_keys, writer.has_begun()));
        let (mut interaction, said) = Self::read(keys)?;
        interaction.has_begun = writer.has_begun();
        if let Some(size) = window().filter(|_| is_raw) {
            writer.resize(size);
        }
        let (lost, left) = (interaction.sender.clone(), interaction.leaving.subscribe());
        interaction.writing = Some(tokio::spawn(async move {
            if let Err(error) = writer.run(said, left).await {
                // The receiver may be gone.
                let _ = lost.send(Event::Lost(error.into())).await;
            }
        }));
        Ok(interaction)
    }

    /// Reads standard input from now on. With keys, the input is a terminal that is read key by key; the keys detach,
    /// and the flag says whether the process can receive Ctrl-C.
    pub fn read(keys: Option<(DetachKeys, Arc<AtomicBool>)>) -> io::Result<(Self, mpsc::Receiver<Local>)> {
        // Before the terminal is changed: from then on it must be restored.
        let stops = keys.is_some().then(Stops::listen).transpose()?;
        let raw = keys.is_some().then(|| RawTerminal::enter(&io::stdin())).transpose()?;
        let (local, said) = mpsc::channel(if raw.is_some() { TYPED } else { 4 });
        if let Some(stops) = stops {
            tokio::spawn(watch_window(local.clone()));
            tokio::spawn(stops.watch(local.clone()));
        }
        let keyboard = keys.map(|(keys, has_begun)| Keyboard {
            keys: Keys::new(keys),
            has_begun,
        });
        let interaction = Self { raw, ..Self::none() };
        let over = interaction.sender.clone();
        // Not a task: nothing wakes a blocking read of a terminal, and the program must not wait for it at its end.
        thread::Builder::new().spawn(move || read(keyboard, &local, &over))?;
        Ok((interaction, said))
    }

    /// Becomes true once the process takes what is written.
    pub fn has_begun(&self) -> Arc<AtomicBool> {
        self.has_begun.clone()
    }

    /// Whether each key goes to the process, Ctrl-C too.
    pub fn is_raw(&self) -> bool {
        self.raw.is_some()
    }

    /// Restores the terminal and lets go of the input, so that another client can take it.
    pub async fn leave(mut self) {
        self.raw = None;
        self.leaving.send_replace(true);
        if let Some(writing) = self.writing.take() {
            let _ = timeout(FAREWELL, writing).await;
        }
    }

    /// The next event, if there is one. Safe to cancel.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

/// The size of a terminal about which nothing is known (terminfo's `vt100`).
pub const DEFAULT_WINDOW: WindowSize = WindowSize { rows: 24, columns: 80 };

/// Size of the window of standard input, or of another standard stream.
pub fn window() -> Option<WindowSize> {
    let sizes = [
        tcgetwinsize(io::stdin()),
        tcgetwinsize(io::stdout()),
        tcgetwinsize(io::stderr()),
    ];
    let mut sizes = sizes.into_iter().flatten();
    let size = sizes.find(|size| size.ws_row > 0 && size.ws_col > 0)?;
    Some(WindowSize {
        rows: size.ws_row.into(),
        columns: size.ws_col.into(),
    })
}

async fn watch_window(local: mpsc::Sender<Local>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    while changes.recv().await.is_some() {
        if let Some(size) = window()
            && local.send(Local::Resize(size)).await.is_err()
        {
            return;
        }
    }
}

/// The shell may stop this program and continue it, as with `kill -TSTP` and `fg`.
struct Stops {
    stopped: Option<tokio::signal::unix::Signal>,
    continued: tokio::signal::unix::Signal,
}

impl Stops {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            stopped: signals::listen(SignalKind::from_raw(Signal::TSTP.as_raw()))?,
            continued: signal(SignalKind::from_raw(Signal::CONT.as_raw()))?,
        })
    }

    /// Restores the terminal for the shell while this program is stopped.
    async fn watch(mut self, local: mpsc::Sender<Local>) {
        loop {
            tokio::select! {
                () = signals::received(&mut self.stopped) => {
                    terminal::suspend();
                    // This thread may run on for a moment: the next step waits for the signal to continue. If this
                    // fails, there is nothing left to do.
                    let _ = kill_process(getpid(), Signal::STOP);
                }
                continued = self.continued.recv() => {
                    if continued.is_none() {
                        return;
                    }
                    terminal::resume();
                    if redraw(&local).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The shell has written to the window. A full-screen program draws its screen again when the size changes.
async fn redraw(local: &mpsc::Sender<Local>) -> Result<(), mpsc::error::SendError<Local>> {
    let Some(size) = window().filter(|size| size.rows > 1) else {
        return Ok(());
    };
    let rows = size.rows - 1;
    local.send(Local::Resize(WindowSize { rows, ..size })).await?;
    sleep(SHORTER).await;
    local.send(Local::Resize(window().unwrap_or(size))).await
}

/// A terminal in raw mode, key by key.
struct Keyboard {
    keys: Keys,
    /// Whether the process has received input.
    has_begun: Arc<AtomicBool>,
}

impl Keyboard {
    /// Sends what is typed. Returns true if the user leaves.
    fn typed(&mut self, typed: &[u8], local: &mpsc::Sender<Local>, over: &mpsc::Sender<Event>) -> bool {
        let (bytes, is_detached) = self.keys.apply(typed);
        self.send(bytes, is_detached, local, over)
    }

    /// Sends the keys that were held back for the rest of the detach keys, which did not come.
    fn release(&mut self, local: &mpsc::Sender<Local>, over: &mpsc::Sender<Event>) -> bool {
        let bytes = self.keys.release();
        self.send(bytes, false, local, over)
    }

    fn send(&self, bytes: Vec<u8>, is_detached: bool, local: &mpsc::Sender<Local>, over: &mpsc::Sender<Event>) -> bool {
        let is_interrupt = bytes.contains(&INTERRUPT);
        if is_interrupt && !self.has_begun.load(Ordering::Relaxed) {
            // The receiver may be gone.
            return over.blocking_send(Event::Interrupted).is_err();
        }
        let is_taken = bytes.is_empty() || local.blocking_send(Local::Bytes(Bytes::from(bytes))).is_ok();
        // If nothing takes the input anymore, Ctrl-C leaves as well.
        let leaves = is_detached || (is_interrupt && !is_taken);
        if leaves {
            let _ = over.blocking_send(Event::Detached);
        }
        leaves
    }
}

/// Reads until the end of the input or the detach keys.
fn read(mut keyboard: Option<Keyboard>, local: &mpsc::Sender<Local>, over: &mpsc::Sender<Event>) {
    let mut stdin = io::stdin();
    let mut buffer = vec![0; READ];
    loop {
        if let Some(keyboard) = keyboard.as_mut().filter(|keyboard| keyboard.keys.is_waiting())
            && !is_readable(&stdin, NEXT_KEY)
            && keyboard.release(local, over)
        {
            return;
        }
        let length = match stdin.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Another process has made the pipe non-blocking: wait for data.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match readable(&stdin) {
                Ok(()) => continue,
                Err(error) => return lost(error, local, over),
            },
            Err(error) => return lost(error, local, over),
        };
        if length == 0 {
            let _ = local.blocking_send(Local::End);
            return;
        }
        let read = &buffer[..length];
        let is_over = match &mut keyboard {
            Some(keyboard) => keyboard.typed(read, local, over),
            None => local.blocking_send(Local::Bytes(Bytes::copy_from_slice(read))).is_err(),
        };
        if is_over {
            return;
        }
    }
}

/// The input was not read completely. That is reported first, so that the following end is never a success. Without an
/// end the program would wait forever.
fn lost(error: io::Error, local: &mpsc::Sender<Local>, over: &mpsc::Sender<Event>) {
    // The receivers may be gone.
    let _ = over.blocking_send(Event::Lost(Error::Input(error)));
    let _ = local.blocking_send(Local::End);
}

/// Whether there is something to read within this time.
fn is_readable(stdin: &io::Stdin, limit: Timespec) -> bool {
    let mut wanted = [PollFd::new(stdin, PollFlags::IN)];
    // On an error, the read reports what is wrong.
    !matches!(poll(&mut wanted, Some(&limit)), Ok(0))
}

fn readable(stdin: &io::Stdin) -> io::Result<()> {
    let mut wanted = [PollFd::new(stdin, PollFlags::IN)];
    match poll(&mut wanted, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
