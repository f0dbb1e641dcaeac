//! The notes of a release: its section of CHANGELOG.md.

use anyhow::{Result, bail};

/// The section of this version, or `[Unreleased]` if it has none yet. Fails if there is nothing in it.
pub(super) fn notes(changelog: &str, version: &str) -> Result<String> {
    let section = section(changelog, version).or_else(|| section(changelog, "Unreleased"));
    match section.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => Ok(format!("# RemoteProcess {version}\n\n{text}\n")),
        None => bail!("CHANGELOG.md has neither a section [{version}] nor anything under [Unreleased]"),
    }
}

fn section<'a>(changelog: &'a str, name: &str) -> Option<&'a str> {
    let begin = changelog.find(&format!("\n## [{name}]"))? + 1;
    let rest = changelog.get(begin..)?;
    let (_, rest) = rest.split_once('\n')?;
    Some(rest.split("\n## ").next().unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str =
        "# Changelog\n\n## [Unreleased]\n\n### Added\n- new\n\n## [0.1.0] - 2026-01-01\n\n- first\n";

    #[test]
    fn the_notes_are_the_section_of_the_version() {
        assert_eq!(notes(CHANGELOG, "0.1.0").unwrap(), "# RemoteProcess 0.1.0\n\n- first\n");
        assert_eq!(
            notes(CHANGELOG, "0.2.0").unwrap(),
            "# RemoteProcess 0.2.0\n\n### Added\n- new\n"
        );
        let empty = notes("# Changelog\n\n## [Unreleased]\n\n## [0.1.0]\n- x\n", "0.2.0");
        assert!(empty.unwrap_err().to_string().contains("[0.2.0]"));
    }
}
