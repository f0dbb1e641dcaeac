//! The settings of a program as a table for the documentation.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, Command};

use crate::file::collect;

/// A Markdown table of the settings of a command and its subcommands: key, flag, environment variable and default.
#[must_use]
pub fn table(command: &Command, is_setting: &dyn Fn(&Arg) -> bool) -> String {
    let mut known = BTreeMap::new();
    collect(command, is_setting, &mut known);
    let rows = known.iter().map(|(key, argument)| row(key, argument));
    let head = "| key | environment | default | meaning |\n|---|---|---|---|\n";
    head.to_owned() + &rows.collect::<String>()
}

fn row(key: &str, argument: &Arg) -> String {
    let code = |text: &str| match text.is_empty() {
        true => String::new(),
        false => format!("`{text}`"),
    };
    let env = argument.get_env().map(|name| name.to_string_lossy().into_owned());
    let defaults = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy());
    let defaults = defaults.collect::<Vec<_>>().join(",");
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    format!(
        "| `{key}` | {} | {} | {} |\n",
        code(&env.unwrap_or_default()),
        code(&defaults),
        help.replace('|', "\\|").replace('\n', " ")
    )
}

/// For tests: panics unless the file has this table between `<!-- settings of PROGRAM -->` and `<!-- end -->`. With
/// `UPDATE_DOCS` in the environment, writes it there.
///
/// # Panics
/// The file cannot be read, has no such marks, or has another table.
pub fn check_docs(path: &Path, program: &str, table: &str) {
    let text = std::fs::read_to_string(path).expect("the page exists");
    let mark = format!("<!-- settings of {program} -->\n");
    let (before, rest) = text.split_once(&mark).expect("the page has the mark");
    let (current, after) = rest.split_once("<!-- end -->").expect("the table ends");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{mark}{table}<!-- end -->{after}")).expect("the page can be written");
        return;
    }
    assert!(
        current == table,
        "run UPDATE_DOCS=1 cargo test with this test; {} should have:\n{table}",
        path.display()
    );
}
