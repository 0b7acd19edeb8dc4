//! The connection for links, addresses, routes and neighbours.

use netlink_packet_core::{NLM_F_DUMP, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;

use super::{Connection, Message, Protocol, Request};
use crate::{Cause, Error, netns::Netns};

/// A connection to the part of the kernel that keeps links, addresses, routes, neighbours and forwarding
/// entries. The modules of these objects add what it can list.
#[derive(Debug)]
pub struct RouteSocket {
    connection: Connection,
}

impl RouteSocket {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn open() -> Result<Self, Error> {
        Connection::open(Protocol::Route).map(|connection| Self { connection })
    }

    /// Opens a connection in `namespace`.
    ///
    /// # Errors
    /// The namespace could not be entered, or no descriptor is free.
    pub fn open_in(namespace: &Netns) -> Result<Self, Error> {
        Connection::open_in(Protocol::Route, namespace).map(|connection| Self { connection })
    }

    /// Carries out all requests in order, pipelined, and returns one result for each. A request that fails
    /// does not stop those behind it.
    pub fn apply(&mut self, requests: &[Request]) -> Vec<Result<(), Error>> {
        self.connection.apply(requests)
    }

    /// Carries out one request.
    ///
    /// # Errors
    /// The kernel refused it, or did not answer.
    pub fn request(&mut self, request: &Request) -> Result<(), Error> {
        self.connection.request(request)
    }

    /// One request that is answered with objects.
    pub(crate) fn ask<T>(
        &mut self,
        request: &Request,
        parse: impl FnMut(Message<'_>) -> Result<T, Cause>,
    ) -> Result<Vec<T>, Error> {
        self.connection.ask(request, parse)
    }

    /// A list of objects.
    pub(crate) fn dump<T>(
        &mut self,
        request: &Request,
        parse: impl FnMut(Message<'_>) -> Result<Option<T>, Cause>,
    ) -> Result<Vec<T>, Error> {
        self.connection.dump(request, parse)
    }
}

impl Request {
    /// A request made of a typed message.
    pub(crate) fn route(
        verb: &'static str,
        object: String,
        flags: u16,
        message: &RouteNetlinkMessage,
    ) -> Self {
        let mut payload = vec![0; NetlinkSerializable::buffer_len(message)];
        NetlinkSerializable::serialize(message, &mut payload);
        Self { verb, object, kind: message.message_type(), flags, payload }
    }

    /// A request for a list.
    pub(crate) fn list(object: String, message: &RouteNetlinkMessage) -> Self {
        Self::route("list", object, NLM_F_DUMP, message)
    }
}
