use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use remoteprocess_proto::v1::{Gap, Stream};
use serde::Serialize;

use super::label::Label;
use super::lines::Line;
use crate::exit::Record;

/// One line of `-o json`. What is absent is not known.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Object<'a> {
    Output {
        #[serde(flatten)]
        whose: Whose<'a>,
        stream: &'static str,
        /// Offset of the first byte.
        offset: u64,
        time: String,
        #[serde(flatten)]
        bytes: Bytes<'a>,
    },
    Gap {
        #[serde(flatten)]
        whose: Whose<'a>,
        stream: &'static str,
        from: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
        reason: &'static str,
    },
    Exit {
        #[serde(flatten)]
        whose: Whose<'a>,
        result: &'a Record,
    },
}

#[derive(Clone, Copy, Serialize)]
struct Whose<'a> {
    namespace: &'a str,
    process: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Bytes<'a> {
    Text(&'a str),
    Base64(String),
}

/// Writes the events of one process as JSON, one object per line.
pub(super) struct Objects<'a> {
    /// The process.
    pub label: &'a Label,
    /// The attempt.
    pub attempt: Option<u32>,
}

impl Objects<'_> {
    /// Bytes of the program.
    pub(super) fn output(&self, stream: Stream, line: Line<'_>, out: &mut Vec<u8>) {
        let bytes = match std::str::from_utf8(line.bytes) {
            Ok(text) => Bytes::Text(text),
            Err(_) => Bytes::Base64(STANDARD.encode(line.bytes)),
        };
        let time = Timestamp::from_nanosecond(line.time_unix_nanos.into()).unwrap_or_default();
        let object = Object::Output {
            whose: self.whose(),
            stream: stream.name(),
            offset: line.offset,
            time: format!("{time:.9}"),
            bytes,
        };
        write(&object, out);
    }

    /// A range that never comes.
    pub(super) fn gap(&self, gap: &Gap, out: &mut Vec<u8>) {
        let object = Object::Gap {
            whose: self.whose(),
            stream: gap.stream().name(),
            from: gap.from,
            to: gap.to,
            reason: gap.reason().into(),
        };
        write(&object, out);
    }

    /// The end.
    pub(super) fn exit(&self, result: &Record, out: &mut Vec<u8>) {
        let whose = self.whose();
        write(&Object::Exit { whose, result }, out);
    }

    fn whose(&self) -> Whose<'_> {
        Whose {
            namespace: &self.label.namespace,
            process: &self.label.process,
            attempt: self.attempt,
        }
    }
}

/// JSON allows U+007F to U+009F unescaped, but a terminal would act on them.
fn write(object: &Object<'_>, out: &mut Vec<u8>) {
    let text = serde_json::to_string(object).unwrap_or_default();
    if text.bytes().any(|byte| byte == 0x7f || byte == 0xc2) {
        for character in text.chars() {
            match character {
                '\u{7f}'..='\u{9f}' => out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes()),
                other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Verdict;
    use remoteprocess_proto::v1::{Exit, GapReason, Reason, exit::Outcome};

    #[test]
    fn what_is_documented_is_what_is_written() {
        let label = Label {
            namespace: "default".into(),
            process: "build".into(),
        };
        let objects = Objects {
            label: &label,
            attempt: Some(1),
        };
        let mut out = Vec::new();
        let line = |offset, bytes| Line {
            offset,
            time_unix_nanos: 1_767_225_600_000_000_001,
            bytes,
            is_continued: false,
        };
        objects.output(Stream::Stdout, line(0, b"line \"1\" \x1b[2J \xc2\x9b\n"), &mut out);
        objects.output(Stream::Stderr, line(7, b"\xff\x00\n"), &mut out);
        let mut gap = Gap {
            stream: Stream::Stdout.into(),
            from: 19,
            to: Some(30),
            reason: GapReason::SpoolFull.into(),
        };
        objects.gap(&gap, &mut out);
        gap.to = None;
        objects.gap(&gap, &mut out);
        let exit = Exit {
            outcome: Outcome::Code.into(),
            value: 7,
            reason: Reason::NonZeroExit.into(),
            ..Exit::default()
        };
        let verdict = Verdict {
            code: 125,
            message: Some("a sentence".into()),
        };
        objects.exit(&Record::new("default", "build", "u-1", Some(&exit), &verdict), &mut out);
        let text = String::from_utf8(out).expect("JSON is UTF-8");
        assert!(
            text.lines()
                .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
        );
        insta::assert_snapshot!(text);
    }
}
