//! Which requests were carried out: a repeat does nothing.

use std::collections::VecDeque;

/// Number of requests remembered.
const REMEMBERED: usize = 256;

/// The last requests that were carried out. A refused one is not among them: a repeat tries again.
#[derive(Debug, Default)]
pub(crate) struct Requests(VecDeque<String>);

impl Requests {
    /// Whether it was carried out.
    pub(crate) fn is_done(&self, request: &str) -> bool {
        self.0.iter().any(|done| done == request)
    }

    /// It was carried out.
    pub(crate) fn done(&mut self, request: String) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_known() {
        let mut requests = Requests::default();
        for number in 0..300 {
            requests.done(number.to_string());
        }
        assert!(requests.is_done("299") && requests.is_done("44") && !requests.is_done("43"));
        assert_eq!(requests.0.len(), REMEMBERED);
    }
}
