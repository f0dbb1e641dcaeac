//! How the program is launched, warned and stopped, and what becomes of its output. The relay sends it with the grant;
//! it is stored with the launch, so that a later agent knows it.

use std::time::Duration;

use remoteprocess_entrypoint::input::WindowSize;
use remoteprocess_entrypoint::message::{Launch as LaunchOrder, Leftovers};
use remoteprocess_proto::v1;
use remoteprocess_proto::v1::launch_settings as wire;
use serde::{Deserialize, Serialize};

use super::Echo;
use super::input::InputError;
use crate::spool::WhenFull;

/// Numbers of signals (signal(7)).
pub const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// How to launch, warn and stop: fixed for the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSettings {
    /// What the entrypoint is told.
    pub order: LaunchOrder,
    /// How the program learns that it will soon have run for too long.
    pub warning: Option<Warning>,
    /// What happens when the spool is full.
    pub when_full: WhenFull,
    /// How much of the output goes into the container's log.
    pub echo: Echo,
}

/// What happens before the run deadline: operator and, by a signal, program learn of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Sent to the program itself.
    pub signal: Option<i32>,
    /// So long before the deadline.
    pub before: Duration,
}

/// Settings with which nothing can be launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are none.
    #[error("the relay granted the start without launch settings: operator and agent must have the same version")]
    Absent,
    /// One of them is missing, or has a value that this agent does not know.
    #[error("the launch setting {0} is missing or unknown: operator and agent must have the same version")]
    Unusable(&'static str),
}

impl LaunchSettings {
    /// Why no client can write, if that is so.
    pub fn refuses_writers(&self) -> Option<InputError> {
        match self.order {
            LaunchOrder {
                stdin_from_file: true, ..
            } => Some(InputError::File),
            LaunchOrder {
                stdin: false,
                terminal: None,
                ..
            } => Some(InputError::None),
            _ => None,
        }
    }

    /// The settings of a grant, checked.
    pub fn from_grant(settings: Option<v1::LaunchSettings>) -> Result<Self, Error> {
        let v1::LaunchSettings {
            merge,
            stdin,
            terminal,
            leftovers,
            when_full,
            echo,
            stop_signal,
            stop_grace,
            run_deadline,
            pause_stops_clock,
            warning,
            agent_lost,
            stdin_from_file,
        } = settings.ok_or(Error::Absent)?;
        if stdin_from_file && (stdin || terminal.is_some()) {
            return Err(Error::Unusable("stdin_from_file"));
        }
        let order = LaunchOrder {
            merge,
            stop_signal: signal(stop_signal, "stop_signal")?,
            stop_grace_millis: millis(duration(stop_grace, "stop_grace")?),
            agent_lost_millis: millis(duration(agent_lost, "agent_lost")?),
            leftovers: match wire::Leftovers::try_from(leftovers) {
                Ok(wire::Leftovers::Kill) => Leftovers::Kill,
                Ok(wire::Leftovers::Wait) => Leftovers::Wait,
                Err(_) => return Err(Error::Unusable("leftovers")),
            },
            run_deadline: run_deadline
                .map(|deadline| match duration(Some(deadline), "run_deadline")? {
                    Duration::ZERO => Err(Error::Unusable("run_deadline")),
                    deadline => Ok(deadline),
                })
                .transpose()?,
            pause_stops_clock,
            stdin,
            stdin_from_file,
            terminal: terminal.map(window),
        };
        Ok(Self {
            order,
            warning: warning.map(Warning::from_wire).transpose()?,
            when_full: match wire::WhenFull::try_from(when_full) {
                Ok(wire::WhenFull::Auto) => WhenFull::Auto,
                Ok(wire::WhenFull::Block) => WhenFull::Block,
                Ok(wire::WhenFull::DropOldest) => WhenFull::DropOldest,
                Err(_) => return Err(Error::Unusable("when_full")),
            },
            echo: match wire::Echo::try_from(echo) {
                Ok(wire::Echo::Limited) => Echo::Limited,
                Ok(wire::Echo::All) => Echo::All,
                Ok(wire::Echo::None) => Echo::None,
                Err(_) => return Err(Error::Unusable("echo")),
            },
        })
    }
}

impl Warning {
    fn from_wire(warning: wire::Warning) -> Result<Self, Error> {
        let wire::Warning { before, signal: number } = warning;
        Ok(Self {
            before: duration(before, "warning.before")?,
            signal: number.map(|number| signal(number, "warning.signal")).transpose()?,
        })
    }
}

/// The size of a terminal as the entrypoint takes it.
pub(crate) fn window(size: v1::WindowSize) -> WindowSize {
    let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
    WindowSize {
        rows: side(size.rows),
        columns: side(size.columns),
    }
}

