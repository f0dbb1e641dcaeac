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
    #[must_use]
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

impl Record for Welcomed {
    const NAME: &'static str = "secret";
}
impl Record for Launch {
    const NAME: &'static str = "launch";
}
impl Record for Started {
    const NAME: &'static str = "started";
}
impl Record for RunClock {
    const NAME: &'static str = "clock";
}
impl Record for Warned {
    const NAME: &'static str = "warned";
}
impl Record for Stop {
    const NAME: &'static str = "stop";
}
impl Record for Ending {
    const NAME: &'static str = "exit";
}
impl Record for Closed {
    const NAME: &'static str = "seal";
}
impl Record for Lease {
    const NAME: &'static str = "writer";
}
impl Record for Done {
    const NAME: &'static str = "done";
}

/// All facts so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// See [`Welcomed`].
    pub welcomed: Option<Welcomed>,
    /// See [`Launch`].
    pub launch: Option<Launch>,
    /// See [`Started`].
    pub started: Option<Started>,
    /// How long the program runs, may run, and whether it is paused.
    pub clock: Option<RunClock>,
    /// See [`Warned`].
    pub warned: Option<Warned>,
    /// See [`Stop`].
    pub stop: Option<Stop>,
    /// See [`Ending`].
    pub ending: Option<Ending>,
    /// See [`Closed`].
    pub closed: Option<Closed>,
    /// See [`Lease`].
    pub lease: Option<Lease>,
}

impl Facts {
    /// Reads what an earlier agent of this attempt left.
    ///
    /// # Errors
    /// When a record is there and cannot be read.
    pub fn load(directory: &Path) -> Result<Self, spool::Error> {
        Ok(Self {
            welcomed: record::load(directory)?,
            launch: record::load(directory)?,
            started: record::load(directory)?,
            clock: record::load(directory)?,
            warned: record::load(directory)?,
            stop: record::load(directory)?,
            ending: record::load(directory)?,
            closed: record::load(directory)?,
            lease: record::load(directory)?,
        })
    }

    /// The current run deadline of the program.
    #[must_use]
    pub fn run_deadline(&self) -> Option<Duration> {
        self.clock.and_then(|clock| clock.run_deadline())
    }

    /// Whether the warning for the current run deadline was given.
    #[must_use]
    pub fn is_warned(&self) -> bool {
        self.warned
            .is_some_and(|warned| Some(warned.run_deadline) == self.run_deadline())
    }
}

/// One fact to be stored.
#[derive(Clone, Debug)]
pub enum Fact {
    /// See [`Welcomed`].
    Welcomed(Welcomed),
    /// See [`Launch`].
    Launch(Launch),
    /// See [`Started`].
    Started(Started),
    /// See [`Facts::clock`].
    Clock(RunClock),
    /// See [`Warned`].
    Warned(Warned),
    /// See [`Stop`].
    Stop(Stop),
    /// See [`Ending`].
    Ending(Ending),
    /// See [`Closed`].
    Closed(Closed),
    /// See [`Lease`].
    Lease(Lease),
}

impl Fact {
    /// Stores it durably.
    ///
    /// # Errors
    /// When the volume refuses.
    pub fn store(&self, directory: &Path) -> Result<(), spool::Error> {
        match self {
            Self::Welcomed(fact) => record::store(directory, fact),
            Self::Launch(fact) => record::store(directory, fact),
            Self::Started(fact) => record::store(directory, fact),
            Self::Clock(fact) => record::store(directory, fact),
            Self::Warned(fact) => record::store(directory, fact),
            Self::Stop(fact) => record::store(directory, fact),
            Self::Ending(fact) => record::store(directory, fact),
            Self::Closed(fact) => record::store(directory, fact),
            Self::Lease(fact) => record::store(directory, fact),
        }
    }
}
