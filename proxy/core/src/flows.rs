//! Which UDP flows lead nowhere any more.
//!
//! A known flow keeps its translation, and a client that goes on from the same port keeps the flow alive for
//! ever: when its endpoint goes, the flow has to go too. A flow is only called stale where that is proven: it
//! was meant for a front end of ours, and what answers it is none of the endpoints that answer there. TCP
//! connections end by themselves.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use netmodel::{Port, Protocol};

use crate::{state::State, tables::Front};

/// A UDP flow that the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Where its first packet was sent to.
    pub destination: SocketAddr,
    /// Where its answers come from.
    pub answers_from: SocketAddr,
}

/// What flows are judged by beside the state.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The addresses at which node ports are open.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Only flows to these front ends are looked at: those that changed or went.
    pub only: BTreeSet<Front>,
}

impl Scope {
    /// The flow was meant for a front end of ours, and nothing that answers there answers it.
    #[must_use]
    pub fn is_stale(&self, flow: &Flow, state: &State) -> bool {
        let Ok(port) = Port::try_from(i64::from(flow.destination.port())) else { return false };
        let address = flow.destination.ip();
        let cluster = Front::Cluster(address, Protocol::Udp, port);
        let at_node = self.node_addresses.contains(&address).then_some(Front::Node(Protocol::Udp, port));
        let fronts = [Some(cluster), at_node].into_iter().flatten();
        let translated = flow.destination != flow.answers_from;
        fronts.filter(|front| self.only.contains(front)).any(|front| match state.behind(&front) {
            Some(behind) => !behind.serving.contains(&flow.answers_from),
            // A front end that just went: only what was translated was led by it.
            None => translated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, service};

    fn flow(destination: &str, answers_from: &str) -> Flow {
        Flow { destination: destination.parse().unwrap(), answers_from: answers_from.parse().unwrap() }
    }

    /// What is looked at after what just happened in `world`.
    fn scope(world: &mut World) -> Scope {
        Scope { node_addresses: ["192.0.2.1".parse().unwrap()].into(), only: world.state.take_touched() }
    }

    /// One Service at 10.96.0.1 (UDP 53) with endpoints 10.244.1.1 and 10.244.2.2 (UDP 5353).
    fn world() -> World {
        World::new(&[service("web", "10.96.0.1", Some(30080), &[1, 2])])
    }

    #[test]
    fn a_flow_whose_endpoint_no_longer_answers_is_stale() {
        let mut world = world();
        let scope = scope(&mut world);
        let stale =
            |destination, answers_from| scope.is_stale(&flow(destination, answers_from), &world.state);
        assert!(!stale("10.96.0.1:53", "10.244.1.1:5353") && !stale("10.96.0.1:53", "10.244.2.2:5353"));
        assert!(stale("10.96.0.1:53", "10.244.0.3:5353"), "another endpoint");
        assert!(stale("10.96.0.1:53", "10.244.1.1:9999"), "another port of the endpoint");
        assert!(stale("10.96.0.1:53", "10.96.0.1:53"), "never translated, because there was no endpoint");
        assert!(!stale("10.96.0.1:54", "10.244.0.3:5353"), "no front end of ours");
        assert!(!stale("8.8.8.8:30080", "8.8.8.8:30080"), "a node port's number at somebody else");
        assert!(!stale("192.0.2.1:30080", "10.244.0.3:5353"), "the node port is TCP");
    }

    #[test]
    fn flows_of_a_service_that_is_gone_or_has_no_endpoint_are_stale() {
        let mut world = world();
        world.state.take_touched();
        world.change(&[service("web", "10.96.0.1", None, &[])], std::time::Duration::ZERO);
        let old = flow("10.96.0.1:53", "10.244.1.1:5353");
        assert!(scope(&mut world).is_stale(&old, &world.state), "scaled to zero");
        assert!(!scope(&mut world).is_stale(&old, &world.state), "looked at already");
        world.change(&[], std::time::Duration::ZERO);
        let touched = scope(&mut world);
        assert!(touched.is_stale(&old, &world.state), "it just went");
        assert!(!touched.is_stale(&flow("10.96.0.9:53", "10.244.1.1:5353"), &world.state));
    }
}
