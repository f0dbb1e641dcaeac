//! `rproc signal`: sends one signal to a process.

use clap::ValueEnum;
use remoteprocess_client::{Relay, control};
use remoteprocess_proto::v1::{ProcessKey, SignalTarget};

use super::selection;
use crate::args::{GlobalArgs, process_name, signal_number};
use crate::failure::Failure;

/// Flags of `signal`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SignalArgs {
    /// Name of the process
    #[arg(value_parser = process_name)]
    pub name: String,
    /// Name or number of the signal: HUP, SIGUSR1, 10
    #[arg(value_parser = signal_number, value_name = "SIGNAL", required_unless_present = "flag")]
    pub number: Option<i32>,
    /// The signal as a flag, as in kill(1)
    #[arg(id = "flag", short = 's', long = "signal", value_name = "SIGNAL", value_parser = signal_number,
          conflicts_with = "number")]
    pub signal: Option<i32>,
    /// Which processes of the container get the signal
    #[arg(long, value_enum, default_value = "main")]
    pub to: Target,
}

const EXAMPLES: &str = "Examples:
  # Tell a server to reload its configuration
  rproc signal web HUP

  # Stop all processes of the container, and continue them
  rproc signal --to all build STOP
  rproc signal --to all build CONT";

/// The receivers of the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The program alone
    Main,
    /// The program's process group
    Group,
    /// Every process of the container
    All,
}

/// Sends the signal once, however often the call is retried.
pub async fn run(global: &GlobalArgs, args: SignalArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let object = selection::get(&cluster, &args.name).await?;
    let uid = object.metadata.uid.unwrap_or_default();
    let key = ProcessKey {
        namespace: cluster.namespace.clone(),
        name: args.name.clone(),
        uid,
    };
    let target = match args.to {
        Target::Main => SignalTarget::Main,
        Target::Group => SignalTarget::Group,
        Target::All => SignalTarget::All,
    };
    let number = args.number.or(args.signal).unwrap_or_default();
    control::signal(&mut Relay::new(cluster), key, number, target).await?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(
            (signal_number("hup"), signal_number("SIGUSR1"), signal_number("9")),
            (Ok(1), Ok(10), Ok(9))
        );
        assert!(signal_number("SIGNOPE").unwrap_err().contains("HUP INT QUIT"));
    }
}
