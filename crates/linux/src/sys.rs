//! The system calls that neither `std` nor `rustix` offers. All `unsafe` of the project is here.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::{io::Errno, thread::UnshareFlags};

/// An option of a netlink socket (netlink(7), "Socket options").
#[derive(Clone, Copy)]
pub(crate) enum NetlinkOption {
    /// Errors come with the kernel's own words.
    ExtendedAck = libc::NETLINK_EXT_ACK as isize,
    /// Errors don't repeat the request they answer.
    CapAck = libc::NETLINK_CAP_ACK as isize,
    /// Requests are checked strictly, and dumps are filtered by the kernel.
    StrictCheck = libc::NETLINK_GET_STRICT_CHK as isize,
    /// Events of this multicast group are delivered.
    Join = libc::NETLINK_ADD_MEMBERSHIP as isize,
}

/// Sets an option of a netlink socket.
pub(crate) fn set_netlink_option(socket: impl AsFd, option: NetlinkOption, value: u32) -> Result<(), Errno> {
    // JUSTIFICATION: rustix does not have the options of SOL_NETLINK.
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads exactly
    // `size_of::<u32>()` bytes from `value`, which outlives the call.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            option as libc::c_int,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_network() -> Result<(), Errno> {
    // JUSTIFICATION: rustix marks every unshare as unsafe, because of the flag FILES.
    // SAFETY: the flag FILES is not given, so that all threads keep one table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

/// The error number of the C library call that just failed on this thread.
fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
