//! The settings of the agent: flags, each also an environment variable and a key of the file, turned into one checked
//! [`Config`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use remoteprocess_proto::pod::{self, env};
use remoteprocess_tls::{Role, TrustDomain};

use crate::spool::{Policy, WhenFull};

/// The agent of one remote process.
#[derive(Debug, Parser)]
#[command(name = "agent", version)]
pub struct Cli {
    /// YAML file with settings; flags and environment variables take precedence.
    #[arg(long, global = true, env = "RPROC_CONFIG", value_parser = remoteprocess_settings::path_parser())]
    pub config: Option<PathBuf>,
    /// What to do; the default is `supervise`.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy the entrypoint to the handover volume and wait until the agent listens (the postStart hook of the container).
    Install(InstallArgs),
    /// Run the agent.
    Run(Box<RunArgs>),
    /// Run the agent, and restart it when it dies (process 1 of the container).
    Supervise {
        /// Arguments for `run`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Arguments of `install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The entrypoint's program in this image.
    #[arg(long, env = "RPROC_ENTRYPOINT", default_value = "/entrypoint")]
    pub entrypoint: PathBuf,
    /// Directory of the handover volume.
    #[arg(long, env = env::HANDOVER, default_value = pod::HANDOVER_PATH)]
    pub handover: PathBuf,
    /// How long to wait for the agent, in seconds.
    #[arg(long, default_value_t = 30)]
    pub timeout_seconds: u64,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Enrollment listener of the relay, `host:port`.
    #[arg(long, env = env::RELAY_ENROLL)]
    pub relay_enroll: String,
    /// Main listener of the relay, `host:port`.
    #[arg(long, env = env::RELAY)]
    pub relay: String,
    /// All CAs to trust at first, PEM.
    #[arg(long, env = env::CA_BUNDLE)]
    pub ca_bundle: String,
    /// Trust domain of all certificates.
    #[arg(long, env = env::TRUST_DOMAIN, default_value = "remoteprocess.local")]
    pub trust_domain: TrustDomain,
    /// Namespace of the RemoteProcess.
    #[arg(long, env = env::PROCESS_NAMESPACE)]
    pub process_namespace: String,
    /// Name of the RemoteProcess.
    #[arg(long, env = env::PROCESS_NAME)]
    pub process_name: String,
    /// Uid of the RemoteProcess.
    #[arg(long, env = env::PROCESS_UID)]
    pub process_uid: String,
    /// Number of the attempt.
    #[arg(long, env = env::ATTEMPT)]
    pub attempt: u32,
    /// Uid of this pod.
    #[arg(long, env = env::POD_UID)]
    pub pod_uid: String,
    /// Address of this pod.
    #[arg(long, env = env::POD_IP)]
    pub pod_ip: IpAddr,
    /// Port of the executor; 0 takes a free one.
    #[arg(long, env = env::LISTEN_PORT, default_value_t = pod::AGENT_PORT)]
    pub listen_port: u16,
    /// Bytes of unarchived output above which the spool is full.
    #[arg(long, env = env::SPOOL_SIZE, default_value_t = 256 << 20)]
    pub spool_size: u64,
    /// How long `Auto` waits for an archive that makes no progress, in milliseconds.
    #[arg(long, env = "RPROC_STALL_MILLIS", default_value_t = 30_000, hide = true)]
    pub stall_millis: u64,
    /// Directory with values to replace by `***` in the output, one in each file.
    #[arg(long, env = env::MASK_DIR)]
    pub mask_dir: Option<PathBuf>,
    /// Seconds to wait for the archive when the pod ends.
    #[arg(long, env = env::DRAIN_SECONDS, default_value_t = 300)]
    pub drain_seconds: u32,
    /// File with the projected ServiceAccount token.
    #[arg(long, env = env::TOKEN_FILE, default_value = pod::TOKEN_FILE)]
    pub token_file: PathBuf,
    /// Directory of the handover volume.
    #[arg(long, env = env::HANDOVER, default_value = pod::HANDOVER_PATH)]
    pub handover: PathBuf,
    /// Directory of the spool volume.
    #[arg(long, env = env::SPOOL, default_value = pod::SPOOL_PATH)]
    pub spool: PathBuf,
    /// What to log: a level, or directives such as `remoteprocess_agent=debug`.
    #[arg(long, env = "RPROC_LOG", default_value = "info")]
    pub log: String,
    /// The pod is already ending: the supervisor passes this to an agent that it restarts.
    #[arg(long, hide = true)]
    pub draining: bool,
}

/// The same settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to enroll, `host:port`.
    pub relay_enroll: String,
    /// Where to ask for the start, `host:port`.
    pub relay: String,
    /// All CAs to trust at first, PEM.
    pub ca_bundle: String,
    /// Trust domain of all certificates.
    pub trust_domain: TrustDomain,
    /// Namespace of the RemoteProcess.
    pub process_namespace: String,
    /// Name of the RemoteProcess.
    pub process_name: String,
    /// Uid of the RemoteProcess.
    pub process_uid: String,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Role of this agent.
    pub role: Role,
    /// Address of this pod.
    pub pod_ip: IpAddr,
    /// Port of the executor; 0 takes a free one.
    pub listen_port: u16,
    /// How much unarchived output to hold. What happens with more comes with the launch.
    pub policy: Policy,
    /// Directory with the values to be masked.
    pub mask_dir: Option<PathBuf>,
    /// How long to wait for the archive when the pod ends.
    pub drain: Duration,
    /// File with the projected token.
    pub token_file: PathBuf,
    /// Directory of the handover volume.
    pub handover: PathBuf,
    /// Directory of the spool volume.
    pub spool: PathBuf,
    /// The pod is ending already.
    pub draining: bool,
}

