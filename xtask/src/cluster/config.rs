//! The parts of the cluster: names, addresses, daemons and their configuration. Nothing here touches the machine.

use std::fs;
use std::net::IpAddr;

#[cfg(test)]
use sha2::{Digest, Sha256};

use super::State;
use super::daemon::Daemon;
use super::render::Template;

/// Raised with each change of the cluster's parts: `up` replaces a cluster of a lower revision and reuses one of the
/// same or a higher revision, so that two checkouts do not replace each other's in turn.
pub(super) const REVISION: u32 = 2;

/// Name of the node, of the kubeconfig's context and of everything that is visible on the machine.
pub(crate) const NODE: &str = "remoteprocess-dev";
/// Control group of all pods.
pub(super) const CGROUP: &str = "remoteprocess-dev";
/// Bridge of the pods.
pub(super) const BRIDGE: &str = "rproc-dev";
/// Addresses of the pods; a /16.
pub(super) const POD_CIDR: &str = "10.244.0.0/16";
/// The bridge's own address: node, API server and gateway of the pods. Nothing listens on outside addresses.
pub(super) const NODE_IP: &str = "10.244.0.1";
/// Address of the Service `kubernetes`.
pub(super) const SERVICE_IP: &str = "10.96.0.1";
/// Address of the Service `kube-dns`.
pub(super) const DNS_IP: &str = "10.96.0.10";
/// Image of the sandbox that holds each pod's namespaces.
pub(super) const PAUSE_IMAGE: &str = "remoteprocess.dev/dev/pause:1";
/// Image of CoreDNS.
pub(super) const COREDNS_IMAGE: &str = "remoteprocess.dev/dev/coredns:1";
/// Image of the provisioner of volumes.
pub(super) const LOCAL_PATH_IMAGE: &str = "remoteprocess.dev/dev/local-path-provisioner:1";

const SERVICE_CIDR: &str = "10.96.0.0/16";

/// Where a control plane listens. Its address is in the API server's certificate.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Of the API server; etcd is on the loopback interface.
    pub address: &'static str,
    /// Port of the API server.
    pub api: u16,
    /// Port of etcd.
    pub etcd: u16,
    /// Port on which etcd would talk to its peers.
    pub etcd_peer: u16,
}

impl Place {
    /// The development cluster's: different from the ports of a real cluster.
    pub(crate) const DEVELOPMENT: Self = Self {
        address: NODE_IP,
        api: 16443,
        etcd: 16379,
        etcd_peer: 16380,
    };
}

const KUBELET_PORT: u16 = 16250;
const KUBELET_HEALTH_PORT: u16 = 16248;
const CONTROLLER_MANAGER_PORT: u16 = 16257;
const SCHEDULER_PORT: u16 = 16259;
const PROXY_HEALTH_PORT: u16 = 16256;
const PROXY_METRICS_PORT: u16 = 16249;

/// Kubeconfigs: file below the state folder, certificate, name of the user in it.
pub(super) const KUBECONFIGS: [(&str, &str); 5] = [
    ("kubeconfig", "admin"),
    ("config/kubelet.kubeconfig", "kubelet"),
    ("config/controller-manager.kubeconfig", "controller-manager"),
    ("config/scheduler.kubeconfig", "scheduler"),
    ("config/kube-proxy.kubeconfig", "kube-proxy"),
];

/// Configuration files below the state folder, and their contents.
pub(super) fn files(state: &State) -> Vec<(String, String)> {
    let template = template(state);
    let mut files = vec![
        (
            "config/containerd.toml".to_owned(),
            include_str!("../../../dev/cluster/config/containerd.toml"),
        ),
        (
            "config/cni/10-remoteprocess.conflist".to_owned(),
            include_str!("../../../dev/cluster/config/cni.conflist"),
        ),
        (
            "config/audit.yaml".to_owned(),
            include_str!("../../../dev/cluster/config/audit.yaml"),
        ),
        (
            "config/kubelet.yaml".to_owned(),
            include_str!("../../../dev/cluster/config/kubelet.yaml"),
        ),
        (
            "config/kube-proxy.yaml".to_owned(),
            include_str!("../../../dev/cluster/config/kube-proxy.yaml"),
        ),
        (
            "config/addons/dns.yaml".to_owned(),
            include_str!("../../../dev/cluster/config/dns.yaml"),
        ),
        (
            "config/addons/storage.yaml".to_owned(),
            include_str!("../../../dev/cluster/config/storage.yaml"),
        ),
    ]
    .into_iter()
    .map(|(path, text)| (path, template.render(text)))
    .collect::<Vec<_>>();
    for (path, user) in KUBECONFIGS {
        let template = template.clone().with("USER", user).with("CERT", user);
        files.push((
            path.to_owned(),
            template.render(include_str!("../../../dev/cluster/config/kubeconfig.yaml")),
        ));
    }
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    files.push(("config/resolv.conf".to_owned(), pod_resolv_conf(&resolv)));
    files
}

