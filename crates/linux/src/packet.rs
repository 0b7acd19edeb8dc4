//! Sending one frame as it is, such as a gratuitous ARP.

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use netmodel::IfName;

use crate::{Error, sys};

/// Shortest frame: an Ethernet header.
const ETHERNET_HEADER: usize = 14;

/// Sends `frame`, Ethernet header included, on interface `device` of the calling thread's network namespace.
/// `name` is for the error alone.
///
/// # Errors
/// The interface is absent or down, the privilege is missing (CAP_NET_RAW), or the frame is shorter than an
/// Ethernet header or longer than the interface allows.
pub fn send(device: u32, name: &IfName, frame: &[u8]) -> Result<(), Error> {
    try_send(device, frame).map_err(|errno| Error::new("send", format!("a frame on {name}"), errno))
}

fn try_send(device: u32, frame: &[u8]) -> Result<(), Errno> {
    let Some((header, _)) = frame.split_first_chunk::<ETHERNET_HEADER>() else { return Err(Errno::INVAL) };
    // Without a protocol the socket receives nothing.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let ethertype = u16::from_be_bytes([header[12], header[13]]);
    sys::send_on(socket, device, ethertype, frame)
}
