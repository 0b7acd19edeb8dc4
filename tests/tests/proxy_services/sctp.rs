//! SCTP by packets of our own: kernels without SCTP sockets translate it all the same.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketType, recv, sendto, socket,
};
use testkit::Netns;

use crate::world::{TARGET, WEB, World, pod_ip, web};

/// The number of SCTP in the IP header, and those of two chunks (RFC 9260).
const SCTP: u32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// The cluster IP's port, and the client's.
const PORT: u16 = 9;
const CLIENT_PORT: u16 = 5000;

/// CRC32c, which SCTP's checksum is.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1)))
    })
}

/// A packet with one INIT or INIT ACK chunk.
fn packet(from: u16, to: u16, tag: u32, chunk: u8) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]); // the checksum
    bytes.extend([chunk, 0, 0, 20]);
    bytes.extend(0x1234_5678_u32.to_be_bytes()); // our tag
    bytes.extend(65_536_u32.to_be_bytes()); // our window
    bytes.extend([0, 1, 0, 1]); // streams
    bytes.extend(1_u32.to_be_bytes()); // our first number
    let checksum = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&checksum);
    bytes
}

/// A socket for whole SCTP packets.
fn raw(net: &Netns) -> Result<OwnedFd> {
    let opened = net.inside(|| {
        let protocol = RawProtocol::new(SCTP).map(Protocol::from_raw);
        let fd = socket(AddressFamily::INET, SocketType::RAW, protocol)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_secs(2)))?;
        Ok::<_, rustix::io::Errno>(fd)
    })?;
    opened.context("raw socket")
}

/// The next packet: its source, both ports, and the kind of its chunk.
fn next(socket: &OwnedFd) -> Result<(Ipv4Addr, u16, u16, u8)> {
    let mut bytes = [0; 256];
    let (_, length) = recv(socket, &mut bytes[..], RecvFlags::empty()).context("no packet came")?;
    anyhow::ensure!(length >= 20 + 13, "a short packet: {:?}", &bytes[..length]);
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let source = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    Ok((source, port(20), port(22), bytes[20 + 12]))
}

#[test]
fn an_sctp_association_is_led_to_the_endpoint_and_back() -> Result<()> {
    let Some(mut world) = World::new("sctp", 2) else { return Ok(()) };
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let (server, client) = (raw(&world.pods[0])?, raw(&world.pods[1])?);
    let send = |socket: &OwnedFd, bytes: &[u8], to: Ipv4Addr| {
        sendto(socket, bytes, SendFlags::empty(), &SocketAddrV4::new(to, 0)).context("send")
    };
    send(&client, &packet(CLIENT_PORT, PORT, 0, INIT), WEB)?;
    assert_eq!(next(&server)?, (pod_ip(1), CLIENT_PORT, TARGET, INIT));
    send(&server, &packet(TARGET, CLIENT_PORT, 0x1234_5678, INIT_ACK), pod_ip(1))?;
    assert_eq!(next(&client)?, (WEB, PORT, CLIENT_PORT, INIT_ACK));
    let flows = world.node.cmd("conntrack -L -p sctp").ok()?;
    println!("{}", flows.stdout.trim());
    assert!(flows.stdout.contains("dst=10.96.0.7") && flows.stdout.contains("src=10.244.1.10"), "{flows}");
    Ok(())
}
