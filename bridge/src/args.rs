//! Command line and environment, and the checked configuration made from them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process;

use clap::{ArgGroup, Parser};
use jiff::Timestamp;
use remoteprocess_api::names::ADMIN_PORT;
use remoteprocess_api::trigger::WEBHOOK_PORT;
use remoteprocess_runtime::{LogError, LogFormat};

use crate::source::{Secrets, Settings};
use crate::{engine, sink};

/// Takes the messages of one ProcessTrigger, creates a RemoteProcess for each, and sends the results back. Or sends events
/// about processes to the destination of one ProcessSink. The operator runs it.
#[derive(Clone, Debug, Parser)]
#[command(name = "bridge", version, group(ArgGroup::new("object").required(true).args(["trigger", "sink"])))]
pub struct Args {
    /// Namespace of the trigger or sink.
    #[arg(long, env = "RPROC_NAMESPACE")]
    namespace: String,
    /// Name of the trigger.
    #[arg(long, env = "RPROC_TRIGGER")]
    trigger: Option<String>,
    /// Name of the sink.
    #[arg(long, env = "RPROC_SINK")]
    sink: Option<String>,
    /// Name of this pod, under which it holds the lease of the trigger or sink. One that begins again under the same name
    /// works at once. Default: another name each time.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Address of the admin port: health and metrics.
    #[arg(long, env = "RPROC_ADMIN_LISTEN", default_value_t = any(ADMIN_PORT))]
    admin_listen: SocketAddr,
    /// Address of the webhook, if the source is HTTP.
    #[arg(long, env = "RPROC_WEBHOOK_LISTEN", default_value_t = any(WEBHOOK_PORT))]
    webhook_listen: SocketAddr,
    /// Directory with the Secrets in `credentials`, `ca` and `tls`. Default: where the operator mounts them.
    #[arg(long, env = "RPROC_SECRETS")]
    secrets: Option<PathBuf>,
    /// Format of the log: auto, json or text.
    #[arg(long, env = "RPROC_LOG_FORMAT", default_value = "auto")]
    log_format: String,
    /// Filter of the log, in the syntax of tracing-subscriber.
    #[arg(long, env = "RPROC_LOG_FILTER", default_value = "info,async_nats=warn")]
    log_filter: String,
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the bridge is of.
    pub object: Object,
    /// Name of this pod in the lease.
    pub identity: String,
    /// Address of the admin port.
    pub admin_listen: SocketAddr,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Filter of the log.
    pub log_filter: String,
}

/// What the bridge is of.
#[derive(Clone, Debug)]
pub enum Object {
    /// A trigger.
    Trigger(engine::Config),
    /// A sink.
    Sink(sink::Config),
}

/// Why the arguments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The form of the log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It is of nothing.
    #[error("give one of --trigger and --sink")]
    NoObject,
}

/// All addresses, of IPv4 as well.
fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

/// A name that no other bridge has.
fn any_identity() -> String {
    format!("bridge-{}-{}", process::id(), Timestamp::now().as_nanosecond())
}

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        let secrets = args.secrets.as_deref().map_or_else(Secrets::default, Secrets::under);
        let namespace = args.namespace;
        let object = match (args.trigger, args.sink) {
            (Some(trigger), None) => Object::Trigger(engine::Config {
                namespace,
                trigger,
                settings: Settings {
                    secrets,
                    webhook: args.webhook_listen,
                },
            }),
            (None, Some(sink)) => Object::Sink(sink::Config {
                namespace,
                sink,
                secrets,
            }),
            _ => return Err(Error::NoObject),
        };
        Ok(Self {
            object,
            identity: args.identity.unwrap_or_else(any_identity),
            admin_listen: args.admin_listen,
            log_format: args.log_format.parse()?,
            log_filter: args.log_filter,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trigger_is_all_that_is_needed() {
        let args = Args::try_parse_from(["bridge", "--namespace", "shop", "--trigger", "orders"]).unwrap();
        let config = Config::try_from(args).unwrap();
        assert_eq!(config.admin_listen.port(), 8080);
        assert!(!config.identity.is_empty());
        let Object::Trigger(engine) = config.object else {
            panic!("{config:?}");
        };
        assert_eq!((engine.namespace.as_str(), engine.trigger.as_str()), ("shop", "orders"));
        assert_eq!(engine.settings.secrets, Secrets::default());
        assert_eq!(engine.settings.webhook.port(), 8081);
    }

    #[test]
    fn a_pod_has_its_name_and_what_has_none_gets_another_each_time() {
        let identity = |more: &[&str]| {
            let args = [&["bridge", "--namespace", "shop", "--sink", "events"], more].concat();
            Config::try_from(Args::try_parse_from(args).unwrap()).unwrap().identity
        };
        assert_eq!(
            identity(&["--identity", "events-sink-5d4f7-x2x4q"]),
            "events-sink-5d4f7-x2x4q"
        );
        assert_ne!(any_identity(), any_identity());
    }

    #[test]
    fn it_is_of_one_trigger_or_of_one_sink() {
        let args = Args::try_parse_from(["bridge", "--namespace", "shop", "--sink", "events"]).unwrap();
        let config = Config::try_from(args).unwrap();
        assert!(matches!(config.object, Object::Sink(sink) if sink.sink == "events" && sink.namespace == "shop"));
        assert!(Args::try_parse_from(["bridge", "--namespace", "shop"]).is_err());
        assert!(Args::try_parse_from(["bridge", "--namespace", "shop", "--sink", "a", "--trigger", "b"]).is_err());
    }
}
