//! Listings of `nft`, made comparable.

/// The listing without the numbers that packets change.
#[must_use]
pub fn without_counters(text: &str) -> String {
    let plain = |line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        while let Some(at) = words.iter().position(|word| *word == "packets") {
            words.drain(at..(at + 4).min(words.len()));
        }
        words.join(" ")
    };
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_packets_change_is_left_out() {
        let text = "\telements = { 10.0.0.1 counter packets 3 bytes 252 : 1:2,\n10.0.0.2 counter packets 0 bytes 0 }";
        assert_eq!(without_counters(text), "elements = { 10.0.0.1 counter : 1:2,\n10.0.0.2 counter }");
    }
}
