//! Quantities in bytes, after `k8s.io/apimachinery/pkg/api/resource` (quantity.go, "The serialization format is").

/// Number of decimal digits of a fraction that are used; the rest is below one byte of the largest unit.
const FRACTION_DIGITS: usize = 18;

/// The bytes of a quantity such as `256Mi`, `1.5G` or `1e9`, rounded up as Kubernetes does; `None` if it is no
/// quantity, negative, or larger than 2^64.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (numerator, denominator) = unit(suffix)?;
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = scale.checked_mul(denominator)?;
    u64::try_from(digits.checked_mul(numerator)?.div_ceil(divisor)).ok()
}

/// A suffix as a fraction: bytes per unit.
fn unit(suffix: &str) -> Option<(u128, u128)> {
    let binary = |power: u32| Some((1024_u128.pow(power), 1));
    let decimal = |power: u32| Some((1000_u128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(1),
        "M" => decimal(2),
        "G" => decimal(3),
        "T" => decimal(4),
        "P" => decimal(5),
        "E" => decimal(6),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let size = 10_u128.checked_pow(power.unsigned_abs())?;
            Some(if power < 0 { (1, size) } else { (size, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;
    use rstest::rstest;

    #[rstest]
    #[case("256Mi", Some(256 << 20))]
    #[case("1.5G", Some(1_500_000_000))]
    #[case("1e9", Some(1_000_000_000))]
    #[case("1E3", Some(1000))]
    #[case("1E", Some(1_000_000_000_000_000_000))]
    #[case("1500m", Some(2))]
    #[case("0.5Ki", Some(512))]
    #[case("-1", None)]
    #[case("", None)]
    #[case("Mi", None)]
    #[case("1.2.3", None)]
    #[case("1MB", None)]
    #[case("99999999999999999999Ei", None)]
    fn reads_what_kubernetes_reads(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(bytes(text), expected, "{text}");
    }
}
