//! `rproc signal`: one signal to a process.

use clap::ValueEnum;
use remoteprocess_api::signal::{self, SIGNALS};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{ProcessKey, SignalRequest, SignalTarget};

use super::{Failure, open, stop};
use crate::args::{GlobalArgs, process_name};
use remoteprocess_client::Relay;

/// Flags of `signal`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SignalArgs {
    /// Name of the process
    #[arg(value_parser = process_name)]
    pub name: String,
    /// Name or number of the signal: HUP, SIGUSR1, 10
    #[arg(value_parser = number, value_name = "SIGNAL", required_unless_present = "flag")]
    pub number: Option<i32>,
    /// The same as a flag, as kill(1) has it
    #[arg(id = "flag", short = 's', long = "signal", value_name = "SIGNAL", value_parser = number,
          conflicts_with = "number")]
    pub signal: Option<i32>,
    /// Which processes of the container get it
    #[arg(long, value_enum, default_value = "main")]
    pub to: Target,
}

const EXAMPLES: &str = "Examples:
  # Ask a server to read its configuration again
  rproc signal web HUP

  # Stop every process of the container for a while
  rproc signal --to all build STOP
  rproc signal --to all build CONT";

/// Which processes get the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The program alone
    Main,
    /// The program's process group
    Group,
    /// Every process of the container
    All,
}

/// The number of a signal on the command line.
///
/// # Errors
/// There is no such signal; the sentence lists those that there are.
pub fn number(text: &str) -> Result<i32, String> {
    signal::parse(text).ok_or_else(|| {
        let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| &name[3..]).collect();
        format!(
            "no such signal. There are {}, and numbers from 1 to {}",
            names.join(" "),
            signal::MAX_SIGNAL
        )
    })
}

/// Sends the signal once, however often the call has to be tried.
///
/// # Errors
/// The process does not run, or may not be signalled.
pub async fn run(global: &GlobalArgs, args: SignalArgs) -> Result<u8, Failure> {
    let cluster = open(global).await?;
    let object = stop::get(&cluster, &args.name).await?;
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
    let now = jiff::Timestamp::now().as_nanosecond();
    let request = SignalRequest {
        protocol: PROTOCOL,
        process: Some(key),
        request_id: format!("{now:x}-{:x}", std::process::id()),
        number: args.number.or(args.signal).unwrap_or_default(),
        target: target.into(),
    };
    Relay::new(cluster)
        .call(|mut client| {
            let request = request.clone();
            async move { client.signal(request).await }
        })
        .await?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!((number("hup"), number("SIGUSR1"), number("9")), (Ok(1), Ok(10), Ok(9)));
        assert!(number("SIGNOPE").unwrap_err().contains("HUP INT QUIT"));
    }
}
