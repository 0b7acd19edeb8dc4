//! Logging: one line per event on standard error.

use tracing::Level;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Crates below us that say more than an operator wants, or repeat what we say.
const LIBRARIES: &[&str] =
    &["etcd_client", "h2", "hyper", "hyper_util", "netlink_proto", "rtnetlink", "rustls", "tonic", "tower"];

/// Sends every event to standard error, as much of it as `verbosity` asks for: klog's scale, where
/// 0 to 3 is what an operator wants to know, 4 and 5 add each step, from 6 on everything.
///
/// A second call changes nothing.
pub fn init(verbosity: u8) {
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    let ours = Targets::new().with_default(level(verbosity));
    let quiet =
        LIBRARIES.iter().fold(ours, |targets, library| targets.with_target(*library, LevelFilter::OFF));
    // An error means that a subscriber is there already, which is what was wanted.
    let _ = tracing_subscriber::registry().with(quiet).with(lines).try_init();
}

const fn level(verbosity: u8) -> Level {
    match verbosity {
        0..=3 => Level::INFO,
        4 | 5 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_follows_klogs_scale() {
        assert_eq!(
            [0, 2, 4, 6, 10].map(level),
            [Level::INFO, Level::INFO, Level::DEBUG, Level::TRACE, Level::TRACE]
        );
    }
}
