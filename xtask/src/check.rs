//! The rules of the house that the compiler does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo::forget_package;
use crate::{exec, paths};

const PREFIX: &str = "remoteprocess-";
/// Which of our crates a crate may depend on. Those that are not named (tests, benchmarks, tasks) may use any.
const ARROWS: [(&str, &[&str]); 13] = [
    ("api", &[]),
    ("proto", &[]),
    ("tls", &[]),
    ("runtime", &[]),
    ("settings", &[]),
    ("election", &[]),
    ("entrypoint", &[]),
    // Only tests take ports.
    ("ports", &[]),
    ("operator", &["api", "proto", "tls", "runtime", "election", "settings"]),
    ("agent", &["proto", "tls", "runtime", "settings", "entrypoint", "ports"]),
    ("client", &["api", "proto", "tls"]),
    ("cli", &["client", "api", "proto", "tls", "settings", "ports"]),
    (
        "bridge",
        &["client", "api", "proto", "tls", "runtime", "election", "ports"],
    ),
];
/// Crate of ours, packages that it must not link, and why.
const BANS: [(&str, &[&str], &str); 5] = [
    (
        "agent",
        &["kube", "kube-client", "kube-core", "k8s-openapi"],
        "the agent knows nothing of Kubernetes",
    ),
    (
        "entrypoint",
        &["tokio", "rustls", "ring"],
        "the entrypoint has no async runtime and no TLS",
    ),
    (
        "operator",
        &["aws-lc-rs", "openssl", "native-tls"],
        "ring is the only crypto provider",
    ),
    (
        "cli",
        &["aws-lc-rs", "openssl", "native-tls"],
        "ring is the only crypto provider",
    ),
    (
        "bridge",
        &["aws-lc-rs", "openssl", "native-tls"],
        "ring is the only crypto provider",
    ),
];
/// Folder or file, what its code must not name, and why. Tests and comments may name it.
const MODULES: [(&str, &str, &str); 9] = [
    (
        "operator/src/controller",
        "crate::relay",
        "the controller and the relay meet in the object's status",
    ),
    (
        "operator/src/relay",
        "crate::controller",
        "the controller and the relay meet in the object's status",
    ),
    (
        "operator/src/authority",
        "crate::relay",
        "the authority knows keys, not processes",
    ),
    ("operator/src/relay/core", "tonic", "the use cases know no protocol"),
    ("operator/src/phase", "tokio", "decisions do no I/O"),
    ("agent/src/process/machine", "tokio", "decisions do no I/O"),
    ("agent/src/spool", "tonic", "the spool knows files, not the network"),
    (
        "cli/src/render",
        "tokio",
        "what is shown is made from values, without I/O",
    ),
    ("cli/src/exit.rs", "tokio", "the exit code is decided without I/O"),
];
/// How a reason is written as a literal. Reasons are values of the enums in `api/src/` and `process.proto`, which
/// documents and clients rely on.
const REASON_LITERALS: [&str; 4] = ["reason: \"", "reason: Some(\"", "reason = \"", "reason = Some(\""];
/// Names that say nothing about what is inside.
const VAGUE: [&str; 9] = [
    "mod.rs",
    "util.rs",
    "utils.rs",
    "common.rs",
    "helpers.rs",
    "manager.rs",
    "models.rs",
    "types.rs",
    "misc.rs",
];

/// Spellings and words that we do not use, and what to write. CONTRIBUTING.md lists them, too.
const WORDS: [(&str, &str); 13] = [
    ("authoris", "authoriz"),
    ("behaviour", "behavior"),
    ("colour", "color"),
    ("dialled", "dialed"),
    ("dialling", "dialing"),
    ("initialis", "initializ"),
    ("neighbour", "neighbor"),
    ("normalis", "normaliz"),
    ("serialis", "serializ"),
    ("for want of", "without, or: because ... ran out"),
    ("somebody", "who it is: a user, a client, an agent"),
    ("someone", "who it is: a user, a client, an agent"),
    ("whoever", "who it is: the client that, the user who"),
];
/// Files that may contain them: Kubernetes' own descriptions of fields, and the lists of the words.
const QUOTING: [&str; 4] = [
    "crds",
    "charts/remoteprocess-operator/files",
    "CONTRIBUTING.md",
    "xtask/src/check.rs",
];

