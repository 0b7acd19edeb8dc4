//! Echo requests at an even pace, counted one by one.
//!
//! `ping` itself either keeps no pace (its timer is coarse from 10 ms up) or eats a CPU (below), which would
//! disturb what is measured.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pnet_packet::icmp::echo_reply::EchoReplyPacket;
use pnet_packet::icmp::echo_request::MutableEchoRequestPacket;
use pnet_packet::icmp::{IcmpCode, IcmpTypes};
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::util::checksum;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};

use crate::{Netns, Ran};

/// 100 packets per second.
const GAP: Duration = Duration::from_millis(10);
/// How long answers may take at the end.
const LATE: Duration = Duration::from_secs(2);

/// Sends echo requests at 100 per second on a thread inside a namespace.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Pinged>,
}

/// What came of the echo requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinged {
    /// Requests sent, or tried to be sent.
    pub sent: u16,
    /// Numbers, from 0, of those without an answer.
    pub lost: BTreeSet<u16>,
}

impl Pinger {
    /// Starts sending `count` requests to `to`.
    ///
    /// # Errors
    /// Without the right to enter the namespace or to open a raw socket.
    pub fn start(net: &Netns, to: Ipv4Addr, count: u16) -> Result<Self> {
        let open = || socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP));
        let socket = net.inside(open)?.context("failed to open a raw socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stop_inside = Arc::clone(&stop);
        let thread = thread::spawn(move || Run::new(socket, to).all(count, &stop_inside));
        Ok(Self { stop, thread })
    }

    /// Waits until all requests are sent and the answers are in.
    ///
    /// # Errors
    /// When its thread panicked.
    pub fn finish(self) -> Result<Pinged> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the pinging thread panicked"))
    }

    /// Sends no more, and waits for the answers to what was sent.
    ///
    /// # Errors
    /// When its thread panicked.
    pub fn stop(self) -> Result<Pinged> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }
}

/// One pinger's socket and what is open.
struct Run {
    socket: OwnedFd,
    to: Ipv4Addr,
    id: u16,
    open: BTreeSet<u16>,
}

impl Run {
    fn new(socket: OwnedFd, to: Ipv4Addr) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0x5745);
        Self { socket, to, id: NEXT.fetch_add(1, Ordering::Relaxed), open: BTreeSet::new() }
    }

    fn all(mut self, count: u16, stop: &AtomicBool) -> Pinged {
        let start = Instant::now();
        let mut sent = 0;
        while sent < count && !stop.load(Ordering::Relaxed) {
            self.open.insert(sent);
            let request = request(self.id, sent);
            // A request that can't be sent is lost like any other.
            let to = SocketAddrV4::new(self.to, 0);
            let _ = sendto(&self.socket, &request, SendFlags::empty(), &to);
            sent += 1;
            self.listen(start + GAP * u32::from(sent), false);
        }
        self.listen(Instant::now() + LATE, true);
        Pinged { sent, lost: self.open }
    }

    /// Takes in answers until `end`, or, if `enough`, until nothing is open.
    fn listen(&mut self, end: Instant, enough: bool) {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left < Duration::from_micros(50) || (enough && self.open.is_empty()) {
                return;
            }
            let nothing_to_hear = self.open.is_empty();
            if nothing_to_hear {
                // Precise, where the socket's own time-out is a multiple of the kernel's tick.
                thread::sleep(left);
            } else if let Some(sequence) = self.answer(left) {
                self.open.remove(&sequence);
            }
        }
    }

    /// The number of the request that an answer is for, if one comes in time.
    fn answer(&self, limit: Duration) -> Option<u16> {
        let mut packet = [0; 256];
        set_socket_timeout(&self.socket, Timeout::Recv, Some(limit)).ok()?;
        let (length, _) = recv(&self.socket, packet.as_mut_slice(), RecvFlags::empty()).ok()?;
        // A raw socket hands out the IP header too.
        let ip = Ipv4Packet::new(packet.get(..length)?)?;
        let icmp = packet.get(usize::from(ip.get_header_length()) * 4..length)?;
        let reply = EchoReplyPacket::new(icmp)?;
        let ours = ip.get_source() == self.to
            && reply.get_icmp_type() == IcmpTypes::EchoReply
            && reply.get_identifier() == self.id;
        ours.then(|| reply.get_sequence_number())
    }
}

/// An echo request of 64 bytes.
fn request(id: u16, sequence: u16) -> [u8; 64] {
    let mut bytes = [0x77; 64];
    if let Some(mut request) = MutableEchoRequestPacket::new(&mut bytes) {
        request.set_icmp_type(IcmpTypes::EchoRequest);
        request.set_icmp_code(IcmpCode(0));
        request.set_identifier(id);
        request.set_sequence_number(sequence);
        request.set_checksum(0);
    }
    let sum = checksum(&bytes, 1);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// One counter of the kernel's network statistics in a namespace, as `nstat` prints it.
///
/// # Errors
/// When nstat fails or does not know the counter.
pub fn counter(net: &Netns, name: &str) -> Result<(u64, Ran)> {
    let ran = net.cmd(format!("nstat -azs {name}")).ok()?;
    let value = ran.line_with(name).and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let value = value.ok_or_else(|| io::Error::other(format!("no counter {name}: {ran}")))?;
    Ok((value, ran))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns_or_skip;

    #[test]
    fn every_answer_is_counted_at_an_even_pace() -> Result<()> {
        let Some(net) = netns_or_skip() else { return Ok(()) };
        let start = Instant::now();
        let pinged = Pinger::start(&net, Ipv4Addr::LOCALHOST, 50)?.finish()?;
        assert_eq!(pinged, Pinged { sent: 50, lost: BTreeSet::new() });
        assert!(start.elapsed() >= GAP * 49, "{:?}", start.elapsed());
        assert_eq!(counter(&net, "IcmpInEchoReps")?.0, 50, "the kernel counts the same");
        Ok(())
    }

    #[test]
    fn what_is_dropped_is_lost_and_named() -> Result<()> {
        let Some(net) = netns_or_skip() else { return Ok(()) };
        let pinger = Pinger::start(&net, Ipv4Addr::LOCALHOST, 30)?;
        thread::sleep(GAP * 5);
        net.cmd("nft add table ip t").ok()?;
        net.cmd("nft add chain ip t in").arg("{ type filter hook input priority 0; policy drop; }").ok()?;
        let pinged = pinger.finish()?;
        assert_eq!(pinged.sent, 30);
        assert!(!pinged.lost.contains(&0) && pinged.lost.contains(&29), "{pinged:?}");
        Ok(())
    }
}
