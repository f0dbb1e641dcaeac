//! `rproc whoami`: shows who you are to the cluster, and how rproc reaches the relay.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use remoteprocess_client::relay::Way;
use remoteprocess_client::{Cluster, DialError, Relay, login};
use serde::Serialize;

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::{DataFormat, print};
use crate::render::escape;

/// Time limit for the API server and the connection to the relay.
const LIMIT: Duration = Duration::from_secs(30);

/// Flags of `whoami`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exits with 1 if the API server does not say who you are, or if the relay is not reachable.\n\nExamples:\n  rproc whoami\n  rproc whoami -o json | jq -r .user"
)]
pub struct WhoamiArgs {
    /// Format
    #[arg(short, long, value_enum)]
    pub output: Option<DataFormat>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Me {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    groups: Vec<String>,
    credentials: String,
    api_server: String,
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints who you are, then connects to the relay and prints how.
///
/// # Errors
/// There is no usable configuration, or API server or relay cannot be reached; what is known is printed nevertheless.
pub async fn run(global: &GlobalArgs, args: WhoamiArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let mut me = Me {
        user: None,
        groups: Vec::new(),
        credentials: format!("{}: {}", cluster.account.owner, cluster.account.means),
        api_server: cluster.url.clone(),
        namespace: cluster.namespace.clone(),
        relay: None,
        certificate_until: None,
        error: None,
    };
    let late = |_| DialError::Unreachable(format!("no answer within {} s", LIMIT.as_secs()));
    let end = tokio::time::timeout(LIMIT, ask(&cluster, &mut me))
        .await
        .map_err(late)
        .flatten();
    me.error = end.as_ref().err().map(ToString::to_string);
    match args.output {
        Some(format) => format.print(&me)?,
        None => print(&text(&me))?,
    }
    end.map_or_else(|error| Err(Failure::no(error.to_string())), |()| Ok(0))
}

async fn ask(cluster: &Arc<Cluster>, me: &mut Me) -> Result<(), DialError> {
    let user = login::user(cluster).await?;
    me.user = Some(user.username.unwrap_or_default());
    me.groups = user.groups.unwrap_or_default();
    let mut relay = Relay::new(cluster.clone());
    let trust = relay.trust().await?;
    let identity = relay.identity(&trust).await?;
    me.certificate_until = Timestamp::try_from(identity.not_after()).ok();
    let (_, found) = relay.connect_by().await?;
    me.relay = Some(way(found, &cluster.operator_namespace));
    Ok(())
}

/// How the relay was reached, in words.
pub(super) fn way(way: Way, operator_namespace: &str) -> String {
    match way {
        Way::Server(address) => format!("{address} (by --server)"),
        Way::Published(address) => format!("{address} (published by the operator)"),
        Way::Forwarded(pod) => format!("pod {operator_namespace}/{pod} (port-forward)"),
    }
}

fn text(me: &Me) -> String {
    let until = me.certificate_until.map(|end| format!("until {end:.0}"));
    let user = me.user.as_deref();
    let lines = [
        ("User:", user.map_or_else(|| "unknown".to_owned(), escape)),
        ("Groups:", escape(&me.groups.join(", "))),
        ("Credentials:", escape(&me.credentials)),
        ("API server:", me.api_server.clone()),
        ("Namespace:", me.namespace.clone()),
        ("Relay:", me.relay.clone().unwrap_or_else(|| "not reachable".to_owned())),
        ("Certificate:", until.unwrap_or_else(|| "none".to_owned())),
    ];
    lines
        .iter()
        .map(|(name, value)| format!("{name:<14}{value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn your_identity_is_printed_even_if_the_relay_is_not_reachable() {
        let me = Me {
            user: Some("alice".into()),
            groups: vec!["devs".into(), "all".into()],
            credentials: "user \"alice\" of /k: its token".into(),
            api_server: "https://a/".into(),
            namespace: "default".into(),
            relay: None,
            certificate_until: None,
            error: Some("no".into()),
        };
        insta::assert_snapshot!(text(&me), @r#"
        User:         alice
        Groups:       devs, all
        Credentials:  user "alice" of /k: its token
        API server:   https://a/
        Namespace:    default
        Relay:        not reachable
        Certificate:  none
        "#);
    }
}