/// All daemons in the order in which they start.
pub(super) fn daemons(state: &State) -> Vec<Daemon> {
    vec![
        etcd(state),
        api_server(state),
        daemon("containerd", state, &["--config=@STATE@/config/containerd.toml"]),
        controller_manager(state),
        daemon(
            "kube-scheduler",
            state,
            &[
                "--kubeconfig=@STATE@/config/scheduler.kubeconfig",
                "--authentication-kubeconfig=@STATE@/config/scheduler.kubeconfig",
                "--authorization-kubeconfig=@STATE@/config/scheduler.kubeconfig",
                "--bind-address=127.0.0.1",
                "--secure-port=@SCHEDULER_PORT@",
                "--leader-elect=false",
            ],
        ),
        daemon(
            "kubelet",
            state,
            &[
                "--config=@STATE@/config/kubelet.yaml",
                "--kubeconfig=@STATE@/config/kubelet.kubeconfig",
                "--root-dir=@STATE@/kubelet",
                "--cert-dir=@STATE@/kubelet/pki",
                "--hostname-override=@NODE@",
                "--node-ip=@NODE_IP@",
            ],
        ),
        daemon("kube-proxy", state, &["--config=@STATE@/config/kube-proxy.yaml"]),
    ]
}

/// The definition of the cluster, without comments and the paths of this machine; see [`REVISION`].
#[cfg(test)]
fn fingerprint() -> String {
    let state = State {
        root: "/state".into(),
        run: "/run".into(),
        place: Place::DEVELOPMENT,
    };
    let without_comments = |text: &str| -> String {
        let is_comment = |line: &&str| ["//", "# "].iter().any(|mark| line.trim_start().starts_with(mark));
        text.split_inclusive('\n').filter(|line| !is_comment(line)).collect()
    };
    let mut hash = Sha256::new();
    hash.update(format!("{:?}", daemons(&state)));
    for (path, text) in files(&state).iter().filter(|(path, _)| !path.ends_with("resolv.conf")) {
        hash.update([path.as_str(), &without_comments(text)].join("\0"));
    }
    hash.update(without_comments(super::images::RECIPE));
    hash.update(super::tools::manifests().expect("the modules are in the repository"));
    hex::encode(hash.finalize())[..16].to_owned()
}

