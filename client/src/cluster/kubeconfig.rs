//! Kubeconfig files, found and merged by the rules of client-go (`clientcmd/loader.go`, `clientcmd/client_config.go`).
//!
//! 1. `--kubeconfig` names the only file. It must exist.
//! 2. Otherwise `KUBECONFIG` is a list of files, if it is not empty. Empty members and missing files are skipped.
//! 3. Otherwise `~/.kube/config` is read, if it exists.
//! 4. The first file that has a cluster, a user, a context or a current context wins, entry by entry.
//! 5. A file that exists and cannot be read or decoded is an error that names the file. An empty file is no error.
//! 6. Relative paths belong to the folder of the file that has them. The command of a plugin is a path only if it
//!    contains a slash.
//! 7. The context is that of `--context`, or the current one. It must exist if it is named. Without one, nothing is
//!    selected.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use kube::config::{AuthInfo, Cluster, Context};
use serde_json::Value;

/// Where environment variables come from; tests have their own.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The merged files.
#[derive(Clone, Debug, Default)]
pub(super) struct Kubeconfig {
    current_context: String,
    clusters: Entries<Cluster>,
    users: Entries<AuthInfo>,
    contexts: Entries<Context>,
    /// The files that were searched.
    files: Vec<PathBuf>,
    is_there: bool,
}

type Entries<T> = BTreeMap<String, Entry<T>>;

/// An entry, and the file that has it.
#[derive(Clone, Debug)]
struct Entry<T> {
    file: PathBuf,
    value: T,
}

/// The resolved values of one context.
#[derive(Clone, Debug)]
pub(super) struct Selected {
    /// The cluster.
    pub cluster: Cluster,
    /// Description of the cluster entry.
    pub cluster_label: String,
    /// The user; absent if the context names none, or one that does not exist.
    pub user: Option<AuthInfo>,
    /// Description of the user entry.
    pub user_label: String,
    /// The namespace, if the context has one.
    pub namespace: Option<String>,
}

