//! Users, played by ServiceAccounts with a kubeconfig of their own.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Program, kubectl, kubectl_alone, rproc};

/// A user with a kubeconfig and a home folder of their own.
pub struct User {
    home: TempDir,
    kubeconfig: PathBuf,
    namespace: String,
}

/// The administrator in `KUBECONFIG`, with `namespace` as the default.
pub fn admin(namespace: &str) -> Result<User> {
    let config = kubectl(["config", "view", "--raw", "--minify", "--flatten", "--output=json"]).json()?;
    User::from_config(config, namespace)
}

impl User {
    /// The ServiceAccount `name` of `namespace`, which must exist.
    pub(crate) fn service_account(namespace: &str, name: &str) -> Result<Self> {
        let token = kubectl(["create", "token", name, "--duration=2h", "--namespace", namespace]).succeed()?;
        let mut config = kubectl(["config", "view", "--raw", "--minify", "--flatten", "--output=json"]).json()?;
        let user = config["contexts"][0]["context"]["user"].clone();
        config["users"] = json!([{"name": user, "user": {"token": token.trim()}}]);
        Self::from_config(config, namespace)
    }

    fn from_config(mut config: Value, namespace: &str) -> Result<Self> {
        config["current-context"] = config["contexts"][0]["name"].clone();
        config["contexts"][0]["context"]["namespace"] = json!(namespace);
        let home = TempDir::with_prefix("rproc-e2e-")?;
        let kubeconfig = home.path().join("kubeconfig");
        fs::write(&kubeconfig, serde_json::to_vec(&config)?).context("cannot write a kubeconfig")?;
        Ok(Self {
            home,
            kubeconfig,
            namespace: namespace.to_owned(),
        })
    }

    /// `rproc` as this user.
    pub fn rproc(&self, arguments: &[&str]) -> Program {
        self.as_this_person(rproc(arguments))
    }

    /// `kubectl` as this user.
    pub fn kubectl(&self, arguments: &[&str]) -> Program {
        self.as_this_person(kubectl(arguments))
    }

    /// The example of the client library as this user. The unit tests have built it; if not, it is built now.
    pub fn client_example(&self, arguments: &[&str]) -> Result<Program> {
        let this = env::current_exe()?;
        let target = this.ancestors().nth(2).context("no target folder")?;
        let example = target.join("examples/process");
        if !example.exists() {
            let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
            let words = [
                "build",
                "--quiet",
                "--locked",
                "--package=remoteprocess-client",
                "--example=process",
            ];
            // With this variable, Cargo compiles build scripts anew, and everything that depends on them.
            let built = std::process::Command::new(cargo)
                .args(words)
                .env_remove("RUSTC_BOOTSTRAP")
                .status()?;
            ensure!(built.success(), "the example of the client library cannot be built");
        }
        Ok(Program::new(&example.to_string_lossy(), arguments).env("KUBECONFIG", &self.kubeconfig))
    }

    /// `kubectl` as this user, with one more folder before `path` in which it looks for plugins.
    pub fn kubectl_at(&self, folder: &Path, path: &str) -> Program {
        self.as_this_person(kubectl_alone())
            .env("PATH", format!("{}:{path}", folder.display()))
    }

    /// `bash` with a script as this user; `rproc`, `kubectl` and `helm` are the programs under test.
    pub fn shell(&self, script: &str) -> Result<Program> {
        let programs = self.home.path().join("bin");
        fs::create_dir_all(&programs)?;
        for (variable, name) in [("RPROC_BIN", "rproc"), ("KUBECTL", "kubectl"), ("HELM", "helm")] {
            let link = programs.join(name);
            if let (Some(program), false) = (env::var_os(variable), link.exists()) {
                symlink(program, link)?;
            }
        }
        let path = env::var("PATH").unwrap_or_default();
        let bash = self.as_this_person(Program::new("bash", ["-c", script]));
        Ok(bash.env("PATH", format!("{}:{path}", programs.display())))
    }

    /// `rproc run` of a script with `sh` in busybox.
    pub fn run(&self, name: &str, script: &str) -> Program {
        self.run_image(crate::BUSYBOX, name, &["sh", "-c", script])
    }

    /// `rproc run` of a command in one of the test images.
    pub fn run_image(&self, image: &str, name: &str, command: &[&str]) -> Program {
        let [image, policy] = crate::image_arguments(image);
        let mut arguments = vec!["run", name, &image, &policy, "--"];
        arguments.extend(command);
        self.rproc(&arguments)
    }

    /// The folder with everything that `rproc` and `kubectl` store for this user, and the kubeconfig.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Default namespace of this user.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn as_this_person(&self, program: Program) -> Program {
        let path = env::var_os("PATH").unwrap_or_default();
        program
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.home.path())
            .env("XDG_CACHE_HOME", self.home.path().join("cache"))
            .env("PATH", path)
    }
}
