//! What an agent is told with its grant: from the spec to launch settings.

use std::time::Duration;

use remoteprocess_api::{Echo, Leftovers, RemoteProcessSpec, WhenFull, signal};
use remoteprocess_proto::timing::to_wire;
use remoteprocess_proto::v1::launch_settings::{self as wire, Warning};
use remoteprocess_proto::v1::{LaunchSettings, WindowSize};

/// Without an agent for so long, the entrypoint stops the program.
const AGENT_LOST: Duration = Duration::from_secs(600);

/// The settings of a launch by this spec.
pub(crate) fn launch_settings(spec: &RemoteProcessSpec) -> Result<LaunchSettings, String> {
    let deadlines = spec.deadlines.clone().unwrap_or_default();
    let seconds = |seconds: u32| to_wire(Duration::from_secs(seconds.into()));
    let number = |field, name: &str| signal::parse(name).ok_or_else(|| format!("{field}: there is no signal {name}"));
    let warn_signal = deadlines.warn_signal.as_deref();
    let warn_signal = warn_signal
        .map(|name| number("spec.deadlines.warnSignal", name))
        .transpose()?;
    Ok(LaunchSettings {
        merge: spec.merge(),
        stdin: spec.stdin.unwrap_or_default(),
        terminal: spec.terminal().map(|size| WindowSize {
            rows: size.rows.into(),
            columns: size.columns.into(),
        }),
        leftovers: match spec.leftovers.unwrap_or_default() {
            Leftovers::Kill => wire::Leftovers::Kill,
            Leftovers::Wait => wire::Leftovers::Wait,
        }
        .into(),
        when_full: match spec.when_full() {
            WhenFull::Auto => wire::WhenFull::Auto,
            WhenFull::Block => wire::WhenFull::Block,
            WhenFull::DropOldest => wire::WhenFull::DropOldest,
        }
        .into(),
        echo: match spec.echo() {
            Echo::Limited => wire::Echo::Limited,
            Echo::All => wire::Echo::All,
            Echo::None => wire::Echo::None,
        }
        .into(),
        stop_signal: number("spec.stop.signal", spec.stop_signal())?,
        stop_grace: seconds(spec.stop_grace_seconds()),
        run_deadline: spec.run_deadline().and_then(to_wire),
        pause_stops_clock: !spec.counts_pauses(),
        warning: deadlines.warn_before_seconds.map(|before| Warning {
            before: seconds(before),
            signal: warn_signal,
        }),
        agent_lost: to_wire(AGENT_LOST),
        stdin_from_file: spec.stdin_from.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(spec: &str) -> Result<LaunchSettings, String> {
        launch_settings(&serde_saphyr::from_str(&format!("image: busybox\ncommand: [a]\n{spec}")).unwrap())
    }

    #[test]
    fn a_spec_that_says_nothing_has_the_defaults() {
        let settings = settings("").unwrap();
        assert_eq!(
            (settings.leftovers(), settings.when_full(), settings.echo()),
            (wire::Leftovers::Kill, wire::WhenFull::Auto, wire::Echo::Limited)
        );
        assert_eq!((settings.stop_signal, settings.stop_grace.unwrap().seconds), (15, 30));
        assert_eq!(
            (settings.run_deadline, settings.warning, settings.terminal),
            (None, None, None)
        );
        assert_eq!(
            (settings.merge, settings.stdin, settings.pause_stops_clock),
            (false, false, false)
        );
    }

    #[test]
    fn everything_that_concerns_the_launch_is_told() {
        let settings = settings(
            "stdin: true\ntty: true\nttySize: {rows: 50, columns: 132}\nleftovers: Wait\n\
             stop: {signal: SIGINT, gracePeriodSeconds: 120}\n\
             output: {whenFull: DropOldest, echo: None, merge: true}\n\
             deadlines: {runSeconds: 3600, warnSignal: SIGUSR1, warnBeforeSeconds: 300, countPaused: false}",
        )
        .unwrap();
        let seconds = |seconds| to_wire(Duration::from_secs(seconds));
        let told = LaunchSettings {
            merge: true,
            stdin: true,
            terminal: Some(WindowSize { rows: 50, columns: 132 }),
            leftovers: wire::Leftovers::Wait.into(),
            when_full: wire::WhenFull::DropOldest.into(),
            echo: wire::Echo::None.into(),
            stop_signal: 2,
            stop_grace: seconds(120),
            run_deadline: seconds(3600),
            pause_stops_clock: true,
            warning: Some(Warning {
                before: seconds(300),
                signal: Some(10),
            }),
            agent_lost: seconds(600),
            stdin_from_file: false,
        };
        assert_eq!(settings, told);
    }

    #[test]
    fn an_input_that_is_a_key_is_told_as_a_file() {
        let settings = settings("stdinFrom: {secretKeyRef: {name: a, key: b}}").unwrap();
        assert_eq!(
            (settings.stdin_from_file, settings.stdin, settings.terminal),
            (true, false, None)
        );
        assert!(!self::settings("").unwrap().stdin_from_file);
    }

    #[test]
    fn a_terminal_without_a_size_has_the_usual_one() {
        let size = settings("tty: true").unwrap().terminal.unwrap();
        assert_eq!((size.rows, size.columns), (24, 80));
        assert_eq!(settings("ttySize: {rows: 1, columns: 1}").unwrap().terminal, None);
    }

    #[test]
    fn a_signal_that_does_not_exist_is_named() {
        let refused = settings("stop: {signal: SIGNOPE}").unwrap_err();
        assert_eq!(refused, "spec.stop.signal: there is no signal SIGNOPE");
        let refused = settings("deadlines: {warnSignal: SIGNOPE, warnBeforeSeconds: 1}").unwrap_err();
        assert_eq!(refused, "spec.deadlines.warnSignal: there is no signal SIGNOPE");
    }
}
