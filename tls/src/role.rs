use std::{collections::BTreeMap, fmt, str::FromStr, time::SystemTime};

use rustls::CommonState;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::Error;

/// The name under which one installation certifies its members, for example `remoteprocess.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = Error;

    /// Parses a lower-case DNS name of at most 200 characters, from which role URIs and server names are built.
    fn from_str(name: &str) -> Result<Self, Error> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() <= 200 && name.split('.').all(is_label) {
            Ok(Self(name.to_owned()))
        } else {
            Err(Error::TrustDomain(name.to_owned()))
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For whom a certificate is. The three roles are disjoint: none implies another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A replica of the operator.
    Operator,
    /// The agent of one pod.
    Agent {
        /// The pod's namespace.
        namespace: String,
        /// The pod's uid.
        pod_uid: String,
    },
    /// A person or a machine that calls the relay; [`User`] says who.
    User,
}

impl Role {
    /// The URI by which a certificate names this role.
    pub fn uri(&self, trust_domain: &TrustDomain) -> String {
        match self {
            Self::Operator => format!("spiffe://{trust_domain}/operator"),
            Self::Agent { namespace, pod_uid } => {
                format!("spiffe://{trust_domain}/agent/{namespace}/{pod_uid}")
            }
            Self::User => format!("spiffe://{trust_domain}/user"),
        }
    }

    /// Parses what [`Role::uri`] wrote; `None` for anything else, including another trust domain.
    pub fn from_uri(uri: &str, trust_domain: &TrustDomain) -> Option<Self> {
        let path = uri
            .strip_prefix("spiffe://")?
            .strip_prefix(trust_domain.as_str())?
            .strip_prefix('/')?;
        let mut parts = path.split('/');
        let role = match (parts.next()?, parts.next(), parts.next()) {
            ("operator", None, None) => Self::Operator,
            ("user", None, None) => Self::User,
            ("agent", Some(namespace), Some(pod_uid)) if is_segment(namespace) && is_segment(pod_uid) => Self::Agent {
                namespace: namespace.to_owned(),
                pod_uid: pod_uid.to_owned(),
            },
            _ => return None,
        };
        parts.next().is_none().then_some(role)
    }

    /// The synthetic DNS name in the certificate of a role that listens. With it the standard verifier can check the
    /// name, whatever address was dialed; it resolves nowhere.
    pub fn server_name(&self, trust_domain: &TrustDomain) -> Option<String> {
        match self {
            Self::Operator => Some(format!("operator.{trust_domain}")),
            Self::Agent { pod_uid, .. } => Some(format!("{pod_uid}.agent.{trust_domain}")),
            Self::User => None,
        }
    }

    /// An error unless the role can be written to a certificate and read back.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        match self {
            Self::Agent { namespace, pod_uid } if !(is_segment(namespace) && is_segment(pod_uid)) => {
                Err(Error::Request("the namespace or pod uid is not a DNS label".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// Namespaces and uids are DNS labels; nothing else may get into a URI or a host name.
fn is_segment(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("the operator"),
            Self::Agent { namespace, pod_uid } => {
                write!(f, "the agent of pod {pod_uid} in namespace {namespace}")
            }
            Self::User => f.write_str("a user"),
        }
    }
}

/// Who a user is according to the API server: everything that a Kubernetes authorizer can evaluate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// The user name. It is the CN of a certificate; all else is in its O.
    #[serde(skip)]
    pub name: String,
    /// The groups.
    pub groups: Vec<String>,
    /// The uid, if the authenticator knows one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Other information of the authenticator. Some clouds authorize by it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Who is at the other end of a connection. [`serve`](fn@crate::serve) adds it to the extensions of each request, as
/// `Arc<PeerIdentity>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The role in the certificate.
    pub role: Role,
    /// Present exactly for [`Role::User`].
    pub user: Option<User>,
    /// When the certificate expires.
    pub not_after: SystemTime,
    /// The serial number of the certificate, in hexadecimal.
    pub serial: String,
}

impl PeerIdentity {
    /// The peer of a connection whose handshake is complete.
    ///
    /// # Errors
    /// It has presented no certificate, or one that [`Self::from_der`] refuses.
    pub(crate) fn of(connection: &CommonState, trust_domain: &TrustDomain) -> Result<Self, Error> {
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        Self::from_der(leaf.ok_or(Error::NoCertificate)?, trust_domain)
    }

    /// Reads a leaf certificate (DER) whose chain was already verified.
    ///
    /// # Errors
    /// The certificate does not decode, has other than exactly one URI that is a role of `trust_domain`, or is a
    /// user's without a name.
    pub fn from_der(leaf: &[u8], trust_domain: &TrustDomain) -> Result<Self, Error> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|e| Error::Certificate(e.to_string()))?;
        let role = read_role(&certificate, trust_domain)?;
        let user = match role {
            Role::User => Some(read_user(&certificate).ok_or_else(|| Error::NoRole(trust_domain.clone()))?),
            Role::Operator | Role::Agent { .. } => None,
        };
        Ok(Self {
            role,
            user,
            not_after: certificate.validity().not_after.to_datetime().into(),
            serial: serial_of(&certificate),
        })
    }
}

/// The serial number of the first certificate of a chain (PEM), in hexadecimal. Audit logs name certificates by it.
pub fn serial(chain_pem: &str) -> Option<String> {
    let leaf = CertificateDer::from_pem_slice(chain_pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&leaf).ok()?;
    Some(serial_of(&certificate))
}

fn serial_of(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn read_role(certificate: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Result<Role, Error> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| Error::Certificate(e.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Role::from_uri(uri, trust_domain),
        _ => None,
    }
    .ok_or_else(|| Error::NoRole(trust_domain.clone()))
}

/// Reads the user from the subject: CN is the name, O the rest as JSON (see `authority::subject`).
fn read_user(certificate: &X509Certificate<'_>) -> Option<User> {
    let subject = certificate.subject();
    let mut names = subject.iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    let mut organizations = subject.iter_organization();
    let rest: User = serde_json::from_str(organizations.next()?.as_str().ok()?).ok()?;
    let is_only = names.next().is_none() && organizations.next().is_none();
    (is_only && !name.is_empty()).then_some(User { name, ..rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        "remoteprocess.local".parse().expect("a domain")
    }

    #[test]
    fn roles_survive_their_uri() {
        let agent = Role::Agent {
            namespace: "default".into(),
            pod_uid: "6f2e8c1a-0000-4000-8000-000000000001".into(),
        };
        for role in [Role::Operator, Role::User, agent] {
            assert_eq!(Role::from_uri(&role.uri(&domain()), &domain()), Some(role));
        }
    }

    #[test]
    fn other_uris_are_no_role() {
        for uri in [
            "spiffe://remoteprocess.local.evil/operator",
            "spiffe://other/operator",
            "spiffe://remoteprocess.local/operator/",
            "spiffe://remoteprocess.local/operator/x",
            "spiffe://remoteprocess.local/agent/default",
            "spiffe://remoteprocess.local/agent//uid",
            "spiffe://remoteprocess.local/agent/default/uid/more",
            "spiffe://remoteprocess.local/agent/Default/uid",
            "spiffe://remoteprocess.local/",
            "https://remoteprocess.local/operator",
            "",
        ] {
            assert_eq!(Role::from_uri(uri, &domain()), None, "{uri}");
        }
    }

    #[test]
    fn trust_domains_are_host_names() {
        for name in ["", "A.b", "a..b", "-a", "a/b", "a b", "ä"] {
            assert!(name.parse::<TrustDomain>().is_err(), "{name}");
        }
    }
}
