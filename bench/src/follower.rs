//! A client whose output is counted and discarded by the kernel, so that reading it costs almost nothing.

use std::fs::File;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Program, until};
use rustix::pipe::{SpliceFlags, splice};

/// How long a follower may receive nothing before it counts as stalled.
const STALL: Duration = Duration::from_secs(20);

/// A running client.
pub(crate) struct Follower {
    child: Child,
    progress: Arc<Mutex<Progress>>,
    warm: usize,
}

/// What arrived after the warm-up.
#[derive(Clone, Copy)]
pub(crate) struct Progress {
    /// Bytes, those of the warm-up included.
    total: usize,
    /// When the first byte after the warm-up arrived.
    pub first: Option<Instant>,
    /// When the last byte came.
    pub last: Instant,
}

impl Follower {
    /// Starts the client, whose first `warm` bytes are not measured.
    pub(crate) fn start(client: Program, warm: usize) -> Result<Self> {
        let mut command = client.into_command();
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let progress = Arc::new(Mutex::new(Progress {
            total: 0,
            first: None,
            last: Instant::now(),
        }));
        let shared = progress.clone();
        thread::spawn(move || drain(&stdout, warm, &shared));
        Ok(Self { child, progress, warm })
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the warm-up is over.
    pub(crate) fn wait_warm(&mut self) -> Result<()> {
        until("the warm-up", Duration::from_secs(60), || {
            ensure!(self.child.try_wait()?.is_none(), "the client has ended");
            Ok(self.received().total >= self.warm)
        })
    }

    /// Waits until `size` more bytes than the warm-up have arrived, or nothing arrives anymore.
    pub(crate) fn wait_for(&self, size: usize) -> Progress {
        let begin = Instant::now();
        loop {
            let progress = self.received();
            let still = progress.last.max(begin).elapsed();
            if progress.total >= self.warm + size || still > STALL {
                return progress;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn received(&self) -> Progress {
        *self.progress.lock().expect("no holder panics")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Progress {
    /// Number of bytes without a warm-up of `warm` bytes.
    pub(crate) fn bytes(&self, warm: usize) -> usize {
        self.total.saturating_sub(warm)
    }
}

fn drain(stdout: &ChildStdout, warm: usize, progress: &Mutex<Progress>) {
    let Ok(nowhere) = File::create("/dev/null") else {
        return;
    };
    while let Ok(count @ 1..) = splice(stdout, None, &nowhere, None, 1 << 20, SpliceFlags::empty()) {
        let mut progress = progress.lock().expect("no holder panics");
        progress.total += count;
        progress.last = Instant::now();
        if progress.total > warm && progress.first.is_none() {
            progress.first = Some(progress.last);
        }
    }
}
