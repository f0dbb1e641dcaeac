//! What a terminal shows of one stream.

use bytes::Bytes;
use jiff::Timestamp;
use remoteprocess_proto::v1::Data;

use super::form::Control;
use super::screen::Screen;
use super::terminal::TerminalFilter;

/// What must be remembered of one stream, from chunk to chunk, to show it at a terminal.
#[derive(Default)]
pub(crate) struct Controlled {
    filter: TerminalFilter,
    screen: Screen,
    delay: Delay,
}

impl Controlled {
    /// The form of these bytes for a terminal.
    pub(crate) fn apply(&mut self, control: Control, data: &Data) -> Bytes {
        match control {
            Control::Shown => self.filter.apply(&data.bytes).into(),
            Control::Watched => self.screen.without_queries(&data.bytes),
            Control::Typed { live_from } => {
                let replayed = live_from.of(data.stream()).saturating_sub(data.offset);
                if replayed == 0 && self.delay.is_late(data.time_unix_nanos, Timestamp::now()) {
                    return self.screen.without_queries(&data.bytes);
                }
                let replayed =
                    usize::try_from(replayed).map_or(data.bytes.len(), |length| length.min(data.bytes.len()));
                let (old, new) = (data.bytes.slice(..replayed), data.bytes.slice(replayed..));
                match (old.is_empty(), new.is_empty()) {
                    (true, _) => self.screen.with_queries(new),
                    (false, true) => self.screen.without_queries(&old),
                    (false, false) => {
                        let old = self.screen.without_queries(&old);
                        [old, self.screen.with_queries(new)].concat().into()
                    }
                }
            }
        }
    }

    /// The sequences that restore the terminal to the state that a shell expects; empty if the program changed nothing.
    pub(crate) fn restore(&mut self) -> Vec<u8> {
        self.screen.restore()
    }
}

/// Measures how long the bytes of a stream are on their way, by two clocks that may differ.
#[derive(Default)]
struct Delay {
    /// The shortest so far, in nanoseconds.
    shortest: Option<i128>,
}

impl Delay {
    /// Bytes that arrive this much later than others come from before a cut: a program that asked then no longer waits.
    const LATE: i128 = 5_000_000_000;

    /// Whether bytes that the agent took at this time are late; a time of 0 is unknown.
    fn is_late(&mut self, taken: i64, now: Timestamp) -> bool {
        if taken == 0 {
            return false;
        }
        let delay = now.as_nanosecond() - i128::from(taken);
        let shortest = *self.shortest.get_or_insert(delay);
        self.shortest = Some(shortest.min(delay));
        delay - shortest > Self::LATE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_during_a_cut_is_not_answered_after_it() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let taken = |second: i64| second * 1_000_000_000;
        let mut delay = Delay::default();
        // The clock of the agent is 100 s ahead.
        assert!(!delay.is_late(taken(1101), at(1001)));
        assert!(!delay.is_late(taken(1110), at(1010)));
        assert!(delay.is_late(taken(1120), at(1600)), "a laptop that slept");
        assert!(!delay.is_late(taken(1700), at(1600)), "caught up");
        assert!(!delay.is_late(0, at(1600)), "of a further command nobody knows");
    }
}
