//! What is recorded about the process: each fact is on the spool before anything relies on it.

use std::path::Path;
use std::time::Duration;

use remoteprocess_entrypoint::message::{Exited, Secret, StopCause};
use remoteprocess_entrypoint::run_clock::RunClock;
use remoteprocess_proto::v1::SealReason;
use serde::{Deserialize, Serialize};

use super::input::Lease;
use super::settings::LaunchSettings;
use crate::spool::{self, record, record::Record};

/// The secret with which the entrypoint proves its identity when it reconnects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcomed {
    /// As sent in the first welcome.
    pub secret: Secret,
}

/// The launch was granted and may have been ordered: no other entrypoint will ever be told to launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// When, in nanoseconds since the Unix epoch.
    pub at_unix_nanos: i64,
    /// How.
    pub settings: LaunchSettings,
}

/// The program was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process id in its container.
    pub pid: u32,
    /// When, in nanoseconds since the Unix epoch.
    pub at_unix_nanos: i64,
}

/// A request to end the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// User name, or the part of the system that asked.
    pub requested_by: String,
    /// The reason that was given.
    pub message: String,
    /// First signal of the stop path.
    pub signal: i32,
    /// Time between that signal and SIGKILL, milliseconds.
    pub grace_millis: u64,
    /// Which kind of component asked.
    pub cause: StopCause,
}

/// The program was warned that it will be stopped for having run too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warned {
    /// The run deadline at that time.
    pub run_deadline: Duration,
}

/// How the process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// As the entrypoint reported.
    Reported(Exited),
    /// The entrypoint vanished without a report.
    Lost {
        /// When that was noticed, in nanoseconds since the Unix epoch.
        at_unix_nanos: i64,
    },
    /// It was stopped before it was launched, and never was.
    Cancelled {
        /// When, in nanoseconds since the Unix epoch.
        at_unix_nanos: i64,
    },
}

/// The output is complete as far as it will ever be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closed {
    /// The pipes were read to their end.
    Whole,
    /// A process still held the pipes after the last known process was gone.
    PipeHeld,
    /// The entrypoint vanished with the pipes while this agent was away.
    EntrypointLost,
}

impl Closed {
    /// Why the seal is not whole; unspecified for a whole output.
    pub const fn reason(self) -> SealReason {
        match self {
            Self::Whole => SealReason::Unspecified,
            Self::PipeHeld => SealReason::PipeHeld,
            Self::EntrypointLost => SealReason::EntrypointLost,
        }
    }
}

/// Everything is archived and recorded elsewhere: a restarted agent has nothing to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    /// When, in nanoseconds since the Unix epoch.
    pub at_unix_nanos: i64,
}

impl Record for Done {
    const NAME: &'static str = "done";
}

/// Lists the facts once: the field of [`Facts`], the variant of [`Fact`], the type, and the file on the spool.
macro_rules! facts {
    ($($field:ident: $variant:ident($type:ty) in $file:literal,)*) => {
        $(impl Record for $type {
            const NAME: &'static str = $file;
        })*

        /// All facts so far.
        #[derive(Clone, Debug, Default)]
        pub struct Facts {
            $(#[doc = concat!("See [`", stringify!($type), "`].")] pub $field: Option<$type>,)*
        }

        impl Facts {
            /// Reads what an earlier agent of this attempt left. A record that cannot be read is an error.
            pub fn load(directory: &Path) -> Result<Self, spool::Error> {
                Ok(Self { $($field: record::load(directory)?,)* })
            }
        }

        /// One fact to be stored.
        #[derive(Clone, Debug)]
        pub enum Fact {
            $(#[doc = concat!("See [`", stringify!($type), "`].")] $variant($type),)*
        }

        impl Fact {
            /// Stores it durably.
            pub fn store(&self, directory: &Path) -> Result<(), spool::Error> {
                match self {
                    $(Self::$variant(fact) => record::store(directory, fact),)*
                }
            }
        }
    };
}

facts! {
    welcomed: Welcomed(Welcomed) in "secret",
    launch: Launch(Launch) in "launch",
    started: Started(Started) in "started",
    clock: Clock(RunClock) in "clock",
    warned: Warned(Warned) in "warned",
    stop: Stop(Stop) in "stop",
    ending: Ending(Ending) in "exit",
    closed: Closed(Closed) in "seal",
    lease: Lease(Lease) in "writer",
}

impl Facts {
    /// The current run deadline of the program.
    pub fn run_deadline(&self) -> Option<Duration> {
        self.clock.and_then(|clock| clock.run_deadline())
    }

    /// Whether the warning for the current run deadline was given.
    pub fn is_warned(&self) -> bool {
        self.warned
            .is_some_and(|warned| Some(warned.run_deadline) == self.run_deadline())
    }
}
