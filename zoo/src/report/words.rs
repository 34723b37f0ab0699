//! Numbers as people write them.

/// `128`, `1k`, `8k`: lengths are powers of two.
pub fn length(value: f64) -> String {
    let n = value.round() as usize;
    if n >= 1024 && n.is_multiple_of(1024) { format!("{}k", n / 1024) } else { n.to_string() }
}

/// `18 KiB`
pub fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB"])
}

/// `1.2k`, `34M`
pub fn count(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G"])
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    while value.abs() >= base * 0.9995 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", digits(value), units[unit])
}

/// Three significant digits, without trailing zeros.
pub fn digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".into() } else { "–".into() };
    }
    let whole = value.abs().log10().floor() as i32 + 1;
    let text = format!("{value:.*}", (3 - whole).clamp(0, 6) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// `0.42 ms`
pub fn milliseconds(value: f64) -> String {
    format!("{} ms", digits(value))
}

/// `97 %`, `97.3 %` where the tenth matters
pub fn percent(share: f64) -> String {
    let value = 100.0 * share;
    if !(0.05..=99.95).contains(&value) { format!("{value:.0} %") } else { format!("{value:.1} %") }
}

/// `9 min 41 s`
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    if s < 60 { format!("{s} s") } else { format!("{} min {:02} s", s / 60, s % 60) }
}

/// `a, b and c`
pub fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([length(128.0), length(8192.0), length(1500.0)], ["128", "8k", "1500"]);
        assert_eq!([bytes(512.0), bytes(16_384.0), bytes(1_572_864.0)], ["512 B", "16 KiB", "1.5 MiB"]);
        assert_eq!([count(999.0), count(34_567.0), count(1e6)], ["999", "34.6k", "1M"]);
        assert_eq!([digits(0.0421), digits(1234.0), digits(2.0)], ["0.0421", "1234", "2"]);
        assert_eq!([percent(1.0), percent(0.973), percent(0.0)], ["100 %", "97.3 %", "0 %"]);
        assert_eq!(duration(581.2), "9 min 41 s");
        assert_eq!(list(&["a".into(), "b".into(), "c".into()]), "a, b and c");
    }
}
