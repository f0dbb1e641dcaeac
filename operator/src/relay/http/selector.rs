//! Label selectors, as the API server takes them in a query.

use std::collections::BTreeSet;

use kube::core::{Expression, Selector};

use crate::relay::error::Error;

/// Reads a selector such as `app=web,tier in (a, b),!old`. Empty: everything.
pub(super) fn parse(text: &str) -> Result<Selector, Error> {
    requirements(text)
        .into_iter()
        .filter(|requirement| !requirement.is_empty())
        .map(|requirement| {
            expression(requirement).ok_or_else(|| {
                Error::invalid(format!(
                    "labelSelector: {requirement:?} is none of key=value, key!=value, key in (a,b), key notin (a,b), \
                     key and !key"
                ))
            })
        })
        .collect()
}

/// The parts between the commas outside of parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .collect()
}

fn expression(text: &str) -> Option<Expression> {
    if let Some((rest, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values: BTreeSet<String> = values.split(',').map(value).collect::<Option<_>>()?;
        let (key_, operator) = rest.trim().rsplit_once(char::is_whitespace)?;
        return match operator {
            "in" => Some(Expression::In(key(key_)?, values)),
            "notin" => Some(Expression::NotIn(key(key_)?, values)),
            _ => None,
        };
    }
    if let Some((name, rest)) = text.split_once("!=") {
        return Some(Expression::NotEqual(key(name)?, value(rest)?));
    }
    if let Some((name, rest)) = text.split_once('=') {
        return Some(Expression::Equal(
            key(name)?,
            value(rest.strip_prefix('=').unwrap_or(rest))?,
        ));
    }
    match text.strip_prefix('!') {
        Some(name) => Some(Expression::DoesNotExist(key(name)?)),
        None => Some(Expression::Exists(key(text)?)),
    }
}

/// A key: a name, perhaps with the prefix of a DNS name.
fn key(text: &str) -> Option<String> {
    let text = text.trim();
    let name = text.rsplit('/').next()?;
    let is_whole = text.matches('/').count() <= 1 && !text.starts_with('/') && !name.is_empty();
    (is_whole && text.bytes().all(|c| is_label(c) || c == b'/')).then(|| text.to_owned())
}

fn value(text: &str) -> Option<String> {
    let text = text.trim();
    text.bytes().all(is_label).then(|| text.to_owned())
}

fn is_label(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", true)]
    #[case("app=web", true)]
    #[case("app==web", true)]
    #[case("app = web , tier!=b", true)]
    #[case("app=db", false)]
    #[case("tier in (a, b),app", true)]
    #[case("tier notin (a,b)", false)]
    #[case("!old", true)]
    #[case("!app", false)]
    #[case("example.com/team=x", true)]
    fn a_selector_selects(#[case] text: &str, #[case] is_selected: bool) {
        let labels = [("app", "web"), ("tier", "a"), ("example.com/team", "x")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(parse(text).unwrap().matches(&labels), is_selected);
    }

    #[rstest]
    #[case("app=we b")]
    #[case("in (a)")]
    #[case("app over (a)")]
    #[case("=x")]
    #[case("!")]
    #[case("a/b/c")]
    #[case("app>3")]
    fn anything_else_is_refused(#[case] text: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.message.contains("labelSelector"), "{error}");
    }
}
