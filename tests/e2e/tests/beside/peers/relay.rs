//! The relay and one process, as a client sees them that uses the wire protocol directly.

use std::time::Duration;

use anyhow::{Context, Result};
use remoteprocess_e2e::{Namespace, RELEASE_NAMESPACE, Running, kubectl, until_some};
use remoteprocess_proto::v1::StartRequest;
use remoteprocess_tls::{Authority, Dialer, Identity, Role, TrustDomain, User, install_crypto_provider};
use serde_json::Value;
use tonic::transport::Channel;

const HOUR: Duration = Duration::from_secs(3600);

/// The relay's two ports on this machine, and its CA.
pub(crate) struct Relay {
    /// `host:port` of that listener.
    pub main: String,
    /// `host:port` of that listener.
    pub enroll: String,
    authority: Authority,
    _forward: Running,
}

impl Relay {
    /// Forwards the ports and reads the CA.
    pub(crate) fn reach() -> Result<Self> {
        install_crypto_provider();
        let namespace = RELEASE_NAMESPACE;
        let ports = [
            "port-forward",
            "service/remoteprocess-relay",
            ":8443",
            ":8444",
            "--address=127.0.0.1",
        ];
        let mut forward = kubectl(ports).arg("--namespace").arg(namespace).within(HOUR).start()?;
        let main = forwarded(&mut forward, "8443")?;
        let enroll = forwarded(&mut forward, "8444")?;
        let authority = Authority::from_pem(&ca("tls.crt")?, &ca("tls.key")?, &trust_domain()?)?;
        Ok(Self {
            main,
            enroll,
            authority,
            _forward: forward,
        })
    }

    /// A peer with this role, signed by the relay's own CA.
    pub(crate) fn identity(&self, role: &Role, user: Option<&User>) -> Result<Dialer> {
        self.signed_by(&self.authority, role, user)
    }

    /// A peer that trusts the relay and was itself signed by `authority`.
    pub(crate) fn signed_by(&self, authority: &Authority, role: &Role, user: Option<&User>) -> Result<Dialer> {
        let (chain, key) = authority.issue(role, user, HOUR)?;
        let bundle = format!("{}{}", self.authority.cert_pem(), authority.cert_pem());
        Ok(Dialer::new(Identity::new(&chain, &key, &bundle, &trust_domain()?)?))
    }

    /// A peer without a certificate.
    pub(crate) fn anonymous(&self) -> Result<Dialer> {
        Ok(Dialer::anonymous(self.authority.cert_pem(), &trust_domain()?)?)
    }

    /// A connection to the main listener.
    pub(crate) async fn main(&self, dialer: &Dialer) -> Result<Channel> {
        Ok(dialer.connect(&self.main, &Role::Operator).await?)
    }
}

/// The trust domain that the operator publishes.
pub(crate) fn trust_domain() -> Result<TrustDomain> {
    let namespace = RELEASE_NAMESPACE;
    let map = [
        "get",
        "configmap",
        "remoteprocess-connect",
        "--output=jsonpath={.data.trustDomain}",
        "--namespace",
    ];
    Ok(kubectl(map).arg(namespace).succeed()?.trim().parse()?)
}

fn ca(key: &str) -> Result<String> {
    let template = format!("--output=go-template={{{{index .data \"{key}\" | base64decode}}}}");
    kubectl([
        "get",
        "secret",
        "remoteprocess-ca",
        &template,
        "--namespace",
        RELEASE_NAMESPACE,
    ])
    .succeed()
}

/// The local port of a line such as `Forwarding from 127.0.0.1:40123 -> 8443`.
fn forwarded(forward: &mut Running, port: &str) -> Result<String> {
    let arrow = format!(" -> {port}");
    until_some(&format!("a forward to {port}"), Duration::from_secs(30), || {
        let said = forward.said();
        let line = said.lines().find(|line| line.ends_with(&arrow));
        Ok(line.and_then(|line| {
            line.strip_prefix("Forwarding from ")?
                .strip_suffix(&arrow)
                .map(str::to_owned)
        }))
    })
}

/// A process that runs until it is stopped, with the facts that its agent knows.
pub(crate) struct Target {
    /// Of the object.
    pub name: String,
    /// Of the object.
    pub uid: String,
    /// Of the pod.
    pub pod_uid: String,
    /// `host:port` of its executor.
    pub address: String,
}

impl Target {
    /// Starts it and waits until it runs.
    pub(crate) fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        namespace
            .editor
            .run(name, "echo ready; while :; do sleep 0.1; done")
            .start()?
            .wait_for_bytes(6)?;
        let object = namespace.object(name)?;
        let pod = namespace.pod(name)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a string is missing");
        Ok(Self {
            name: name.to_owned(),
            uid: text(&object["metadata"]["uid"])?,
            pod_uid: text(&pod["metadata"]["uid"])?,
            address: format!("{}:20443", text(&pod["status"]["podIP"])?),
        })
    }

    /// The role of its agent.
    pub(crate) fn agent(&self, namespace: &Namespace) -> Role {
        Role::Agent {
            namespace: namespace.name.clone(),
            pod_uid: self.pod_uid.clone(),
        }
    }

    /// The request of its agent when it comes back.
    pub(crate) fn start_request(&self) -> StartRequest {
        StartRequest {
            protocol: 1,
            process_uid: self.uid.clone(),
            attempt: 1,
            address: self.address.clone(),
            launched: true,
            ..StartRequest::default()
        }
    }
}
