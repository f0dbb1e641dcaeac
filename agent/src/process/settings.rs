//! How the program is launched, warned and stopped, and what becomes of its output. The relay sends it with the grant;
//! it is stored with the launch, so that a later agent knows it.

use std::time::Duration;

use remoteprocess_entrypoint::input::WindowSize;
use remoteprocess_entrypoint::message::{Launch as LaunchOrder, Leftovers};
use remoteprocess_proto::v1;
use remoteprocess_proto::v1::launch_settings as wire;
use serde::{Deserialize, Serialize};

use super::Echo;
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
    /// Whether the program has an input or a terminal.
    pub const fn has_input(&self) -> bool {
        self.order.stdin || self.order.terminal.is_some()
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
        } = settings.ok_or(Error::Absent)?;
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
        let no_time = |s: &mut v1::LaunchSettings| s.run_deadline = Some(Default::default());
        assert_eq!(refused(no_time), Error::Unusable("run_deadline"));
        let warning = |s: &mut v1::LaunchSettings| s.warning = Some(wire::Warning::default());
        assert_eq!(refused(warning), Error::Unusable("warning.before"));
    }
}
