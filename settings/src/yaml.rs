//! The form of a file: a YAML mapping of keys to scalars, or to lists of them. Nothing is guessed about a scalar: the flag
//! gets it as it is written, so `012` and `y` are texts.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};

/// The value of a setting: a scalar, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    One(String),
    Many(Vec<String>),
}

impl Values {
    pub(crate) fn texts(&self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text.clone()],
            Self::Many(texts) => texts.clone(),
        }
    }
}

/// Reads one document. An empty one has no keys. The error names the line.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, Values>, String> {
    let options = granit_parser::options! { emit_comments: false };
    let mut events = Events(Parser::new_from_str_with_options(text, options));
    let mut values = BTreeMap::new();
    let mut documents = 0;
    loop {
        match events.read()? {
            (Event::StreamStart | Event::DocumentEnd, _) => {}
            (Event::DocumentStart(..), line) => {
                documents += 1;
                if documents > 1 {
                    return Err(format!("line {line}: a file has one document"));
                }
            }
            (Event::StreamEnd, _) => return Ok(values),
            (Event::MappingStart(_, 0, None), _) => values = mapping(&mut events)?,
            (event, _) if is_nothing(&event) => {}
            (event, line) => return Err(format!("line {line}: this is {}", name(&event))),
        }
    }
}

fn mapping(events: &mut Events) -> Result<BTreeMap<String, Values>, String> {
    let mut values = BTreeMap::new();
    loop {
        let (key, line) = match events.read()? {
            (Event::MappingEnd, _) => return Ok(values),
            (Event::Scalar(key, _, 0, None), line) => (key.into_owned(), line),
            (event, line) => return Err(format!("line {line}: {} is no key", name(&event))),
        };
        let found = value(events).map_err(|why| format!("{key}: {why}"))?;
        if values.insert(key.clone(), found).is_some() {
            return Err(format!("line {line}: {key} is there twice"));
        }
    }
}

fn value(events: &mut Events) -> Result<Values, String> {
    match events.read()? {
        (event, line) if is_nothing(&event) => Err(format!("line {line}: it has no value")),
        (Event::Scalar(text, _, 0, None), _) => Ok(Values::One(text.into_owned())),
        (Event::SequenceStart(_, 0, None), _) => list(events).map(Values::Many),
        (event, line) => Err(format!(
            "line {line}: expected a text, a number, true, false, or a list of them, not {}",
            name(&event)
        )),
    }
}

fn list(events: &mut Events) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    loop {
        match events.read()? {
            (Event::SequenceEnd, _) => return Ok(texts),
            (event, line) if is_nothing(&event) => return Err(format!("line {line}: an entry has no value")),
            (Event::Scalar(text, _, 0, None), _) => texts.push(text.into_owned()),
            (event, line) => return Err(format!("line {line}: a list cannot contain {}", name(&event))),
        }
    }
}

/// `key:`, `key: ~` and `key: null` (YAML 1.2, core schema).
fn is_nothing(event: &Event) -> bool {
    let words = ["", "~", "null", "Null", "NULL"];
    matches!(event, Event::Scalar(text, ScalarStyle::Plain, 0, None) if words.contains(&&**text))
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::MappingStart(_, 0, None) => "a mapping",
        Event::SequenceStart(_, 0, None) => "a list",
        Event::Scalar(_, _, 0, None) => "a text",
        _ => "an anchor, an alias or a tag",
    }
}

/// The events of the parser, which bounds how deep they nest.
struct Events<'a>(Parser<'a, StrInput<'a>>);

impl<'a> Events<'a> {
    /// The next event, and its line.
    fn read(&mut self) -> Result<(Event<'a>, usize), String> {
        match self.0.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => {
                let place = error.marker();
                Err(format!(
                    "line {}, column {}: {}",
                    place.line(),
                    place.col() + 1,
                    error.info()
                ))
            }
            None => Err("it ends too early".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Values {
        Values::One(text.to_owned())
    }

    #[test]
    fn scalars_are_taken_as_they_are_written() {
        let text = "---\na: 012\nb: 1.50\nc: y\nd: \"e # f\"\n'g': 'null' # nothing\nh: true\ni: ~/x\nj: \"\"\n";
        let found = parse(text).unwrap();
        let wanted = [
            ("a", "012"),
            ("b", "1.50"),
            ("c", "y"),
            ("d", "e # f"),
            ("g", "null"),
            ("h", "true"),
            ("i", "~/x"),
            ("j", ""),
        ];
        assert_eq!(found, wanted.map(|(key, text)| (key.to_owned(), one(text))).into());
        assert_eq!(parse("a: |\n  x\n  y\n").unwrap()["a"], one("x\ny\n"));
        let many = Values::Many(vec!["1".to_owned(), "x y".to_owned()]);
        assert_eq!(parse("a: [1, 'x y']").unwrap()["a"], many);
        assert_eq!(parse("a:\n- 1\n- x y\n").unwrap()["a"], many);
        assert_eq!(parse("{a: [], b: \"c\\nd\"}").unwrap()["b"], one("c\nd"));
    }

    #[test]
    fn an_empty_file_has_no_keys() {
        for text in ["", "\n", "# nothing\n", "---\n", "---\n...\n", "{}", "null", "\u{feff}"] {
            assert_eq!(parse(text).unwrap(), BTreeMap::new(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_setting_is_refused_with_its_line() {
        let deep = "a: ".to_owned() + &"[".repeat(30_000);
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        for (text, word) in [
            ("a: 1\na: 2\n", "line 2: a is there twice"),
            ("a: 1\nb:\n", "b: line 2: it has no value"),
            ("a: ~\n", "a: line 1: it has no value"),
            ("a: [1, null]", "an entry has no value"),
            ("a:\n  b: 1\n", "not a mapping"),
            ("a: [[1]]", "a list cannot contain a list"),
            ("[a, b]", "line 1: this is a list"),
            ("a", "line 1: this is a text"),
            ("[a]: 1", "a list is no key"),
            ("a: 1\n---\nb: 2\n", "line 2: a file has one document"),
            ("a: !!int 1", "a tag"),
            ("a: !x [1]", "a tag"),
            ("a: &b 1", "an anchor"),
            ("a: 1\nb: *a\n", "line 2"),
            ("a: \"1", "line 1, column"),
            ("a: 1\n b: 2", "line 2"),
            ("a: [1, 2", "line"),
            (bomb, "a: line 1: expected"),
            (&*deep, "recursion limit exceeded"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(word), "{text:.40}: {error}");
        }
    }
}
