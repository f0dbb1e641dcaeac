//! How far the events of a process are sent: an annotation of the process itself. Pure.

use remoteprocess_api::names::ANNOTATION_CURSOR_PREFIX;
use remoteprocess_api::sink::{MAX_CURSOR_BYTES, OutputStream};
use remoteprocess_proto::MAX_OFFSET;
use serde::{Deserialize, Serialize};

/// The last transition that was sent: number of the attempt, and a step of it. They are in the order in which they are
/// sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark(u32, u8);

impl Mark {
    /// The process was created.
    pub const CREATED: Self = Self(0, 1);
    /// A process that is gone: everything that its last status told is sent.
    pub const TOLD: Self = Self(u32::MAX, 0);
    /// Nothing is left to send.
    pub const FINISHED: Self = Self(u32::MAX, 1);

    /// The start of an attempt was granted.
    pub fn starting(attempt: u32) -> Self {
        Self(attempt, 0)
    }

    /// The program was launched.
    pub fn started(attempt: u32) -> Self {
        Self(attempt, 1)
    }

    /// The whole output of an attempt is sent.
    pub fn output(attempt: u32) -> Self {
        Self(attempt, 2)
    }

    /// The attempt has ended.
    pub fn ended(attempt: u32) -> Self {
        Self(attempt, 3)
    }

    /// Number of the attempt; 0 before the first.
    pub fn attempt(self) -> u32 {
        self.0
    }
}

/// How far the output of an attempt is sent: number of the attempt, and the offsets of the next bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached(u32, u64, u64);

/// Output that was not sent of a process that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsent {
    /// Number of the attempt.
    pub attempt: u32,
    /// The stream.
    pub stream: OutputStream,
    /// Everything before it was sent.
    pub from: u64,
}

/// How far the events of a process are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Uid of the process: an annotation can be copied to another one.
    #[serde(rename = "u")]
    uid: String,
    /// The last transition.
    #[serde(rename = "m")]
    pub mark: Mark,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    reached: Option<Reached>,
    /// A pause that was told: the attempt, and when it began in seconds since the Unix epoch.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<(u32, i64)>,
    /// The attempt of which it was told that it is being stopped.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<u32>,
    /// The last event does not wait for the seal any more. Noted before it is sent, so that it is the same if it is sent
    /// again.
    #[serde(rename = "x", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unsealed: bool,
    /// Output that is gone with its process. Not stored: nor is there anything to store it in.
    #[serde(skip)]
    pub unsent: Vec<Unsent>,
}

impl Cursor {
    /// Nothing is sent.
    pub fn new(uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            ..Self::default()
        }
    }

    /// The cursor in an annotation of the process with this uid. A value that is none counts as: nothing is sent.
    pub fn read(annotation: Option<&str>, uid: &str) -> Self {
        let text = annotation.filter(|text| text.len() <= MAX_CURSOR_BYTES);
        let read = text.and_then(|text| serde_json::from_str::<Self>(text).ok());
        let is_valid = |cursor: &Self| {
            let ends = cursor
                .reached
                .is_none_or(|Reached(_, stdout, stderr)| stdout.max(stderr) <= MAX_OFFSET);
            let is_step = cursor.mark.1 <= Mark::ended(0).1 && cursor.mark <= Mark::FINISHED;
            cursor.uid == uid && ends && is_step
        };
        read.filter(is_valid).unwrap_or_else(|| Self::new(uid))
    }

    /// The value of the annotation.
    pub fn to_text(&self) -> String {
        // It is made of numbers and a short string.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether nothing is left to send.
    pub fn is_finished(&self) -> bool {
        self.mark >= Mark::FINISHED
    }

    /// Offset of the next byte of a stream of an attempt.
    pub fn offset(&self, attempt: u32, stream: OutputStream) -> u64 {
        match self.reached.filter(|reached| reached.0 == attempt) {
            Some(Reached(_, stdout, _)) if stream == OutputStream::Stdout => stdout,
            Some(Reached(_, _, stderr)) => stderr,
            None => 0,
        }
    }

    /// Everything before `offset` is sent.
    pub fn reach(&mut self, attempt: u32, stream: OutputStream, offset: u64) {
        let mut reached = self
            .reached
            .filter(|reached| reached.0 == attempt)
            .unwrap_or(Reached(attempt, 0, 0));
        match stream {
            OutputStream::Stdout => reached.1 = offset,
            OutputStream::Stderr => reached.2 = offset,
        }
        self.reached = Some(reached);
    }

    /// A transition is sent.
    pub fn pass(&mut self, mark: Mark) {
        self.mark = self.mark.max(mark);
        self.reached = self.reached.filter(|reached| Mark::output(reached.0) > self.mark);
        self.paused = self.paused.filter(|(attempt, _)| Mark::ended(*attempt) > self.mark);
        self.stopping = self.stopping.filter(|attempt| Mark::ended(*attempt) > self.mark);
    }
}

