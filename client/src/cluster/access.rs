//! Determines from the kubeconfig, the pod and the options what a call needs: where, as which user and through which
//! proxy. The rules are those of client-go (`clientcmd/client_config.go`, `clientcmd/validation.go`, `rest/config.go`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use kube::Config;
use kube::config::{AuthInfo, Cluster, ExecAuthCluster};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use secrecy::ExposeSecret;

use super::credential::{Plugin, Source, is_sendable};
use super::kubeconfig::{self, Kubeconfig, Selected, Variables, nonempty};
use super::proxy::Proxies;

/// Where a pod finds its ServiceAccount.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An API server that does not answer is reported within this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Which cluster, and as which user; like kubectl's flags of the same names. What is absent is read from the
/// kubeconfig.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Namespace of the processes, instead of the context's.
    pub namespace: Option<String>,
    /// Context of the kubeconfig, instead of the current one.
    pub context: Option<String>,
    /// Path of the kubeconfig, instead of `KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// User to impersonate.
    pub impersonate: Option<String>,
    /// Groups to impersonate; with a user.
    pub impersonate_groups: Vec<String>,
    /// Address (host:port) of the relay, instead of the published one or a port-forward.
    pub server: Option<String>,
    /// Namespace in which the operator is installed, instead of `remoteprocess-system`.
    pub operator_namespace: Option<String>,
    /// Called with a message when opening the cluster takes long, as while a credential plugin runs.
    pub on_wait: Option<fn(&str)>,
    /// No person waits for an answer: a credential plugin gets no terminal, and its error messages are dropped.
    pub is_unattended: bool,
}

/// Everything that a call to the API server needs.
pub(super) struct Access {
    /// The address, and the credentials that do not change.
    pub config: Config,
    /// The source of credentials that change.
    pub source: Option<Source>,
    /// Description of the credentials.
    pub account: Account,
    /// The proxies.
    pub proxies: Proxies,
}

/// Description of the credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Their owner: `user "alice" of /home/alice/.kube/config`.
    pub owner: String,
    /// Their kind: `its token`, `none`.
    pub means: String,
    /// What to do if they are refused.
    pub fix: String,
    /// Whether they may change while we run: from a plugin or a file.
    pub is_renewed: bool,
}

impl Account {
    fn new(owner: &str, means: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            owner: owner.to_owned(),
            means: means.into(),
            fix: fix.into(),
            is_renewed: false,
        }
    }

    fn renewed(self) -> Self {
        Self {
            is_renewed: true,
            ..self
        }
    }
}

/// Reads the kubeconfig as kubectl does. If it names no context, a pod uses its ServiceAccount.
///
/// # Errors
/// There is no configuration, or it is wrong.
pub(super) fn read(options: &ClusterOptions, variables: Variables<'_>) -> Result<Access, String> {
    read_with(options, variables, Path::new(SERVICE_ACCOUNT))
}

fn read_with(options: &ClusterOptions, variables: Variables<'_>, service_account: &Path) -> Result<Access, String> {
    let kubeconfig = Kubeconfig::read(options.kubeconfig.as_deref(), variables)?;
    let pod = Pod::find(variables, service_account);
    let selected = kubeconfig.select(options.context.as_deref())?;
    let mut access = match (selected, &pod) {
        (Some(selected), _) => of_context(selected, options, variables, pod.as_ref())?,
        (None, Some(pod)) => pod.access(options, variables)?,
        (None, None) => {
            return Err(format!(
                "no usable kubeconfig: {}. Name a file with --kubeconfig or KUBECONFIG, and a context of it with --context",
                kubeconfig.absence()
            ));
        }
    };
    access.config.connect_timeout = Some(CONNECT_LIMIT);
    Ok(access)
}

