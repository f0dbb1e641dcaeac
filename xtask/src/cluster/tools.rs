//! The Go programs of the cluster, built from the pinned modules in `dev/cluster/` into the cache folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::steps::step;
use crate::{exec, paths};

/// One module below `dev/cluster/`.
struct Module {
    folder: &'static str,
    /// Its name for people.
    title: &'static str,
    /// How long a build takes on two processors, downloads included.
    minutes: u32,
    tags: &'static str,
    ldflags: &'static str,
    /// Main package, and the name of its program.
    programs: &'static [(&'static str, &'static str)],
}

const MODULES: [Module; 6] = [
    Module {
        folder: "kubernetes",
        title: "Kubernetes",
        minutes: 6,
        tags: "",
        // Helm refuses charts that state a kubeVersion when the server does not know its own.
        ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
                  -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 \
                  -X k8s.io/component-base/version.gitTreeState=clean",
        programs: &[
            ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
            (
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "kube-controller-manager",
            ),
            ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
            ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
            ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
            ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
        ],
    },
    Module {
        folder: "etcd",
        title: "etcd",
        minutes: 1,
        tags: "",
        ldflags: "-s -w",
        programs: &[("go.etcd.io/etcd/server/v3", "etcd")],
    },
    Module {
        folder: "containerd",
        title: "containerd",
        minutes: 2,
        tags: "no_btrfs,no_devmapper,no_zfs",
        ldflags: "-s -w",
        programs: &[
            ("github.com/containerd/containerd/v2/cmd/containerd", "containerd"),
            (
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "containerd-shim-runc-v2",
            ),
            ("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
        ],
    },
    Module {
        folder: "coredns",
        title: "CoreDNS",
        minutes: 2,
        tags: "",
        ldflags: "-s -w",
        programs: &[("github.com/coredns/coredns", "coredns")],
    },
    Module {
        folder: "local-path",
        title: "the volume provisioner",
        minutes: 1,
        tags: "",
        ldflags: "-s -w",
        programs: &[("github.com/rancher/local-path-provisioner", "local-path-provisioner")],
    },
    Module {
        folder: "helm",
        title: "Helm",
        minutes: 1,
        tags: "",
        ldflags: "-s -w",
        programs: &[("helm.sh/helm/v4/cmd/helm", "helm")],
    },
];

/// Built only with `cluster up --cert-manager`.
const CERT_MANAGER: Module = Module {
    folder: "cert-manager",
    title: "cert-manager",
    minutes: 4,
    tags: "",
    ldflags: "-s -w",
    programs: &[
        ("github.com/cert-manager/cert-manager/cmd/controller", "controller"),
        ("github.com/cert-manager/cert-manager/cmd/webhook", "webhook"),
        ("github.com/cert-manager/cert-manager/cmd/cainjector", "cainjector"),
    ],
};

/// Built only for `brokers` and `test`.
const NATS: Module = Module {
    folder: "nats",
    title: "NATS",
    minutes: 1,
    tags: "",
    ldflags: "-s -w",
    programs: &[("github.com/nats-io/nats-server/v2", "nats-server")],
};

/// Built only for `external`. Each has one program, with the name of its folder.
const EXTERNAL: [Module; 5] = [
    Module {
        folder: "promtool",
        title: "promtool of Prometheus",
        minutes: 6,
        tags: "",
        ldflags: "-s -w",
        programs: &[("github.com/prometheus/prometheus/cmd/promtool", "promtool")],
    },
    Module {
        folder: "kube-score",
        title: "kube-score",
        minutes: 1,
        tags: "",
        ldflags: "-s -w",
        programs: &[("github.com/zegl/kube-score/cmd/kube-score", "kube-score")],
    },
    Module {
        folder: "kubeconform",
        title: "kubeconform",
        minutes: 1,
        tags: "",
        ldflags: "-s -w",
        programs: &[("github.com/yannh/kubeconform/cmd/kubeconform", "kubeconform")],
    },
    Module {
        folder: "h2spec",
        title: "h2spec",
        minutes: 1,
        tags: "",
        ldflags: "-s -w",
        programs: &[("github.com/summerwind/h2spec/cmd/h2spec", "h2spec")],
    },
    Module {
        folder: "grpcurl",
        title: "grpcurl",
        minutes: 1,
        tags: "",
        ldflags: "-s -w",
        programs: &[("github.com/fullstorydev/grpcurl/cmd/grpcurl", "grpcurl")],
    },
];

/// The built programs.
pub(crate) struct Tools {
    programs: BTreeMap<&'static str, PathBuf>,
}

impl Tools {
    /// Builds what is not in the cache yet.
    pub(crate) fn ensure() -> Result<Self> {
        for module in &MODULES {
            module.ensure()?;
        }
        Self::built()
    }

    /// The programs, if all are built.
    pub(crate) fn built() -> Result<Self> {
        let mut programs = BTreeMap::new();
        for module in &MODULES {
            let folder = module.output()?;
            if !folder.exists() {
                bail!("{} is not built yet; `cargo xtask cluster up` does it", module.folder);
            }
            programs.extend(module.programs.iter().map(|(_, name)| (*name, folder.join(name))));
        }
        Ok(Self { programs })
    }

    /// The path of a program.
    pub(crate) fn path(&self, name: &str) -> &Path {
        self.programs
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not a program of the cluster"))
    }

    /// `kubectl` with the kubeconfig of `state`.
    pub(crate) fn kubectl(&self, state: &super::State) -> Command {
        let mut kubectl = Command::new(self.path("kubectl"));
        kubectl.env("KUBECONFIG", state.kubeconfig());
        kubectl
    }
}

impl Module {
    fn source(&self) -> PathBuf {
        paths::repository().join("dev/cluster").join(self.folder)
    }

    /// A folder whose name changes with everything that affects the build.
    fn output(&self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for file in ["go.mod", "go.sum"] {
            let path = self.source().join(file);
            hash.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        hash.update([self.tags, self.ldflags].join("\0"));
        for (package, name) in self.programs {
            hash.update([*package, *name].join("\0"));
        }
        let hash = hex::encode(hash.finalize());
        Ok(paths::cache()?
            .join("tools")
            .join(format!("{}-{}", self.folder, &hash[..12])))
    }

    fn ensure(&self) -> Result<PathBuf> {
        let folder = self.output()?;
        if !folder.exists() {
            step(&format!("build {}", self.title), || self.build(&folder))?;
        }
        Ok(folder)
    }

    fn build(&self, folder: &Path) -> Result<()> {
        let partial = folder.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        let mut go = Command::new("go");
        go.current_dir(self.source())
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .env_remove("GOFLAGS");
        go.args([
            "build",
            "-buildvcs=false",
            "-trimpath",
            "-tags",
            self.tags,
            "-ldflags",
            self.ldflags,
            "-o",
        ]);
        // The trailing slash tells go that it is a folder, also for a single package.
        go.arg(format!("{}/", partial.display()))
            .args(self.programs.iter().map(|(package, _)| package));
        if !exec::succeeds(Command::new("go").arg("version")) {
            bail!("Go is needed: https://go.dev/doc/install");
        }
        exec::logged(&mut go, &format!("build-{}", self.folder))?;
        for (package, name) in self.programs {
            let built = partial.join(default_name(package));
            fs::rename(&built, partial.join(name))?;
        }
        fs::rename(&partial, folder)?;
        Ok(())
    }
}

/// What is not built yet, and the minutes that its build takes on two processors.
pub(super) fn missing() -> Result<Vec<(&'static str, u32)>> {
    let mut missing = Vec::new();
    for module in &MODULES {
        if !module.output()?.exists() {
            missing.push((module.title, module.minutes));
        }
    }
    Ok(missing)
}

/// Builds Helm alone, if it is not built yet, and returns its path.
pub(super) fn ensure_helm() -> Result<PathBuf> {
    let module = MODULES
        .iter()
        .find(|module| module.folder == "helm")
        .expect("helm is in the list");
    Ok(module.ensure()?.join("helm"))
}

/// Builds cert-manager, if it is not built yet, and returns the folder of its programs.
pub(super) fn ensure_cert_manager() -> Result<PathBuf> {
    CERT_MANAGER.ensure()
}

/// Builds nats-server, if it is not built yet, and returns its path.
pub(super) fn ensure_nats() -> Result<PathBuf> {
    Ok(NATS.ensure()?.join("nats-server"))
}

/// Builds a program of [`EXTERNAL`], if it is not built yet, and returns its path.
pub(super) fn ensure_external(name: &str) -> Result<PathBuf> {
    let module = EXTERNAL.iter().find(|module| module.folder == name);
    Ok(module
        .with_context(|| format!("no module pins {name}"))?
        .ensure()?
        .join(name))
}

/// The module that pins cert-manager.
pub(super) fn cert_manager_source() -> PathBuf {
    CERT_MANAGER.source()
}

/// The versions and checksums that pin the programs.
#[cfg(test)]
pub(super) fn manifests() -> Result<String> {
    MODULES
        .iter()
        .map(|module| Ok(fs::read_to_string(module.source().join("go.mod"))?))
        .collect()
}

/// The name that `go build` gives the program of a package: the last element that is not a version.
fn default_name(package: &str) -> &str {
    let is_version = |part: &str| {
        part.strip_prefix('v')
            .is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()))
    };
    package.rsplit('/').find(|part| !is_version(part)).unwrap_or(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_programs_as_go_does() {
        assert_eq!(default_name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(default_name("helm.sh/helm/v4/cmd/helm"), "helm");
        assert_eq!(default_name("github.com/coredns/coredns"), "coredns");
    }
}
