//! One cluster, as one user: its API server, and the meaning of failed calls.

use std::path::PathBuf;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::core::{ApiResource, DynamicObject, Status};
use kube::{Api, Client};
use remoteprocess_api::{RemoteProcess, identifier, names};

pub use access::{Account, ClusterOptions};
pub use connector::Connector;
pub use proxy::Proxies;

use crate::dial::{Address, DialError};
use crate::retry::innermost;
use connector::client;
use credential::Renewing;
use kubeconfig::Kubeconfig;

mod access;
mod connector;
mod credential;
mod kubeconfig;
mod proxy;

/// Why the API server cannot be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable kubeconfig.
    #[error("{0}")]
    Config(String),
    /// The API server refused or cannot be reached.
    #[error("{0}")]
    Api(String),
}

/// One rule that a role may lack.
#[derive(Clone, Debug)]
pub struct Rule {
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
    role: &'static str,
}

impl Rule {
    /// A rule of the role that lets a person connect.
    #[must_use]
    pub fn connect(group: &'static str, resource: &'static str, verb: &'static str) -> Self {
        Self {
            group,
            resource,
            verb,
            role: names::CONNECT_ROLE,
        }
    }

    /// A rule of the role for administrators of the installation.
    #[must_use]
    pub fn admin(resource: &'static str, verb: &'static str) -> Self {
        Self {
            role: names::ADMIN_ROLE,
            ..Self::connect("", resource, verb)
        }
    }

    /// A rule on objects of Kubernetes itself, of its role `view`.
    #[must_use]
    pub fn view(resource: &'static str, verb: &'static str) -> Self {
        Self {
            role: "view",
            ..Self::connect("", resource, verb)
        }
    }

    /// A rule on processes, of the role `role`.
    #[must_use]
    pub fn process(verb: &'static str, role: &'static str) -> Self {
        Self {
            group: names::GROUP,
            resource: "remoteprocesses",
            verb,
            role,
        }
    }

    /// A rule on triggers, of the role `role`.
    #[must_use]
    pub fn trigger(verb: &'static str, role: &'static str) -> Self {
        Self {
            resource: "processtriggers",
            ..Self::process(verb, role)
        }
    }

    /// A rule on sinks, of the role `role`.
    #[must_use]
    pub fn sink(verb: &'static str, role: &'static str) -> Self {
        Self {
            resource: "processsinks",
            ..Self::process(verb, role)
        }
    }

    /// The kind of the objects that it is about, in the plural.
    fn kinds(&self) -> &'static str {
        match self.resource {
            "processtriggers" => "ProcessTriggers",
            "processsinks" => "ProcessSinks",
            _ => "RemoteProcesses",
        }
    }

    /// A rule on a part of processes: `remoteprocesses/log`, say.
    #[must_use]
    pub fn part(resource: &'static str, verb: &'static str, role: &'static str) -> Self {
        Self {
            resource,
            ..Self::process(verb, role)
        }
    }

    /// The rule in the form of a question to the API server.
    fn attributes(&self, namespace: Option<&str>) -> ResourceAttributes {
        let (resource, part) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ResourceAttributes {
            group: some(self.group),
            resource: some(resource),
            subresource: some(part),
            verb: some(self.verb),
            namespace: namespace.map(str::to_owned),
            ..ResourceAttributes::default()
        }
    }

    /// The rule as it is written in a role, and which role has it.
    fn yaml(&self, operator_namespace: &str) -> String {
        let role = match (self.role, self.group) {
            (names::CONNECT_ROLE | names::ADMIN_ROLE, "") => {
                format!("Role {} in namespace {operator_namespace}", self.role)
            }
            _ => format!("ClusterRole {}", self.role),
        };
        format!(
            "- apiGroups: [\"{}\"]
  resources: [{}]
  verbs: [{}]
The {role} has it: ask for a binding to it.",
            self.group, self.resource, self.verb
        )
    }
}

/// One cluster, as one user.
#[derive(Clone)]
pub struct Cluster {
    /// Client of its API server.
    pub client: Client,
    /// Namespace of the processes.
    pub namespace: String,
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// Address of the API server.
    pub url: String,
    /// Description of the credentials.
    pub account: Account,
    /// Connects to its addresses.
    pub connector: Connector,
    /// `--server`.
    pub server: Option<String>,
    /// Folder for client certificates, if there is one.
    pub cache: Option<PathBuf>,
}