/// Checks arrows between crates and modules, bans, words, and the names of files; the error lists all faults.
pub(crate) fn check() -> Result<()> {
    let root = paths::repository();
    let mut metadata = Command::new("cargo");
    metadata
        .current_dir(&root)
        .args(["metadata", "--locked", "--format-version=1"]);
    forget_package(&mut metadata);
    let metadata: Value = serde_json::from_str(&exec::output(&mut metadata)?)?;
    let graph = Graph::read(&metadata).context("cargo metadata has an unknown form")?;
    let mut faults = graph.wrong_arrows();
    faults.extend(graph.banned_links());
    let mut files = Vec::new();
    read_files(&root, &root, &mut files)?;
    for (path, text) in &files {
        faults.extend(house_faults(path, text));
    }
    faults.extend(missing_tests(&files));
    if !faults.is_empty() {
        bail!("{} faults:\n  {}", faults.len(), faults.join("\n  "));
    }
    Ok(())
}

/// Who depends on whom, by package name.
struct Graph {
    /// Dependencies of our own crates on each other, for any purpose.
    siblings: BTreeMap<String, BTreeSet<String>>,
    /// What is linked into a package: everything but build and development dependencies.
    links: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read(metadata: &Value) -> Option<Self> {
        let mut names = BTreeMap::new();
        let mut siblings = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            let name = package["name"].as_str()?.to_owned();
            if let Some(own) = name.strip_prefix(PREFIX).filter(|_| package["source"].is_null()) {
                let all = package["dependencies"]
                    .as_array()?
                    .iter()
                    .filter_map(|d| d["name"].as_str());
                let ours = all
                    .filter_map(|name| name.strip_prefix(PREFIX))
                    .map(str::to_owned)
                    .collect();
                siblings.insert(own.to_owned(), ours);
            }
            names.insert(package["id"].as_str()?, name);
        }
        let mut links: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in metadata["resolve"]["nodes"].as_array()? {
            let linked = links.entry(names.get(node["id"].as_str()?)?.clone()).or_default();
            for dependency in node["deps"].as_array()? {
                let kinds = dependency["dep_kinds"].as_array()?;
                if kinds.iter().any(|kind| kind["kind"].is_null()) {
                    linked.insert(names.get(dependency["pkg"].as_str()?)?.clone());
                }
            }
        }
        Some(Self { siblings, links })
    }

    fn wrong_arrows(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, allowed) in ARROWS {
            for found in self
                .siblings
                .get(name)
                .into_iter()
                .flatten()
                .filter(|f| !allowed.contains(&f.as_str()))
            {
                faults.push(format!("{name} must not depend on {found}"));
            }
        }
        faults
    }

    fn banned_links(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, banned, reason) in BANS {
            let package = format!("{PREFIX}{name}");
            let linked = self.reachable(&package);
            let found = banned.iter().filter(|package| linked.contains(**package));
            faults.extend(found.map(|package| format!("{name} links {package}: {reason}")));
        }
        faults
    }

    fn reachable<'a>(&'a self, from: &'a str) -> BTreeSet<&'a str> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![from];
        while let Some(package) = todo.pop() {
            if seen.insert(package) {
                todo.extend(self.links.get(package).into_iter().flatten().map(String::as_str));
            }
        }
        seen
    }
}

