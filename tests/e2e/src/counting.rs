//! Output in which a missing or repeated part is visible: every position is different.

/// What `seq FIRST LAST` prints.
#[must_use]
pub fn seq(first: u32, last: u32) -> Vec<u8> {
    let mut text = Vec::with_capacity((last - first + 1) as usize * 8);
    let mut line = first.to_string().into_bytes();
    for _ in first..=last {
        text.extend_from_slice(&line);
        text.push(b'\n');
        increment(&mut line);
    }
    text
}

/// The first `length` bytes of what `seq` prints from 1 on.
#[must_use]
pub fn counting(length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 16);
    let mut line = b"1".to_vec();
    while text.len() < length {
        text.extend_from_slice(&line);
        text.push(b'\n');
        increment(&mut line);
    }
    text.truncate(length);
    text
}

/// Adds one to a decimal number.
fn increment(digits: &mut Vec<u8>) {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
    digits.insert(0, b'1');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_as_seq_does() {
        let expected: String = (98..=1002).map(|number| format!("{number}\n")).collect();
        assert_eq!(seq(98, 1002), expected.into_bytes());
        assert_eq!(counting(22), b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n1");
    }
}
