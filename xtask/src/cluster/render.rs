//! Replaces `@NAME@` in text.

use std::fmt::Display;

/// Names and their values.
#[derive(Clone, Default)]
pub(super) struct Template {
    values: Vec<(String, String)>,
}

impl Template {
    /// Adds a value.
    pub(super) fn with(mut self, name: &str, value: impl Display) -> Self {
        self.values.push((format!("@{name}@"), value.to_string()));
        self
    }

    /// The text with all values in their places.
    pub(super) fn render(&self, text: &str) -> String {
        self.values
            .iter()
            .fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}
