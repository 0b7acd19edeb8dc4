//! Limits of a container's bandwidth: what is asked for, and the token buckets that hold it.

use crate::{Code, Error, Network, json::Keys};

/// What may go through a container's interface, by direction as the container sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What it receives.
    pub ingress: Option<Limit>,
    /// What it sends.
    pub egress: Option<Limit>,
}

/// A limit as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second, not 0.
    rate: u64,
    /// Bits that may go at once after a pause.
    burst: u64,
}

/// A limit as a token bucket holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second, with Ethernet headers.
    pub rate: u64,
    /// Bytes that may go at once after a pause.
    pub burst: u32,
    /// Bytes that may wait: 25 ms at the rate, beyond the burst.
    pub limit: u32,
}

/// Bytes of an Ethernet header.
const HEADER: u32 = 14;

impl Limits {
    /// What the configuration says; if it says nothing, what `runtimeConfig.bandwidth` does.
    ///
    /// # Errors
    /// Rate or burst is missing or too large.
    pub fn parse(network: &Network) -> Result<Self, Error> {
        let fixed = network.keys();
        let is_fixed = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"]
            .iter()
            .any(|key| fixed.value(key).is_some());
        let keys = if is_fixed { fixed } else { fixed.child("runtimeConfig")?.child("bandwidth")? };
        Ok(Self {
            ingress: Limit::parse(&keys, "ingressRate", "ingressBurst")?,
            egress: Limit::parse(&keys, "egressRate", "egressBurst")?,
        })
    }
}

impl Limit {
    fn parse(keys: &Keys<'_>, rate: &str, burst: &str) -> Result<Option<Self>, Error> {
        let number = |key| keys.number(key).map(Option::unwrap_or_default);
        let invalid = |msg: &str| {
            let place = format!("{} and {}", keys.place(rate), keys.place(burst));
            Err(Error::new(Code::Internal, msg).with_details(place))
        };
        match (number(rate)?, number(burst)?) {
            (0, 0) => Ok(None),
            (_, 0) => invalid("if rate is set, burst must also be set"),
            (0, _) => invalid("if burst is set, rate must also be set"),
            (_, burst) if burst / 8 >= u64::from(u32::MAX) => invalid("burst cannot be more than 4GB"),
            (rate, burst) => Ok(Some(Self { rate, burst })),
        }
    }

    /// The bucket on an interface of MTU `mtu`.
    ///
    /// Runtimes ask for bursts of half a gigabyte, with which a limit is none for minutes: what goes at
    /// once is what the rate gives in 50 ms, or three packets: TCP makes little of less. It is never less than
    /// one packet, since a bucket passes none that is longer than its burst.
    #[must_use]
    pub fn bucket(self, mtu: u32) -> Bucket {
        let whole = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let rate = (self.rate / 8).max(1);
        let packet = mtu.saturating_add(HEADER);
        let most = whole(rate / 20).max(packet.saturating_mul(3));
        let burst = whole(self.burst / 8).clamp(packet, most);
        Bucket { rate, burst, limit: whole(rate / 40).saturating_add(burst) }
    }

    /// A bucket of rate `rate` in which `limit` bytes may wait is what the reference's plugin sets for this: the
    /// whole burst may wait there.
    #[must_use]
    pub fn is_as_the_reference_sets_it(self, rate: u64, limit: u32) -> bool {
        let whole = (self.rate / 8 / 40).saturating_add(self.burst / 8);
        rate == self.rate / 8 && u64::from(limit) == whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(tail: &str) -> Result<Limits, (Code, String)> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"bandwidth"{tail}}}"#);
        Limits::parse(&Network::parse(text.as_bytes()).unwrap()).map_err(|e| (e.code, e.msg))
    }

    fn limit(rate: u64, burst: u64) -> Option<Limit> {
        Some(Limit { rate, burst })
    }

    #[test]
    fn what_is_fixed_comes_before_what_the_runtime_says() {
        let runtime = r#","runtimeConfig":{"bandwidth":{"IngressRate":1,"INGRESSBURST":2,"egressRate":3,"egressburst":4}}"#;
        let of_runtime = Limits { ingress: limit(1, 2), egress: limit(3, 4) };
        assert_eq!(limits(runtime), Ok(of_runtime));
        let both = format!(r#","ingressRate":8,"ingressBurst":9{runtime}"#);
        assert_eq!(limits(&both), Ok(Limits { ingress: limit(8, 9), egress: None }));
        for nothing in
            ["", r#","runtimeConfig":{}"#, r#","runtimeConfig":{"bandwidth":null}"#, r#","egressRate":0"#]
        {
            assert_eq!(limits(nothing), Ok(Limits::default()), "{nothing}");
        }
    }

    #[test]
    fn a_half_limit_is_refused() {
        let refused = |text: &str, msg: &str| {
            assert_eq!(limits(text).unwrap_err(), (Code::Internal, msg.to_owned()), "{text}");
        };
        refused(r#","ingressRate":8"#, "if rate is set, burst must also be set");
        refused(
            r#","runtimeConfig":{"bandwidth":{"egressBurst":8}}"#,
            "if burst is set, rate must also be set",
        );
        refused(r#","egressRate":8,"egressBurst":34359738360"#, "burst cannot be more than 4GB");
        assert!(limits(r#","egressRate":8,"egressBurst":34359738352"#).is_ok());
        assert_eq!(limits(r#","egressRate":-8"#).unwrap_err().0, Code::Decode);
    }

    #[test]
    fn a_burst_is_at_most_50_ms_and_at_least_a_packet() {
        let bucket = |rate, burst| {
            let Bucket { rate, burst, limit } = Limit { rate, burst }.bucket(1500);
            (rate, burst, limit)
        };
        const RUNTIME: u64 = 4_294_967_295;
        assert_eq!(bucket(10_000_000, RUNTIME), (1_250_000, 62_500, 93_750));
        assert_eq!(bucket(10_000_000, 160_000), (1_250_000, 20_000, 51_250));
        assert_eq!(bucket(80_000_000_000, RUNTIME), (10_000_000_000, 500_000_000, 750_000_000));
        // Three packets are more than 50 ms at a low rate.
        assert_eq!(bucket(100_000, RUNTIME), (12_500, 4_542, 4_854));
        assert_eq!(bucket(8, 8), (1, 1_514, 1_514));
        assert_eq!(bucket(1, 1), (1, 1_514, 1_514));
        assert_eq!(bucket(u64::MAX, RUNTIME), (u64::MAX / 8, (RUNTIME / 8) as u32, u32::MAX));
    }
}
