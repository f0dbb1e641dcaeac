use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Config};
use remoteprocess_api::{RemoteProcess, names};
use secrecy::ExposeSecret;

use super::credential::{self, Plugin, Renewing, Source};
use crate::args::{GlobalArgs, given, namespace_name};
use crate::connect::innermost;
use crate::follow::DialError;

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

    /// The rule as it stands in a role, and who has it.
    fn yaml(&self, operator_namespace: &str) -> String {
        let role = match (self.role, self.group) {
            (names::CONNECT_ROLE, "") => format!("Role {} in namespace {operator_namespace}", self.role),
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
    /// Namespace of the processes that are spoken of.
    pub namespace: String,
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// Address of the API server.
    pub url: String,
    /// `--server`.
    pub server: Option<String>,
    /// Folder for client certificates, where there is one.
    pub cache: Option<PathBuf>,
}

impl Cluster {
    /// Reads the configuration as kubectl does; inside of a pod, that of its ServiceAccount. Calls nobody yet.
    ///
    /// # Errors
    /// There is no configuration, or it is wrong.
    pub async fn open(global: &GlobalArgs) -> Result<Self, Error> {
        let mut config = config(global).await.map_err(Error::Config)?;
        impersonate(&mut config, global);
        let namespace = given(global.namespace.as_deref()).unwrap_or_else(|| config.default_namespace.clone());
        let namespace = match namespace.as_str() {
            "" => "default".to_owned(),
            name => namespace_name(name)
                .map_err(|why| Error::Config(format!("namespace {name:?} of the context: {why}")))?,
        };
        let url = config.cluster_url.to_string();
        let client = authenticated(config, global).await.map_err(Error::Config)?;
        let operator_namespace =
            given(Some(&global.operator_namespace)).unwrap_or_else(|| names::DEFAULT_RELEASE_NAMESPACE.to_owned());
        Ok(Self {
            client,
            namespace,
            operator_namespace,
            url,
            server: given(global.server.as_deref()),
            cache: cache(),
        })
    }

    /// The processes of the namespace.
    #[must_use]
    pub fn processes(&self) -> Api<RemoteProcess> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The same without a type: what a newer operator writes is not dropped.
    #[must_use]
    pub fn objects(&self, is_everywhere: bool) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<RemoteProcess>(&());
        if is_everywhere {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
        }
    }

    /// A sentence for a failed call to the API server; a missing right is named as YAML.
    #[must_use]
    pub fn sentence(&self, error: &kube::Error, rule: &Rule, what: &str) -> String {
        match error {
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
                format!(
                    "you may not {what}.\nThe missing rule:\n{}",
                    rule.yaml(&self.operator_namespace)
                )
            }
            kube::Error::Api(status) if status.code == 404 && is_unknown(&status.message) => {
                format!(
                    "{} does not know RemoteProcesses: the operator's CRD is not installed",
                    self.url
                )
            }
            kube::Error::Api(status) => format!("cannot {what}: {}", status.message),
            kube::Error::Service(error) if error.is::<credential::Error>() => format!("cannot {what}: {error}"),
            other => format!("cannot {what}: no answer from {}: {}", self.url, innermost(other)),
        }
    }

    /// The same on the way to the relay.
    #[must_use]
    pub fn dial_error(&self, error: &kube::Error, rule: &Rule, what: &str) -> DialError {
        let sentence = self.sentence(error, rule, what);
        let code = match error {
            kube::Error::Api(status) => status.code,
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => code.as_u16(),
            _ => 0,
        };
        match code {
            401 | 403 => DialError::Refused(sentence),
            404 => DialError::Missing(sentence),
            _ => DialError::Unreachable(sentence),
        }
    }

    /// The same as the end of a verb.
    #[must_use]
    pub fn error(&self, error: &kube::Error, rule: &Rule, what: &str) -> Error {
        Error::Api(self.sentence(error, rule, what))
    }
}

/// Quota, admission and Pod Security answer 403 too; what they say needs no rule.
fn is_rbac(message: &str) -> bool {
    message.contains("cannot") && message.contains("is forbidden: User")
}

/// `${XDG_CACHE_HOME:-~/.cache}/rproc` (XDG Base Directory Specification).
fn cache() -> Option<PathBuf> {
    let path = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            // A relative path is invalid and is ignored: the private key must not get into the working directory.
            .filter(|path| path.is_absolute())
    };
    let folder = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")))?;
    Some(folder.join("rproc"))
}

/// The API server has nothing under this path; an object that is not there is told otherwise.
fn is_unknown(message: &str) -> bool {
    message.contains("could not find the requested") || message.contains("404 page not found")
}

async fn config(global: &GlobalArgs) -> Result<Config, String> {
    let options = KubeConfigOptions {
        context: given(global.context.as_deref()),
        ..KubeConfigOptions::default()
    };
    let read = match &global.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let is_optional =
        global.kubeconfig.is_none() && global.context.is_none() && std::env::var_os("KUBECONFIG").is_none();
    match read {
        Ok(kubeconfig) => {
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| explained(&error))?;
            // A cluster that does not answer is said within seconds.
            config.connect_timeout = Some(std::time::Duration::from_secs(10));
            Ok(config)
        }
        Err(error) if is_optional => Config::incluster().map_err(|_| explained(&error)),
        Err(error) => Err(explained(&error)),
    }
}

/// A client of the API server that the configuration describes.
pub(super) fn client(config: Config) -> Result<Client, String> {
    Client::try_from(config).map_err(|error| innermost(&error))
}

/// The same, with credentials that are renewed where the user entry has such.
async fn authenticated(mut config: Config, global: &GlobalArgs) -> Result<Client, String> {
    let Some(source) = source(&mut config, global)? else {
        return client(config);
    };
    let namespace = config.default_namespace.clone();
    let renewing = Renewing::open(config, source)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Client::new(renewing, namespace))
}

/// Takes what is not a fixed credential out of the user entry.
fn source(config: &mut Config, global: &GlobalArgs) -> Result<Option<Source>, String> {
    let user = &mut config.auth_info;
    let (file, exec) = (user.token_file.take(), user.exec.take());
    if user.username.is_some() {
        return Ok(None);
    }
    if let Some(path) = file {
        let fallback = user.token.as_ref().map(|token| token.expose_secret().to_owned());
        let path = path.into();
        return Ok(Some(Source::File { path, fallback }));
    }
    let Some(mut exec) = exec.filter(|_| user.token.is_none()) else {
        return Ok(None);
    };
    let owner = match given(global.context.as_deref()) {
        Some(context) => format!("user of context {context:?}"),
        None => "user of the current context".to_owned(),
    };
    let plugin = Plugin::new(exec.clone(), exec.cluster.take(), owner).map_err(|error| error.to_string())?;
    Ok(Some(Source::Plugin(plugin)))
}

fn explained(error: &KubeconfigError) -> String {
    format!("no usable kubeconfig: {error}. Name one by --kubeconfig or KUBECONFIG, and a context of it by --context")
}

/// `--as` and `--as-group` go before what the user entry says, each for itself. The client makes the headers.
fn impersonate(config: &mut Config, global: &GlobalArgs) {
    let user = &mut config.auth_info;
    if let Some(name) = given(global.impersonate.as_deref()) {
        user.impersonate = Some(name);
    }
    if !global.impersonate_groups.is_empty() {
        user.impersonate_groups = Some(global.impersonate_groups.clone());
    }
}
