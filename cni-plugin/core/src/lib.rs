//! What the CNI plugin decides: requests read, addresses offered, attachments planned, results and
//! errors written. Nothing here touches a file, a socket, the environment or a clock.
//!
//! The contract is the CNI specification 1.1.0 with what its reference implementation does beyond
//! it: JSON keys match in any letter case, a configuration without `cniVersion` is one of 0.1.0.
#![forbid(unsafe_code)]

mod address;
mod attachment;
mod bridge;
mod chain;
mod check;
mod entry;
mod error;
mod flannel;
mod gateway;
mod hostport;
mod hostport_class;
mod hostport_rules;
mod ipam;
mod json;
mod masquerade;
mod nat;
mod plan;
mod record;
mod request;
mod result;
mod role;
mod shaping;
mod subnet_env;
mod tuning;
mod version;
mod vlan;

pub use address::{Range, RangeSet, check_sets};
pub use attachment::{Attachment, Owner, Owners, owner_of};
pub use bridge::Bridge;
pub use check::{Seen, SeenLink, check};
pub use error::{Code, Error};
pub use flannel::{
    delegate_config, reason_in_status, scratch_content, scratch_dir, scratch_of, status_file, subnet_file,
};
pub use gateway::{GatewayChange, gateway_changes};
pub use hostport::{Forwarding, HostPort, PortMappings};
pub use hostport_rules::Translated;
pub use ipam::{DEFAULT_DATA_DIR, Ipam, data_dir, foreign_ipam, parse_resolv_conf};
pub use nat::{
    Elements, Nat, Questions, Rules, Taken, masquerade_key, masquerade_sets, mend, nat_sweep, nat_table,
    port_sets, unmasquerade, unused_classes,
};
pub use plan::{Chosen, HostAddress, Leased, Plan, PodRoute};
pub use record::{Record, Trace, state_dir};
pub use request::{Arguments, Environment, Invocation, Network, Verb, about};
pub use result::{Dns, Interface, IpConfig, Outcome, Route};
pub use role::Role;
pub use shaping::{Bucket, Limit, Limits};
pub use subnet_env::SubnetEnv;
pub use tuning::{Backup, Sysctl, Tuning, backup_dir};
pub use version::{SpecVersion, version_reply};
pub use vlan::{Vlans, gateway_port};