impl Kubeconfig {
    /// Reads the files that `explicit` or the variables name.
    ///
    /// # Errors
    /// Names the file.
    pub(super) fn read(explicit: Option<&Path>, variables: Variables<'_>) -> Result<Self, String> {
        let explicit = explicit.filter(|path| !path.as_os_str().is_empty());
        let mut merged = Self::default();
        for file in files(explicit, variables) {
            if merged.files.contains(&file) {
                continue;
            }
            match read(&file) {
                Ok(bytes) => {
                    merged.is_there = true;
                    merged.add(decode(&file, &bytes)?);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && explicit.is_none() => {}
                Err(error) => return Err(format!("cannot read the kubeconfig {}: {error}", file.display())),
            }
            merged.files.push(file);
        }
        Ok(merged)
    }

    /// Adds the entries of a later file that no earlier one has.
    fn add(&mut self, later: Self) {
        if self.current_context.is_empty() {
            self.current_context = later.current_context;
        }
        for (name, entry) in later.clusters {
            self.clusters.entry(name).or_insert(entry);
        }
        for (name, entry) in later.users {
            self.users.entry(name).or_insert(entry);
        }
        for (name, entry) in later.contexts {
            self.contexts.entry(name).or_insert(entry);
        }
    }

    /// Resolves `context`, or the current context. `None` if no context is named at all.
    ///
    /// # Errors
    /// The context, or its cluster, does not exist.
    pub(super) fn select(&self, context: Option<&str>) -> Result<Option<Selected>, String> {
        let name = context.unwrap_or(&self.current_context);
        if name.is_empty() {
            return Ok(None);
        }
        let Some(Entry { file, value }) = self.contexts.get(name) else {
            let what = if context.is_some() {
                "there is no context"
            } else {
                "the current context is not there:"
            };
            return Err(format!("{what} {name:?} in {}{}", self.places(), self.names()));
        };
        let Some(cluster) = self.clusters.get(&value.cluster) else {
            return Err(format!(
                "context {name:?} of {} names the cluster {:?}, which is not in {}",
                file.display(),
                value.cluster,
                self.places()
            ));
        };
        let user_name = value.user.clone().unwrap_or_default();
        let user = self.users.get(&user_name);
        let user_label = match user {
            Some(entry) => format!("user {user_name:?} of {}", entry.file.display()),
            None if user_name.is_empty() => format!("context {name:?} of {}, which names no user", file.display()),
            None => format!(
                "user {user_name:?} of context {name:?}, which is not in {}",
                self.places()
            ),
        };
        Ok(Some(Selected {
            cluster: cluster.value.clone(),
            cluster_label: format!("cluster {:?} of {}", value.cluster, cluster.file.display()),
            user: user.map(|entry| entry.value.clone()),
            user_label,
            namespace: nonempty(value.namespace.as_ref()),
        }))
    }

    /// Names the files that were searched.
    fn places(&self) -> String {
        let files: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        match files.len() {
            0 => "any kubeconfig".to_owned(),
            _ => files.join(", "),
        }
    }

    /// Why there is nothing to select.
    #[must_use]
    pub(super) fn absence(&self) -> String {
        match (self.files.len(), self.is_there) {
            (0, _) => "neither KUBECONFIG nor HOME names a file".to_owned(),
            (1, false) => format!("{} does not exist", self.places()),
            (_, false) => format!("none of {} exists", self.places()),
            (_, true) => format!("{} has no current context{}", self.places(), self.names()),
        }
    }

    /// The names of all contexts.
    pub(super) fn context_names(&self) -> impl Iterator<Item = &str> {
        self.contexts.keys().map(String::as_str)
    }

    /// Lists the available contexts.
    fn names(&self) -> String {
        const SHOWN: usize = 10;
        let mut names: Vec<&str> = self.context_names().collect();
        let is_more = names.len() > SHOWN;
        names.truncate(SHOWN);
        match (names.is_empty(), is_more) {
            (true, _) => String::new(),
            (false, false) => format!(". It has: {}", names.join(", ")),
            (false, true) => format!(". It has: {} and more", names.join(", ")),
        }
    }
}

/// An option, with an empty value as absent, as in Go.
pub(super) fn nonempty(value: Option<&String>) -> Option<String> {
    value.filter(|value| !value.is_empty()).cloned()
}

fn files(explicit: Option<&Path>, variables: Variables<'_>) -> Vec<PathBuf> {
    let set = |name| variables(name).filter(|value| !value.is_empty());
    if let Some(path) = explicit {
        return vec![path.to_owned()];
    }
    match (set("KUBECONFIG"), set("HOME")) {
        (Some(list), _) => std::env::split_paths(&list)
            .filter(|file| !file.as_os_str().is_empty())
            .collect(),
        (None, Some(home)) => vec![Path::new(&home).join(".kube/config")],
        (None, None) => Vec::new(),
    }
}

/// Reads a file of bounded size.
///
/// # Errors
/// It cannot be read, or is too large.
pub(super) fn read(file: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut bytes = Vec::new();
    fs::File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Decodes one file, and makes its paths relative to its folder.
fn decode(file: &Path, bytes: &[u8]) -> Result<Kubeconfig, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("the kubeconfig {} cannot be read: {why}", file.display());
    let text = text(bytes).ok_or_else(|| wrong(&"it is not UTF-8 text"))?;
    // Go uses the last of two equal keys.
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(&text, options).map_err(|error| wrong(&first_line(&error)))?;
    let Some(mut document) = documents.into_iter().next().filter(|document| !document.is_null()) else {
        return Ok(Kubeconfig::default());
    };
    drop_nulls(&mut document);
    name_clusters(&mut document);
    let document: kube::config::Kubeconfig =
        serde_json::from_value(document).map_err(|error| wrong(&first_line(&error)))?;
    let version = document.api_version.unwrap_or_default();
    let kind = document.kind.unwrap_or_default();
    if !matches!(version.as_str(), "" | "v1") || !matches!(kind.as_str(), "" | "Config") {
        return Err(wrong(&format!(
            "it is a {kind:?} of apiVersion {version:?}, not a Config of v1"
        )));
    }
    let clusters = document.clusters.into_iter().map(|named| {
        let mut cluster = named.cluster.unwrap_or_default();
        beside(file, &mut cluster.certificate_authority);
        (named.name, cluster)
    });
    let users = document.auth_infos.into_iter().map(|named| {
        let mut user = named.auth_info.unwrap_or_default();
        beside(file, &mut user.client_certificate);
        beside(file, &mut user.client_key);
        beside(file, &mut user.token_file);
        let command = user.exec.as_mut().map(|exec| &mut exec.command);
        if let Some(command) = command.filter(|command| command.as_ref().is_some_and(|path| path.contains('/'))) {
            beside(file, command);
        }
        (named.name, user)
    });
    let contexts = document
        .contexts
        .into_iter()
        .map(|named| (named.name, named.context.unwrap_or_default()));
    Ok(Kubeconfig {
        current_context: document.current_context.unwrap_or_default(),
        clusters: by_name(file, "cluster", clusters).map_err(|why| wrong(&why))?,
        users: by_name(file, "user", users).map_err(|why| wrong(&why))?,
        contexts: by_name(file, "context", contexts).map_err(|why| wrong(&why))?,
        ..Kubeconfig::default()
    })
}

/// Makes a relative path one that starts at the folder of `file`.
fn beside(file: &Path, path: &mut Option<String>) {
    let Some(relative) = nonempty(path.as_ref()).filter(|path| !Path::new(path).is_absolute()) else {
        return;
    };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    // `components` removes a `.` in the middle of a path.
    let joined: PathBuf = folder.unwrap_or(Path::new(".")).join(relative).components().collect();
    *path = Some(joined.to_string_lossy().into_owned());
}

fn by_name<T>(file: &Path, kind: &str, entries: impl Iterator<Item = (String, T)>) -> Result<Entries<T>, String> {
    let mut map = BTreeMap::new();
    for (name, value) in entries {
        let file = file.to_owned();
        if map.insert(name.clone(), Entry { file, value }).is_some() {
            return Err(format!("it has two entries for the {kind} {name:?}"));
        }
    }
    Ok(map)
}

/// YAML is UTF-8 or UTF-16, with or without a mark (YAML 1.2, 5.2).
fn text(bytes: &[u8]) -> Option<String> {
    let wide = |bytes: &[u8], read: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| read([pair[0], pair[1]])).collect();
        String::from_utf16(&units).ok()
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] | rest => String::from_utf8(rest.to_vec()).ok(),
    }
}

