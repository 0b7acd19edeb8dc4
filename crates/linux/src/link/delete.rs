//! Deleting an interface without waiting for the kernel's slow acknowledgement.
//!
//! The kernel takes an interface away in half a millisecond and announces that; then, still inside the
//! system call, it waits about 20 ms for everybody who might still look at it. A child sits that out:
//!
//! ```text
//! parent: subscribe --> fork ----------------> event "gone", or the child's refusal --> return
//! child:                close all others  --> send, wait ~20 ms --> error number into the pipe --> exit
//! ```

use std::{
    io::{PipeReader, Read, pipe},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_route::{AddressFamily, link::LinkHeader};
use netmodel::IfName;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::delete;
use crate::{
    Cause, Error,
    netlink::{Connection, Protocol, Request},
    sys,
};

/// Multicast group of interface events (`RTNLGRP_LINK`).
const GROUP_LINK: u32 = 1;
/// `RTM_DELLINK`, as an event: the interface is gone.
const LINK_GONE: u16 = 17;

/// The kernel's announcements that interfaces are gone.
#[derive(Debug)]
pub struct LinkEvents {
    connection: Connection,
}

impl LinkEvents {
    /// Subscribes in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn open() -> Result<Self, Error> {
        let mut connection = Connection::open(Protocol::Route)?;
        connection.join(GROUP_LINK)?;
        Ok(Self { connection })
    }

    /// Waits at most `wait` for the announcement that interface `index` is gone. False: not yet.
    ///
    /// # Errors
    /// Announcements were lost ([`Error::is_overrun`]): look whether the interface is still there.
    pub fn is_gone(&mut self, index: u32, wait: Duration) -> Result<bool, Error> {
        let mut gone = false;
        while !gone {
            let came = self.connection.events(Some(wait), |event| {
                // A bridge announces the end of a port with the same type and index, in its own family.
                gone |= event.kind == LINK_GONE
                    && LinkHeader::parse(event.payload).is_ok_and(|header| {
                        header.index == index && header.interface_family == AddressFamily::Unspec
                    });
            })?;
            if !came {
                break;
            }
        }
        Ok(gone)
    }
}

/// Deletes interface `index`, and with it its veth peer, and returns when the kernel announced it gone.
/// `name` is for the error alone.
///
/// A child with nothing of the caller's open, neither stdio nor locks, waits for the acknowledgement. It
/// is left to whoever inherits it: call this from a process that ends soon.
///
/// The child keeps `held` open as well, so that a descriptor whose last closing is slow (an nftables socket
/// after a deletion: some 12 ms) costs the caller nothing.
///
/// # Errors
/// The kernel refused it ([`Error::is_not_found`]: it was gone already).
pub fn detach_and_delete(index: u32, name: &IfName, held: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let request = delete(index, name);
    let mut events = LinkEvents::open()?;
    let mut deleter = Connection::open(Protocol::Route)?;
    let message = deleter.pack(&request);
    let (mut verdict, announce) = pipe().map_err(|error| request.failed(Cause::Errno(error)))?;
    if sys::fork_to_send(deleter.as_fd(), &message, announce.as_fd(), held).is_err() {
        return deleter.request(&request);
    }
    drop(announce);
    wait_for_end(&mut events, &mut verdict, index, &request)
}

/// Returns when the event came, or the child's verdict if that is first.
fn wait_for_end(
    events: &mut LinkEvents,
    verdict: &mut PipeReader,
    index: u32,
    request: &Request,
) -> Result<(), Error> {
    loop {
        let mut ready = [PollFd::new(&events.connection, PollFlags::IN), PollFd::new(verdict, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(request.failed(errno)),
            Ok(_) => {}
        }
        let (event_came, verdict_came) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
        match event_came.then(|| events.is_gone(index, Duration::ZERO)) {
            Some(Ok(true)) => return Ok(()),
            // The verdict comes in any case.
            Some(Err(_)) => return read_verdict(verdict, request),
            Some(Ok(false)) | None if verdict_came => return read_verdict(verdict, request),
            Some(Ok(false)) | None => {}
        }
    }
}

/// The error number that the child wrote: 0 if the interface is gone.
fn read_verdict(verdict: &mut PipeReader, request: &Request) -> Result<(), Error> {
    let mut number = [0; 4];
    verdict.read_exact(&mut number).map_err(|error| request.failed(Cause::Errno(error)))?;
    match i32::from_ne_bytes(number) {
        0 => Ok(()),
        number => Err(request.failed(Cause::refused(number, None))),
    }
}
