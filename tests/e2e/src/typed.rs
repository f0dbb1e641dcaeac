//! A document that is typed: the commands of its code blocks in order, in one shell, compared with the output that it
//! shows.

use anyhow::{Context, Result, bail, ensure};

/// Marks the block below as not typed, with the reason.
const MARK: &str = "<!-- not typed: ";
/// Surrounds the script's own markers; no program prints it.
const SEPARATOR: char = '\u{1e}';

/// A command of a document, and the output lines that it shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Typed {
    /// Its line in the document.
    pub line: usize,
    /// The command.
    pub command: String,
    shown: Vec<String>,
}

/// The commands of a document, and the blocks that are left out.
#[derive(Debug, Default)]
pub struct Document {
    /// The commands to type.
    pub commands: Vec<Typed>,
    /// Line of a block that is left out, and the reason.
    pub left_out: Vec<(usize, String)>,
}

impl Document {
    /// Reads the `console` blocks of Markdown. A block below `<!-- not typed: REASON -->` is left out.
    #[must_use]
    pub fn read(markdown: &str) -> Self {
        let mut document = Self::default();
        let (mut is_inside, mut mark) = (false, None);
        for (number, line) in (1..).zip(markdown.lines()) {
            if line.starts_with("```") {
                is_inside = line == "```console" && mark.is_none();
                if let Some(reason) = mark.take() {
                    document.left_out.push((number, reason));
                }
            } else if is_inside {
                document.add(number, line);
            } else if let Some(reason) = line.strip_prefix(MARK) {
                mark = Some(reason.trim_end_matches("-->").trim().to_owned());
            } else if !line.is_empty() {
                mark = None;
            }
        }
        document
    }

    fn add(&mut self, line: usize, text: &str) {
        if let Some(command) = text.strip_prefix("$ ") {
            let (command, shown) = (command.to_owned(), Vec::new());
            self.commands.push(Typed { line, command, shown });
        } else if let Some(last) = self.commands.last_mut() {
            if last.shown.is_empty() && last.command.ends_with('\\') {
                last.command += "\n";
                last.command += text;
            } else {
                last.shown.push(text.to_owned());
            }
        }
    }

    /// A script for `bash` that types all of it. `$?` is that of the previous command, as at a prompt.
    #[must_use]
    pub fn script(&self) -> String {
        let typed = self.commands.iter().map(|typed| {
            format!(
                "(exit $code)\n{}\ncode=$?; printf '{SEPARATOR}%d{SEPARATOR}' $code\n",
                typed.command
            )
        });
        format!("exec 2>&1; code=0\n{}", typed.collect::<String>())
    }

    /// Compares the output of [`Self::script`] with what the document shows; every command must succeed, unless the
    /// next one shows its code.
    pub fn check(&self, printed: &str) -> Result<()> {
        let mut printed = printed.split(SEPARATOR);
        for (index, typed) in self.commands.iter().enumerate() {
            let here = || format!("line {}: $ {}", typed.line, typed.command);
            let (said, code) = (printed.next(), printed.next());
            let (Some(said), Some(code)) = (said, code) else {
                bail!("{}: the shell ended; it said: {}", here(), said.unwrap_or_default());
            };
            let is_shown = self
                .commands
                .get(index + 1)
                .is_some_and(|next| next.command == "echo $?");
            ensure!(
                code == "0" || is_shown,
                "{}: exit code {code}; it said:\n{said}",
                here()
            );
            compare(&typed.shown, said).with_context(here)?;
        }
        Ok(())
    }
}

/// The document may leave out lines of ours on stderr; of the output of programs it shows all or nothing. Numbers of
/// seconds and spaces may differ.
fn compare(shown: &[String], said: &str) -> Result<()> {
    if shown.is_empty() {
        return Ok(());
    }
    let is_ours = |line: &&str| line.starts_with("rproc: ");
    let said: Vec<&str> = said.lines().filter(|line| !is_ours(line)).collect();
    let shown: Vec<&str> = shown.iter().map(String::as_str).filter(|line| !is_ours(line)).collect();
    let is_same = said.len() == shown.len() && said.iter().zip(&shown).all(|(said, shown)| words(said) == words(shown));
    ensure!(
        is_same,
        "it said:\n{}\ninstead of:\n{}",
        said.join("\n"),
        shown.join("\n")
    );
    Ok(())
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace()
        .map(|word| if is_duration(word) { "TIME" } else { word })
        .collect()
}

/// `9s`, `3.1s`, `2m5s`
fn is_duration(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(['s', 'm', 'h', 'd'])
        && word.chars().all(|c| c.is_ascii_digit() || ".smhd".contains(c))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const TEXT: &str = "Text\n\n```console\n$ echo a; exit_with() { return 7; }; exit_with\na\n$ echo $?\n7\n$ echo b \\\n    c\n\
                        ```\n\n<!-- not typed: it has no end -->\n```console\n$ sleep 1000\n```\n\n```yaml\n$ no\n```\n";

    fn typed(document: &Document) -> String {
        let output = Command::new("bash").args(["-c", &document.script()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn commands_are_typed_in_one_shell_and_blocks_with_a_mark_are_left_out() {
        let document = Document::read(TEXT);
        assert_eq!(document.commands.len(), 3, "{document:?}");
        assert_eq!(document.left_out, [(13, "it has no end".to_owned())]);
        document.check(&typed(&document)).unwrap();
    }

    #[test]
    fn another_output_and_an_exit_code_that_is_not_shown_are_faults() {
        let fault = |text: &str| {
            let document = Document::read(text);
            format!("{:#}", document.check(&typed(&document)).unwrap_err())
        };
        assert!(fault("```console\n$ echo x\ny\n```").contains("line 2: $ echo x: it said:\nx\ninstead of:\ny"));
        assert!(fault("```console\n$ false\n```").contains("exit code 1"));
        assert!(fault("```console\n$ exit 3\n$ true\n```").contains("the shell ended"));
    }

    #[test]
    fn times_spaces_and_lines_of_ours_may_differ() {
        let shown = ["A   9s".to_owned()];
        compare(&shown, "rproc: x created\nA 12.5s\n").unwrap();
        assert!(compare(&shown, "A 12\n").is_err());
    }
}
