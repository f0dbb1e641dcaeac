//! The cluster of a command: the development cluster, or one that the user names.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::{self, State, Tools};
use crate::exec;
use crate::lock::Lock;
use crate::registry::Registry;
use crate::steps::{say, step};

/// Choice of the cluster.
#[derive(Args)]
pub(crate) struct TargetArgs {
    /// Use this context of your kubeconfig. Without it: the current context if KUBECONFIG is set, else the development
    /// cluster, which is brought up.
    #[arg(long)]
    context: Option<String>,
    /// Push the images to this registry (`HOST[:PORT][/PATH]`) and install from there, for a cluster that cannot be given
    /// images directly. Pushes with crane, skopeo, docker, podman or buildah, with their login.
    #[arg(long, value_parser = Registry::parse)]
    registry: Option<Registry>,
}

impl TargetArgs {
    /// The cluster of this context.
    pub(crate) fn of(context: &str) -> Self {
        Self {
            context: Some(context.to_owned()),
            registry: None,
        }
    }
}

/// A cluster, and the programs that use it.
pub(crate) struct Target {
    /// The development cluster's state; `None` for a cluster of the user.
    pub own: Option<State>,
    /// Name of the context.
    pub context: String,
    /// Where its images come from; `None` if they are loaded into it directly.
    pub registry: Option<Registry>,
    kubeconfig: Option<PathBuf>,
    kubectl: PathBuf,
    helm: PathBuf,
}

impl Target {
    /// Whether the arguments, or KUBECONFIG, name a cluster of the user.
    pub(crate) fn is_named(args: &TargetArgs) -> Result<bool> {
        let state = State::of_this_user()?;
        let by_variable =
            env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty() && *path != *state.kubeconfig());
        Ok(args.context.is_some() || by_variable)
    }

    /// Finds the cluster in the arguments, and brings up the development cluster if that is the one.
    pub(crate) fn resolve(args: &TargetArgs) -> Result<Self> {
        let state = State::of_this_user()?;
        if !Self::is_named(args)? {
            return Self::without_registry(state, args);
        }
        let kubectl = in_path("kubectl").context("kubectl is needed to talk to your cluster")?;
        let helm = in_path("helm").map_or_else(cluster::helm, Ok)?;
        let context = match &args.context {
            Some(context) => context.clone(),
            None => exec::output(Command::new(&kubectl).args(["config", "current-context"]))?
                .trim()
                .to_owned(),
        };
        if context == cluster::NODE {
            // A copy of our kubeconfig, or our context by name: images can be loaded, so it is not a foreign cluster.
            return Self::without_registry(state, args);
        }
        // Before the build, which takes minutes.
        let mut known = Command::new(&kubectl);
        exec::output(known.args(["config", "get-contexts", "--output=name", &context]))
            .with_context(|| format!("your kubeconfig has no context {context}; see: kubectl config get-contexts"))?;
        say(format_args!("using the cluster of context {context}"));
        Ok(Self {
            own: None,
            context,
            registry: args.registry.clone(),
            kubeconfig: None,
            kubectl,
            helm,
        })
    }

    fn without_registry(state: State, args: &TargetArgs) -> Result<Self> {
        if args.registry.is_some() {
            bail!(
                "--registry is for a cluster of your own, named by KUBECONFIG or --context; images are loaded into the \
                 development cluster directly"
            );
        }
        Self::development(state, None)
    }

    /// The development cluster, brought up; see [`cluster::ensure_up`].
    pub(crate) fn development(state: State, tests: Option<&Lock>) -> Result<Self> {
        let tools = step("development cluster", || cluster::ensure_up(&state, tests))?;
        Ok(Self {
            context: cluster::NODE.to_owned(),
            registry: None,
            kubeconfig: Some(state.kubeconfig()),
            kubectl: tools.path("kubectl").to_owned(),
            helm: tools.path("helm").to_owned(),
            own: Some(state),
        })
    }

    /// `kubectl` for this cluster.
    pub(crate) fn kubectl(&self) -> Command {
        let mut command = self.command(&self.kubectl);
        command.args(["--context", &self.context]);
        command
    }

    /// `helm` for this cluster.
    pub(crate) fn helm(&self) -> Command {
        let mut command = self.command(&self.helm);
        command.args(["--kube-context", &self.context]);
        command
    }

    /// Any program that reads a kubeconfig and knows `--context`.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        command
    }

    /// Where `kubectl` and `helm` are.
    pub(crate) fn programs(&self) -> (&Path, &Path) {
        (&self.kubectl, &self.helm)
    }

    /// Fails if images cannot get into the cluster.
    pub(crate) fn expect_images(&self) -> Result<()> {
        if self.own.is_none() && self.registry.is_none() && loader(&self.context).is_none() {
            bail!(
                "images cannot be loaded into the cluster of context {} directly (that works for kind, k3d, minikube and \
                 the development cluster). Name a registry that its nodes can pull from: cargo xtask install --registry \
                 HOST/PATH",
                self.context
            );
        }
        Ok(())
    }

    /// Loads image archives into the cluster, or says how to do that.
    pub(crate) fn load(&self, archives: &[PathBuf], names: &[String]) -> Result<()> {
        if let Some(state) = &self.own {
            let tools = Tools::built()?;
            return archives
                .iter()
                .try_for_each(|archive| cluster::load(state, &tools, archive));
        }
        let Some((program, args)) = loader(&self.context) else {
            say(
                "    images cannot be loaded into this kind of cluster from here: name a registry (--registry), or load",
            );
            say("    the archives into its nodes yourself and install the chart with images.*.tag set to their tag:");
            for (archive, name) in archives.iter().zip(names) {
                say(format_args!("      {name}  {}", archive.display()));
            }
            return Ok(());
        };
        for archive in archives {
            exec::output(Command::new(program).args(args(archive, &self.context)))?;
        }
        Ok(())
    }
}

type LoaderArgs = fn(&Path, &str) -> Vec<String>;

/// The program that loads an archive, derived from the name of its contexts.
fn loader(context: &str) -> Option<(&'static str, LoaderArgs)> {
    if context.starts_with("kind-") {
        Some(("kind", |archive, context| {
            let name = context.trim_start_matches("kind-");
            vec![
                "load".into(),
                "image-archive".into(),
                "--name".into(),
                name.into(),
                archive.display().to_string(),
            ]
        }))
    } else if context.starts_with("k3d-") {
        Some(("k3d", |archive, context| {
            let name = context.trim_start_matches("k3d-");
            vec![
                "image".into(),
                "import".into(),
                "--cluster".into(),
                name.into(),
                archive.display().to_string(),
            ]
        }))
    } else if context.starts_with("minikube") {
        Some(("minikube", |archive, context| {
            vec![
                "--profile".into(),
                context.into(),
                "image".into(),
                "load".into(),
                archive.display().to_string(),
            ]
        }))
    } else {
        None
    }
}

/// The path of a program that is found by its name.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_loaders_by_context() {
        let (program, args) = loader("kind-dev").unwrap();
        assert_eq!(program, "kind");
        assert_eq!(
            args(Path::new("/a.tar"), "kind-dev").join(" "),
            "load image-archive --name dev /a.tar"
        );
        assert_eq!(loader("minikube").unwrap().0, "minikube");
        assert!(loader("production").is_none());
    }
}