fn of_context(
    selected: Selected,
    options: &ClusterOptions,
    variables: Variables<'_>,
    pod: Option<&Pod>,
) -> Result<Access, String> {
    let (cluster, label) = (&selected.cluster, &selected.cluster_label);
    let mut user = selected.user.unwrap_or_default();
    impersonate(&mut user, options);
    check_user(&user, &selected.user_label)?;
    let url = server_url(cluster).map_err(|why| format!("{label}: {why}"))?;
    let mut config = Config::new(url);
    config.root_cert = authorities(cluster, label)?;
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify == Some(true);
    if config.accept_invalid_certs && config.root_cert.is_some() {
        return Err(format!(
            "{label}: insecure-skip-tls-verify and a certificate-authority exclude each other. Remove one of them"
        ));
    }
    config.tls_server_name = nonempty(cluster.tls_server_name.as_ref());
    config.default_namespace = selected
        .namespace
        .or_else(|| pod.map(|pod| pod.namespace.clone()))
        .unwrap_or_else(|| "default".to_owned());
    let proxy_url = nonempty(cluster.proxy_url.as_ref()).unwrap_or_default();
    let (mut source, account) = if config.cluster_url.scheme_str() == Some("https") {
        credentials(&mut user, cluster, &selected.user_label)?
    } else {
        user = only_impersonation(user);
        let means = "none, because the server has no TLS";
        (
            None,
            Account::new(&selected.user_label, means, "Use an https:// server"),
        )
    };
    if let Some(Source::Plugin(plugin)) = &mut source {
        plugin.on_wait = options.on_wait;
        plugin.is_unattended = options.is_unattended;
    }
    config.auth_info = user;
    Ok(Access {
        config,
        source,
        account,
        proxies: Proxies::new(&proxy_url, variables),
    })
}

/// `--as` and `--as-group` take precedence over the user entry, each on its own. kube adds the headers.
fn impersonate(user: &mut AuthInfo, options: &ClusterOptions) {
    if let Some(name) = &options.impersonate {
        user.impersonate = Some(name.clone());
    }
    if !options.impersonate_groups.is_empty() {
        user.impersonate_groups = Some(options.impersonate_groups.clone());
    }
    user.impersonate = nonempty(user.impersonate.as_ref());
    user.impersonate_uid = nonempty(user.impersonate_uid.as_ref());
}

fn only_impersonation(user: AuthInfo) -> AuthInfo {
    AuthInfo {
        impersonate: user.impersonate,
        impersonate_uid: user.impersonate_uid,
        impersonate_groups: user.impersonate_groups,
        impersonate_user_extra: user.impersonate_user_extra,
        ..AuthInfo::default()
    }
}

/// Refuses what kubectl refuses in a user entry.
fn check_user(user: &AuthInfo, label: &str) -> Result<(), String> {
    let is_set = |value: Option<&String>| nonempty(value).is_some();
    let has_token = user
        .token
        .as_ref()
        .is_some_and(|token| !token.expose_secret().is_empty());
    let has_more = user.impersonate_uid.is_some()
        || user
            .impersonate_groups
            .as_ref()
            .is_some_and(|groups| !groups.is_empty())
        || user
            .impersonate_user_extra
            .as_ref()
            .is_some_and(|extra| !extra.is_empty());
    let has_certificate = is_set(user.client_certificate.as_ref()) || is_set(user.client_certificate_data.as_ref());
    let key_data = user.client_key_data.as_ref();
    let has_key = is_set(user.client_key.as_ref()) || key_data.is_some_and(|key| !key.expose_secret().is_empty());
    let why = if user.impersonate.is_none() && has_more {
        "has as-uid, as-groups or as-user-extra without as. Add the user to impersonate as `as`"
    } else if user.exec.is_some() && user.auth_provider.is_some() {
        "has exec and auth-provider. Remove one of them"
    } else if has_token && is_set(user.username.as_ref()) {
        "has a token and a username. Remove one of them"
    } else if user
        .token
        .as_ref()
        .is_some_and(|token| !is_sendable(token.expose_secret()))
    {
        "has a token that cannot be a part of a header. It must be one line"
    } else if has_certificate && !has_key {
        "has a client certificate without a key. Add client-key or client-key-data"
    } else {
        return Ok(());
    };
    Err(format!("{label} {why}"))
}

