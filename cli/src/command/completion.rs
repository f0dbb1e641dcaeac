//! `rproc completion`: completion scripts.

use clap::ValueEnum;
use clap_complete::generate;

use crate::failure::Failure;
use crate::print::print;

/// The hidden word that asks for candidates: `rproc __complete SHELL WORD...`; the last word is the one at the cursor.
pub const WORD: &str = "__complete";

/// Flags of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
    /// Print a script that completes commands, flags and fixed values, and never runs rproc
    #[arg(long = "static")]
    pub is_static: bool,
}

const EXAMPLES: &str = "The script runs rproc while you type. rproc asks the API server for the names of
processes, namespaces and attempts, for at most 2 seconds; if it gets no answer,
it offers nothing. It never asks for a password. Contexts come from the
kubeconfig.

Examples:
  # bash: put this line into ~/.bashrc
  source <(rproc completion bash)

  # zsh: put this line into ~/.zshrc, after compinit
  source <(rproc completion zsh)

  # fish
  rproc completion fish > ~/.config/fish/completions/rproc.fish

  # PowerShell: put this line into $PROFILE
  rproc completion powershell | Out-String | Invoke-Expression

  # kubectl rproc, in the shell for which kubectl completion is set up: two links
  # to rproc in a folder of PATH
  ln -s \"$(command -v rproc)\" ~/.local/bin/kubectl-rproc
  ln -s \"$(command -v rproc)\" ~/.local/bin/kubectl_complete-rproc";

/// The supported shells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// PowerShell
    #[value(name = "powershell", alias = "pwsh")]
    PowerShell,
}

/// Bash splits words at `=` and `:` (COMP_WORDBREAKS). The function joins them again, and offers the rest behind them.
const BASH: &str = r#"_@FUNCTION@() {
    local words=() word previous= line last
    local -i i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i > 1)) && [[ $word =~ ^[=:]+$ || $previous =~ ^[=:]+$ ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        previous=$word
    done
    [[ $word =~ ^[=:]+$ ]] && word=
    last=${words[${#words[@]} - 1]}
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line#"${last%"$word"}"}")
    done < <(command @NAME@ @WORD@ bash "${words[@]}" 2>/dev/null </dev/null)
    [[ ${COMPREPLY-} == *[=/] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o nosort -F _@FUNCTION@ @NAME@ 2>/dev/null || complete -F _@FUNCTION@ @NAME@
"#;

const ZSH: &str = r#"#compdef @NAME@
_@FUNCTION@() {
    local -a found open
    found=("${(@f)$(command @NAME@ @WORD@ zsh "${(@Q)words[1,CURRENT-1]}" "${(Q)words[CURRENT]}" 2>/dev/null </dev/null)}")
    found=(${found:#})
    open=(${(M)found:#*[=/]})
    found=(${found:#*[=/]})
    (( $#open )) && _describe -V 'values' open -S ''
    (( $#found )) && _describe -V 'values' found
}
if [ "$funcstack[1]" = "_@FUNCTION@" ]; then
    _@FUNCTION@ "$@"
else
    compdef _@FUNCTION@ @NAME@
fi
"#;

const FISH: &str = r#"function _@FUNCTION@
    command @NAME@ @WORD@ fish (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token --cut-at-cursor) 2>/dev/null </dev/null
end
complete --command @NAME@ --keep-order --no-files --arguments "(_@FUNCTION@)"
"#;

const POWERSHELL: &str = r#"Register-ArgumentCompleter -Native -CommandName '@NAME@' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursorPosition } | ForEach-Object { $_.Extent.Text })
    $words += "$wordToComplete"
    @NAME@ @WORD@ powershell @words 2>$null | ForEach-Object {
        $value, $help = $_ -split "`t", 2
        if (-not $help) { $help = $value }
        [System.Management.Automation.CompletionResult]::new($value, $value, 'ParameterValue', $help)
    }
}
"#;

/// Prints the script.
pub fn run(args: CompletionArgs, parser: &mut clap::Command, name: &str) -> Result<u8, Failure> {
    let text = match args.is_static {
        true => fixed(args.shell, parser, name),
        false => live(args.shell, name),
    };
    print(&text)?;
    Ok(0)
}

/// A script that asks the program.
fn live(shell: Shell, name: &str) -> String {
    let text = match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
        Shell::PowerShell => POWERSHELL,
    };
    text.replace("@FUNCTION@", &name.replace('-', "_"))
        .replace("@WORD@", WORD)
        .replace("@NAME@", name)
}

/// A script that knows everything by itself.
fn fixed(shell: Shell, parser: &mut clap::Command, name: &str) -> String {
    let mut text = Vec::new();
    match shell {
        Shell::Bash => generate(clap_complete::Shell::Bash, parser, name, &mut text),
        Shell::Zsh => generate(clap_complete::Shell::Zsh, parser, name, &mut text),
        Shell::Fish => generate(clap_complete::Shell::Fish, parser, name, &mut text),
        Shell::PowerShell => generate(clap_complete::Shell::PowerShell, parser, name, &mut text),
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_is_for_the_name_by_which_we_were_called() {
        for shell in Shell::value_variants() {
            for name in ["rproc", "kubectl-rproc"] {
                let parser = &mut crate::command::parser(None);
                assert!(fixed(*shell, parser, name).contains(name), "{shell:?} {name}");
                let live = live(*shell, name);
                assert!(live.contains(&format!("{name} __complete")), "{live}");
            }
        }
    }
}