fn etcd(state: &State) -> Daemon {
    daemon(
        "etcd",
        state,
        &[
            "--name=@NODE@",
            "--data-dir=@STATE@/etcd",
            "--listen-client-urls=https://127.0.0.1:@ETCD_PORT@",
            "--advertise-client-urls=https://127.0.0.1:@ETCD_PORT@",
            "--listen-peer-urls=http://127.0.0.1:@ETCD_PEER_PORT@",
            "--initial-advertise-peer-urls=http://127.0.0.1:@ETCD_PEER_PORT@",
            "--initial-cluster=@NODE@=http://127.0.0.1:@ETCD_PEER_PORT@",
            "--client-cert-auth",
            "--trusted-ca-file=@STATE@/pki/etcd-ca.crt",
            "--cert-file=@STATE@/pki/etcd-server.crt",
            "--key-file=@STATE@/pki/etcd-server.key",
            // The cluster's data is disposable, so there is no need to wait for the disk.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
    )
}

fn api_server(state: &State) -> Daemon {
    daemon(
        "kube-apiserver",
        state,
        &[
            "--bind-address=@API_ADDRESS@",
            "--advertise-address=@API_ADDRESS@",
            "--secure-port=@API_PORT@",
            "--service-cluster-ip-range=@SERVICE_CIDR@",
            "--etcd-servers=https://127.0.0.1:@ETCD_PORT@",
            "--etcd-cafile=@STATE@/pki/etcd-ca.crt",
            "--etcd-certfile=@STATE@/pki/etcd-client.crt",
            "--etcd-keyfile=@STATE@/pki/etcd-client.key",
            "--tls-cert-file=@STATE@/pki/apiserver.crt",
            "--tls-private-key-file=@STATE@/pki/apiserver.key",
            "--client-ca-file=@STATE@/pki/ca.crt",
            "--kubelet-certificate-authority=@STATE@/pki/ca.crt",
            "--kubelet-client-certificate=@STATE@/pki/apiserver-kubelet-client.crt",
            "--kubelet-client-key=@STATE@/pki/apiserver-kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--service-account-signing-key-file=@STATE@/pki/service-accounts.key",
            "--service-account-key-file=@STATE@/pki/service-accounts.pub",
            "--requestheader-client-ca-file=@STATE@/pki/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            "--proxy-client-cert-file=@STATE@/pki/front-proxy-client.crt",
            "--proxy-client-key-file=@STATE@/pki/front-proxy-client.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--audit-policy-file=@STATE@/config/audit.yaml",
            "--audit-log-path=@STATE@/logs/audit.log",
            // A whole run of the tests fits.
            "--audit-log-maxsize=400",
            "--audit-log-maxbackup=1",
        ],
    )
}

fn controller_manager(state: &State) -> Daemon {
    daemon(
        "kube-controller-manager",
        state,
        &[
            "--kubeconfig=@STATE@/config/controller-manager.kubeconfig",
            "--authentication-kubeconfig=@STATE@/config/controller-manager.kubeconfig",
            "--authorization-kubeconfig=@STATE@/config/controller-manager.kubeconfig",
            "--bind-address=127.0.0.1",
            "--secure-port=@CONTROLLER_MANAGER_PORT@",
            "--cluster-signing-cert-file=@STATE@/pki/ca.crt",
            "--cluster-signing-key-file=@STATE@/pki/ca.key",
            "--root-ca-file=@STATE@/pki/ca.crt",
            "--service-account-private-key-file=@STATE@/pki/service-accounts.key",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
        ],
    )
}

fn daemon(name: &'static str, state: &State, args: &[&str]) -> Daemon {
    let template = template(state);
    Daemon {
        name,
        args: args.iter().map(|arg| template.render(arg)).collect(),
    }
}

fn template(state: &State) -> Template {
    Template::default()
        .with("STATE", state.root.display())
        .with("RUN", state.run.display())
        .with("NODE", NODE)
        .with("CONTEXT", NODE)
        .with("CGROUP", format!("/{CGROUP}"))
        .with("BRIDGE", BRIDGE)
        .with("NODE_IP", NODE_IP)
        .with("DNS_IP", DNS_IP)
        .with("POD_CIDR", POD_CIDR)
        .with("SERVICE_CIDR", SERVICE_CIDR)
        .with("SERVER", format!("https://{}:{}", state.place.address, state.place.api))
        .with("API_ADDRESS", state.place.address)
        .with("PAUSE", PAUSE_IMAGE)
        .with("COREDNS", COREDNS_IMAGE)
        .with("LOCAL_PATH", LOCAL_PATH_IMAGE)
        .with("API_PORT", state.place.api)
        .with("ETCD_PORT", state.place.etcd)
        .with("ETCD_PEER_PORT", state.place.etcd_peer)
        .with("KUBELET_PORT", KUBELET_PORT)
        .with("KUBELET_HEALTH_PORT", KUBELET_HEALTH_PORT)
        .with("CONTROLLER_MANAGER_PORT", CONTROLLER_MANAGER_PORT)
        .with("SCHEDULER_PORT", SCHEDULER_PORT)
        .with("PROXY_HEALTH_PORT", PROXY_HEALTH_PORT)
        .with("PROXY_METRICS_PORT", PROXY_METRICS_PORT)
}

/// The machine's resolvers without those on a loopback address, which in a pod would be the pod itself.
fn pod_resolv_conf(host: &str) -> String {
    let reachable = |line: &&str| match line
        .strip_prefix("nameserver")
        .map(|rest| rest.trim().parse::<IpAddr>())
    {
        Some(Ok(address)) => !address.is_loopback(),
        _ => true,
    };
    let mut text = host.lines().filter(reachable).collect::<Vec<_>>().join("\n");
    if !text.contains("nameserver") {
        // CoreDNS requires a resolver; with this one, names outside the cluster fail.
        text.push_str("\nnameserver 192.0.2.1");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            root: "/state".into(),
            run: "/run/x".into(),
            place: Place::DEVELOPMENT,
        }
    }

    #[test]
    fn no_placeholder_is_left() {
        for (path, text) in files(&state()) {
            assert!(!text.contains('@'), "{path}: {text}");
        }
        for daemon in daemons(&state()) {
            assert!(!format!("{daemon:?}").contains('@'), "{daemon:?}");
        }
    }

    #[test]
    fn revision_is_raised_with_each_change() {
        let (revision, of) = (2, "dd093179f8a0de38");
        assert_eq!(
            (REVISION, fingerprint().as_str()),
            (revision, of),
            "raise REVISION, then put both in here"
        );
    }

    #[test]
    fn daemons_are_the_ones_that_down_ends() {
        let names: Vec<_> = daemons(&state()).iter().map(|daemon| daemon.name).collect();
        assert_eq!(names, super::super::daemon::NAMES);
    }

    #[test]
    fn pods_do_not_ask_themselves_for_names() {
        assert_eq!(
            pod_resolv_conf("nameserver 127.0.0.53\nnameserver 9.9.9.9\n"),
            "nameserver 9.9.9.9\n"
        );
        assert!(pod_resolv_conf("nameserver ::1\n").contains("192.0.2.1"));
    }
}