/// Reads the credentials of a user entry. Those that may change become a source; all others stay in `user`.
fn credentials(user: &mut AuthInfo, cluster: &Cluster, label: &str) -> Result<(Option<Source>, Account), String> {
    read_certificate(user, label)?;
    let token = user.token.take().map(|token| token.expose_secret().to_owned());
    let token = nonempty(token.as_ref());
    let file = nonempty(user.token_file.take().as_ref()).map(PathBuf::from);
    let (exec, provider) = (user.exec.take(), user.auth_provider.take());
    user.username = nonempty(user.username.as_ref());
    if user.username.is_some() {
        user.password.get_or_insert_default();
        let fix = "Correct them, or use a token or a client certificate";
        return Ok((None, Account::new(label, "its username and password", fix)));
    }
    if let Some(path) = file {
        let means = format!("the token in {}", path.display());
        let account = Account::new(label, means, "Put a valid token into the file").renewed();
        let owner = label.to_owned();
        let fallback = token;
        return Ok((Some(Source::File { path, fallback, owner }), account));
    }
    if let Some(token) = token {
        user.token = Some(token.into());
        let fix = "It may have ended: put a valid token there";
        return Ok((None, Account::new(label, "its token", fix)));
    }
    if let Some(exec) = exec {
        let command = exec.command.clone().unwrap_or_default();
        let account = Account::new(
            label,
            format!("what its credential plugin {command:?} gives"),
            "Log in with the plugin's own tools again",
        )
        .renewed();
        let cluster = match exec.provide_cluster_info {
            true => Some(ExecAuthCluster::try_from(cluster).map_err(|error| format!("{label}: {error}"))?),
            false => None,
        };
        let plugin = Plugin::new(exec, cluster, label.to_owned()).map_err(|error| error.to_string())?;
        return Ok((Some(Source::Plugin(Box::new(plugin))), account));
    }
    if let Some(provider) = provider {
        let token = provider.config.get("id-token").filter(|_| provider.name == "oidc");
        let token = nonempty(token).filter(|token| is_sendable(token)).ok_or_else(|| {
            format!(
                "{label}: the auth-provider {:?} is not supported. Use a credential plugin (exec), such as kubelogin or \
                 gke-gcloud-auth-plugin",
                provider.name
            )
        })?;
        user.token = Some(token.into());
        let fix = "It may have ended: log in again, or use a credential plugin such as kubelogin";
        return Ok((None, Account::new(label, "the id-token of its auth-provider", fix)));
    }
    let (means, fix) = match user.client_certificate_data {
        Some(_) => ("its client certificate", "It may have ended: get a new kubeconfig"),
        None => (
            "none",
            "Add a token, a client certificate or a credential plugin to the user entry, or choose another context with \
             --context",
        ),
    };
    Ok((None, Account::new(label, means, fix)))
}

/// Reads the files of a client certificate, so that an error names them.
fn read_certificate(user: &mut AuthInfo, label: &str) -> Result<(), String> {
    let chain = nonempty(user.client_certificate_data.take().as_ref());
    let chain = data_or_file(chain, user.client_certificate.take(), label, "client-certificate")?;
    let (key, file) = (user.client_key_data.take(), user.client_key.take());
    // A key without a certificate is not looked at.
    let Some(chain) = chain else { return Ok(()) };
    let key = key.map(|key| key.expose_secret().to_owned());
    if let Some(key) = data_or_file(nonempty(key.as_ref()), file, label, "client-key")? {
        user.client_certificate_data = Some(STANDARD.encode(chain));
        user.client_key_data = Some(STANDARD.encode(key).into());
    }
    Ok(())
}

fn data_or_file(
    data: Option<String>,
    file: Option<String>,
    label: &str,
    field: &str,
) -> Result<Option<Vec<u8>>, String> {
    match (data, nonempty(file.as_ref())) {
        (Some(_), Some(_)) => Err(format!(
            "{label}: {field} and {field}-data are both set. Remove one of them"
        )),
        (Some(data), None) => {
            let data: String = data.split_whitespace().collect();
            let bytes = STANDARD.decode(data);
            bytes
                .map(Some)
                .map_err(|_| format!("{label}: {field}-data is not base64"))
        }
        (None, Some(file)) => {
            let bytes = kubeconfig::read(Path::new(&file));
            bytes
                .map(Some)
                .map_err(|error| format!("{label}: cannot read {field} {file}: {error}"))
        }
        (None, None) => Ok(None),
    }
}