/// Reads the texts at or below `path`, with their paths below `root`.
fn read_files(root: &Path, path: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.is_dir() {
        if path != root && (name.starts_with('.') || ["target", "gen", "node_modules"].contains(&name.as_ref())) {
            return Ok(());
        }
        return fs::read_dir(path)?
            .flatten()
            .try_for_each(|entry| read_files(root, &entry.path(), files));
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if ["rs", "md", "yaml", "proto", "tpl"].contains(&extension.as_ref()) {
        let text = fs::read_to_string(path)?;
        files.push((path.strip_prefix(root).unwrap_or(path).to_owned(), text));
    }
    Ok(())
}

/// What is wrong with one file: words in all texts, names in Rust.
fn house_faults(path: &Path, text: &str) -> Vec<String> {
    let mut faults = unused_words(path, text);
    if path.extension().is_some_and(|extension| extension == "rs") {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if VAGUE.contains(&name.as_ref()) {
            faults.push(format!(
                "{}: the name says nothing about what is inside",
                path.display()
            ));
        }
        faults.extend(forbidden_names(path, text));
        faults.extend(reason_literals(path, text));
    }
    faults
}

/// Tests that a page in `docs/` names, as `` `a_name_of_several_words` ``, and that do not exist. Names of metrics begin
/// with `remoteprocess_`.
fn missing_tests(files: &[(PathBuf, String)]) -> Vec<String> {
    let is_test = |word: &&str| {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.matches('_').count() > 2 && word.chars().all(is_name) && !word.starts_with("remoteprocess_")
    };
    let pages = files.iter().filter(|(path, _)| path.starts_with("docs"));
    let cited = pages.flat_map(|(path, text)| text.split('`').filter(is_test).map(move |test| (path, test)));
    let is_missing = |test: &str| {
        let function = format!("fn {test}(");
        !files.iter().any(|(_, text)| text.contains(&function))
    };
    cited
        .filter(|(_, test)| is_missing(test))
        .map(|(path, test)| format!("{} names the test {test}, which does not exist", path.display()))
        .collect()
}

/// The words of a file that are in [`WORDS`], each with its line.
fn unused_words(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if QUOTING.iter().any(|quoting| path.starts_with(quoting)) {
        return faults;
    }
    for (index, line) in text.lines().enumerate() {
        let line = line.to_lowercase();
        for (word, better) in WORDS.iter().filter(|(word, _)| line.contains(word)) {
            faults.push(format!("{}:{}: {word:?}: write {better}", path.display(), index + 1));
        }
    }
    faults
}

/// What a file names although its module must not, each with the line.
fn forbidden_names(path: &Path, source: &str) -> Vec<String> {
    let rules: Vec<_> = MODULES.iter().filter(|(module, ..)| is_within(path, module)).collect();
    let mut faults = Vec::new();
    if rules.is_empty() {
        return faults;
    }
    for (number, line) in product_lines(source) {
        for (_, name, reason) in rules.iter().filter(|(_, name, _)| has_word(line, name)) {
            faults.push(format!("{}:{number} names {name}: {reason}", path.display()));
        }
    }
    faults
}

/// Reasons of conditions, Events and ends that product code writes as literals. Lower case is no reason, but the reason
/// of a lint.
fn reason_literals(path: &Path, source: &str) -> Vec<String> {
    let products = ["operator", "agent", "entrypoint", "client", "cli", "bridge"];
    if !products
        .iter()
        .any(|product| is_within(path, &format!("{product}/src")))
    {
        return Vec::new();
    }
    let is_literal = |line: &str| {
        let mut found = REASON_LITERALS.iter().filter_map(|start| line.split_once(start));
        found.any(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_uppercase()))
    };
    product_lines(source)
        .filter(|(_, line)| is_literal(line))
        .map(|(number, _)| {
            format!(
                "{}:{number} writes a reason as a literal; add it to api/src/",
                path.display()
            )
        })
        .collect()
}

/// Whether the file belongs to the module: `a/b` is `a/b.rs` and everything below `a/b/`, but for tests.
fn is_within(path: &Path, module: &str) -> bool {
    let is_test = path
        .components()
        .any(|part| ["tests", "tests.rs"].map(Some).contains(&part.as_os_str().to_str()));
    !is_test && (path.starts_with(module) || path.with_extension("") == Path::new(module))
}

/// The lines of a file that is formatted, numbered from 1, without comments and without items under `#[cfg(test)]`.
fn product_lines(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut test: Option<usize> = None;
    source.lines().enumerate().filter_map(move |(index, line)| {
        let indent = line.len() - line.trim_start().len();
        if let Some(depth) = test {
            let is_end = indent == depth && (line.ends_with(';') || line.ends_with('}'));
            test = test.filter(|_| !is_end);
            return None;
        }
        if line.trim_start() == "#[cfg(test)]" {
            test = Some(indent);
            return None;
        }
        (!line.trim_start().starts_with("//")).then_some((index + 1, line))
    })
}

