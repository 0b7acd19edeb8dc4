//! ADD: everything is checked, then the record is begun, then addresses are reserved, then links are made; what
//! was done is taken back if a later step fails.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use cni_core::{
    Attachment, Bridge, Dns, Error, HostAddress, Interface, Leased, Limits, Network, Outcome, Plan,
    PortMappings, Trace,
};
use linux::netlink::RouteSocket;
use netmodel::Subnet;

use crate::{
    addresses,
    failure::kernel,
    foreign,
    hostports::HostPorts,
    linkage::Host,
    links,
    networks::{self, Call},
    pod::{self, Pod},
    records::{Held, Records, own_namespace},
    reservations::Wish,
    scratch::{self, Scratch},
    shaping, sweep, translate,
    undo::Undo,
    vlans,
};

/// How long the kernel may take to remove the host's end of an attachment whose namespace is gone.
const DEPARTURE: Duration = Duration::from_secs(1);

/// Attaches to the bridge network `network`, which is the one of `call` or what that delegated, and returns the
/// result. The bridge of a network with `pod_networks` is flannel's, and follows what flanneld says.
pub(crate) fn add(call: &Call, network: &Network, pod_networks: &[Subnet]) -> Result<String, Error> {
    let bridge = Bridge::parse(network, &call.args)?;
    vlans::require(&bridge)?;
    let previous = network.previous().map(Outcome::parse).transpose()?;
    let mappings = call.network.handed("portMappings", PortMappings::parse)?;
    let limits = call.network.handed("bandwidth", Limits::parse)?;
    let netns = pod::open(call)?;
    let mut pod = Pod::enter(&netns, &call.who.ifname)?;
    if pod.is_taken()? {
        return Err(links::taken(&call.who.ifname, &links::host_name(&call.who)?));
    }
    let records = Records::of(network)?;
    let record = records.take(&call.who)?;
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    refuse_second(&mut socket, &record, &call.who)?;
    // What can't be swept now is not this container's trouble.
    let _ = sweep::sweep(&records, false);
    let reservations = networks::reservations(network)?;
    let mut undo = Undo::new(Some(&record));
    let scratch = networks::is_flannel(&call.network).then(|| Scratch::place(call)).transpose()?;
    let mut traces = planned(call, &bridge);
    traces.extend(scratch.as_ref().map(|path| Trace::Scratch(path.display().to_string())));
    if let Some(reservations) = &reservations {
        traces.push(addresses::begin(&call.who, &record, reservations, &records)?);
    }
    record.note(&traces)?;
    if let Some(path) = scratch {
        Scratch::write(&path, network, &call.who)?;
        undo.push(move || scratch::remove(&path));
    }
    let early = Plan::new(&bridge, &call.who, &[], &[]);
    let is_owned = !pod_networks.is_empty();
    let mut host = Host { socket, bridge: &bridge, plan: &early, is_owned, cabled: None };
    let leased = match (bridge.ipam.as_ref().zip(reservations.as_ref()), &bridge.foreign_ipam) {
        (Some((ipam, reservations)), _) => {
            let requested = &ipam.requested;
            let wish = Wish { who: &call.who, requested, record: &record, records: &records };
            addresses::lease(ipam, reservations, wish, &mut undo)?
        }
        (None, Some(kind)) => {
            foreign::find(kind)?;
            // It may look for the interface, as the one by DHCP does.
            let device = host.ensure_bridge()?;
            host.cabled = Some(host.cable(&device, &netns, &call.who, &mut undo)?);
            addresses::lease_from(kind, network, &mut undo)?
        }
        (None, None) => Leased::default(),
    };
    let plan = Plan::new(&bridge, &call.who, &leased.addresses, &leased.routes);
    host.plan = &plan;
    let interfaces = attach(call, host, pod, &mappings, &mut undo)?;
    let dns = if bridge.dns == Dns::default() { leased.dns } else { bridge.dns.clone() };
    let mut made = outcome(&plan, interfaces, dns);
    shaping::add(call, limits, &mut made, &mut undo)?;
    let whole = match previous {
        Some(previous) => made.after(previous),
        None => made,
    };
    let text = whole.to_json(network.version)?;
    undo.keep();
    Ok(text)
}

