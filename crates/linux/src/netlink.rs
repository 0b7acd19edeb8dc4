//! A blocking netlink connection that puts many requests into one send.
//!
//! ```text
//! apply(requests) --> window of at most WINDOW requests, one send --> kernel carries out all of them
//!                     only the last asks for an acknowledgement   <-- errors by sequence number,
//!                                                                     then the last one's answer
//! ```
//! A request that fails does not stop those behind it. The window is sized so that even if every request
//! fails, the answers fit into the receive buffer.

mod machine_events;
mod message;
mod route_socket;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, getsockname,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with, sockopt,
    },
};

use self::message::{Meaning, append, messages};
pub use self::{
    machine_events::{MachineChanges, MachineEvents},
    message::Message,
    route_socket::RouteSocket,
};
use crate::{
    Cause, Error,
    netns::Netns,
    sys::{NetlinkOption, set_netlink_option},
};

/// Most requests in one send. An answer takes about 1 KiB of the receive buffer.
const WINDOW: usize = 1024;
/// Most bytes of requests in one send, unless one request alone is longer.
const WINDOW_BYTES: usize = 256 * 1024;
/// Size asked for the receive buffer, in bytes; the kernel doubles it.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Size of the send buffer at first, in bytes; one long batch makes it grow.
const SEND_BUFFER: usize = 2 * WINDOW_BYTES;
/// What the kernel adds to the bytes of a message when it accounts it to the send buffer, at most.
const SEND_OVERHEAD: usize = 64 * 1024;
/// Longest datagram that the kernel sends; a dump's parts are at most 32 KiB.
const DATAGRAM: usize = 256 * 1024;
/// Longest time that the kernel may take for an answer: it waits for its own locks.
const ANSWER_SECONDS: u64 = 60;
/// How often a dump is repeated that the kernel marks as inconsistent.
const DUMP_ATTEMPTS: usize = 16;

/// Which part of the kernel a [`Connection`] talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours (rtnetlink(7)).
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