impl Cluster {
    /// Reads the configuration as kubectl does; in a pod, that of its ServiceAccount. Runs a credential plugin, and
    /// makes no other call yet.
    ///
    /// # Errors
    /// There is no configuration, it is wrong, or it has no credentials.
    pub async fn open(options: &ClusterOptions) -> Result<Self, Error> {
        if let Some(server) = &options.server {
            Address::parse(server).map_err(Error::Config)?;
        }
        let access = access::read(options, &|name| std::env::var_os(name)).map_err(Error::Config)?;
        let config = access.config;
        let namespace = options
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let namespace =
            namespace_name(&namespace).map_err(|why| Error::Config(format!("namespace {namespace:?}: {why}")))?;
        let operator_namespace = options.operator_namespace.clone();
        let operator_namespace = operator_namespace.unwrap_or_else(|| names::DEFAULT_RELEASE_NAMESPACE.to_owned());
        let url = config.cluster_url.to_string();
        let connector = Connector::new(access.proxies, &config);
        let client = match access.source {
            Some(source) => {
                let renewing = Renewing::open(config, connector.clone(), source).await;
                Client::new(
                    renewing.map_err(|error| Error::Config(error.to_string()))?,
                    namespace.clone(),
                )
            }
            None => client(&config, connector.clone())
                .map_err(|error| Error::Config(format!("{}: {}", access.account.owner, innermost(&error))))?,
        };
        Ok(Self {
            client,
            namespace,
            operator_namespace,
            url,
            account: access.account,
            connector,
            server: options.server.clone(),
            cache: cache(),
        })
    }

    /// The names of the contexts that the kubeconfig has.
    ///
    /// # Errors
    /// A kubeconfig cannot be read.
    pub fn contexts(options: &ClusterOptions) -> Result<Vec<String>, Error> {
        let read = Kubeconfig::read(options.kubeconfig.as_deref(), &|name| std::env::var_os(name));
        Ok(read
            .map_err(Error::Config)?
            .context_names()
            .map(str::to_owned)
            .collect())
    }