/// Whether the line contains the name and not only a longer one.
fn has_word(line: &str, name: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(name)
        .any(|(at, _)| !is_part(line[..at].chars().next_back()) && !is_part(line[at + name.len()..].chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn graph(operator_uses: &str, agent_links: &str) -> Graph {
        let package = |name: &str, uses: &str| json!({"id": name, "name": name, "source": null, "dependencies": [{"name": uses}]});
        let dependency = json!({"pkg": agent_links, "dep_kinds": [{"kind": null}]});
        Graph::read(&json!({
            "packages": [
                package("remoteprocess-operator", operator_uses),
                package("remoteprocess-agent", "tokio"),
                package(agent_links, "x"),
            ],
            "resolve": {"nodes": [
                {"id": "remoteprocess-agent", "deps": [dependency]},
                {"id": agent_links, "deps": []},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn finds_wrong_arrows() {
        assert!(graph("remoteprocess-api", "tokio").wrong_arrows().is_empty());
        let faults = graph("remoteprocess-agent", "tokio").wrong_arrows();
        assert_eq!(faults, ["operator must not depend on agent"]);
    }

    #[test]
    fn finds_names_that_a_module_must_not_use() {
        let source = "#[cfg(test)]\nmod tests;\n// tokio\nuse tokio::fs;\nfn tokio_like() {}\n\
                      #[cfg(test)]\nmod more {\n    use tokio::net;\n}\ntokio!();\n";
        let path = Path::new("agent/src/process/machine/run.rs");
        let lines = forbidden_names(path, source);
        let expected =
            [4, 10].map(|line| format!("agent/src/process/machine/run.rs:{line} names tokio: decisions do no I/O"));
        assert_eq!(lines, expected);
        for other in [
            "agent/src/process/machine/tests.rs",
            "agent/src/process.rs",
            "agent/src/process/machines.rs",
        ] {
            assert!(forbidden_names(Path::new(other), source).is_empty(), "{other}");
        }
        assert_eq!(
            forbidden_names(Path::new("agent/src/process/machine.rs"), source).len(),
            2
        );
    }

    #[test]
    fn finds_reasons_that_are_literals() {
        let source = "let a = Condition { reason: \"Full\".to_owned() };\nallow(x, reason = \"generated\");\n\
                      reason: Some(\"Denied\".into()),\nif status.reason == \"AlreadyExists\" {}\n";
        let faults = reason_literals(Path::new("operator/src/a.rs"), source);
        let lines =
            [1, 3].map(|line| format!("operator/src/a.rs:{line} writes a reason as a literal; add it to api/src/"));
        assert_eq!(faults, lines);
        for other in ["api/src/a.rs", "operator/src/a/tests.rs"] {
            assert!(reason_literals(Path::new(other), source).is_empty(), "{other}");
        }
    }

    #[test]
    fn finds_words_that_we_do_not_use() {
        let text = "It colors.\nIts Colour, for\nwhoever reads\n";
        assert_eq!(
            unused_words(Path::new("docs/x.md"), text),
            [
                "docs/x.md:2: \"colour\": write color",
                "docs/x.md:3: \"whoever\": write who it is: the client that, the user who",
            ]
        );
        assert!(unused_words(Path::new("crds/x.yaml"), text).is_empty());
    }

    #[test]
    fn finds_tests_in_documents_that_do_not_exist() {
        let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        let files = [
            file("a/tests/b.rs", "#[test]\nfn it_is_what_it_is() {}\n"),
            file(
                "docs/b.md",
                "It is (`it_is_what_it_is`, `it_is_not_so`, `spec.stop`, `remoteprocess_a_b_total`).\n",
            ),
        ];
        let expected = "docs/b.md names the test it_is_not_so, which does not exist";
        assert_eq!(missing_tests(&files), [expected]);
    }

    #[test]
    fn finds_banned_links() {
        assert!(graph("remoteprocess-api", "tokio").banned_links().is_empty());
        let faults = graph("remoteprocess-api", "kube").banned_links();
        assert_eq!(faults, ["agent links kube: the agent knows nothing of Kubernetes"]);
    }
}
