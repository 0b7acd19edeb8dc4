//! `nft -f` with the ruleset that kube-proxy 1.36 makes: a chain and an anonymous map for every Service.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use anyhow::Result;
use testkit::{Cmd, Netns, TempDir};

use super::{CHANGES, cluster_ip, endpoint};

/// Everything that doesn't belong to a Service.
const FRAME: &str = "
table ip kube-proxy {
  set cluster-ips { type ipv4_addr; }
  set hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  chain services {
    ip daddr @cluster-ips ip saddr != 10.128.0.0/9 meta mark set mark or 0x4000
    ip daddr . meta l4proto . th dport vmap @service-ips
  }
  chain masquerading {
    mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
    ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
  }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
  chain filter-input { type filter hook input priority 0; ct state new jump service-endpoints-check; }
  chain filter-forward { type filter hook forward priority 0; ct state new jump service-endpoints-check; }
  chain filter-output { type filter hook output priority 0; ct state new jump service-endpoints-check; }
}
";

fn chain(number: u32) -> String {
    format!("service-{number:08}-bench/service-{number}/tcp/http")
}

/// The one rule of a Service's chain.
fn rule(number: u32, endpoints: u32) -> String {
    let map: Vec<_> = (0..endpoints).map(|i| format!("{i} : {} . 8080", endpoint(number, i))).collect();
    format!(
        "add rule ip kube-proxy {} meta l4proto tcp dnat ip to numgen random mod {endpoints} map {{ {} }}\n",
        chain(number),
        map.join(", ")
    )
}

/// The commands for so many Services.
fn commands(size: u32) -> Result<String> {
    let mut text = FRAME.to_owned();
    for number in 0..size {
        let (chain, ip) = (chain(number), cluster_ip(number));
        writeln!(text, "add chain ip kube-proxy {chain}")?;
        text += &rule(number, 2);
        writeln!(text, "add element ip kube-proxy cluster-ips {{ {ip} }}")?;
        writeln!(text, "add element ip kube-proxy service-ips {{ {ip} . tcp . 80 : goto {chain} }}")?;
    }
    Ok(text)
}

/// Lets `nft` carry out commands from a file; how long that took.
fn carry_out(node: &Netns, dir: &TempDir, text: &str) -> Result<Duration> {
    let file = dir.write("commands.nft", text)?;
    let command =
        node.wrap(Cmd::new("nft -f").arg(file.display().to_string()).limit(Duration::from_secs(120)));
    let begun = Instant::now();
    command.ok()?;
    Ok(begun.elapsed())
}

/// The first load.
pub(super) fn load(size: u32) -> Result<Duration> {
    let (node, dir) = (Netns::new()?, TempDir::new("bench-nft")?);
    carry_out(&node, &dir, &commands(size)?)
}

/// One endpoint comes or goes, in milliseconds each: the chain of its Service is written anew.
pub(super) fn changes(size: u32) -> Result<Vec<f64>> {
    let (node, dir) = (Netns::new()?, TempDir::new("bench-nft")?);
    carry_out(&node, &dir, &commands(size)?)?;
    let mut samples = Vec::new();
    for change in 0..CHANGES / 4 {
        let number = (change * 7919) % size;
        for endpoints in [3, 2] {
            let text = format!("flush chain ip kube-proxy {}\n{}", chain(number), rule(number, endpoints));
            samples.push(carry_out(&node, &dir, &text)?.as_secs_f64() * 1000.0);
        }
    }
    Ok(samples)
}
