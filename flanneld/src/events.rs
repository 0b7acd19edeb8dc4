//! What the kernel says about links, addresses, routes and neighbours, collapsed to what the loop should
//! look at. Nothing here acts, and the channel is never left standing.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use linux::{
    neighbour,
    route::{Kind, MAIN_TABLE, Route, Scope},
};
use netmodel::{Mac, Mtu, ROUTE_PROTOCOL, Subnet};
use overlay_core::{
    op::Change,
    overlay::{Remote, RouteKey},
};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric},
    },
};

use crate::{
    linux::DEVICE_PREFIX,
    wake::{Inbox, Interest},
};

/// How long to wait before the connection is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// Watches for ever.
pub async fn watch(inbox: Arc<Inbox>) {
    let groups =
        [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Neigh];
    loop {
        match new_multicast_connection(&groups) {
            Ok((connection, _handle, mut messages)) => {
                let reader = tokio::spawn(connection);
                // What happened before the subscription.
                inbox.post(|pending| (pending.everything, pending.host) = (true, true));
                while let Some((message, _)) = messages.next().await {
                    take(&inbox, message.payload);
                }
                reader.abort();
                tracing::warn!("the watch over the kernel's objects broke off; opening it anew");
            }
            Err(error) => tracing::warn!(%error, "failed to watch the kernel's objects; trying again"),
        }
        inbox.post(|pending| pending.everything = true);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Puts one event into the inbox, if it is about something of interest.
fn take(inbox: &Inbox, payload: NetlinkPayload<RouteNetlinkMessage>) {
    let interest = inbox.interest();
    match payload {
        NetlinkPayload::InnerMessage(message) => match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                take_link(inbox, &interest, &link);
            }
            RouteNetlinkMessage::NewAddress(a) | RouteNetlinkMessage::DelAddress(a) => {
                // With the last address of an interface its routes go, and no event tells of each.
                let index = Some(a.header.index);
                let ours = index == interest.device || index == interest.underlay;
                inbox.post(|pending| {
                    pending.everything |= ours;
                    pending.host |= index != interest.device;
                });
            }
            RouteNetlinkMessage::NewRoute(route) => take_route(inbox, &interest, &route, true),
            RouteNetlinkMessage::DelRoute(route) => take_route(inbox, &interest, &route, false),
            RouteNetlinkMessage::NewNeighbour(n) if interest.device == Some(n.header.ifindex) => {
                take_neighbour(inbox, &n, true);
            }
            RouteNetlinkMessage::DelNeighbour(n) if interest.device == Some(n.header.ifindex) => {
                take_neighbour(inbox, &n, false);
            }
            _ => {}
        },
        // Events were lost.
        NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => {
            inbox.post(|pending| (pending.everything, pending.host) = (true, true));
        }
        _ => {}
    }
}

fn take_link(inbox: &Inbox, interest: &Interest, link: &LinkMessage) {
    let index = Some(link.header.index);
    let like_ours = link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if name.starts_with(DEVICE_PREFIX)));
    if index == interest.device || like_ours {
        inbox.post(|pending| pending.everything = true);
    }
    if index == interest.underlay || interest.underlay.is_none() {
        // Direct routes go with the interface, and no event tells of each.
        inbox.post(|pending| (pending.everything, pending.host) = (true, true));
    }
}

fn take_neighbour(inbox: &Inbox, message: &NeighbourMessage, is_there: bool) {
    let (mut ip, mut mac, mut special) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(*address),
            // In a forwarding entry the family says nothing about the address.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) | NeighbourAttribute::IfIndex(_) => {
                special = true;
            }
            _ => {}
        }
    }
    let permanent = is_there && neighbour::is_permanent(message.header.state.into());
    let change = match (message.header.family, ip, mac) {
        (AddressFamily::Bridge, ip, Some(mac)) => {
            let odd = special || ip.is_none();
            let remote = Remote { address: ip.unwrap_or(Ipv4Addr::UNSPECIFIED), odd };
            Change::Fdb(mac, remote, permanent)
        }
        (AddressFamily::Inet, Some(ip), mac) => Change::Neighbour(ip, mac.filter(|_| permanent)),
        _ => return,
    };
    inbox.post_change(change);
}

