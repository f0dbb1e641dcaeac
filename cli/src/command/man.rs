//! `rproc man`: the man pages, one for each command.

use std::path::PathBuf;

use crate::failure::Failure;

/// Flags of `man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory to write to; it must exist
    pub directory: PathBuf,
}

/// Writes `rproc.1`, `rproc-run.1` and so on.
///
/// # Errors
/// A page cannot be written.
pub fn run(args: &ManArgs, parser: clap::Command) -> Result<u8, Failure> {
    let parser = parser.disable_help_subcommand(true);
    clap_mangen::generate_to(parser, &args.directory).map_err(|error| {
        let directory = args.directory.display();
        Failure::new(format!("cannot write the man pages to {directory}: {error}"))
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::parser;

    #[test]
    fn each_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().to_owned();
        run(&ManArgs { directory }, parser(None)).unwrap();
        for verb in parser(None).get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let page = folder.path().join(format!("rproc-{}.1", verb.get_name()));
            let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(".SH SYNOPSIS") && text.contains("NAME"), "{text}");
        }
        assert!(folder.path().join("rproc.1").exists());
        let missing = ManArgs {
            directory: folder.path().join("missing"),
        };
        assert!(run(&missing, parser(None)).unwrap_err().text.contains("missing"));
    }
}
