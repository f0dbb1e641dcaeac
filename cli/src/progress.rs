//! Reports why there is no output: while a process has not started, and while there is no connection.

use std::time::Duration;

use remoteprocess_client::{Progress, SinkError};
use remoteprocess_proto::v1::{Gap, Phase, Reason, State};
use tokio::time::{Instant, sleep_until};

use crate::output::Output;

/// A state that lasts no longer than this is not reported: every start goes through the usual ones.
const PATIENCE_USUAL: Duration = Duration::from_secs(4);
/// The same for a state that means trouble.
const PATIENCE_TROUBLE: Duration = Duration::from_secs(1);
/// A broken connection that lasts no longer than this is not reported.
const PATIENCE_CUT: Duration = Duration::from_secs(5);

/// Reasons during a normal start.
const USUAL: [Reason; 4] = [
    Reason::Unspecified,
    Reason::Waiting,
    Reason::ContainerCreating,
    Reason::Enrolling,
];

/// Reports why there is no output: while the process has not started, and while there is no connection.
pub struct Messages {
    output: Output,
    name: String,
    is_quiet: bool,
    is_one_of_many: bool,
    waiting: Option<Line>,
    last_said: Option<String>,
    cut: Option<Line>,
    is_cut_said: bool,
}

#[derive(Debug)]
struct Line {
    due: Instant,
    text: String,
    /// Output that arrives does not end this state.
    outlives_output: bool,
}

impl Messages {
    /// For the process with this name.
    pub fn new(name: impl Into<String>, is_quiet: bool, output: &Output) -> Self {
        Self {
            output: output.clone(),
            name: name.into(),
            is_quiet,
            is_one_of_many: false,
            waiting: None,
            last_said: None,
            cut: None,
            is_cut_said: false,
        }
    }

    /// Adds the name of the process to each message, because it is followed together with others.
    pub fn among_many(mut self) -> Self {
        self.is_one_of_many = true;
        self
    }

    /// The message, with the name of the process if it is one of many.
    pub fn about(&self, message: String) -> String {
        if self.is_one_of_many {
            format!("{}: {message}", self.name)
        } else {
            message
        }
    }

    /// The process runs, and may be held back by its own output: then arriving bytes do not prove that it is not.
    fn held_back(&mut self, state: &State) {
        let name = &self.name;
        let text = match state.phase() {
            Phase::Paused => format!("{name} is paused. Resume it with: rproc resume {name}"),
            Phase::Running if is_pressed(state) => format!("{name} is held back: {}", state.message),
            Phase::Running if state.reason() == Reason::DeadlineNear => {
                format!("{name} will soon reach its run deadline. Extend it with: rproc extend {name} --by 10m")
            }
            _ => {
                self.waiting = None;
                self.last_said = None;
                return;
            }
        };
        let is_known = self.waiting.as_ref().is_some_and(|line| line.text == text);
        if !is_known && self.last_said.as_ref() != Some(&text) {
            self.waiting = Some(Line {
                due: Instant::now() + PATIENCE_TROUBLE,
                text,
                outlives_output: true,
            });
        }
    }

    fn speak(&mut self) -> Option<String> {
        let now = Instant::now();
        let text = if let Some(line) = self.waiting.take_if(|line| line.due <= now) {
            self.last_said = Some(line.text.clone());
            line.text
        } else {
            let line = self.cut.as_ref().filter(|line| line.due <= now && !self.is_cut_said)?;
            self.is_cut_said = !self.is_quiet;
            if self.is_quiet {
                // Only the timer is stopped.
                self.cut = None;
                return None;
            }
            line.text.clone()
        };
        (!self.is_quiet).then_some(text)
    }
}

impl Progress for Messages {
    fn state(&mut self, state: &State) {
        // The status uses the same reason for a pause before the start, but its message differs.
        if matches!(
            state.phase(),
            Phase::Running | Phase::Paused | Phase::Stopping | Phase::Succeeded | Phase::Failed
        ) {
            return self.held_back(state);
        }
        let mut text = format!("{} waits: {}", self.name, state.phase());
        for part in [state.reason().into(), state.message.as_str()] {
            if !part.is_empty() {
                text = format!("{text}: {part}");
            }
        }
        let is_known = self.waiting.as_ref().is_some_and(|line| line.text == text);
        if !is_known && self.last_said.as_ref() != Some(&text) {
            let is_usual = USUAL.contains(&state.reason());
            let patience = if is_usual { PATIENCE_USUAL } else { PATIENCE_TROUBLE };
            // The timer of the first usual state keeps running.
            let begun = self.waiting.take().filter(|_| is_usual).map(|line| line.due);
            let due = begun.unwrap_or_else(|| Instant::now() + patience);
            self.waiting = Some(Line {
                due,
                text,
                outlives_output: false,
            });
        }
    }

