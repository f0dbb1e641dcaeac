//! Settings by file: each key is the name of a flag in camelCase, and its value is the default of that flag.
//!
//! So there is one precedence for all programs that read a file: flag, environment, file, built-in default.
//!
//! Arrows: none to a sibling. Invariant: a key that is no flag, and a value that the flag would refuse, are errors that
//! name the file and the key.

mod file;
mod table;
mod yaml;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgMatches, Command, Parser};

pub use file::{Error, Settings};
pub use table::{check_docs, table};

/// The id of the argument with the path of the file.
pub const CONFIG: &str = "config";

/// Parses the command line and environment of this program, and the file that `--config` names. Prints wrong usage, help
/// and version and exits, as [`Parser::parse`] does.
///
/// # Errors
/// The file cannot be used.
pub fn parse<T: Parser>() -> Result<T, Error> {
    match try_parse_from(std::env::args_os()) {
        Err(Error::Usage(usage)) => usage.exit(),
        other => other,
    }
}

/// As [`parse`], with these arguments. Never exits. Without a file, this costs no more than [`Parser::try_parse_from`].
///
/// # Errors
/// The arguments are wrong, or the file cannot be used.
pub fn try_parse_from<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<T, Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut found = T::command().try_get_matches_from(&arguments);
    let path = match &found {
        Ok(found) => given(found),
        // The file may have what is missing.
        Err(_) => path(&T::command(), &arguments),
    };
    if let Some(path) = path {
        let command = Settings::read(&path)?.apply(T::command(), &is_setting)?;
        found = command.try_get_matches_from(&arguments);
    }
    Ok(found.and_then(|found| T::from_arg_matches(&found))?)
}

/// The parser of `--config`. A variable that is set to nothing is no error.
#[must_use]
pub fn path_parser() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The path in `--config` or its environment variable. The arguments may be wrong otherwise. An empty path counts as
/// absent.
#[must_use]
pub fn path(command: &Command, arguments: &[OsString]) -> Option<PathBuf> {
    let found = command.clone().ignore_errors(true).try_get_matches_from(arguments);
    given(&found.ok()?)
}

fn given(found: &ArgMatches) -> Option<PathBuf> {
    let path = found.try_get_one::<PathBuf>(CONFIG).ok().flatten();
    path.filter(|path| !path.as_os_str().is_empty()).cloned()
}

/// Whether a file can set the argument: a flag that is shown, other than those about the program and the file itself.
#[must_use]
pub fn is_setting(argument: &Arg) -> bool {
    let id = argument.get_id().as_str();
    argument.get_long().is_some() && !argument.is_hide_set() && !["help", "version", CONFIG].contains(&id)
}

/// The key of an argument: `--relay-address` is `relayAddress`.
fn key(argument: &Arg) -> Option<String> {
    let mut words = argument.get_long()?.split('-');
    let first = words.next()?.to_owned();
    Some(words.fold(first, |key, word| {
        let (begin, rest) = word.split_at(word.len().min(1));
        key + &begin.to_ascii_uppercase() + rest
    }))
}