fn signal(number: i32, name: &'static str) -> Result<i32, Error> {
    Some(number)
        .filter(|number| SIGNALS.contains(number))
        .ok_or(Error::Unusable(name))
}

fn duration(value: Option<impl TryInto<Duration>>, name: &'static str) -> Result<Duration, Error> {
    value
        .and_then(|value| value.try_into().ok())
        .ok_or(Error::Unusable(name))
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use remoteprocess_proto::timing::to_wire;

    use super::*;

    fn granted() -> v1::LaunchSettings {
        let seconds = |seconds| to_wire(Duration::from_secs(seconds));
        v1::LaunchSettings {
            stop_signal: 2,
            stop_grace: seconds(30),
            agent_lost: seconds(600),
            run_deadline: seconds(60),
            warning: Some(wire::Warning {
                before: seconds(5),
                signal: Some(10),
            }),
            echo: wire::Echo::All.into(),
            when_full: wire::WhenFull::Block.into(),
            terminal: Some(v1::WindowSize { rows: 50, columns: 132 }),
            ..v1::LaunchSettings::default()
        }
    }

    #[test]
    fn the_settings_of_a_grant_are_those_of_the_launch() {
        let settings = LaunchSettings::from_grant(Some(granted())).unwrap();
        let order = settings.order;
        assert_eq!((order.stop_signal, order.stop_grace_millis), (2, 30_000));
        assert_eq!(
            (order.run_deadline, order.agent_lost_millis),
            (Some(Duration::from_secs(60)), 600_000)
        );
        assert_eq!(order.terminal, Some(WindowSize { rows: 50, columns: 132 }));
        assert_eq!((settings.echo, settings.when_full), (Echo::All, WhenFull::Block));
        let warning = settings.warning.unwrap();
        assert_eq!((warning.signal, warning.before), (Some(10), Duration::from_secs(5)));
    }

    #[test]
    fn clients_write_into_an_input_of_theirs_and_into_a_terminal_only() {
        let of = |stdin, stdin_from_file, has_terminal: bool| {
            let settings = v1::LaunchSettings {
                stdin,
                stdin_from_file,
                terminal: has_terminal.then_some(v1::WindowSize { rows: 1, columns: 1 }),
                ..granted()
            };
            LaunchSettings::from_grant(Some(settings)).unwrap()
        };
        assert_eq!(of(false, false, false).refuses_writers(), Some(InputError::None));
        assert_eq!(of(true, false, false).refuses_writers(), None);
        assert_eq!(of(false, false, true).refuses_writers(), None);
        let from_file = of(false, true, false);
        assert_eq!(from_file.refuses_writers(), Some(InputError::File));
        assert!(from_file.order.stdin_from_file);
    }

    #[test]
    fn the_input_is_where_the_controller_mounts_it() {
        use remoteprocess_proto::pod;
        assert_eq!(pod::STDIN_FILE, remoteprocess_entrypoint::STDIN_FILE);
        assert_eq!(pod::STDIN_FILE, format!("{}/{}", pod::STDIN_PATH, pod::STDIN_NAME));
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused_by_name() {
        let refused = |change: fn(&mut v1::LaunchSettings)| {
            let mut settings = granted();
            change(&mut settings);
            LaunchSettings::from_grant(Some(settings)).unwrap_err()
        };
        assert_eq!(LaunchSettings::from_grant(None), Err(Error::Absent));
        assert_eq!(refused(|s| s.stop_signal = 65), Error::Unusable("stop_signal"));
        assert_eq!(refused(|s| s.stop_grace = None), Error::Unusable("stop_grace"));
        assert_eq!(refused(|s| s.agent_lost = None), Error::Unusable("agent_lost"));
        assert_eq!(refused(|s| s.echo = 9), Error::Unusable("echo"));
        assert_eq!(refused(|s| s.when_full = 9), Error::Unusable("when_full"));
        assert_eq!(refused(|s| s.leftovers = 9), Error::Unusable("leftovers"));
        assert_eq!(
            refused(|s| s.stdin_from_file = true),
            Error::Unusable("stdin_from_file")
        );
        let two_inputs = |s: &mut v1::LaunchSettings| {
            (s.stdin, s.stdin_from_file, s.terminal) = (true, true, None);
        };
        assert_eq!(refused(two_inputs), Error::Unusable("stdin_from_file"));
        let no_time = |s: &mut v1::LaunchSettings| s.run_deadline = Some(Default::default());
        assert_eq!(refused(no_time), Error::Unusable("run_deadline"));
        let warning = |s: &mut v1::LaunchSettings| s.warning = Some(wire::Warning::default());
        assert_eq!(refused(warning), Error::Unusable("warning.before"));
    }
}
