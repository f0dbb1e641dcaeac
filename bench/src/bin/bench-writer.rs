//! The program that is followed. It runs in the containers, so it is linked statically and needs nothing there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::time::{ClockId, clock_gettime};

/// Bytes of a line with its end.
const LINE: usize = 100;

/// Writes lines of 100 bytes to standard output.
#[derive(Parser)]
struct Args {
    /// Bytes to write before the gate
    #[arg(long, default_value_t = 0)]
    warm: usize,
    /// Bytes to write behind the gate
    #[arg(long)]
    bytes: usize,
    /// Bytes of each write(2)
    #[arg(long, default_value_t = LINE)]
    block: usize,
    /// Pause of this many microseconds, give or take a third, before each line, which then begins with the time
    #[arg(long)]
    pause: Option<u64>,
    /// Wait for this file
    #[arg(long)]
    gate: Option<PathBuf>,
    /// Nanoseconds that the writes behind the gate took
    #[arg(long)]
    result: Option<PathBuf>,
    /// Stay until this file is there
    #[arg(long)]
    hold: Option<PathBuf>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    // Not the locked and buffered handle: each write is one write(2).
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    write_blocks(&mut out, args.warm, args.block)?;
    wait_for(args.gate.as_deref());
    let begin = Instant::now();
    match args.pause {
        None => write_blocks(&mut out, args.bytes, args.block)?,
        Some(pause) => write_stamped(&mut out, args.bytes / LINE, pause)?,
    }
    let took = begin.elapsed();
    if let Some(path) = &args.result {
        let partial = path.with_extension("partial");
        fs::write(&partial, took.as_nanos().to_string())?;
        fs::rename(partial, path)?;
    }
    wait_for(args.hold.as_deref());
    Ok(())
}

fn wait_for(file: Option<&Path>) {
    while file.is_some_and(|file| !file.exists()) {
        sleep(Duration::from_millis(5));
    }
}

fn write_blocks(out: &mut File, bytes: usize, block: usize) -> io::Result<()> {
    let line = [&[b'x'; LINE - 1][..], b"\n"].concat();
    // Each block is cut out of the same endless text.
    let text = line.repeat(block);
    let mut left = bytes;
    for block in text.chunks(block).cycle() {
        let block = &block[..block.len().min(left)];
        if block.is_empty() {
            break;
        }
        out.write_all(block)?;
        left -= block.len();
    }
    Ok(())
}

fn write_stamped(out: &mut File, lines: usize, pause: u64) -> io::Result<()> {
    for number in 0..lines as u64 {
        // Seven steps, so that the pauses do not synchronize with another timer.
        let part = number.wrapping_mul(5) % 7;
        sleep(Duration::from_micros(pause * 2 / 3 + pause * part / 9));
        let now = clock_gettime(ClockId::Monotonic);
        let stamp = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let mut line = format!("{stamp:020} ");
        line.extend(std::iter::repeat_n('x', LINE - 1 - line.len()));
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    Ok(())
}