    /// The processes of the namespace.
    #[must_use]
    pub fn processes(&self) -> Api<RemoteProcess> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The same without a type: unknown fields of a newer operator are kept.
    #[must_use]
    pub fn objects(&self, is_everywhere: bool) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<RemoteProcess>(&());
        if is_everywhere {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
        }
    }

    /// Calls the API server and returns after any answer, including a refusal.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn reach(&self) -> Result<(), Error> {
        match self.client.apiserver_version().await {
            Err(error) if !matches!(error, kube::Error::Api(_)) => {
                let rule = Rule::connect("", "/version", "get");
                Err(self.error(&error, &rule, "reach the API server"))
            }
            _ => Ok(()),
        }
    }

    /// A message for a failed call to the API server; a missing right is shown as YAML.
    #[must_use]
    pub fn explain(&self, error: &kube::Error, rule: &Rule, what: &str) -> String {
        match error {
            kube::Error::Api(status) if is_unknown_user(status) => self.unknown_user(what),
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code))
                if code.as_u16() == 401 =>
            {
                self.unknown_user(what)
            }
            kube::Error::Api(status) if status.code == 403 && is_rbac(&status.message) => {
                format!(
                    "you may not {what}: {}\nThe missing rule:\n{}",
                    status.message,
                    rule.yaml(&self.operator_namespace)
                )
            }
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code))
                if code.as_u16() == 403 =>
            {
                self.refusal(rule, what)
            }
            kube::Error::Api(status) if status.code == 404 && is_unknown(&status.message) => {
                format!(
                    "{} does not know {}: the operator's CRD is not installed",
                    self.url,
                    rule.kinds()
                )
            }
            kube::Error::Api(status) => format!("cannot {what}: {}", status.message),
            kube::Error::Service(error) if error.is::<credential::Error>() => format!("cannot {what}: {error}"),
            other => {
                let why = innermost(other);
                let fix = if why.starts_with("invalid peer certificate") {
                    ". Check certificate-authority and tls-server-name of the cluster entry in the kubeconfig"
                } else if self.url.starts_with("http:") {
                    ". This URL has no TLS: write the server in the kubeconfig as https://HOST:PORT"
                } else {
                    ""
                };
                format!("cannot {what}: no answer from {}: {why}{fix}", self.url)
            }
        }
    }

    /// A message for a missing right, with the rule as YAML.
    #[must_use]
    pub fn refusal(&self, rule: &Rule, what: &str) -> String {
        format!(
            "you may not {what}.\nThe missing rule:\n{}",
            rule.yaml(&self.operator_namespace)
        )
    }

    /// Whether you have a right; `None` if the API server does not say.
    pub async fn has_right(&self, rule: &Rule, namespace: Option<&str>) -> Option<bool> {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(rule.attributes(namespace)),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.ok()?;
        Some(answer.status?.allowed)
    }

    fn unknown_user(&self, what: &str) -> String {
        let Account { owner, means, fix, .. } = &self.account;
        let url = &self.url;
        format!("cannot {what}: {url} does not know you. Credentials sent: {means} ({owner}). {fix}")
    }

    /// As [`Self::explain`], for a call on the way to the relay.
    #[must_use]
    pub fn dial_error(&self, error: &kube::Error, rule: &Rule, what: &str) -> DialError {
        let message = self.explain(error, rule, what);
        let code = match error {
            kube::Error::Api(status) => status.code,
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => code.as_u16(),
            _ => 0,
        };
        match code {
            // A plugin or a file may have better ones later, and an authenticator that is down looks the same.
            401 if self.account.is_renewed => DialError::Missing(message),
            401 | 403 => DialError::Refused(message),
            404 => DialError::Missing(message),
            _ => DialError::Unreachable(message),
        }
    }

    /// As [`Self::explain`], as an error.
    #[must_use]
    pub fn error(&self, error: &kube::Error, rule: &Rule, what: &str) -> Error {
        Error::Api(self.explain(error, rule, what))
    }
}

/// Checks a namespace. An empty one counts as absent, as in kubectl: an unset `NS` in a script must not mean all
/// namespaces.
///
/// # Errors
/// The text cannot be a namespace.
pub fn namespace_name(text: &str) -> Result<String, String> {
    if text.is_empty() || identifier::is_namespace(text) {
        return Ok(text.to_owned());
    }
    Err(
        "no namespace can have this name: a name has lowercase letters, digits and '-', begins and ends with a letter \
         or a digit, and is at most 63 bytes long"
            .to_owned(),
    )
}

/// The API server refused the credentials, or got none and treats us as anonymous.
fn is_unknown_user(status: &Status) -> bool {
    status.code == 401 || (status.code == 403 && status.message.contains("User \"system:anonymous\""))
}

/// Quota, admission and Pod Security answer 403 too; their messages need no rule.
fn is_rbac(message: &str) -> bool {
    message.contains("cannot") && message.contains("is forbidden: User")
}

/// `${XDG_CACHE_HOME:-~/.cache}/rproc` (XDG Base Directory Specification).
fn cache() -> Option<PathBuf> {
    let path = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            // A relative path is invalid and ignored: the private key must not get into the working directory.
            .filter(|path| path.is_absolute())
    };
    let folder = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")))?;
    Some(folder.join("rproc"))
}

/// Whether the API server has nothing at this path; a missing object is reported differently.
fn is_unknown(message: &str) -> bool {
    message.contains("could not find the requested") || message.contains("404 page not found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_on_a_part_is_asked_about_as_a_subresource() {
        let asked = Rule::part("remoteprocesses/log", "get", "remoteprocess-view").attributes(Some("n"));
        assert_eq!(
            (asked.resource.as_deref(), asked.subresource.as_deref()),
            (Some("remoteprocesses"), Some("log"))
        );
        assert_eq!(
            (asked.namespace.as_deref(), asked.verb.as_deref()),
            (Some("n"), Some("get"))
        );
        let whole = Rule::connect("certificates.k8s.io", "certificatesigningrequests", "create").attributes(None);
        assert_eq!((whole.subresource, whole.namespace), (None, None));
    }
}
