//! The user's settings in `~/.config/rproc/config.yaml`, which become the defaults of flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, Command};
use remoteprocess_settings::{Error, Settings};

use crate::command;

/// The flags that the file can set, by id. Which cluster you use belongs into the kubeconfig.
const SETTINGS: [&str; 5] = ["namespace", "server", "operator_namespace", "detach_keys", "color"];

/// The parser, with the settings of the file as defaults.
///
/// # Errors
/// There is a file and it cannot be used.
pub fn parser(arguments: &[OsString]) -> Result<Command, Error> {
    let parser = command::parser(arguments.first().map(OsString::as_os_str));
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let settings = match remoteprocess_settings::path(&parser, arguments) {
        Some(path) => Some(Settings::read(&path)?),
        None => standard(&variable)
            .filter(|path| path.exists())
            .map(|path| Settings::read(&path))
            .transpose()?,
    };
    let Some(mut settings) = settings else {
        return Ok(parser);
    };
    if variable("NO_COLOR").is_some() {
        settings.remove("color");
    }
    settings.apply(parser, &is_setting)
}

/// Whether the file can set the argument.
fn is_setting(argument: &Arg) -> bool {
    SETTINGS.contains(&argument.get_id().as_str())
}

/// `${XDG_CONFIG_HOME:-~/.config}/rproc/config.yaml` (XDG Base Directory Specification, which ignores relative paths).
fn standard(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")))?;
    Some(base.join("rproc/config.yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_where_the_desktop_specification_says() {
        let of = |set: &[(&str, &str)]| {
            let find = |name: &str| {
                set.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| value.into())
            };
            standard(&find).map(|path| path.display().to_string())
        };
        let home = ("HOME", "/home/a");
        assert_eq!(of(&[home]).as_deref(), Some("/home/a/.config/rproc/config.yaml"));
        assert_eq!(
            of(&[home, ("XDG_CONFIG_HOME", "/c")]).as_deref(),
            Some("/c/rproc/config.yaml")
        );
        assert_eq!(
            of(&[home, ("XDG_CONFIG_HOME", "c")]).as_deref(),
            Some("/home/a/.config/rproc/config.yaml")
        );
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn each_setting_is_a_flag_and_is_documented() {
        let table = remoteprocess_settings::table(&command::parser(None), &is_setting);
        assert_eq!(table.lines().count(), 2 + SETTINGS.len(), "{table}");
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        remoteprocess_settings::check_docs(docs.as_ref(), "rproc", &table);
    }
}
