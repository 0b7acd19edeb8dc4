//! Traffic control: the token bucket that limits what leaves an interface, and the redirection that makes
//! what enters one leave another.
//!
//! The message types of `netlink-packet-route` know no token bucket, so all of it is packed here.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netmodel::IfName;

use crate::{
    Cause, Error,
    attribute::{attributes, nest, number, put, text},
    netlink::{Message, Request, RouteSocket},
};

/// A token bucket at the root of an interface: what leaves it is held to a rate (tc-tbf(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second, with Ethernet headers; the kernel refuses 0.
    pub rate: u64,
    /// Bytes that may leave at once after a pause. A longer packet never leaves.
    pub burst: u32,
    /// Bytes that may wait; what comes on top is dropped.
    pub limit: u32,
}

/// A queueing discipline as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qdisc {
    /// A token bucket at the root. Its burst is off by some bytes: the kernel keeps it as a time.
    TokenBucket(TokenBucket),
    /// The queue that filters of incoming packets hang on.
    Ingress,
    /// Another one by its kind.
    Other(String),
}

// Message types of linux/rtnetlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

// Handles and attribute numbers of linux/pkt_sched.h, linux/pkt_cls.h and linux/tc_act/tc_mirred.h.
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// The handle of our token buckets, `1:`.
const BUCKET_HANDLE: u32 = 0x0001_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;
/// The kernel's units of time for queueing: 64 ns.
const TICKS_PER_SECOND: u64 = 15_625_000;

impl TokenBucket {
    /// The request that puts it at the root of interface `device`. EEXIST if somebody chose another
    /// discipline there. `name` is the interface's, for the error alone.
    #[must_use]
    pub fn add(&self, device: u32, name: &IfName) -> Request {
        let mut payload = header(device, BUCKET_HANDLE, ROOT, 0);
        put(&mut payload, TCA_KIND, b"tbf\0");
        nest(&mut payload, TCA_OPTIONS, |options| {
            put(options, TCA_TBF_PARMS, &self.parameters());
            put(options, TCA_TBF_BURST, &self.burst.to_ne_bytes());
            if self.rate >= u64::from(u32::MAX) {
                put(options, TCA_TBF_RATE64, &self.rate.to_ne_bytes());
            }
        });
        let object = format!("token bucket of {} bytes per second to {name}", self.rate);
        new(RTM_NEWQDISC, object, payload)
    }

    /// The request that removes a token bucket of ours from interface `device`: EINVAL or ENOENT if there
    /// is none. `name` as in [`add`](Self::add).
    #[must_use]
    pub fn delete(device: u32, name: &IfName) -> Request {
        let mut payload = header(device, BUCKET_HANDLE, ROOT, 0);
        put(&mut payload, TCA_KIND, b"tbf\0");
        remove(format!("token bucket from {name}"), payload)
    }

    /// The burst as the kernel tells it, give or take some bytes: it keeps the time that the burst takes at the
    /// rate, and tells the last 32 bits of that in its units.
    #[must_use]
    pub fn told_burst(&self) -> u32 {
        let ticks = u64::from(self.burst) * TICKS_PER_SECOND / self.rate.max(1);
        self.burst_of(ticks & u64::from(u32::MAX))
    }

    /// What goes at the rate in that time.
    fn burst_of(&self, ticks: u64) -> u32 {
        let burst = u128::from(ticks) * u128::from(self.rate) / u128::from(TICKS_PER_SECOND);
        u32::try_from(burst).unwrap_or(u32::MAX)
    }

