//! `rproc completion`: completion scripts.

use clap::ValueEnum;
use clap_complete::generate;

use crate::failure::Failure;
use crate::print::print;

/// Flags of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

const EXAMPLES: &str = "Examples:
  # bash, for this user
  rproc completion bash > ~/.local/share/bash-completion/completions/rproc

  # zsh, where this folder is in $fpath
  rproc completion zsh > ~/.zfunc/_rproc

  # fish
  rproc completion fish > ~/.config/fish/completions/rproc.fish";

/// A shell that can complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Prints the script.
///
/// # Errors
/// Nobody reads it.
pub fn run(args: CompletionArgs, parser: &mut clap::Command, name: &str) -> Result<u8, Failure> {
    print(&script(args.shell, parser, name))?;
    Ok(0)
}

fn script(shell: Shell, parser: &mut clap::Command, name: &str) -> String {
    let mut text = Vec::new();
    match shell {
        Shell::Bash => generate(clap_complete::Shell::Bash, parser, name, &mut text),
        Shell::Zsh => generate(clap_complete::Shell::Zsh, parser, name, &mut text),
        Shell::Fish => generate(clap_complete::Shell::Fish, parser, name, &mut text),
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_is_for_the_name_by_which_we_were_called() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            for name in ["rproc", "kubectl-rproc"] {
                assert!(
                    script(shell, &mut crate::command::parser(None), name).contains(name),
                    "{shell:?} {name}"
                );
            }
        }
    }
}