    fn data(&mut self) {
        self.waiting.take_if(|line| !line.outlives_output);
    }

    async fn gap(&mut self, gap: &Gap) -> Result<(), SinkError> {
        self.output
            .line(&self.about(remoteprocess_client::gap::loss(gap)))
            .await
    }

    /// Only the first of several in a row starts the timer.
    fn cut(&mut self, cause: String) {
        let text = self.about(format!(
            "no connection to the relay ({cause}); trying again, nothing is lost"
        ));
        match &mut self.cut {
            Some(line) => line.text = text,
            None => {
                self.cut = Some(Line {
                    due: Instant::now() + PATIENCE_CUT,
                    text,
                    outlives_output: true,
                })
            }
        }
    }

    async fn alive(&mut self) -> Result<(), SinkError> {
        self.cut = None;
        if std::mem::take(&mut self.is_cut_said) {
            self.output.line(&self.about("connected again".into())).await?;
        }
        Ok(())
    }

    async fn due(&self) {
        let waiting = self.waiting.as_ref().map(|line| line.due);
        let cut = self.cut.as_ref().filter(|_| !self.is_cut_said).map(|line| line.due);
        match waiting.into_iter().chain(cut).min() {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    async fn tell(&mut self) -> Result<(), SinkError> {
        match self.speak() {
            Some(text) => self.output.line(&text).await,
            None => Ok(()),
        }
    }
}

/// Whether the state of a running process says that output is held back. An ordinary state has exactly this message, or
/// none.
fn is_pressed(state: &State) -> bool {
    !matches!(state.message.as_str(), "" | "the program is running")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Target;

    fn nowhere() -> Output {
        Output::new(Target::plain(std::io::sink()), Target::plain(std::io::sink()))
    }

    fn state(phase: Phase, reason: Reason) -> State {
        State {
            phase: phase.into(),
            reason: reason.into(),
            message: "a message".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_is_reported_once_and_only_when_it_lasts() {
        let mut messages = Messages::new("job", false, &nowhere());
        messages.state(&state(Phase::Pending, Reason::Waiting));
        assert_eq!(messages.speak(), None);
        messages.state(&state(Phase::Pending, Reason::ImagePull));
        messages.due().await;
        assert_eq!(messages.speak().unwrap(), "job waits: Pending: ImagePull: a message");
        messages.state(&state(Phase::Pending, Reason::ImagePull));
        assert!(messages.waiting.is_none());
        messages.state(&state(Phase::Pending, Reason::Unschedulable));
        messages.data();
        assert!(messages.waiting.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_is_held_back_is_named_though_bytes_come() {
        let mut messages = Messages::new("job", false, &nowhere());
        let blocked = State {
            message: "its spool is full".into(),
            ..state(Phase::Running, Reason::Running)
        };
        let free = State {
            message: String::new(),
            ..state(Phase::Running, Reason::Running)
        };
        for _ in 0..2 {
            messages.state(&blocked);
            messages.data();
            messages.due().await;
            assert_eq!(messages.speak().unwrap(), "job is held back: its spool is full");
            messages.state(&blocked);
            assert!(messages.waiting.is_none(), "said once");
            messages.state(&free);
        }
        messages.state(&blocked);
        messages.state(&free);
        assert!(messages.waiting.is_none(), "it did not last");
    }

    #[test]
    fn one_of_many_is_named() {
        assert_eq!(Messages::new("job", false, &nowhere()).about("x".into()), "x");
        assert_eq!(
            Messages::new("job", false, &nowhere()).among_many().about("x".into()),
            "job: x"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_is_reported_once_after_five_seconds() {
        let mut messages = Messages::new("job", false, &nowhere());
        let begin = Instant::now();
        messages.cut("first".into());
        messages.cut("second".into());
        messages.due().await;
        assert_eq!(begin.elapsed().as_secs(), 5);
        assert!(messages.speak().unwrap().contains("(second)"));
        messages.cut("third".into());
        assert_eq!(messages.speak(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_one_says_nothing() {
        let mut messages = Messages::new("job", true, &nowhere());
        messages.cut("first".into());
        messages.state(&state(Phase::Pending, Reason::ImagePull));
        messages.due().await;
        assert_eq!(messages.speak(), None);
        messages.due().await;
        assert_eq!(messages.speak(), None);
    }
}