/// What is wrong with the arguments.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A value must be given.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// Attempts count from 1.
    #[error("--attempt is 0: attempts count from 1")]
    Attempt,
    /// A spool smaller than one page of the pipe could not hold the program back.
    #[error("--spool-size is {0} bytes: at least 65536")]
    SpoolSize(u64),
}

impl TryFrom<RunArgs> for Config {
    type Error = Error;

    fn try_from(args: RunArgs) -> Result<Self, Error> {
        let named = [
            ("--relay-enroll", &args.relay_enroll),
            ("--relay", &args.relay),
            ("--ca-bundle", &args.ca_bundle),
            ("--process-namespace", &args.process_namespace),
            ("--process-name", &args.process_name),
            ("--process-uid", &args.process_uid),
            ("--pod-uid", &args.pod_uid),
        ];
        if let Some((name, _)) = named.iter().find(|(_, value)| value.trim().is_empty()) {
            return Err(Error::Empty(name));
        }
        if args.attempt == 0 {
            return Err(Error::Attempt);
        }
        if args.spool_size < 65_536 {
            return Err(Error::SpoolSize(args.spool_size));
        }
        let role = Role::Agent {
            namespace: args.process_namespace.clone(),
            pod_uid: args.pod_uid,
        };
        Ok(Self {
            relay_enroll: args.relay_enroll,
            relay: args.relay,
            ca_bundle: args.ca_bundle,
            trust_domain: args.trust_domain,
            process_namespace: args.process_namespace,
            process_name: args.process_name,
            process_uid: args.process_uid,
            attempt: args.attempt,
            role,
            pod_ip: args.pod_ip,
            listen_port: args.listen_port,
            policy: Policy {
                size: args.spool_size,
                when_full: WhenFull::Block,
                patience: Duration::from_millis(args.stall_millis),
            },
            mask_dir: args.mask_dir,
            drain: Duration::from_secs(args.drain_seconds.into()),
            token_file: args.token_file,
            handover: args.handover,
            spool: args.spool,
            draining: args.draining,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn args(more: &[&str]) -> Result<Config, Error> {
        let mut words = vec!["agent", "run"];
        words.extend(["--relay-enroll=relay:8444", "--relay=relay:8443", "--ca-bundle=PEM"]);
        words.extend([
            "--process-namespace=default",
            "--process-name=hello",
            "--process-uid=u-1",
        ]);
        words.extend(["--pod-uid=p-1", "--pod-ip=10.0.0.1"]);
        words.extend(more);
        match Cli::try_parse_from(words).unwrap().command {
            Some(Command::Run(run)) => Config::try_from(*run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The operator sets every variable of [`env::ALL`]; the others are for tests, custom images and debugging by hand.
    #[test]
    fn the_variables_of_the_operator_are_flags_of_the_agent() {
        const NOT_SET: [&str; 2] = ["RPROC_STALL_MILLIS", "RPROC_LOG"];
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let mut flags: Vec<&str> = run
            .get_arguments()
            .filter_map(|flag| flag.get_env()?.to_str())
            .filter(|name| !NOT_SET.contains(name))
            .collect();
        let mut variables = env::ALL.to_vec();
        flags.sort_unstable();
        variables.sort_unstable();
        assert_eq!(flags, variables);
    }

    #[test]
    fn each_setting_is_documented() {
        let table = remoteprocess_settings::table(&Cli::command(), &remoteprocess_settings::is_setting);
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        remoteprocess_settings::check_docs(docs.as_ref(), "agent", &table);
    }

    #[test]
    fn values_are_checked() {
        let config = args(&["--attempt=2", "--drain-seconds=7"]).unwrap();
        assert_eq!((config.attempt, config.drain), (2, Duration::from_secs(7)));
        assert_eq!(args(&["--attempt=0"]).unwrap_err(), Error::Attempt);
        let small = args(&["--attempt=1", "--spool-size=1"]).unwrap_err();
        assert_eq!(small, Error::SpoolSize(1));
    }
}