fn authorities(cluster: &Cluster, label: &str) -> Result<Option<Vec<Vec<u8>>>, String> {
    let (data, file) = (&cluster.certificate_authority_data, &cluster.certificate_authority);
    let bundle = data_or_file(nonempty(data.as_ref()), file.clone(), label, "certificate-authority")?;
    bundle
        .map(|bundle| certificates(&bundle).ok_or_else(|| format!("{label}: certificate-authority has no certificate")))
        .transpose()
}

/// The certificates in a PEM text, DER; `None` if there is none.
fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found: Vec<Vec<u8>> = found.ok()?.iter().map(|certificate| certificate.to_vec()).collect();
    (!found.is_empty()).then_some(found)
}

/// The URL of the API server. One without a scheme has no TLS: client-go decides that before it looks at the certificate
/// authority (`clientcmd.ClientConfig`).
fn server_url(cluster: &Cluster) -> Result<Uri, String> {
    let Some(server) = nonempty(cluster.server.as_ref()) else {
        return Err("it has no server. Set it to the URL of the API server".to_owned());
    };
    let server = server.trim();
    let wrong = |why: &str| format!("its server {server:?} {why}: write it as https://HOST:PORT");
    let has_scheme = server.contains("://");
    let text = match has_scheme {
        true => server.to_owned(),
        false => format!("http://{server}"),
    };
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let url: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
    let authority = url.authority().ok_or_else(|| wrong("names no host"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(wrong("is not an HTTP URL"));
    }
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(wrong("is not a host and a port"));
    }
    if authority.as_str().len() > authority.host().len() && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(wrong("has a wrong port"));
    }
    if !has_scheme && !matches!(url.path(), "" | "/") {
        return Err(wrong("has a path but no scheme"));
    }
    Ok(url)
}

/// The API server as a pod reaches it.
struct Pod {
    host: String,
    port: String,
    folder: PathBuf,
    namespace: String,
}

impl Pod {
    /// Reads what the kubelet has provided: the address of the API server and a token.
    fn find(variables: Variables<'_>, folder: &Path) -> Option<Self> {
        let set = |name| variables(name).map(|value| value.to_string_lossy().into_owned());
        let set = |name| set(name).filter(|value| !value.is_empty());
        let (host, port) = (set("KUBERNETES_SERVICE_HOST")?, set("KUBERNETES_SERVICE_PORT")?);
        folder.join("token").is_file().then_some(())?;
        let file = kubeconfig::read(&folder.join("namespace")).unwrap_or_default();
        let file = Some(String::from_utf8_lossy(&file).trim().to_owned());
        Some(Self {
            host,
            port,
            folder: folder.to_owned(),
            namespace: set("POD_NAMESPACE")
                .or_else(|| nonempty(file.as_ref()))
                .unwrap_or_else(|| "default".to_owned()),
        })
    }

