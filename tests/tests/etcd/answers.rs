//! A write whose answer gets lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use flanneld::flags::EtcdSettings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    time::{Duration, sleep},
};

use crate::{
    node::{Node, eventually, facts, key, quick, settings},
    server::Server,
};

/// What of all that a node sends is only in a lease that it writes.
const IN_A_LEASE: &[u8] = br#""VtepMAC""#;

/// An endpoint that passes on everything, but hangs up instead of answering when armed and a lease is written.
struct Endpoint {
    url: String,
    armed: Arc<AtomicBool>,
}

impl Endpoint {
    async fn open(server: &Server, armed: bool) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let etcd = server.endpoints()[0].replace("http://", "");
        let armed = Arc::new(AtomicBool::new(armed));
        let ours = Arc::clone(&armed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, etcd.clone(), Arc::clone(&ours)));
            }
        });
        Ok(Self { url, armed })
    }
}

async fn pass_on(client: TcpStream, etcd: String, armed: Arc<AtomicBool>) -> std::io::Result<()> {
    let (mut asked, mut answer) = client.into_split();
    let (mut answered, mut ask) = TcpStream::connect(etcd).await?.into_split();
    let answers = tokio::spawn(async move { copy(&mut answered, &mut answer).await });
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = asked.read(&mut buffer).await?;
        let part = &buffer[..count];
        let is_write = part.windows(IN_A_LEASE.len()).any(|window| window == IN_A_LEASE);
        let swallow = is_write && armed.swap(false, Ordering::SeqCst);
        if swallow || count == 0 {
            answers.abort();
        }
        ask.write_all(part).await?;
        if swallow {
            // Long enough for etcd to do what was asked.
            sleep(Duration::from_millis(500)).await;
        }
        if swallow || count == 0 {
            return Ok(());
        }
    }
}

/// How often the record of node 1 was written: with each write of its lease.
fn writes(server: &Server) -> Result<i64> {
    let record = server.json(&format!("weft/nodes/{}", "01".repeat(16)))?;
    record["kvs"][0]["version"].as_i64().context("a record")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_second_member_finds_written_is_ours_and_stays() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let first = Endpoint::open(&server, true).await?;
    let mut endpoints = vec![first.url.clone()];
    endpoints.extend(server.endpoints());
    let mut node = Node::start_with(&EtcdSettings { endpoints, ..settings(&server) }, quick(), facts(1));
    let own = node.leased().await?.own;
    assert_eq!((writes(&server)?, node.note()), (1, None));
    let path = format!("subnets/{}", key(own.subnet));
    let made = server.json(&path)?["kvs"][0]["create_revision"].clone();
    first.armed.store(true, Ordering::SeqCst);
    let mut moved = facts(1);
    moved.public_ip = "192.0.2.77".parse()?;
    node.facts.send_replace(Some(moved));
    let told = |a: &overlay_core::lease::Assignment| a.own.public_ip.to_string() == "192.0.2.77";
    node.until("moved", |view| view.assignment.as_ref().is_some_and(|a| told(a))).await?;
    assert_eq!((writes(&server)?, node.note()), (2, None));
    assert_eq!(server.json(&path)?["kvs"][0]["create_revision"], made, "it was never deleted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_failed_and_happened_leaves_one_lease_in_etcd() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let only = Endpoint::open(&server, true).await?;
    let settings = EtcdSettings { endpoints: vec![only.url.clone()], ..settings(&server) };
    let mut node = Node::start_with(&settings, quick(), facts(1));
    let own = node.leased().await?.own;
    let path = format!("subnets/{}", key(own.subnet));
    // The one that ended the wait in the new store ends by itself.
    eventually("one", || Ok(leases(&server)?.len() == 1)).await?;
    assert_eq!(leases(&server)?, [format!("{:x}", server.ttl_lease(&path)?)]);
    Ok(())
}

/// etcd's leases.
fn leases(server: &Server) -> Result<Vec<String>> {
    let ran = server.ctl("lease list").ok()?;
    Ok(ran.stdout.lines().filter(|line| !line.starts_with("found")).map(str::to_owned).collect())
}
