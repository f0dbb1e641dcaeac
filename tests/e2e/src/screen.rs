//! A terminal whose content tests read: tmux, with a shell in it.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::program::Program;
use crate::wait::until;

/// How long text may take to appear.
const SHOWN: Duration = Duration::from_secs(60);

/// A window of tmux with a server of its own. Dropping it ends both.
pub struct Screen {
    socket: String,
}

impl Screen {
    /// Opens a window with a shell that has the environment of `program`, an `rproc`, under that name; `None` if there
    /// is no tmux.
    ///
    /// # Errors
    /// tmux does not start.
    pub fn open(program: Program, columns: u16, rows: u16) -> Result<Option<Self>> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("left out: there is no tmux here");
            return Ok(None);
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let screen = Self {
            socket: format!("rproc-e2e-{}-{count}", std::process::id()),
        };
        let command = program.into_command();
        let variables = command.get_envs().filter_map(|(name, value)| {
            let value = value?.to_str()?;
            Some(format!("{}={value}", name.to_str()?))
        });
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let mut start = vec![
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &columns,
            "-y",
            &rows,
            "env",
        ];
        let variables: Vec<String> = variables.collect();
        start.extend(variables.iter().map(String::as_str));
        start.extend(["PS1=prompt> ", "sh"]);
        screen.tmux(&start)?;
        screen.wait_for("prompt>")?;
        let rproc = command.get_program().to_string_lossy();
        screen.line(&format!("rproc() {{ {rproc} \"$@\"; }}; clear"))?;
        Ok(Some(screen))
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.socket]).args(arguments);
        let output = command.output().context("tmux")?;
        ensure!(
            output.status.success(),
            "tmux {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Types text unchanged.
    ///
    /// # Errors
    /// tmux refuses.
    pub fn types(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text]).map(drop)
    }

    /// Presses keys, with tmux's names for them: `Enter`, `Escape`, `C-c`.
    ///
    /// # Errors
    /// tmux refuses.
    pub fn presses(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Types a line and presses Enter.
    ///
    /// # Errors
    /// tmux refuses.
    pub fn line(&self, text: &str) -> Result<()> {
        self.types(text)?;
        self.presses(&["Enter"])
    }

    /// What the window shows.
    ///
    /// # Errors
    /// tmux refuses.
    pub fn shows(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the window shows this.
    ///
    /// # Errors
    /// It does not in time; the error contains what it shows.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.wait_until(text, |shown| shown.contains(text))
    }

    /// Waits until the content of the window satisfies the condition.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<()> {
        let waited = until(what, SHOWN, || Ok(is_so(&self.shows()?)));
        waited.with_context(|| format!("the window shows:\n{}", self.shows().unwrap_or_default()))
    }

    /// Gives the window another size.
    ///
    /// # Errors
    /// tmux refuses.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &rows]).map(drop)
    }

    /// Resets the terminal as `stty sane` does, and begins a new line.
    ///
    /// # Errors
    /// Its modes cannot be set.
    pub fn mend(&self) -> Result<()> {
        Program::new("stty", ["-F", &self.terminal()?, "sane"]).succeed()?;
        self.presses(&["C-u", "Enter"])
    }

    fn terminal(&self) -> Result<String> {
        let name = self.tmux(&["display-message", "-p", "#{pane_tty}"])?;
        Ok(name.trim().to_owned())
    }

    /// Whether the terminal has its original modes: whole lines and echo.
    ///
    /// # Errors
    /// Its modes cannot be read.
    pub fn is_as_before(&self) -> Result<bool> {
        let modes = Program::new("stty", ["-a", "-F", &self.terminal()?]).succeed()?;
        let has = |mode: &str| modes.split([' ', ';', '\n']).any(|word| word == mode);
        Ok(has("icanon") && has("echo") && has("opost") && has("isig"))
    }

    /// Process ids of the shell's current children.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn running(&self) -> Result<Vec<i32>> {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"])?;
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// Waits until rproc has ended, because it would read what is typed earlier.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn at_prompt(&self) -> Result<()> {
        until("the end of rproc", SHOWN, || Ok(self.running()?.is_empty()))
    }

    /// Waits until the shell is back, and checks that its terminal is restored.
    ///
    /// # Errors
    /// It is not.
    pub fn is_back(&self) -> Result<()> {
        self.at_prompt()?;
        // Only a shell that reads its terminal line by line answers like this.
        self.line("echo back=$((6 * 7)) code=$?")?;
        self.wait_for("back=42")?;
        ensure!(self.is_as_before()?, "the terminal is not as it was");
        self.line("clear")?;
        // What it showed must not be taken for what comes.
        self.wait_until("an empty window", |shown| !shown.contains("back=42"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}
