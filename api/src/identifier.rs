//! What the Kubernetes API accepts as a name, a namespace and a uid ("Object Names and IDs" in its documentation).
//!
//! Clients put all three unchanged into the path of a request. `#`, `?`, `%` and `/` would make it another request, and
//! an unbounded value would fill a cache. So check each one that comes from outside before you use it.

/// Longest name of an object, in bytes: a subdomain of RFC 1123.
pub const MAX_NAME: usize = 253;
/// Longest namespace, in bytes: a label of RFC 1123.
pub const MAX_NAMESPACE: usize = 63;
/// Longest uid, in bytes. An API server makes UUIDs, which have 36.
pub const MAX_UID: usize = 64;

/// Whether an object can have this name.
pub fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_label)
}

/// Whether a namespace can have this name.
pub fn is_namespace(text: &str) -> bool {
    text.len() <= MAX_NAMESPACE && is_label(text)
}

/// Whether an object can have this uid.
pub fn is_uid(text: &str) -> bool {
    (1..=MAX_UID).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

/// Whether a ConfigMap or Secret can have this key (Kubernetes, `IsConfigMapKey`).
pub fn is_key(text: &str) -> bool {
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(is_allowed) && text != "." && !text.starts_with("..")
}

/// A label of RFC 1123, of any length.
fn is_label(text: &str) -> bool {
    let is_edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.bytes().all(|c| is_edge(c) || c == b'-')
        && text.bytes().next().is_some_and(is_edge)
        && text.bytes().last().is_some_and(is_edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_file_name_of_plain_characters() {
        for odd in ["", ".", "..", "..a", "a/b", "a b", "a\0", "é", &"a".repeat(254)] {
            assert!(!is_key(odd), "{odd:?}");
        }
        for key in ["a", ".a", "A_b-1.txt", &"a".repeat(253)] {
            assert!(is_key(key), "{key:?}");
        }
    }

    #[test]
    fn nothing_that_would_change_a_path_is_a_name() {
        for odd in [
            "",
            "#",
            "?",
            "a/b",
            "../x",
            "a%2fb",
            "a?dryRun=All",
            "A",
            "-a",
            "a-",
            "a..b",
            "a b",
            "a\n",
            "é",
        ] {
            assert!(!is_name(odd) && !is_namespace(odd), "{odd:?}");
        }
        assert!(is_name("a.b-1") && !is_namespace("a.b-1") && is_namespace("a-1"));
        assert!(is_name(&"x".repeat(MAX_NAME)) && !is_name(&"x".repeat(MAX_NAME + 1)));
        assert!(is_namespace(&"x".repeat(MAX_NAMESPACE)) && !is_namespace(&"x".repeat(MAX_NAMESPACE + 1)));
        assert!(is_uid("0B6f-1") && !is_uid("") && !is_uid("../x") && !is_uid(&"0".repeat(MAX_UID + 1)));
    }
}