fn take_route(inbox: &Inbox, interest: &Interest, message: &RouteMessage, is_there: bool) {
    let Some(route) = read_route(message) else { return };
    if route.table != MAIN_TABLE {
        return;
    }
    let through_ours = route.device.is_some() && route.device == interest.device;
    let inside = interest.network.is_some_and(|network| network.covers(&route.destination));
    if !through_ours && route.protocol != ROUTE_PROTOCOL {
        inbox.post(|pending| pending.host = true);
    }
    let Some(network) = interest.network else { return };
    match crate::linux::ours(&route, interest.device, &network) {
        Some((key, hop)) => inbox.post_change(Change::Route(key, is_there.then_some(hop))),
        // It may have replaced one of ours.
        None if is_there && inside => {
            let key = RouteKey { subnet: route.destination, metric: route.metric.unwrap_or(0) };
            inbox.post_change(Change::Route(key, None));
        }
        None => {}
    }
}

/// What of a route matters; `None` if it is not of IPv4.
fn read_route(message: &RouteMessage) -> Option<Route> {
    if message.header.address_family != AddressFamily::Inet {
        return None;
    }
    let mut destination = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut route = Route::to(Subnet::containing(destination, 0).ok()?);
    route.table = message.header.table.into();
    route.protocol = message.header.protocol.into();
    route.kind = Kind::from(u8::from(message.header.kind));
    route.scope = Scope::from(u8::from(message.header.scope));
    route.onlink = message.header.flags.contains(RouteFlags::Onlink);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = (*ip).into(),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.source = Some((*ip).into()),
            RouteAttribute::Oif(index) => route.device = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => route.mtu = metrics.iter().find_map(mtu),
            _ => {}
        }
    }
    route.destination = Subnet::containing(destination, message.header.destination_prefix_length).ok()?;
    Some(route)
}

fn mtu(metric: &RouteMetric) -> Option<Mtu> {
    match metric {
        RouteMetric::Mtu(bytes) => Mtu::try_from(u64::from(*bytes)).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use overlay_core::overlay::Hop;

    use super::*;

    #[test]
    fn a_route_of_ours_is_told_from_a_foreign_one() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 24;
        message.header.table = 254;
        message.header.protocol = ROUTE_PROTOCOL.into();
        message.header.kind = 1.into();
        message.header.flags = RouteFlags::Onlink;
        let gateway: Ipv4Addr = "10.5.3.0".parse().unwrap();
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(gateway)),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::Oif(7),
            RouteAttribute::Priority(4),
        ];
        let interest = Interest { device: Some(7), underlay: Some(2), network: "10.5.0.0/16".parse().ok() };
        let inbox = Inbox::default();
        let key = RouteKey { subnet: "10.5.3.0/24".parse().unwrap(), metric: 4 };
        let changes = |inbox: &Inbox| {
            let taken = inbox.take(std::time::Instant::now());
            (taken.changes.into_values().collect::<Vec<_>>(), taken.host)
        };
        take_route(&inbox, &interest, &message, true);
        assert_eq!(changes(&inbox), (vec![Change::Route(key, Some(Hop::Tunnel(gateway)))], false));
        take_route(&inbox, &interest, &message, false);
        assert_eq!(changes(&inbox), (vec![Change::Route(key, None)], false));
        // Somebody put another one in its place.
        message.attributes[2] = RouteAttribute::Oif(2);
        message.header.protocol = 3.into();
        take_route(&inbox, &interest, &message, true);
        assert_eq!(changes(&inbox), (vec![Change::Route(key, None)], true));
    }
}