    /// `struct tc_tbf_qopt`. The link layer is said, so no table of times is needed.
    fn parameters(&self) -> Vec<u8> {
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(36);
        // struct tc_ratespec: cells of 8 bytes, Ethernet, no overhead, aligned at -1, no minimum.
        bytes.extend_from_slice(&[3, 1, 0, 0, 0xff, 0xff, 0, 0]);
        bytes.extend_from_slice(&rate.to_ne_bytes());
        // No peak rate.
        bytes.extend_from_slice(&[0; 12]);
        // Only kernels without TCA_TBF_BURST look at the burst as a time, which is in whole microseconds.
        let microseconds = u64::from(self.burst) * 1_000_000 / u64::from(rate.max(1));
        let ticks = u32::try_from(microseconds * TICKS_PER_SECOND / 1_000_000).unwrap_or(u32::MAX);
        for number in [self.limit, ticks, 0] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// Reads what `parameters` writes.
    fn read(options: &[u8]) -> Option<Self> {
        let (mut parameters, mut large) = (None, None);
        for (kind, value) in attributes(options, 0) {
            match kind {
                TCA_TBF_PARMS => parameters = Some(value),
                TCA_TBF_RATE64 => large = value.try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        let at = |at: usize| parameters.and_then(|bytes| bytes.get(at..at + 4)).and_then(number);
        let rate = large.or(at(8).map(u64::from))?;
        let told = Self { rate, burst: 0, limit: at(24)? };
        Some(Self { burst: told.burst_of(at(28)?.into()), ..told })
    }
}

/// The request that gives interface `device` the queue that filters of incoming packets hang on. EEXIST
/// if it has one. `name` is the interface's, for the error alone.
#[must_use]
pub fn add_ingress(device: u32, name: &IfName) -> Request {
    new(RTM_NEWQDISC, format!("ingress queue to {name}"), ingress(device))
}

/// The request that removes that queue with its filters: EINVAL or ENOENT if there is none. `name` as in
/// [`add_ingress`].
#[must_use]
pub fn delete_ingress(device: u32, name: &IfName) -> Request {
    remove(format!("ingress queue from {name}"), ingress(device))
}

/// The request that makes everything that comes in by interface `device`, which needs an ingress queue,
/// leave interface `to` instead. `name` is the former's, for the error alone.
#[must_use]
pub fn redirect(device: u32, name: &IfName, to: u32) -> Request {
    let mut payload = header(device, 0, INGRESS_HANDLE, (1 << 16) | u32::from(ETH_P_ALL.to_be()));
    put(&mut payload, TCA_KIND, b"u32\0");
    nest(&mut payload, TCA_OPTIONS, |options| {
        nest(options, TCA_U32_ACT, |actions| {
            nest(actions, 1, |action| {
                put(action, TCA_ACT_KIND, b"mirred\0");
                nest(action, TCA_ACT_OPTIONS, |options| {
                    let parameters = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
                    put(options, TCA_MIRRED_PARMS, parameters.map(u32::to_ne_bytes).as_flattened());
                });
            });
        });
        // struct tc_u32_sel with one key that compares nothing: every packet matches.
        let mut selector = [0; 32];
        (selector[0], selector[2]) = (TC_U32_TERMINAL, 1);
        put(options, TCA_U32_SEL, &selector);
    });
    new(RTM_NEWTFILTER, format!("redirection of {name} to the interface with index {to}"), payload)
}

impl RouteSocket {
    /// The queueing disciplines of interface `device`, at its root and of incoming packets.
    ///
    /// # Errors
    /// See [`Connection::dump`](crate::netlink::Connection::dump).
    pub fn qdiscs(&mut self, device: u32) -> Result<Vec<Qdisc>, Error> {
        let request = list(RTM_GETQDISC, "queueing disciplines", header(device, 0, 0, 0));
        // The kernel lists those of every interface.
        self.dump(&request, |message| Ok(qdisc(message)?.filter(|(of, _)| *of == device).map(|(_, q)| q)))
    }

    /// Indexes of the interfaces that packets coming in by interface `device` are redirected to.
    ///
    /// # Errors
    /// See [`Connection::dump`](crate::netlink::Connection::dump).
    pub fn redirections(&mut self, device: u32) -> Result<Vec<u32>, Error> {
        let payload = header(device, 0, INGRESS_HANDLE, 0);
        self.dump(&list(RTM_GETTFILTER, "filters", payload), |message| Ok(redirection(message)))
    }
}

fn ingress(device: u32) -> Vec<u8> {
    let mut payload = header(device, INGRESS_HANDLE, INGRESS, 0);
    put(&mut payload, TCA_KIND, b"ingress\0");
    payload
}

/// `struct tcmsg`.
fn header(device: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, device, handle, parent, info].map(u32::to_ne_bytes).as_flattened().to_vec()
}

fn new(kind: u16, object: String, payload: Vec<u8>) -> Request {
    Request { verb: "add", object, kind, flags: NLM_F_CREATE | NLM_F_EXCL, payload }
}

fn remove(object: String, payload: Vec<u8>) -> Request {
    Request { verb: "remove", object, kind: RTM_DELQDISC, flags: 0, payload }
}

fn list(kind: u16, objects: &str, payload: Vec<u8>) -> Request {
    Request { verb: "list", object: objects.to_owned(), kind, flags: NLM_F_DUMP, payload }
}

/// The interface's index and the discipline; `None` for one that is not at its root nor of incoming packets.
fn qdisc(message: Message<'_>) -> Result<Option<(u32, Qdisc)>, Cause> {
    let word = |at: usize| message.payload.get(at..at + 4).and_then(number);
    let (Some(device), Some(parent)) = (word(4), word(12)) else {
        return Err(Cause::Garbled("a queueing discipline without a header".to_owned()));
    };
    let (kind, options) = kind_and_options(message.payload, HEADER);
    let qdisc = match (parent, kind.as_str()) {
        (ROOT, "tbf") => TokenBucket::read(options).map(Qdisc::TokenBucket),
        (INGRESS, "ingress") => Some(Qdisc::Ingress),
        (ROOT | INGRESS, _) => Some(Qdisc::Other(kind)),
        _ => None,
    };
    Ok(qdisc.map(|qdisc| (device, qdisc)))
}

/// Where a filter of ours redirects to.
fn redirection(message: Message<'_>) -> Option<u32> {
    let inside =
        |bytes, wanted| attributes(bytes, 0).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let (kind, options) = kind_and_options(message.payload, HEADER);
    let action = inside(inside(options, TCA_U32_ACT)?, 1)?;
    let (action_kind, action) = kind_and_options(action, 0);
    let parameters = inside(action, TCA_MIRRED_PARMS)?;
    let word = |at: usize| parameters.get(at..at + 4).and_then(number);
    let redirects = kind == "u32" && action_kind == "mirred" && word(20)? == TCA_EGRESS_REDIR;
    word(24).filter(|_| redirects)
}

/// Disciplines, filters and actions alike have a kind and options under the numbers 1 and 2.
fn kind_and_options(payload: &[u8], header: usize) -> (String, &[u8]) {
    let (mut kind, mut options) = (String::new(), &[][..]);
    for (attribute, value) in attributes(payload, header) {
        match attribute {
            TCA_KIND => kind = text(value),
            TCA_OPTIONS => options = value,
            _ => {}
        }
    }
    (kind, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> IfName {
        "v0".parse().unwrap()
    }

    /// Attributes without the mark of nesting, which `tc` sets here and there, and without the table of times.
    fn plain(bytes: &[u8], nested: &[u16]) -> Vec<(u16, Vec<u8>)> {
        const TCA_TBF_RTAB: u16 = 2;
        let is_table = |kind: u16, value: &[u8]| kind == TCA_TBF_RTAB && value.len() == 1024;
        let all = attributes(bytes, 0).filter(|(kind, value)| !is_table(*kind, value));
        all.flat_map(|(kind, value)| match nested.split_first() {
            Some((first, rest)) if *first == kind => plain(value, rest),
            _ => vec![(kind, value.to_vec())],
        })
        .collect()
    }

    #[test]
    fn a_bucket_is_what_tc_sends() {
        let check = |bucket: TokenBucket, options: &[u8]| {
            let request = bucket.add(3, &name());
            assert_eq!((request.kind, request.flags), (36, 0x600));
            let header = [&[0; 4][..], &[3, 0, 0, 0, 0, 0, 1, 0, 255, 255, 255, 255], &[0; 4]].concat();
            assert_eq!(request.payload[..HEADER], header);
            let ours = plain(&request.payload[HEADER..], &[TCA_OPTIONS]);
            assert_eq!(ours[0], (TCA_KIND, b"tbf\0".to_vec()));
            assert_eq!(ours[1..], plain(options, &[]));
        };
        // tc qdisc add dev v0 root handle 1: tbf rate 8mbit burst 50000 latency 25ms
        check(
            TokenBucket { rate: 1_000_000, burst: 50_000, limit: 75_000 },
            b"\x28\0\x01\0\x03\x01\0\0\xff\xff\0\0\x40\x42\x0f\0\0\0\0\0\0\0\0\0\0\0\0\0\xf8\x24\x01\0\xc2\xeb\x0b\0\0\0\0\0\
              \x08\0\x06\0\x50\xc3\0\0",
        );
        // ... rate 80gbit burst 500000000 latency 25ms
        check(
            TokenBucket { rate: 10_000_000_000, burst: 500_000_000, limit: 750_000_000 },
            b"\x28\0\x01\0\x03\x01\0\0\xff\xff\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0\x80\x17\xb4\x2c\x68\xc1\x1b\0\0\0\0\0\
              \x08\0\x06\0\0\x65\xcd\x1d\x0c\0\x04\0\0\xe4\x0b\x54\x02\0\0\0",
        );
    }

    #[test]
    fn a_long_burst_is_told_by_the_rest_of_its_time() {
        let told = |rate, burst| TokenBucket { rate, burst, limit: 0 }.told_burst();
        assert_eq!((told(1, 1514), told(5, 1514), told(12, 4542)), (139, 139, 1243));
        assert_eq!((told(6, 1514), told(12_500, 4542)), (1513, 4542));
        assert_eq!(told(u64::MAX, u32::MAX), 0);
    }

    #[test]
    fn a_redirection_is_what_tc_sends() {
        // tc filter add dev v0 parent ffff: protocol all prio 1 u32 match u32 0 0
        //     action mirred egress redirect dev bwp0
        let theirs = b"\x38\0\x07\0\x34\0\x01\0\x0b\0\x01\0mirred\0\0\x24\0\x02\x80\x20\0\x02\0\0\0\0\0\0\0\0\0\x04\0\0\0\
            \0\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0\
            \x24\0\x05\0\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let request = redirect(3, &name(), 4);
        assert_eq!((request.kind, request.flags), (44, 0x600));
        assert_eq!(request.payload[4..HEADER], [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 3, 1, 0]);
        let ours = plain(&request.payload[HEADER..], &[TCA_OPTIONS, TCA_U32_ACT, 1, TCA_ACT_OPTIONS]);
        assert_eq!(ours[0], (TCA_KIND, b"u32\0".to_vec()));
        assert_eq!(ours[1..], plain(theirs, &[TCA_U32_ACT, 1, TCA_ACT_OPTIONS]));
        assert_eq!(redirection(message(&request.payload)), Some(4));
    }

    #[test]
    fn an_ingress_queue_is_what_tc_sends() {
        // tc qdisc add dev v0 handle ffff: ingress
        let request = add_ingress(3, &name());
        assert_eq!(request.payload[4..16], [3, 0, 0, 0, 0, 0, 255, 255, 241, 255, 255, 255]);
        assert_eq!(request.payload[HEADER..], *b"\x0c\0\x01\0ingress\0");
        assert_eq!(qdisc(message(&request.payload)).unwrap(), Some((3, Qdisc::Ingress)));
    }

    fn message(payload: &[u8]) -> Message<'_> {
        Message { kind: 0, flags: 0, sequence: 0, port: 0, payload }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(payload: Vec<u8>) {
            let _ = (qdisc(message(&payload)), redirection(message(&payload)));
        }
    }
}