    fn access(&self, options: &ClusterOptions, variables: Variables<'_>) -> Result<Access, String> {
        let host = match self.host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host.clone(),
        };
        let url = format!("https://{host}:{}", self.port);
        let url = url
            .parse()
            .map_err(|_| format!("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT make no URL: {url}"))?;
        let mut config = Config::new(url);
        let bundle = self.folder.join("ca.crt");
        config.root_cert = kubeconfig::read(&bundle).ok().and_then(|pem| certificates(&pem));
        config.root_cert_file = config.root_cert.is_some().then_some(bundle);
        config.default_namespace.clone_from(&self.namespace);
        impersonate(&mut config.auth_info, options);
        let path = self.folder.join("token");
        let account = Account::new(
            "the ServiceAccount of this pod",
            format!("the token in {}", path.display()),
            "Check that the ServiceAccount still exists",
        )
        .renewed();
        Ok(Access {
            config,
            source: Some(Source::File {
                path,
                fallback: None,
                owner: account.owner.clone(),
            }),
            account,
            proxies: Proxies::new("", variables),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;

    use super::*;

    /// A kubeconfig and a pod's folder.
    struct World {
        folder: tempfile::TempDir,
        variables: Vec<(&'static str, String)>,
    }

    impl World {
        fn new(cluster: &str, user: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let text = format!(
                "current-context: m\ncontexts: [{{name: m, context: {{cluster: c, user: u}}}}]\n\
                 clusters: [{{name: c, cluster: {cluster}}}]\nusers: [{{name: u, user: {user}}}]\n"
            );
            fs::write(folder.path().join("kubeconfig"), text).unwrap();
            let path = folder.path().join("kubeconfig").display().to_string();
            Self {
                folder,
                variables: vec![("KUBECONFIG", path)],
            }
        }

        fn set(mut self, name: &'static str, value: &str) -> Self {
            self.variables.retain(|(known, _)| *known != name);
            self.variables.push((name, value.to_owned()));
            self
        }

        /// With the files and variables that the kubelet provides to a pod.
        fn in_pod(self) -> Self {
            let folder = self.folder.path().join("sa");
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("token"), "t\n").unwrap();
            fs::write(folder.join("namespace"), "pods\n").unwrap();
            self.set("KUBERNETES_SERVICE_HOST", "fd00::1")
                .set("KUBERNETES_SERVICE_PORT", "443")
        }

        fn read(&self, options: &ClusterOptions) -> Result<Access, String> {
            let find = |name: &str| {
                let found = self.variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            read_with(options, &find, &self.folder.path().join("sa"))
        }
    }

    fn of(cluster: &str, user: &str) -> Result<Access, String> {
        World::new(cluster, user).read(&ClusterOptions::default())
    }

    fn refusal(cluster: &str, user: &str) -> String {
        of(cluster, user).err().unwrap_or_else(|| panic!("{cluster} {user}"))
    }

    #[test]
    fn a_server_without_a_scheme_is_no_reason_to_panic() {
        for (server, more, expected) in [
            ("10.0.0.1:6443", "", "http://10.0.0.1:6443/"),
            (
                "10.0.0.1:6443",
                ", insecure-skip-tls-verify: true",
                "http://10.0.0.1:6443/",
            ),
            ("example.com", "", "http://example.com/"),
            ("https://example.com/k8s/c1?x=1#y", "", "https://example.com/k8s/c1"),
            ("'https://[::1]:6443'", "", "https://[::1]:6443/"),
        ] {
            let access = of(&format!("{{server: {server}{more}}}"), "{}").unwrap();
            assert_eq!(access.config.cluster_url.to_string(), expected);
        }
        for server in [
            "''",
            "'https://'",
            "'://x'",
            "ftp://x",
            "'a b'",
            "example.com/path",
            "'https://h:x'",
            "'https://h:0'",
            "'https://u@h'",
        ] {
            let why = refusal(&format!("{{server: {server}}}"), "{}");
            assert!(
                why.contains("cluster \"c\"") && why.contains("server"),
                "{server}: {why}"
            );
        }
    }

    #[test]
    fn a_kubeconfig_that_names_no_context_leaves_a_pod_its_service_account() {
        let empty = |world: World| world.set("KUBECONFIG", "").in_pod();
        let access = empty(World::new("{}", "{}")).read(&ClusterOptions::default()).unwrap();
        assert_eq!(access.config.cluster_url.to_string(), "https://[fd00::1]:443/");
        assert_eq!(access.config.default_namespace, "pods");
        assert!(matches!(access.source, Some(Source::File { .. })));
        let named = empty(World::new("{}", "{}")).set("POD_NAMESPACE", "mine");
        assert_eq!(
            named.read(&ClusterOptions::default()).unwrap().config.default_namespace,
            "mine"
        );
        let with_context = ClusterOptions {
            context: Some("nosuch".into()),
            ..ClusterOptions::default()
        };
        assert!(empty(World::new("{}", "{}")).read(&with_context).is_err());
        let outside = World::new("{}", "{}").set("KUBECONFIG", "/nosuch/file");
        let why = outside.read(&ClusterOptions::default()).err().unwrap();
        assert!(why.contains("no usable kubeconfig: /nosuch/file"), "{why}");
    }

    #[test]
    fn a_kubeconfig_in_a_pod_goes_first_and_takes_only_the_namespace_from_the_pod() {
        let access = World::new("{server: 'https://a'}", "{token: t}").in_pod();
        let access = access.read(&ClusterOptions::default()).unwrap();
        assert_eq!(access.config.cluster_url.to_string(), "https://a/");
        assert_eq!(access.config.default_namespace, "pods");
        assert_eq!(access.account.means, "its token");
    }

    #[test]
    fn a_user_entry_that_kubectl_refuses_is_refused() {
        for (user, word) in [
            ("{as-groups: [g]}", "without as"),
            ("{as-uid: x}", "without as"),
            ("{as-user-extra: {a: [b]}}", "without as"),
            ("{token: t, username: u}", "token and a username"),
            ("{token: \"a\\nb\"}", "one line"),
            ("{client-certificate-data: eA==}", "without a key"),
            (
                "{client-certificate: /nosuch/crt, client-key: /nosuch/key}",
                "/nosuch/crt",
            ),
            ("{client-certificate-data: '%', client-key-data: eA==}", "not base64"),
            ("{auth-provider: {name: gcp}}", "gke-gcloud-auth-plugin"),
            (
                "{auth-provider: {name: gcp}, exec: {command: x}}",
                "exec and auth-provider",
            ),
            ("{exec: {}}", "no command"),
            (
                "{exec: {command: x, apiVersion: client.authentication.k8s.io/v1}}",
                "no interactiveMode",
            ),
            (
                "{exec: {command: x, apiVersion: client.authentication.k8s.io/v1beta1, env: [{name: '', value: x}]}}",
                "without a name",
            ),
            (
                "{client-certificate-data: eA==, client-certificate: x, client-key-data: eA==}",
                "client-certificate-data are both set",
            ),
            (
                "{client-certificate-data: eA==, client-key: x, client-key-data: eA==}",
                "client-key-data are both set",
            ),
        ] {
            let why = refusal("{server: 'https://a'}", user);
            assert!(why.contains("user \"u\"") && why.contains(word), "{user}: {why}");
        }
        for (cluster, word) in [
            ("{server: 'https://a', certificate-authority: nosuch.crt}", "nosuch.crt"),
            (
                "{server: 'https://a', certificate-authority-data: eA==}",
                "no certificate",
            ),
            (
                "{server: 'https://a', certificate-authority: x, certificate-authority-data: eA==}",
                "certificate-authority-data are both set",
            ),
        ] {
            let why = refusal(cluster, "{}");
            assert!(why.contains("cluster \"c\"") && why.contains(word), "{why}");
        }
    }

    #[test]
    fn what_goes_first_among_credentials_is_as_in_kubectl() {
        let account = |user: &str| of("{server: 'https://a'}", user).unwrap().account;
        let exec = "exec: {command: p, apiVersion: client.authentication.k8s.io/v1beta1}";
        for (user, means) in [
            (format!("{{tokenFile: f, token: t, {exec}}}"), "the token in "),
            (format!("{{token: t, {exec}}}"), "its token"),
            (
                format!("{{token: '', {exec}}}"),
                "what its credential plugin \"p\" gives",
            ),
            (format!("{{username: u, {exec}}}"), "its username and password"),
            (
                "{auth-provider: {name: oidc, config: {id-token: t}}}".to_owned(),
                "the id-token",
            ),
            (
                "{client-certificate-data: eA==, client-key-data: eA==}".to_owned(),
                "its client certificate",
            ),
            ("{}".to_owned(), "none"),
        ] {
            let found = account(&user);
            assert!(found.means.starts_with(means), "{user}: {}", found.means);
        }
    }

    #[test]
    fn a_server_without_tls_gets_no_credentials() {
        let access = of("{server: 'http://a'}", "{token: secret, as: bob}").unwrap();
        assert!(access.config.auth_info.token.is_none() && access.source.is_none());
        assert_eq!(access.config.auth_info.impersonate.as_deref(), Some("bob"));
    }

    #[test]
    fn flags_override_the_impersonation_of_the_user_entry() {
        let options = ClusterOptions {
            impersonate: Some("bob".into()),
            impersonate_groups: vec!["g".into()],
            ..ClusterOptions::default()
        };
        let access = World::new(
            "{server: 'https://a'}",
            "{token: t, as: carol, as-groups: [h], as-uid: ''}",
        );
        let user = access.read(&options).unwrap().config.auth_info;
        assert_eq!(user.impersonate.as_deref(), Some("bob"));
        assert_eq!(
            (user.impersonate_groups, user.impersonate_uid),
            (Some(vec!["g".into()]), None)
        );
    }
}
