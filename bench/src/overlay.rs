//! Programming the overlay: neighbour, forwarding entry and route of every peer.
//!
//! The floor sends messages that were packed beforehand through a bare socket, as many in one send as we do.
//! The other peer is what most programs do: one request, one answer, the next.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use linux::{
    fdb::Entry,
    link::{self, Vxlan},
    neighbour::Neighbour,
    netlink::{Request, RouteSocket},
    netns::Netns,
    route::Route,
};
use netmodel::{IfName, Mac, Mtu, Port, Subnet, Vni};

use crate::{
    floor::Bare,
    report::{RUNS, Report, interleave},
};

/// How many peers there are; growth is part of the picture.
const SIZES: [u32; 3] = [500, 1_500, 5_000];

/// Measures the area.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    for peers in SIZES {
        let [ours, floor, one_by_one] = interleave(
            RUNS,
            [&mut || all_at_once(peers), &mut || prepacked(peers), &mut || one_after_another(peers)],
        )?;
        report.compare(&format!("overlay-program-{peers}:floor"), "ms", &ours, &floor);
        report.compare(&format!("overlay-program-{peers}:one-by-one"), "ms", &ours, &one_by_one);
    }
    for peers in SIZES {
        let (ours, floor) = Node::inside(|node| join(node, peers))?;
        report.compare(&format!("overlay-join-at-{peers}:floor"), "ms", &ours, &floor);
    }
    Ok(())
}

/// Ours: typed requests made, packed, sent in windows and checked one by one.
fn all_at_once(peers: u32) -> Result<Duration> {
    Node::inside(|node| {
        let begun = Instant::now();
        let requests: Vec<Request> = (1..=peers).flat_map(|number| node.peer(number)).collect();
        for result in node.socket.apply(&requests) {
            result?;
        }
        Ok(begun.elapsed())
    })
}

/// The floor: the same messages, packed before the clock starts.
fn prepacked(peers: u32) -> Result<Duration> {
    Node::inside(|node| {
        let requests: Vec<Request> = (1..=peers).flat_map(|number| node.peer(number)).collect();
        let batches: Vec<Vec<u8>> = requests.chunks(1024).map(Bare::pack).collect();
        let bare = Bare::open()?;
        let begun = Instant::now();
        for batch in &batches {
            bare.send(batch)?;
        }
        Ok(begun.elapsed())
    })
}

/// The usual way: each request waits for the answer to the one before.
fn one_after_another(peers: u32) -> Result<Duration> {
    Node::inside(|node| {
        let begun = Instant::now();
        for number in 1..=peers {
            for request in node.peer(number) {
                node.socket.request(&request)?;
            }
        }
        Ok(begun.elapsed())
    })
}

/// One peer joins while there are `peers`: our samples and the floor's, in milliseconds.
fn join(node: &mut Node, peers: u32) -> Result<(Vec<f64>, Vec<f64>)> {
    let requests: Vec<Request> = (1..=peers).flat_map(|number| node.peer(number)).collect();
    for result in node.socket.apply(&requests) {
        result?;
    }
    let bare = Bare::open()?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for number in peers + 1..=peers + 200 {
        let begun = Instant::now();
        let requests = node.peer(number);
        for result in node.socket.apply(&requests) {
            result?;
        }
        ours.push(begun.elapsed().as_secs_f64() * 1000.0);

        let batch = Bare::pack(&node.peer(number + 200));
        let begun = Instant::now();
        bare.send(&batch)?;
        floor.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok((ours, floor))
}

/// A namespace with an overlay device.
struct Node {
    socket: RouteSocket,
    device: u32,
    name: IfName,
}

impl Node {
    /// Runs `work` in a node of its own, and takes the device away again so that the next run finds an idle
    /// kernel.
    fn inside<T: Send>(work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<T> {
        Netns::create()?.enter(|| {
            let mut node = Self::new()?;
            let answer = work(&mut node)?;
            node.socket.request(&link::delete(node.device, &node.name))?;
            Ok(answer)
        })?
    }

    fn new() -> Result<Self> {
        let name: IfName = "flannel.1".parse()?;
        let mut socket = RouteSocket::open()?;
        let loopback = "lo".parse()?;
        let vxlan = Vxlan {
            name: name.clone(),
            vni: Vni::try_from(1)?,
            port: Port::try_from(8472)?,
            local: None,
            underlay: None,
            learning: false,
            gbp: false,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: Some(Mtu::try_from(1450)?),
        };
        socket.request(&vxlan.add())?;
        let device = socket.link(&name)?.context("the device that was just made is gone")?.index;
        socket.request(&link::set_up(1, &loopback))?;
        socket.request(&link::set_up(device, &name))?;
        Ok(Self { socket, device, name })
    }

    /// What the overlay holds for one peer, with a metric of its own.
    fn peer(&self, number: u32) -> [Request; 3] {
        let [_, _, high, low] = number.to_be_bytes();
        let (mac, gateway) = (Mac([2, 1, 0, 0, high, low]), Ipv4Addr::from((10 << 24) + (number << 8)));
        let gateway = IpAddr::from(gateway);
        // A prefix of 24 bits is always good for an IPv4 address with a zero at the end.
        let destination = Subnet::new(gateway, 24).unwrap_or_else(|_| unreachable!("{gateway}/24"));
        let route = Route {
            gateway: Some(gateway),
            device: Some(self.device),
            metric: Some(number),
            onlink: true,
            ..Route::to(destination)
        };
        [
            Neighbour::permanent(self.device, gateway, mac).replace(&self.name),
            Entry::permanent(self.device, mac, [192, 0, 2, 1].into()).replace(&self.name),
            route.replace(&self.name),
        ]
    }
}