/// Go reads null as absent.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // kube requires the value of an extension, and accepts null.
            map.retain(|key, value| key == "extension" || !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => {
            list.retain(|value| !value.is_null());
            list.iter_mut().for_each(drop_nulls);
        }
        _ => {}
    }
}

/// Go reads a context without a cluster as one with an empty cluster name; kube refuses the whole file.
fn name_clusters(document: &mut Value) {
    let contexts = document.get_mut("contexts").and_then(Value::as_array_mut);
    for context in contexts.into_iter().flatten() {
        if let Some(context) = context.get_mut("context").and_then(Value::as_object_mut) {
            context.entry("cluster").or_insert_with(|| "".into());
        }
    }
}

/// The error, without an excerpt of the file and without quoted values: they may be secret.
fn first_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    match (line.find('"'), line.rfind('"')) {
        (Some(first), Some(last)) => format!("{}...{}", &line[..first], &line[last + 1..]),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files, and the list in `KUBECONFIG`.
    struct World(tempfile::TempDir);

    impl World {
        fn new(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
                fs::write(folder.path().join(name), text).unwrap();
            }
            Self(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Reads with the folder as `HOME`; `list` contains file names in it.
        fn read(&self, list: Option<&str>) -> Result<Kubeconfig, String> {
            let folder = self.0.path().display().to_string();
            let list = list.map(|list| {
                let names = list.split(':').map(|name| match name {
                    "" => String::new(),
                    name => format!("{folder}/{name}"),
                });
                names.collect::<Vec<_>>().join(":")
            });
            Kubeconfig::read(None, &|name| match name {
                "KUBECONFIG" => list.clone().map(OsString::from),
                "HOME" => Some(OsString::from(&folder)),
                _ => None,
            })
        }
    }

    const A: &str = "
current-context: one
contexts: [{name: one, context: {cluster: c, user: u, namespace: a}}]
clusters: [{name: c, cluster: {server: 'https://a', certificate-authority: ca.crt}}]
users: [{name: u, user: {token: a, exec: {command: ./plugin}}}, {name: v, user: {exec: {command: aws}}}]
";
    const B: &str = "
current-context: two
contexts: [{name: one, context: {cluster: d, user: w}}, {name: two, context: {cluster: d, user: w}}]
clusters: [{name: c, cluster: {server: 'https://b', proxy-url: 'http://b'}}, {name: d, cluster: {server: 'https://d'}}]
";

    #[test]
    fn a_missing_member_of_a_list_is_skipped() {
        let world = World::new(&[("a", A), ("b", B)]);
        for list in ["nosuch:a:b", "a:nosuch:b", ":a::b:"] {
            let selected = world.read(Some(list)).unwrap().select(None).unwrap().unwrap();
            assert_eq!(selected.cluster.server.as_deref(), Some("https://a"), "{list}");
        }
        assert!(
            world
                .read(Some("nosuch:neither"))
                .unwrap()
                .select(None)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn the_first_file_with_an_entry_wins_and_entries_are_not_mixed() {
        let world = World::new(&[("a", A), ("b", B)]);
        let merged = world.read(Some("a:b")).unwrap();
        let one = merged.select(None).unwrap().unwrap();
        assert_eq!((one.cluster.proxy_url, one.namespace.as_deref()), (None, Some("a")));
        let two = merged.select(Some("two")).unwrap().unwrap();
        assert_eq!(
            (two.cluster.server.as_deref(), two.namespace),
            (Some("https://d"), None)
        );
        assert!(
            two.user.is_none() && two.user_label.contains("\"w\""),
            "{}",
            two.user_label
        );
        let other = world.read(Some("b:a")).unwrap().select(None).unwrap().unwrap();
        assert_eq!(other.cluster.server.as_deref(), Some("https://d"));
    }

    #[test]
    fn an_empty_variable_is_none_and_an_empty_current_context_is_not_set() {
        let world = World::new(&[(".kube/config", A), ("b", B), ("empty", "current-context: ''\n")]);
        let of = |list| world.read(list).unwrap().select(None).unwrap().unwrap();
        assert_eq!(of(Some("")).cluster.server.as_deref(), Some("https://a"));
        assert_eq!(of(None).cluster.server.as_deref(), Some("https://a"));
        assert_eq!(of(Some("empty:b")).cluster.server.as_deref(), Some("https://d"));
        assert!(World::new(&[]).read(None).unwrap().select(None).unwrap().is_none());
    }

    #[test]
    fn relative_paths_belong_to_the_file() {
        let world = World::new(&[("sub/a", A)]);
        let merged = world.read(Some("sub/a")).unwrap();
        let selected = merged.select(None).unwrap().unwrap();
        let path = |name: &str| Some(world.path("sub").join(name).display().to_string());
        assert_eq!(selected.cluster.certificate_authority, path("ca.crt"));
        assert_eq!(selected.user.unwrap().exec.unwrap().command, path("plugin"));
        let other = merged.users["v"].value.exec.clone().unwrap();
        assert_eq!(other.command.as_deref(), Some("aws"));
    }

    #[test]
    fn the_explicit_file_is_the_only_one_and_must_exist() {
        let world = World::new(&[("a", A), ("b", B)]);
        let variables = |name: &str| (name == "KUBECONFIG").then(|| world.path("a").into_os_string());
        let read = |name: &str| Kubeconfig::read(Some(&world.path(name)), &variables);
        assert_eq!(read("b").unwrap().current_context, "two");
        assert!(read("nosuch").unwrap_err().contains("nosuch"));
        let absent = Kubeconfig::read(Some(Path::new("")), &variables).unwrap();
        assert_eq!(absent.current_context, "one");
    }

    #[test]
    fn a_context_or_cluster_that_is_not_there_is_named() {
        let world = World::new(&[
            ("a", A),
            (
                "c",
                "current-context: none\ncontexts: [{name: some, context: {cluster: far}}]",
            ),
        ]);
        let why = world.read(Some("a")).unwrap().select(Some("nosuch")).unwrap_err();
        assert!(why.contains("\"nosuch\"") && why.contains("It has: one"), "{why}");
        let lost = world.read(Some("c")).unwrap();
        assert!(
            lost.select(None)
                .unwrap_err()
                .contains("current context is not there: \"none\"")
        );
        assert!(
            lost.select(Some("some"))
                .unwrap_err()
                .contains("names the cluster \"far\"")
        );
    }

    #[test]
    fn a_file_that_cannot_be_decoded_is_named_and_its_secrets_are_not_shown() {
        let bad = [
            "users: [{name: u, user: {token: [secret]}}]",
            "users: {name: secret}",
            "kind: Pod",
            "apiVersion: v2",
            "\tsecret: [",
            "clusters: [{name: c}, {name: c}]",
            "secret",
        ];
        for text in bad {
            let world = World::new(&[("a", A), ("bad", text)]);
            let why = world.read(Some("a:bad")).unwrap_err();
            assert!(why.contains("/bad") && !why.contains("secret"), "{text}: {why}");
        }
        for text in ["", "---\n", "# nothing\n", "null", "contexts: null\nclusters:\n"] {
            assert!(World::new(&[("a", text)]).read(Some("a")).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn an_invalid_entry_that_is_not_selected_is_ignored() {
        let more = "contexts: [{name: odd, context: {user: u}}, {name: none}]\nextensions: [{name: e, extension: null}]\ncurrent-context: first\ncurrent-context: one\n";
        let world = World::new(&[("a", A), ("odd", more)]);
        let merged = world.read(Some("odd:a")).unwrap();
        assert!(merged.select(None).unwrap().is_some());
        assert!(
            merged
                .select(Some("odd"))
                .unwrap_err()
                .contains("names the cluster \"\"")
        );
    }

    #[test]
    fn only_the_first_document_counts_and_marks_are_read() {
        let world = World::new(&[("a", &format!("{A}---\ncurrent-context: other\n"))]);
        assert_eq!(world.read(Some("a")).unwrap().current_context, "one");
        let mut wide = vec![0xFF, 0xFE];
        wide.extend(A.encode_utf16().flat_map(u16::to_le_bytes));
        fs::write(world.path("wide"), wide).unwrap();
        fs::write(world.path("mark"), format!("\u{feff}{A}")).unwrap();
        for name in ["wide", "mark"] {
            assert_eq!(world.read(Some(name)).unwrap().current_context, "one", "{name}");
        }
    }
}
