//! What the tests on several nodes share.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::lab::{Lab, Plan, Pod};
use testkit::require_or_skip;

/// How long a cluster may take to come up on a busy machine.
pub const UP: Duration = Duration::from_secs(30);

/// A lab with flanneld running everywhere and every route in place, or nothing where namespaces are not
/// allowed.
///
/// # Errors
/// When the overlay does not come up.
pub fn overlay(plan: Plan) -> Result<Option<Lab>> {
    let Some(mut lab) = require_or_skip("lab", Lab::new(plan)) else { return Ok(None) };
    lab.start_overlay(UP)?;
    Ok(Some(lab))
}

/// One pod on every node: `pod1` on node1 and so on.
///
/// # Errors
/// When the plugin fails.
pub fn pods(lab: &Lab) -> Result<Vec<Pod>> {
    (0..lab.nodes.len()).map(|index| lab.add_pod(index, &format!("pod{}", index + 1))).collect()
}

/// Every pod pings every other one.
///
/// # Errors
/// Naming the first pair that can't.
pub fn reach_each_other(pods: &[Pod]) -> Result<()> {
    for from in pods {
        for to in pods.iter().filter(|to| to.address != from.address) {
            let ran = from.cmd(format!("ping -n -c 1 -W 2 {}", to.address)).run()?;
            ensure!(
                ran.success(),
                "{} on node{} does not reach {}: {ran}",
                from.name,
                from.node + 1,
                to.name
            );
        }
    }
    Ok(())
}

/// The keys of all leases, as `etcdctl` lists them.
///
/// # Errors
/// When etcd does not answer.
pub fn leases(lab: &Lab) -> Result<Vec<String>> {
    let listed = lab.etcd.list(&lab.underlay, &format!("{}/subnets/", lab.plan.prefix))?;
    Ok(listed.into_iter().map(|(key, _)| key).collect())
}
