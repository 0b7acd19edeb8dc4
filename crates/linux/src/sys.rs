//! The system calls that neither `std` nor `rustix` offers. All `unsafe` of the project is here.
#![allow(unsafe_code)]

use std::os::{
    fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    unix::process::CommandExt,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
    process::{Signal, getpid, getppid, set_parent_process_death_signal},
    thread::UnshareFlags,
};

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

/// Forks a child that keeps nothing open but `socket`, `verdict` and `held`, sends `message` on `socket`,
/// writes the error number of the answer (0 for none) to `verdict` as 4 bytes, and ends.
pub(crate) fn fork_to_send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    verdict: BorrowedFd<'_>,
    held: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    fork_detached([socket, verdict, held.unwrap_or(socket)], || {
        let errno = send_and_wait(socket, message);
        let _ = rustix::io::write(verdict, &errno.to_ne_bytes());
    })
}

/// Forks a child that keeps nothing open but `held` until the other end of the pipe `begin` is closed: whatever the
/// kernel waits for at the last closing, the child does.
pub(crate) fn fork_to_close(held: BorrowedFd<'_>, begin: BorrowedFd<'_>) -> Result<(), Errno> {
    fork_detached([held, begin, begin], || {
        let _ = rustix::io::read(begin, &mut [0; 1]);
    })
}

/// Forks a child that keeps nothing open but `kept`, does `work`, and ends. `work` must only make system calls on
/// memory that is there already.
///
/// The child is in a session of its own, so that a signal to the caller's group passes it by.
fn fork_detached(kept: [BorrowedFd<'_>; 3], work: impl FnOnce()) -> Result<(), Errno> {
    // JUSTIFICATION: neither std nor rustix forks.
    // SAFETY: the child only makes system calls on memory that is there already (it allocates nothing, takes
    // no lock, runs no destructor and never returns), so it is sound even if other threads exist.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => {
            // JUSTIFICATION: std's exit would run what the parent registered to run at its own end.
            // SAFETY: it only ends the child.
            let exit = || unsafe { libc::_exit(0) };
            let _ = rustix::process::setsid();
            close_all_but(kept.map(|kept| kept.as_raw_fd()));
            work();
            exit()
        }
        _ => Ok(()),
    }
}

/// Makes the kernel kill what `command` starts when the thread that starts it ends, however that ends.
pub fn end_with_starter(command: &mut impl CommandExt) {
    let starter = getpid();
    let bind = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before it was listened for.
        if getppid() == Some(starter) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // JUSTIFICATION: only the child can ask for this, and std lets nothing else run there.
    // SAFETY: the child makes two system calls on memory that is there already, and allocates nothing.
    unsafe { command.pre_exec(bind) };
}

/// Closes every descriptor of this process but these, of which some may be the same.
fn close_all_but(mut kept: [RawFd; 3]) {
    kept.sort_unstable();
    let mut first = 0;
    for kept in kept.map(RawFd::cast_unsigned) {
        if first < kept {
            close_range(first, kept - 1);
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // JUSTIFICATION: neither std nor rustix closes a range of descriptors.
    // SAFETY: called by the forked child alone, which uses no descriptor but those that are kept.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Sends one netlink request and returns the error number of its answer.
fn send_and_wait(socket: BorrowedFd<'_>, message: &[u8]) -> i32 {
    let mut answer = [0; 4096];
    let sent = rustix::net::send(socket, message, SendFlags::empty());
    match sent.and_then(|_| rustix::net::recv(socket, &mut answer[..], RecvFlags::empty())) {
        Err(errno) => errno.raw_os_error(),
        // Behind the 16 bytes of the netlink header.
        Ok(_) => answer[16..].first_chunk().map_or(0, |number| i32::from_ne_bytes(*number).saturating_neg()),
    }
}
