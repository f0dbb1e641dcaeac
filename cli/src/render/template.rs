//! kubectl's JSONPath templates: text, and paths in braces ("JSONPath Support" in the Kubernetes documentation).

use std::iter::Peekable;
use std::str::{Chars, FromStr};

use jsonpath_rust::JsonPath;
use jsonpath_rust::parser::parse_json_path;
use serde_json::Value;

/// Maximum nesting of `{range}`.
const DEEPEST: usize = 16;

/// A path with one or several values, `.status.phase` or `{.status.phase}`, converted to RFC 9535.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(String);

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let inner = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
            .unwrap_or(text);
        let path = standard(inner.trim())?;
        match parse_json_path(&path) {
            Ok(_) => Ok(Self(path)),
            Err(error) => Err(format!("{inner:?} is no path: {error}")),
        }
    }
}

impl Path {
    /// The values; none if there is no such field.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        value.query(&self.0).unwrap_or_default()
    }
}

/// A template: `{.metadata.name}{"\n"}`, `{range .items[*]}{.metadata.name} {end}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Values(Path),
    Range(Path, Vec<Part>),
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let parts = parse(&mut rest, 0)?;
        match rest.is_empty() {
            true => Ok(Self(parts)),
            false => Err("{end} without {range}".to_owned()),
        }
    }
}

impl Template {
    /// The text for a value.
    pub fn fill(&self, value: &Value) -> String {
        let mut out = String::new();
        fill(&self.0, value, &mut out);
        out
    }
}

fn fill(parts: &[Part], value: &Value, out: &mut String) {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Values(path) => {
                let found: Vec<String> = path.find(value).into_iter().map(shown).collect();
                out.push_str(&found.join(" "));
            }
            Part::Range(path, body) => path.find(value).into_iter().for_each(|item| fill(body, item, out)),
        }
    }
}

/// A string unchanged, anything else as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Parts up to the end of the text, or to the `{end}` of a range at a depth.
fn parse(rest: &mut &str, depth: usize) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let Some((text, behind)) = rest.split_once('{') else {
            parts.push(Part::Text(std::mem::take(rest).to_owned()));
            break;
        };
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        let (inner, behind) = braces(behind)?;
        let inner = inner.trim();
        if inner == "end" {
            if depth == 0 {
                return Err("{end} without {range}".to_owned());
            }
            *rest = behind;
            return Ok(parts);
        }
        *rest = behind;
        if let Some(path) = inner.strip_prefix("range ") {
            if depth == DEEPEST {
                return Err("the ranges are nested too deeply".to_owned());
            }
            let path = path.parse()?;
            parts.push(Part::Range(path, parse(rest, depth + 1)?));
        } else if let Some(quoted) = literal(inner) {
            parts.push(Part::Text(quoted?));
        } else {
            parts.push(Part::Values(inner.parse()?));
        }
    }
    match depth {
        0 => Ok(parts),
        _ => Err("{range} without {end}".to_owned()),
    }
}

/// The text before the closing brace, respecting quotes, and the text after it.
fn braces(text: &str) -> Result<(&str, &str), String> {
    let (mut quote, mut is_escaped) = (None, false);
    for (at, character) in text.char_indices() {
        match (quote, character) {
            _ if std::mem::take(&mut is_escaped) => {}
            (_, '\\') => is_escaped = true,
            (Some(open), _) if open == character => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, '}') => return Ok((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    Err("a { has no }".to_owned())
}

/// The text of a quoted literal; `None` if it is none.
fn literal(inner: &str) -> Option<Result<String, String>> {
    let quote = inner.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
    let text = inner.strip_prefix(quote)?.strip_suffix(quote);
    let text = text.ok_or_else(|| format!("{inner} has no closing quote"));
    Some(text.map(|text| {
        let mut out = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    other => out.extend(other),
                },
                other => out.push(other),
            }
        }
        out
    }))
}

/// Converts kubectl's path to RFC 9535: names in brackets, because they may contain dashes, slashes and escaped dots.
fn standard(path: &str) -> Result<String, String> {
    let path = path.strip_prefix(['$', '@']).unwrap_or(path);
    let mut characters = path.chars().peekable();
    let mut out = "$".to_owned();
    if !path.starts_with(['.', '[']) && !path.is_empty() {
        out.push_str(&member(&mut characters));
    }
    while let Some(character) = characters.next() {
        match character {
            '.' => {
                if characters.next_if_eq(&'.').is_some() {
                    out.push_str("..");
                }
                match characters.peek() {
                    // `{.}` is the value itself.
                    None | Some('[') => {}
                    Some(_) => out.push_str(&member(&mut characters)),
                }
            }
            '[' => out.push_str(&brackets(&mut characters)?),
            other => return Err(format!("{path:?} is no path: there is an odd {other:?} in it")),
        }
    }
    Ok(out)
}

fn member(characters: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(character) = characters.next_if(|character| !['.', '['].contains(character)) {
        match character {
            '\\' => name.extend(characters.next()),
            other => name.push(other),
        }
    }
    match name.as_str() {
        "*" => "[*]".to_owned(),
        name => format!("['{}']", name.replace('\\', "\\\\").replace('\'', "\\'")),
    }
}

fn brackets(characters: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let (mut out, mut quote, mut depth) = ("[".to_owned(), None, 1);
    for character in characters.by_ref() {
        out.push(character);
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, '[') => depth += 1,
            (None, ']') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(out);
        }
    }
    Err("a [ has no ]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(template: &str) -> String {
        let value = json!({
            "kind": "List",
            "items": [
                {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x", "my-app": "y"}},
                 "status": {"exitCode": 7, "phase": "Failed"}},
                {"metadata": {"name": "b"}, "status": {"phase": "Running", "output": {"stdoutBytes": 3}}},
            ],
        });
        template.parse::<Template>().unwrap().fill(&value)
    }

    #[test]
    fn templates_are_those_of_kubectl() {
        for (template, text) in [
            ("{.kind}", "List"),
            ("{$.kind}", "List"),
            ("{kind}", "List"),
            ("kind={.kind}!", "kind=List!"),
            ("{.items[*].metadata.name}", "a b"),
            ("{.items[0].status.exitCode}", "7"),
            ("{.items[-1:].metadata.name}", "b"),
            ("{.items[1].status.output}", "{\"stdoutBytes\":3}"),
            ("{..name}", "a b"),
            ("{.nothing}", ""),
            (r"{.items[0].metadata.labels.app\.kubernetes\.io/name}", "x"),
            ("{.items[0].metadata.labels.my-app}", "y"),
            ("{.items[0].metadata.labels['my-app']}", "y"),
            ("{.items[?(@.status.phase==\"Running\")].metadata.name}", "b"),
            (
                r#"{range .items[*]}{.metadata.name}{"\t"}{.status.phase}{"\n"}{end}"#,
                "a\tFailed\nb\tRunning\n",
            ),
        ] {
            assert_eq!(filled(template), text, "{template}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for wrong in [
            "{",
            "{.a",
            "{range .items[*]}",
            "{end}",
            "{.a[}",
            "{.a[0}",
            "{\"x}",
            "{.a[?(}",
        ] {
            assert!(wrong.parse::<Template>().is_err(), "{wrong}");
        }
        assert!("{range .a}".repeat(DEEPEST + 1).parse::<Template>().is_err());
    }

    #[test]
    fn a_path_has_braces_or_none() {
        for text in [".status.startedAt", "{.status.startedAt}", "status.startedAt"] {
            assert_eq!(text.parse::<Path>().unwrap().0, "$['status']['startedAt']");
        }
    }
}