/// There is no host's end of this attachment yet: it would be a second ADD. To be called with the record held.
fn refuse_second(socket: &mut RouteSocket, record: &Held, who: &Attachment) -> Result<(), Error> {
    let name = links::host_name(who)?;
    let start = Instant::now();
    while socket.link(&name).map_err(|e| kernel(&e))?.is_some() {
        // The end of one whose namespace has just gone goes too.
        if start.elapsed() < DEPARTURE {
            sleep(DEPARTURE / 100);
            continue;
        }
        if record.is_new {
            record.remove()?;
        }
        return Err(links::taken(&who.ifname, &name));
    }
    Ok(())
}

/// What this attachment will have, besides addresses.
fn planned(call: &Call, bridge: &Bridge) -> Vec<Trace> {
    let mut traces = vec![Trace::Host(own_namespace())];
    let is_plain = |name: &&String| name.chars().all(|c| c.is_ascii_alphanumeric() || "/.-".contains(c));
    traces.extend(call.args.pod.as_ref().filter(is_plain).cloned().map(Trace::Pod));
    traces.extend(bridge.ip_masq.then_some(Trace::Masquerade));
    traces.extend(call.network.is_handed("portMappings").then_some(Trace::HostPorts));
    traces.extend(call.network.is_handed("bandwidth").then_some(Trace::Limits));
    traces
}

/// Masquerading and host ports.
fn translate<'a>(
    call: &'a Call,
    host: &Host<'_>,
    mappings: &PortMappings,
    undo: &mut Undo<'a>,
) -> Result<(), Error> {
    let pods = host.plan.addresses.iter().map(|c| HostAddress { address: c.address, prefix: c.prefix });
    let masqueraded: Vec<HostAddress> = pods.clone().filter(|_| host.bridge.ip_masq).collect();
    let ports = HostPorts::new(mappings, pods.map(|pod| pod.address), Some(&host.bridge.gateway_link))?;
    translate::start(call, &ports.nat(&call.who.alias(), &masqueraded), undo)?;
    ports.settle()
}

/// Makes and configures the links, and reports them: bridge, host end, container end, the gateway's in a VLAN.
fn attach<'a>(
    call: &'a Call,
    mut host: Host<'_>,
    mut pod: Pod<'_>,
    mappings: &PortMappings,
    undo: &mut Undo<'a>,
) -> Result<Vec<Interface>, Error> {
    let device = host.ensure_bridge()?;
    let plan = host.plan;
    let mut gateway = None;
    if !plan.gateways.is_empty() {
        let link = host.ensure_gateway_link(&device)?;
        host.ensure_gateways(&link, undo)?;
        gateway = Some(link).filter(|link| link.index != device.index);
    }
    translate(call, &host, mappings, undo)?;
    let indexes = match host.cabled {
        Some(indexes) => indexes,
        None => host.cable(&device, pod.netns, &call.who, undo)?,
    };
    pod.configure(indexes.far, host.bridge, plan)?;
    // In this order: asking for the near end opens the port where the kernel has not got round to it.
    let near = host.report(indexes.near)?;
    pod.announce(indexes.far, plan)?;
    let far = links::reported(&pod.report(indexes.far)?, call.netns.as_deref().unwrap_or_default());
    let mut interfaces = vec![host.report(device.index)?, near, far];
    if let Some(link) = gateway {
        interfaces.push(host.report(link.index)?);
    }
    Ok(interfaces)
}

fn outcome(plan: &Plan, interfaces: Vec<Interface>, dns: Dns) -> Outcome {
    let inside = interfaces.iter().position(|interface| !interface.sandbox.is_empty());
    let ips = addresses::reported(&plan.addresses, inside);
    Outcome { interfaces, ips, routes: plan.reported.clone(), dns }
}