/// Name of the annotation for the cursor of a sink.
pub fn annotation(sink: &str) -> String {
    format!("{ANNOTATION_CURSOR_PREFIX}{sink}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[test]
    fn marks_are_in_the_order_of_events() {
        let order = [
            Mark::default(),
            Mark::CREATED,
            Mark::starting(1),
            Mark::started(1),
            Mark::output(1),
            Mark::ended(1),
            Mark::starting(2),
            Mark::ended(u32::MAX - 1),
            Mark::TOLD,
            Mark::FINISHED,
        ];
        assert!(order.is_sorted() && order.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_cursor_is_small_and_comes_back() {
        let mut cursor = Cursor::new(UID);
        cursor.mark = Mark(u32::MAX - 1, 3);
        cursor.reached = Some(Reached(u32::MAX, MAX_OFFSET, MAX_OFFSET));
        cursor.paused = Some((u32::MAX, i64::MIN));
        cursor.stopping = Some(u32::MAX);
        cursor.is_unsealed = true;
        let text = cursor.to_text();
        assert!(text.len() <= MAX_CURSOR_BYTES / 2, "{} bytes", text.len());
        assert_eq!(Cursor::read(Some(&text), UID), cursor);
    }

    #[test]
    fn what_is_no_cursor_of_this_process_counts_as_nothing_sent() {
        let mut cursor = Cursor::new(UID);
        cursor.pass(Mark::FINISHED);
        let text = cursor.to_text();
        assert!(Cursor::read(Some(&text), UID).is_finished());
        for (from, to) in [(",1]", ",2]"), (",1]", ",200]"), ("[4294967295,1]", "[1,4]")] {
            let forged = text.replace(from, to);
            assert_ne!(forged, text);
            assert_eq!(Cursor::read(Some(&forged), UID), Cursor::new(UID), "{forged}");
        }
        let far = text.replace("]", "],\"o\":[1,9223372036854775807,0]");
        let long = format!("{text}{}", " ".repeat(MAX_CURSOR_BYTES));
        for other in [
            None,
            Some(""),
            Some("{}"),
            Some("[1]"),
            Some(far.as_str()),
            Some(long.as_str()),
        ] {
            assert_eq!(Cursor::read(other, UID), Cursor::new(UID), "{other:?}");
        }
        assert_eq!(
            Cursor::read(Some(&text), "copy"),
            Cursor::new("copy"),
            "of another process"
        );
    }

    #[test]
    fn what_is_passed_is_forgotten() {
        let mut cursor = Cursor::new(UID);
        cursor.reach(1, OutputStream::Stdout, 5);
        cursor.reach(1, OutputStream::Stderr, 7);
        cursor.paused = Some((1, 9));
        assert_eq!(cursor.offset(1, OutputStream::Stdout), 5);
        assert_eq!(
            (
                cursor.offset(1, OutputStream::Stderr),
                cursor.offset(2, OutputStream::Stderr)
            ),
            (7, 0)
        );
        cursor.pass(Mark::output(1));
        assert_eq!((cursor.reached, cursor.paused), (None, Some((1, 9))));
        cursor.pass(Mark::ended(1));
        assert_eq!(cursor.paused, None);
        cursor.pass(Mark::CREATED);
        assert_eq!(cursor.mark, Mark::ended(1), "it never goes back");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,600}") {
            Cursor::read(Some(&text), UID);
        }
    }
}
