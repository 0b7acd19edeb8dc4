//! Links, addresses, routes, queues and flows of a namespace, judged with foreign tools.

mod conntrack;
mod links;
mod overlay;
mod traffic;
mod world;
