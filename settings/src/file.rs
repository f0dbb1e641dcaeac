//! The file and its keys, and the command whose defaults they become.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};

use crate::key;
use crate::yaml::{self, Values};

/// Maximum size of a file in bytes.
const MAX_FILE: u64 = 64 << 10;

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the settings in {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file is not a YAML mapping of keys to values.
    #[error("{path}: expected YAML with one line `key: value` per setting: {why}")]
    Form {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No flag has this name.
    #[error("{path}: there is no setting {key:?}. {hint}")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What may have been meant.
        hint: String,
    },
    /// The flag refuses the value.
    #[error("{path}: {key}: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Why.
        why: String,
    },
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

/// The settings of one file.
#[derive(Debug)]
pub struct Settings {
    path: PathBuf,
    values: BTreeMap<String, Values>,
}

impl Settings {
    /// Reads a file. An empty one has no settings.
    ///
    /// # Errors
    /// It cannot be read, is larger than 64 KiB, or has another form.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Read {
            path: path.to_owned(),
            cause,
        };
        let mut text = String::new();
        let size = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        if size.map_err(failed)? as u64 > MAX_FILE {
            return Err(failed(io::Error::other(format!("it is larger than {MAX_FILE} bytes"))));
        }
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let path = path.to_owned();
        match yaml::parse(text) {
            Ok(values) => Ok(Self { path, values }),
            Err(why) => Err(Error::Form { path, why }),
        }
    }

    /// Removes a setting, because something else takes precedence.
    pub fn remove(&mut self, key: &str) {
        self.values.remove(key);
    }

    /// The command with these settings as the defaults of its flags, and of those of its subcommands.
    ///
    /// # Errors
    /// A key is no flag for which `is_setting` is true, or the flag refuses the value.
    pub fn apply(&self, command: Command, is_setting: &dyn Fn(&Arg) -> bool) -> Result<Command, Error> {
        let mut known = BTreeMap::new();
        collect(&command, is_setting, &mut known);
        for (key, values) in &self.values {
            let Some(argument) = known.get(key) else {
                return Err(Error::Unknown {
                    path: self.path.clone(),
                    key: key.clone(),
                    hint: hint(key, known.keys()),
                });
            };
            check(argument, values).map_err(|why| Error::Value {
                path: self.path.clone(),
                key: key.clone(),
                why,
            })?;
        }
        Ok(self.with_defaults(command, is_setting))
    }

    fn with_defaults(&self, command: Command, is_setting: &dyn Fn(&Arg) -> bool) -> Command {
        let names: Vec<String> = command
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .collect();
        let command = command.mut_args(|argument| {
            let key = key(&argument).filter(|_| is_setting(&argument));
            match key.and_then(|key| self.values.get(&key)) {
                Some(values) => argument.required(false).default_values(values.texts()),
                None => argument,
            }
        });
        names.iter().fold(command, |command, name| {
            command.mut_subcommand(name, |command| self.with_defaults(command, is_setting))
        })
    }
}

/// The arguments that can be set, by key.
pub(crate) fn collect(command: &Command, is_setting: &dyn Fn(&Arg) -> bool, known: &mut BTreeMap<String, Arg>) {
    for argument in command.get_arguments().filter(|argument| is_setting(argument)) {
        known.extend(key(argument).map(|key| (key, argument.clone())));
    }
    for command in command.get_subcommands() {
        collect(command, is_setting, known);
    }
}

/// Whether the flag takes the values; else why not.
fn check(argument: &Arg, values: &Values) -> Result<(), String> {
    let is_list = matches!(argument.get_action(), ArgAction::Append);
    if matches!(values, Values::Many(_)) && !is_list {
        return Err("expected one value, not a list".to_owned());
    }
    if !argument.get_action().takes_values() {
        let is_switch = matches!(values, Values::One(text) if text == "true" || text == "false");
        return is_switch.then_some(()).ok_or("expected true or false".to_owned());
    }
    let long = argument.get_long().unwrap_or_default();
    let mut alone = Arg::new(long.to_owned())
        .long(long.to_owned())
        .action(argument.get_action().clone())
        .value_parser(argument.get_value_parser().clone());
    if let Some(delimiter) = argument.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    let words = values.texts().into_iter().map(|text| format!("--{long}={text}"));
    let parser = Command::new("settings")
        .no_binary_name(true)
        .disable_help_flag(true)
        .arg(alone);
    parser.try_get_matches_from(words).map(drop).map_err(|error| {
        let text = error.render().to_string();
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
        let text = lines.collect::<Vec<_>>().join(" ");
        text.trim_start_matches("error: ").to_owned()
    })
}

