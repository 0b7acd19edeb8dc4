//! ADD: everything is checked, then the record is begun, then addresses are reserved, then links are made; what
//! was done is taken back if a later step fails.

use cni_core::{
    Attachment, Bridge, Chosen, Dns, Error, HostAddress, Interface, Outcome, Plan, PortMappings, Trace,
};
use linux::{link::Link, netlink::RouteSocket, netns::Netns};
use netmodel::Subnet;

use crate::{
    addresses,
    failure::kernel,
    hostports::HostPorts,
    linkage::{self, Host},
    nat,
    networks::{self, Call},
    pod::{self, Pod},
    records::{Held, Records, own_namespace},
    reservations::{Reservations, Wish},
    shaping, sweep,
    undo::Undo,
};

/// Attaches and returns the result.
pub(crate) fn add(call: &Call) -> Result<String, Error> {
    let (network, pod_networks) = networks::complete(&call.network)?;
    let bridge = Bridge::parse(&network, &call.args)?;
    let previous = network.previous().map(Outcome::parse).transpose()?;
    let mappings = HostPorts::handed(&call.network)?;
    let dns = name_service(&bridge)?;
    let netns = pod::open(call)?;
    let mut pod = Pod::enter(&netns, &call.who.ifname)?;
    if pod.is_taken()? {
        return Err(linkage::taken(&call.who.ifname, &linkage::host_name(&call.who)?));
    }
    let records = Records::of(&network)?;
    let record = records.take(&call.who)?;
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    refuse_second(&mut socket, &record, &call.who)?;
    // What can't be swept now is not this container's trouble.
    let _ = sweep::sweep(&records, false);
    let reservations = networks::reservations(&network)?;
    let mut undo = Undo::new(Some(&record));
    let mut traces = planned(call, &bridge);
    if let Some(reservations) = &reservations {
        traces.push(addresses::begin(&call.who, &record, reservations, &records)?);
    }
    record.note(&traces)?;
    let chosen = match bridge.ipam.as_ref().zip(reservations.as_ref()) {
        Some((ipam, reservations)) => {
            let wish =
                Wish { who: &call.who, requested: &ipam.requested, record: &record, records: &records };
            addresses::reserve(ipam, reservations, wish, &mut undo)?
        }
        None => Vec::new(),
    };
    let plan = Plan::new(&bridge, &call.who, &chosen);
    let mut host = Host { socket, bridge: &bridge, plan: &plan };
    let device = host.ensure_bridge()?;
    host.ensure_gateways(&device, &pod_networks, |subnet| is_in_use(reservations.as_ref(), subnet, &chosen))?;
    translate(call, &host, &mappings, &mut undo)?;
    let interfaces = attach(call, (host, &device), (&netns, pod), &mut undo)?;
    let mut made = outcome(&plan, interfaces, dns);
    if call.network.is_handed("bandwidth") {
        shaping::add(call, &mut made, &mut undo)?;
    }
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
    let name = linkage::host_name(who)?;
    if socket.link(&name).map_err(|e| kernel(&e))?.is_none() {
        return Ok(());
    }
    if record.is_new {
        record.remove()?;
    }
    Err(linkage::taken(&who.ifname, &name))
}

/// What this attachment will have, besides addresses.
fn planned(call: &Call, bridge: &Bridge) -> Vec<Trace> {
    let mut traces = vec![Trace::Host(own_namespace())];
    traces.extend(bridge.ip_masq.then_some(Trace::Masquerade));
    traces.extend(call.network.is_handed("portMappings").then_some(Trace::HostPorts));
    traces.extend(call.network.is_handed("bandwidth").then_some(Trace::Limits));
    traces
}

/// Somebody but the container that `chosen` is for has an address of `subnet`.
fn is_in_use(reservations: Option<&Reservations>, subnet: Subnet, chosen: &[Chosen]) -> bool {
    let Ok(taken) = reservations.map_or(Ok(Vec::new()), Reservations::taken) else { return true };
    taken.iter().any(|ip| subnet.contains(*ip) && !chosen.iter().any(|c| c.address == *ip))
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
    let ports = HostPorts::new(mappings, pods.map(|pod| pod.address), Some(&host.bridge.bridge))?;
    nat::start(call, &ports.nat(&call.who.alias(), &masqueraded), undo)?;
    ports.settle()
}

/// Makes and configures the links, and reports them: bridge, host end, container end.
fn attach(
    call: &Call,
    (mut host, device): (Host<'_>, &Link),
    (netns, mut pod): (&Netns, Pod<'_>),
    undo: &mut Undo<'_>,
) -> Result<Vec<Interface>, Error> {
    let plan = host.plan;
    let indexes = host.cable(device, netns, &call.who, undo)?;
    pod.configure(indexes.far, plan)?;
    // In this order: asking for the near end opens the port where the kernel has not got round to it.
    let near = host.report(indexes.near)?;
    pod.announce(indexes.far, plan)?;
    let far = linkage::reported(&pod.report(indexes.far)?, call.netns.as_deref().unwrap_or_default());
    Ok(vec![host.report(device.index)?, near, far])
}

fn outcome(plan: &Plan, interfaces: Vec<Interface>, dns: Dns) -> Outcome {
    let ips = addresses::reported(&plan.addresses, interfaces.len().checked_sub(1));
    Outcome { interfaces, ips, routes: plan.reported.clone(), dns }
}

/// What the configuration says about name service, or the file that it names.
fn name_service(bridge: &Bridge) -> Result<Dns, Error> {
    let ipam = bridge.ipam.as_ref().filter(|_| bridge.dns == Dns::default());
    ipam.map_or_else(|| Ok(bridge.dns.clone()), addresses::name_service)
}
