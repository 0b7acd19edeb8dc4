//! What these tests need of the kubelet's side of the Container Runtime Interface
//! (`runtime.v1.RuntimeService`): the messages' fields that they set or read, by their numbers there.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Metadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PortMapping {
    /// 0 is TCP, 1 UDP, 2 SCTP.
    #[prost(int32, tag = "1")]
    pub(crate) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(crate) container_port: i32,
    #[prost(int32, tag = "3")]
    pub(crate) host_port: i32,
    #[prost(string, tag = "4")]
    pub(crate) host_ip: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Linux {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(string, tag = "3")]
    pub(crate) log_directory: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) port_mappings: Vec<PortMapping>,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<Linux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// The request to stop, remove or describe a sandbox, and the answer to running one.
#[derive(Clone, PartialEq, prost::Message)]
struct SandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<SandboxStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    holds: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

/// A connection to a runtime.
#[derive(Clone)]
pub(crate) struct Runtime(Channel);

impl Runtime {
    /// Connects to the socket at `path`, at the first call.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        Ok(Self(Endpoint::from_shared(format!("unix://{}", path.display()))?.connect_lazy()))
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::new(self.0.clone());
        client.ready().await.context("no runtime")?;
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
        let answer = client.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        Ok(answer.with_context(|| method.to_owned())?.into_inner())
    }

    /// Runs a sandbox; its id.
    pub(crate) async fn run(&self, config: SandboxConfig) -> Result<String> {
        let answer: SandboxId = self.call("RunPodSandbox", RunRequest { config: Some(config) }).await?;
        Ok(answer.id)
    }

    pub(crate) async fn stop(&self, id: &str) -> Result<()> {
        self.call("StopPodSandbox", SandboxId { id: id.into() }).await.map(|Empty {}| ())
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        self.call("RemovePodSandbox", SandboxId { id: id.into() }).await.map(|Empty {}| ())
    }

    /// The address of a sandbox.
    pub(crate) async fn address(&self, id: &str) -> Result<String> {
        let answer: SandboxStatusAnswer = self.call("PodSandboxStatus", SandboxId { id: id.into() }).await?;
        Ok(answer.status.and_then(|status| status.network).context("no network")?.ip)
    }

    /// The runtime says that it can attach pods.
    pub(crate) async fn network_ready(&self) -> Result<bool> {
        let answer: RuntimeStatusAnswer = self.call("Status", Empty {}).await?;
        let conditions = answer.status.context("no status")?.conditions;
        Ok(conditions.iter().any(|condition| condition.kind == "NetworkReady" && condition.holds))
    }
}