/// The key that may have been meant, or where to look.
fn hint<'a>(wrong: &str, known: impl Iterator<Item = &'a String>) -> String {
    // Case and hyphens are what people mix up most.
    let plain = |key: &str| key.replace(['-', '_'], "").to_ascii_lowercase();
    let near = known
        .map(|key| (strsim::damerau_levenshtein(&plain(key), &plain(wrong)), key))
        .min();
    match near {
        Some((distance, key)) if distance * 3 <= wrong.len() => format!("Did you mean {key}?"),
        _ => "A setting has the name of its flag in camelCase; docs/configuration.md lists them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::*;
    use crate::{path_parser, try_parse_from};

    #[derive(Debug, PartialEq, Parser)]
    struct Example {
        #[arg(long, env = "RPROC_TEST_CONFIG", value_parser = path_parser())]
        config: Option<PathBuf>,
        #[arg(long)]
        relay_address: String,
        #[arg(long, env = "RPROC_TEST_PORT_THAT_IS_SET", default_value_t = 1)]
        relay_port: u16,
        #[arg(long, value_delimiter = ',')]
        namespaces: Vec<String>,
        #[arg(long)]
        storage: bool,
        #[arg(long, hide = true)]
        internal: bool,
    }

    fn parse(text: &str, more: &[&str]) -> Result<Example, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        let words = ["example", "--config", path.to_str().unwrap()];
        try_parse_from(words.iter().chain(more).map(OsString::from))
    }

    #[test]
    fn a_file_sets_what_the_flags_do_not() {
        let text = "relayAddress: a:1\nrelayPort: 2\nnamespaces: [x, y]\nstorage: true\n";
        let found = parse(text, &[]).unwrap();
        assert_eq!((found.relay_address.as_str(), found.relay_port), ("a:1", 2));
        assert_eq!((found.namespaces, found.storage), (vec!["x".into(), "y".into()], true));
        let found = parse(text, &["--relay-port=3", "--relay-address=b:1", "--namespaces=z"]).unwrap();
        assert_eq!((found.relay_address.as_str(), found.relay_port), ("b:1", 3));
        assert_eq!(found.namespaces, ["z"]);
        assert_eq!(
            parse("relayAddress: a\nnamespaces: x,y\n", &[]).unwrap().namespaces,
            ["x", "y"]
        );
    }

    /// The variable is set for a child alone: other threads of this test read the environment.
    #[test]
    fn the_environment_is_between_the_flag_and_the_file() {
        let name = "file::tests::the_environment_is_between_the_flag_and_the_file";
        if std::env::var_os("RPROC_TEST_PORT_THAT_IS_SET").is_none() {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let child = child.args(["--exact", name]).env("RPROC_TEST_PORT_THAT_IS_SET", "5");
            assert!(child.status().unwrap().success());
            return;
        }
        let text = "relayAddress: a\nrelayPort: 2\n";
        assert_eq!(parse(text, &[]).unwrap().relay_port, 5);
        assert_eq!(parse(text, &["--relay-port=3"]).unwrap().relay_port, 3);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        for (key, meant) in [
            ("relayAdress", "relayAddress"),
            ("relay-port", "relayPort"),
            ("relay_port", "relayPort"),
            ("RelayPort", "relayPort"),
        ] {
            let error = parse(&format!("{key}: 1\n"), &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("Did you mean {meant}?")), "{error}");
        }
        for key in ["frobnicate", "internal", "config", "help"] {
            let error = parse(&format!("{key}: true\n"), &[]).unwrap_err().to_string();
            assert!(
                error.contains("there is no setting") && error.contains("camelCase"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_wrong_value_names_the_file_and_the_key() {
        for (text, word) in [
            ("relayPort: many", "relayPort: invalid value 'many'"),
            ("relayPort: [1, 2]", "expected one value"),
            ("relayPort: 70000", "70000"),
            ("storage: perhaps", "expected true or false"),
            ("relayPort:\n  a: 1", "one line `key: value`"),
            ("relayAddress: [[a]]", "a list"),
            ("relayPort: 1\nrelayPort: 2", "relayPort"),
            ("- a", "one line `key: value`"),
        ] {
            let error = parse(text, &[]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("config.yaml"), "{text}: {error}");
        }
        let long = format!("relayAddress: {}", "x".repeat(70_000));
        let error = parse(&long, &[]).unwrap_err().to_string();
        assert!(error.contains("larger than 65536 bytes"), "{error}");
    }

    #[test]
    fn an_empty_path_is_no_file() {
        let words = ["example", "--config=", "--relay-address=a"].map(OsString::from);
        assert_eq!(try_parse_from::<Example>(words).unwrap().relay_address, "a");
        let usage = try_parse_from::<Example>(["example", "--config="].map(OsString::from));
        assert!(matches!(usage, Err(Error::Usage(_))), "{usage:?}");
    }

    #[test]
    fn an_empty_file_sets_nothing_and_a_missing_one_is_named() {
        assert_eq!(parse("# nothing\n", &["--relay-address=a"]).unwrap().relay_address, "a");
        let missing = ["example", "--config=/nonexistent/config.yaml"].map(OsString::from);
        let error = try_parse_from::<Example>(missing).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/config.yaml"), "{error}");
    }
}
