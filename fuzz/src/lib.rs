//! Fuzz targets: input of peers, users and damaged stores, and what must be true for every input.
//!
//! Each module is one target. Its `run` takes an input, panics if something does not hold, and says whether the input was
//! taken or refused. `cargo xtask fuzz` runs it under libFuzzer; the test `corpus` runs it on each file in `corpus/`. The
//! first byte of an input chooses between several forms of input.
//!
//! Arrows: a test crate, it may use any of ours; nothing depends on it. Invariant: a target does no I/O and starts no task,
//! so an input that fails fails again.

pub mod archive;
pub mod messages;
pub mod object;
pub mod requests;
pub mod role;
mod signer;
pub mod wire;

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of the module, the program and the folder in `corpus/`.
    pub name: &'static str,
    /// Judges one input; true if it was taken, false if it was refused.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to begin with, each with its name. Those whose name begins with [`ODD`] are refused, the others are taken.
    pub seeds: fn() -> Vec<Seed>,
}

/// An input to begin with, and its name.
pub type Seed = (&'static str, Vec<u8>);

/// How the names of inputs begin that are refused.
pub const ODD: &str = "odd-";

/// All targets.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "requests",
        run: requests::run,
        seeds: requests::seeds,
    },
    Target {
        name: "archive",
        run: archive::run,
        seeds: archive::seeds,
    },
    Target {
        name: "wire",
        run: wire::run,
        seeds: wire::seeds,
    },
    Target {
        name: "role",
        run: role::run,
        seeds: role::seeds,
    },
    Target {
        name: "messages",
        run: messages::run,
        seeds: messages::seeds,
    },
    Target {
        name: "object",
        run: object::run,
        seeds: object::seeds,
    },
];

/// Takes an input apart. After its end come zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    fn number(&mut self) -> u64 {
        let mut number = [0; 8];
        let bytes = self.bytes(8);
        number[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(number)
    }

    /// Takes at most this number of bytes.
    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A seed of a form: the form, then what follows it.
fn form(form: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[form][..], parts.concat().as_slice()].concat()
}