/// One request to the kernel, and what to call it in an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is tried: "add", "delete", ...
    pub verb: &'static str,
    /// On what: kind and identity of the object.
    pub object: String,
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags` besides `NLM_F_REQUEST` and `NLM_F_ACK`, which are set when it is sent.
    pub flags: u16,
    /// What follows the netlink header.
    pub payload: Vec<u8>,
}

impl Request {
    /// The error that this request failed for `cause`.
    pub fn failed(&self, cause: impl Into<Cause>) -> Error {
        Error::new(self.verb, self.object.clone(), cause)
    }
}

/// A netlink socket. It stays in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    port: u32,
    sequence: u32,
    send_buffer: usize,
    /// What the next send holds.
    outgoing: Vec<u8>,
    /// What the last receive returned.
    incoming: Vec<u8>,
}

impl Connection {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel lacks the protocol, or no descriptor is free.
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        Self::try_open(protocol).map_err(|errno| {
            Error::new("open", "a netlink socket", errno)
                .lacking(libc::EPROTONOSUPPORT, "netlink for netfilter (CONFIG_NETFILTER_NETLINK)")
        })
    }

    /// Opens a connection in `namespace`.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the namespace could not be entered.
    pub fn open_in(protocol: Protocol, namespace: &Netns) -> Result<Self, Error> {
        namespace.enter(|| Self::open(protocol))?
    }

    fn try_open(protocol: Protocol) -> Result<Self, Errno> {
        let protocol = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
        };
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // Each of these only makes answers better. Kernels before 4.20 lack the last one.
        for option in [NetlinkOption::ExtendedAck, NetlinkOption::CapAck, NetlinkOption::StrictCheck] {
            let _ = set_netlink_option(&socket, option, 1);
        }
        // Without the privilege the buffers are as large as net.core.{r,w}mem_max allows.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER));
        let kernel = SocketAddrNetlink::new(0, 0);
        bind(&socket, &kernel)?;
        // From here on only the kernel can send to this socket.
        connect(&socket, &kernel)?;
        let port = SocketAddrNetlink::try_from(getsockname(&socket)?)?.pid();
        let mut connection = Self {
            socket,
            port,
            sequence: 0,
            send_buffer: 0,
            outgoing: Vec::new(),
            incoming: vec![0; DATAGRAM],
        };
        connection.grow_send_buffer(SEND_BUFFER);
        Ok(connection)
    }

    /// What the kernel calls this connection ([`Message::port`]).
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Carries out all requests in order and returns one result for each. A request that fails does not
    /// stop those behind it.
    pub fn apply(&mut self, requests: &[Request]) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let (window, behind) = rest.split_at(window_length(rest));
            let causes = self.apply_window(window);
            results.extend(window.iter().zip(causes).map(|(request, cause)| match cause {
                None => Ok(()),
                Some(cause) => Err(request.failed(cause)),
            }));
            rest = behind;
        }
        results
    }

    /// One send; for each request the reason why it failed.
    fn apply_window(&mut self, window: &[Request]) -> Vec<Option<Cause>> {
        let mut causes: Vec<Option<Cause>> = window.iter().map(|_| None).collect();
        let count = window.len() as u32;
        let first = self.reserve(count);
        self.outgoing.clear();
        for (request, offset) in window.iter().zip(0_u32..) {
            let ack = if offset + 1 == count { NLM_F_ACK } else { 0 };
            let flags = request.flags | NLM_F_REQUEST | ack;
            append(&mut self.outgoing, request.kind, flags, first.wrapping_add(offset), &request.payload);
        }
        let collected = self.send_outgoing().and_then(|()| {
            self.collect(first.wrapping_add(count - 1), |sequence, cause| {
                let at = sequence.wrapping_sub(first) as usize;
                causes.get_mut(at).map(|slot| *slot = Some(cause)).is_some() && at + 1 == window.len()
            })
        });
        if let Err(cause) = collected {
            // What was not refused by now is unknown.
            causes.iter_mut().filter(|slot| slot.is_none()).for_each(|slot| *slot = Some(cause.duplicate()));
        }
        causes
    }

    /// Carries out one request.
    ///
    /// # Errors
    /// The kernel refused it, or did not answer.
    pub fn request(&mut self, request: &Request) -> Result<(), Error> {
        self.ask(request, |_| Ok(())).map(drop)
    }

    /// Carries out one request that is answered with objects (`RTM_GET...` of one object, or anything with
    /// `NLM_F_ECHO`), and returns what `parse` makes of each.
    ///
    /// # Errors
    /// The kernel refused it or did not answer, or `parse` failed.
    pub fn ask<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(Message<'_>) -> Result<T, Cause>,
    ) -> Result<Vec<T>, Error> {
        self.exchange(request, NLM_F_ACK, |message| parse(message).map(Some))
            .map(|(objects, _)| objects)
            .map_err(|cause| request.failed(cause))
    }

    /// Lists objects: `request` is sent as a dump, repeated while the kernel marks the list as
    /// inconsistent, or lost some of it. `parse` returns `None` for what is not wanted.
    ///
    /// # Errors
    /// The kernel refused it or did not answer, the list kept changing, or `parse` failed.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(Message<'_>) -> Result<Option<T>, Cause>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let (objects, whole) =
                self.exchange(request, NLM_F_DUMP, &mut parse).map_err(|cause| request.failed(cause))?;
            if whole {
                return Ok(objects);
            }
        }
        Err(request.failed(Cause::KeptChanging))
    }

    /// Takes `count` fresh sequence numbers and returns the first; the others follow it, wrapping.
    pub fn reserve(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends one batch of messages, packed by the caller, in one send (a netfilter transaction is one
    /// send), and waits for the answer to the message numbered `last`, which must carry `NLM_F_ACK`.
    /// Returns what the kernel refused, by sequence number; empty if all was carried out.
    ///
    /// `first` is the message that begins the batch: the kernel answers to it when it refuses the whole.
    ///
    /// # Errors
    /// The send failed, answers were lost, or the kernel did not answer.
    pub fn transact(&mut self, batch: &[u8], first: u32, last: u32) -> Result<Vec<(u32, Cause)>, Cause> {
        let mut refused = Vec::new();
        self.send(batch)?;
        self.collect(last, |sequence, cause| {
            let mine = sequence.wrapping_sub(first) <= last.wrapping_sub(first);
            if mine {
                refused.push((sequence, cause));
            }
            mine && (sequence == first || sequence == last)
        })?;
        Ok(refused)
    }

    /// Subscribes to the events of a multicast group (`RTNLGRP_...`, `NFNLGRP_...`).
    ///
    /// # Errors
    /// The group does not exist, or the privilege is missing.
    pub fn join(&mut self, group: u32) -> Result<(), Error> {
        set_netlink_option(&self.socket, NetlinkOption::Join, group)
            .map_err(|errno| Error::new("subscribe to", format!("netlink group {group}"), errno))
    }

    /// Waits at most `wait` (`None`: as long as it takes) for events, and hands each of those that arrived
    /// together to `take`. Returns false if none came in time.
    ///
    /// # Errors
    /// Events were lost ([`Error::is_overrun`]): what they were about must be read again. The connection
    /// stays usable.
    pub fn events(
        &mut self,
        wait: Option<Duration>,
        mut take: impl FnMut(Message<'_>),
    ) -> Result<bool, Error> {
        let failed = |cause: Cause| Error::new("receive", "netlink events", cause);
        let deadline =
            wait.map(|wait| Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut ready, deadline.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        let length = self.receive().map_err(failed)?;
        for message in messages(&self.incoming[..length]) {
            match message.meaning() {
                Meaning::Object(event) => take(event),
                Meaning::Overrun => return Err(failed(Cause::Overrun)),
                Meaning::Answer(_) | Meaning::Padding => {}
            }
        }
        Ok(true)
    }

    /// The bytes of one request that asks for an acknowledgement, for a send by somebody else.
    pub(crate) fn pack(&mut self, request: &Request) -> Vec<u8> {
        let (sequence, flags) = (self.reserve(1), request.flags | NLM_F_REQUEST | NLM_F_ACK);
        let mut bytes = Vec::new();
        append(&mut bytes, request.kind, flags, sequence, &request.payload);
        bytes
    }

    /// Sends one request and returns its sequence number.
    fn send_one(&mut self, request: &Request, flags: u16) -> Result<u32, Cause> {
        let sequence = self.reserve(1);
        self.outgoing.clear();
        append(
            &mut self.outgoing,
            request.kind,
            request.flags | NLM_F_REQUEST | flags,
            sequence,
            &request.payload,
        );
        self.send_outgoing().map(|()| sequence)
    }

    fn send_outgoing(&mut self) -> Result<(), Cause> {
        let outgoing = std::mem::take(&mut self.outgoing);
        let sent = self.send(&outgoing);
        self.outgoing = outgoing;
        sent
    }

    /// Sends `bytes` as one datagram; the send buffer grows to hold it.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        self.grow_send_buffer(bytes.len() + SEND_OVERHEAD);
        loop {
            match send(&self.socket, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Cause::Errno(errno.into())),
            }
        }
    }

    fn grow_send_buffer(&mut self, size: usize) {
        if size > self.send_buffer {
            // Where neither is allowed, the send says so (EMSGSIZE).
            let _ = sockopt::set_socket_send_buffer_size_force(&self.socket, size)
                .or_else(|_| sockopt::set_socket_send_buffer_size(&self.socket, size));
            self.send_buffer = size;
        }
    }

    /// Reads answers until the one to `last`, or until `refused` says that a refusal is the last answer.
    fn collect(&mut self, last: u32, mut refused: impl FnMut(u32, Cause) -> bool) -> Result<(), Cause> {
        loop {
            let length = self.answer()?;
            for message in messages(&self.incoming[..length]) {
                match message.meaning() {
                    Meaning::Answer(Ok(())) if message.sequence == last => return Ok(()),
                    Meaning::Answer(Err(cause)) => {
                        if refused(message.sequence, cause) {
                            return Ok(());
                        }
                    }
                    Meaning::Overrun => return Err(Cause::Overrun),
                    Meaning::Answer(Ok(())) | Meaning::Object(_) | Meaning::Padding => {}
                }
            }
        }
    }

    /// Sends one request and reads the objects that answer it, up to its acknowledgement or the end of the
    /// dump. The second value is false where the kernel marked a dump as inconsistent or lost some of it.
    fn exchange<T>(
        &mut self,
        request: &Request,
        flags: u16,
        mut parse: impl FnMut(Message<'_>) -> Result<Option<T>, Cause>,
    ) -> Result<(Vec<T>, bool), Cause> {
        let sequence = self.send_one(request, flags)?;
        let dump = flags == NLM_F_DUMP;
        // A dump is read to its end whatever happens: the kernel refuses a second one until then (EBUSY).
        let (mut objects, mut whole, mut garbled) = (Vec::new(), true, None);
        loop {
            let length = match self.answer() {
                Err(Cause::Overrun) if dump => {
                    whole = false;
                    continue;
                }
                answer => answer?,
            };
            for message in messages(&self.incoming[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                whole &= !message.is_interrupted();
                match message.meaning() {
                    Meaning::Object(object) => match parse(object) {
                        Ok(wanted) => objects.extend(wanted),
                        Err(cause) => drop(garbled.get_or_insert(cause)),
                    },
                    Meaning::Answer(Err(cause)) => return Err(cause),
                    Meaning::Answer(Ok(())) => return garbled.map_or(Ok((objects, whole)), Err),
                    Meaning::Overrun => return Err(Cause::Overrun),
                    Meaning::Padding => {}
                }
            }
        }
    }

    /// Waits for the next datagram of an answer.
    fn answer(&mut self) -> Result<usize, Cause> {
        let wait = Timespec { tv_sec: ANSWER_SECONDS.cast_signed(), tv_nsec: 0 };
        loop {
            // Almost always the answer is there when the send returns, so the wait is rarely needed.
            match self.receive() {
                Err(Cause::Errno(error)) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {}
                other => return other,
            }
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait)) {
                Ok(0) => return Err(Cause::NoAnswer(ANSWER_SECONDS)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives one datagram that is already there, and returns its length.
    fn receive(&mut self) -> Result<usize, Cause> {
        loop {
            match recv(&self.socket, &mut self.incoming[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((_, length)) if length > self.incoming.len() => {
                    return Err(Cause::Garbled(format!("a datagram of {length} bytes is too long")));
                }
                Ok((_, length)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How many of `requests` go into one send.
fn window_length(requests: &[Request]) -> usize {
    let mut bytes = 0;
    let fitting = requests.iter().take(WINDOW).take_while(|request| {
        bytes += request.payload.len() + 32;
        bytes <= WINDOW_BYTES
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: usize) -> Request {
        Request { verb: "add", object: "x".to_owned(), kind: 0, flags: 0, payload: vec![0; bytes] }
    }

    #[test]
    fn a_window_is_bounded_by_count_and_bytes_but_never_empty() {
        assert_eq!(window_length(&vec![request(64); WINDOW + 1]), WINDOW);
        assert_eq!(window_length(&vec![request(1024); WINDOW]), WINDOW_BYTES / (1024 + 32));
        assert_eq!(window_length(&[request(2 * WINDOW_BYTES)]), 1);
    }
}
