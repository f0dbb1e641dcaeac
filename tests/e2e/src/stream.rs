//! A stream that runs long enough for a fault in the middle of it.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::counting::counting;
use crate::environment::glibc;
use crate::namespace::Namespace;
use crate::program::sha256;
use crate::running::Running;

/// A process that writes for about 15 s: short parts with pauses, then exit code 9.
pub struct SlowStream;

const PARTS: usize = 300;

impl SlowStream {
    /// Bytes of one part.
    pub const PART: usize = 100_000;

    /// Starts it with `rproc run`; the process is called `stream`.
    pub fn start(namespace: &Namespace) -> Result<Running> {
        const PART: usize = SlowStream::PART;
        let last = counting(PARTS * PART).split(|byte| *byte == b'\n').count();
        let script = format!(
            "seq 1 {last} > /tmp/all; for i in $(seq 0 {}); do tail -c +$((i * {PART} + 1)) /tmp/all | head -c {PART}; \
             sleep 0.05; done; echo end >&2; exit 9",
            PARTS - 1
        );
        let command = ["bash", "-c", script.as_str()];
        let run = namespace
            .editor
            .run_image(glibc(), "stream", &command)
            .within(Duration::from_secs(240));
        run.start()
    }

    /// Fails unless the reader received every byte and the exit code.
    pub fn expect_whole(run: Running) -> Result<()> {
        const PART: usize = SlowStream::PART;
        let finished = run.finish()?;
        finished.expect_code(9)?;
        ensure!(
            finished.stdout.len() == PARTS * PART,
            "{} bytes, {}",
            finished.stdout.len(),
            finished.err()
        );
        ensure!(
            sha256(&finished.stdout) == sha256(&counting(PARTS * PART)),
            "other bytes"
        );
        ensure!(finished.err_of_program() == b"end\n", "{}", finished.err());
        Ok(())
    }
}
