//! What an operator is told, and how etcd is reached by TLS and with a password.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use daemon::Secret;
use flanneld::{
    flags::EtcdSettings,
    source::{self, etcd::Times},
};
use testkit::{Cmd, TempDir};

use crate::{
    node::{Node, eventually, facts, key, quick, settings},
    server::{PREFIX, Server},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_configuration_is_named_with_the_command_and_picked_up_when_written() -> Result<()> {
    let server = Server::start(1)?;
    let mut node = Node::start(&server, 1);
    let endpoint = &server.endpoints()[0];
    let problem = node.problem().await?;
    let command = problem.split('`').nth(1).context("a command")?;
    assert_eq!(
        problem,
        format!("etcd holds no configuration at {PREFIX}/config: write it, for example with `{command}`")
    );
    assert!(command.contains(endpoint), "{command}");
    assert!(server.list("weft")?.is_empty(), "nothing is written below a prefix that may be wrong");
    // The command does what it says.
    Cmd::shell(command).ok()?;
    assert_eq!(node.leased().await?.config.network.to_string(), "10.244.0.0/16");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_in_version_2_is_pointed_out_with_the_command_that_copies_it() -> Result<()> {
    let server = Server::start_with(1, &["--enable-v2=true"])?;
    let endpoint = &server.endpoints()[0];
    let config = r#"{ "Network": "172.17.0.0/16", "Backend": {"Type": "vxlan"} }"#;
    let old = Cmd::new(format!("etcdctl --endpoints={endpoint} set {PREFIX}/config")).arg(config);
    old.env("ETCDCTL_API", "2").ok()?;
    let mut node = Node::start(&server, 1);
    let problem = node.problem().await?;
    assert!(
        problem.starts_with(&format!("etcd holds no configuration at {PREFIX}/config (version 3")),
        "{problem}"
    );
    let command = problem.split('`').nth(5).with_context(|| problem.clone())?;
    Cmd::shell(command).ok()?;
    assert_eq!(node.leased().await?.config.network.to_string(), "172.17.0.0/16");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mistake_of_a_configuration_is_told_and_a_later_one_changes_nothing() -> Result<()> {
    let server = Server::start(1)?;
    server.put("config", r#"{"Network":"10.5.0.0/29","Backend":{"Type":"nonsense"}}"#)?;
    let mut node = Node::start(&server, 1);
    let problem = node.problem().await?;
    assert!(
        problem.contains("Network 10.5.0.0/29 is too small") && problem.contains("nonsense"),
        "{problem}"
    );
    assert!(problem.ends_with(&format!("(at {PREFIX}/config in etcd)")), "{problem}");
    assert!(node.view.borrow().state.connected, "etcd answers");
    server.put_config()?;
    let before = node.leased().await?;
    server.put("config", "{broken")?;
    let view = node.until("told", |view| view.state.problem.is_some()).await?;
    assert!(view.state.connected);
    assert_eq!(view.assignment.map(|a| (a.own, a.config.clone())), Some((before.own, before.config.clone())));
    let problem = view.state.problem.context("a problem")?;
    assert!(problem.ends_with("the one that was read at the start stays in use"), "{problem}");
    server.put_config()?;
    node.until("well", |view| view.state.problem.is_none()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_subnets_overlap_the_host_the_start_is_refused() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let mut me = facts(1);
    me.host.push(overlay_core::host::HostPrefix {
        subnet: "10.0.0.0/8".parse()?,
        address: None,
        device: Some("eth0".parse()?),
        kind: overlay_core::host::DeviceKind::Other,
        by_hand: None,
    });
    let mut node = Node::start_with(&settings(&server), quick(), me);
    let fatal = tokio::time::timeout(crate::node::LIMIT, &mut node.task).await??;
    let text = daemon::one_line(&fatal);
    assert!(text.contains("10.5.1.0/24 overlaps route 10.0.0.0/8 through eth0"), "{text}");
    assert!(server.list("subnets")?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_writes_nothing() -> Result<()> {
    let server = Server::start(1)?;
    let origin = || flanneld::flags::Origin::Etcd(settings(&server));
    let error = source::look(origin(), &facts(1)).await.err().context("no configuration")?;
    assert!(
        error.to_string().starts_with(&format!("etcd holds no configuration at {PREFIX}/config")),
        "{error}"
    );
    server.put_config()?;
    let planned = source::look(origin(), &facts(1)).await?;
    assert!(planned.config.offers(planned.own.subnet));
    assert_eq!(
        server.ctl(&format!("get --prefix --keys-only {PREFIX}")).ok()?.stdout.trim(),
        format!("{PREFIX}/config")
    );
    Ok(())
}

/// An etcd that asks for names, and knows `flannel` with the password `hunter2`.
fn with_users(extra: &[&str]) -> Result<Server> {
    let server = Server::start_with(1, extra)?;
    server.put_config()?;
    for line in [
        "user add root:rootpw",
        "user add flannel:hunter2",
        "role add flannel",
        "user grant-role root root",
        "user grant-role flannel flannel",
    ] {
        // Version 3.4 makes the role `root` by itself.
        server.ctl(line).run()?;
    }
    server.ctl(&format!("role grant-permission flannel --prefix=true readwrite {PREFIX}/")).ok()?;
    server.ctl("auth enable").ok()?;
    Ok(server)
}

fn as_user(server: &Server, password: &str) -> EtcdSettings {
    EtcdSettings { user: Some(("flannel".to_owned(), Secret::new(password.to_owned()))), ..settings(server) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_a_password_gets_in_and_the_password_shows_nowhere() -> Result<()> {
    let server = with_users(&[])?;
    let mut wrong = Node::start_with(&as_user(&server, "secret-but-wrong"), quick(), facts(1));
    let problem = wrong.problem().await?;
    assert!(problem.contains("authentication failed, invalid user ID or password"), "{problem}");
    assert!(!problem.contains("secret-but-wrong"), "{problem}");
    let nobody = Node::start(&server, 2).problem().await?;
    assert!(nobody.contains("can't be used: etcdserver: user name is empty"), "{nobody}");
    let mut right = Node::start_with(&as_user(&server, "hunter2"), quick(), facts(3));
    right.leased().await?;
    server.ctl(&format!("--user=root:rootpw put {PREFIX}/subnets/10.5.209.0-24 {{}}")).ok()?;
    right.knows(2).await?;
    assert!(!format!("{:?}", as_user(&server, "hunter2")).contains("hunter2"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permission_that_is_missing_is_named_and_leaves_one_lease_in_etcd() -> Result<()> {
    let server = with_users(&[])?;
    let grant = |what: &str| server.ctl(&format!("--user=root:rootpw role {what}")).ok().map(drop);
    grant(&format!("revoke-permission flannel --prefix=true {PREFIX}/"))?;
    let mut node = Node::start_with(&as_user(&server, "hunter2"), quick(), facts(1));
    let needs = format!("permission denied: the user needs to read and write everything under {PREFIX}/");
    let problem = node.problem().await?;
    assert!(problem.ends_with(&needs), "{problem}");
    grant(&format!("grant-permission flannel --prefix=true read {PREFIX}/"))?;
    grant(&format!("grant-permission flannel --prefix=true readwrite {PREFIX}/weft/"))?;
    let leases =
        || server.ctl("--user=root:rootpw lease list").ok().map(|ran| ran.stdout.lines().count() - 1);
    // Of every attempt one more would stay.
    eventually("tried", || Ok(leases()? > 0)).await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let problem = node.problem().await?;
    assert!(problem.ends_with(&needs), "{problem}");
    assert_eq!(leases()?, 1);
    grant(&format!("grant-permission flannel --prefix=true readwrite {PREFIX}/subnets/"))?;
    node.leased().await?;
    assert_eq!(leases()?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_has_ended_is_renewed_without_a_word() -> Result<()> {
    let server = with_users(&["--auth-token-ttl=1"])?;
    let renewing = EtcdSettings { renew_margin: Duration::from_secs(4), ..as_user(&server, "hunter2") };
    let times = Times { lease: Duration::from_secs(8), ..quick() };
    let mut node = Node::start_with(&renewing, times, facts(1));
    let own = node.leased().await?.own;
    let path = format!("{PREFIX}/subnets/{}", key(own.subnet));
    let term = || -> Result<String> {
        let answer = server.ctl(&format!("--user=root:rootpw get {path} -w json")).json()?;
        Ok(answer["kvs"][0]["lease"].to_string())
    };
    let first = term()?;
    eventually("renewed", || Ok(term()? != first)).await?;
    let view = node.view.borrow();
    assert_eq!((view.state.problem.as_deref(), view.state.connected), (None, true));
    assert_eq!(view.assignment.as_ref().and_then(|a| a.note.clone()), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_no_obstacle_where_etcd_knows_none() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let user = Some(("flannel".to_owned(), Secret::new("hunter2".to_owned())));
    Node::start_with(&EtcdSettings { user, ..settings(&server) }, quick(), facts(1)).leased().await?;
    Ok(())
}

/// An authority, a server certificate for 127.0.0.1 and a client certificate, made with `openssl`.
fn certificates() -> Result<TempDir> {
    let dir = TempDir::new("tls")?;
    let at = dir.path().display();
    let script = format!(
        "cd {at}
        openssl ecparam -name prime256v1 -genkey -noout -out ca.key
        openssl req -x509 -new -key ca.key -subj /CN=authority -days 2 -out ca.pem
        for who in server client; do
            openssl ecparam -name prime256v1 -genkey -noout -out $who.key
            openssl req -new -key $who.key -subj /CN=$who -out $who.csr
            printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=serverAuth,clientAuth\\n' > $who.ext
            openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $who.ext -out $who.pem
        done
        openssl ecparam -name prime256v1 -genkey -noout -out other.key
        openssl req -x509 -new -key other.key -subj /CN=stranger -days 2 -out other.pem"
    );
    Cmd::shell(script).ok()?;
    Ok(dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_in_version_2_is_found_by_tls_too() -> Result<()> {
    let server = Server::start_tls(certificates()?, true)?;
    let at = |name: &str| server.dir.path().join(name).display().to_string();
    let files = format!(
        "--ca-file={} --cert-file={} --key-file={}",
        at("ca.pem"),
        at("client.pem"),
        at("client.key")
    );
    let set = format!("etcdctl --endpoints={} {files} set {PREFIX}/config", server.endpoints()[0]);
    Cmd::new(set).arg(r#"{"Network":"172.17.0.0/16"}"#).env("ETCDCTL_API", "2").ok()?;
    let mut node = Node::start_with(&tls(&server, Some("ca.pem"), true), quick(), facts(1));
    let problem = node.problem().await?;
    assert!(problem.contains(r#"put /atomic.io/network/config '{"Network":"172.17.0.0/16"}'"#), "{problem}");
    Ok(())
}

/// Settings with files in the server's folder.
fn tls(server: &Server, ca: Option<&str>, identity: bool) -> EtcdSettings {
    let at = |name: &str| -> PathBuf { server.dir.path().join(name) };
    EtcdSettings {
        ca_file: ca.map(at),
        identity: identity.then(|| (at("client.pem"), at("client.key"))),
        ..settings(server)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_an_authority_alone_and_with_a_client_certificate() -> Result<()> {
    let server = Server::start_tls(certificates()?, false)?;
    server.put_config()?;
    Node::start_with(&tls(&server, Some("ca.pem"), false), quick(), facts(1)).leased().await?;
    Node::start_with(&tls(&server, Some("ca.pem"), true), quick(), facts(2)).leased().await?;
    let mut strict = Server::start_tls(certificates()?, true)?;
    strict.put_config()?;
    Node::start_with(&tls(&strict, Some("ca.pem"), true), quick(), facts(1)).leased().await?;
    let problem = Node::start_with(&tls(&strict, Some("ca.pem"), false), quick(), facts(2)).problem().await?;
    assert!(problem.contains("wants a client certificate"), "{problem}");
    strict.kill_all();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mismatch_of_tls_names_the_endpoint_and_the_cause() -> Result<()> {
    let server = Server::start_tls(certificates()?, false)?;
    let endpoint = server.endpoints()[0].clone();
    let problem =
        Node::start_with(&tls(&server, Some("other.pem"), false), quick(), facts(1)).problem().await?;
    assert!(
        problem.starts_with(&format!("etcd does not answer: {endpoint}: invalid peer certificate")),
        "{problem}"
    );
    let problem = Node::start_with(&tls(&server, None, false), quick(), facts(1)).problem().await?;
    assert!(problem.contains(&endpoint) && problem.contains("UnknownIssuer"), "{problem}");
    let plain = endpoint.replace("https", "http");
    let to_tls = EtcdSettings { endpoints: vec![plain.clone()], ..settings(&server) };
    let problem = Node::start_with(&to_tls, quick(), facts(1)).problem().await?;
    assert!(problem.contains(&plain) && problem.contains("write https://"), "{problem}");
    let other = Server::start(1)?;
    let no_tls = other.endpoints()[0].replace("http", "https");
    let from_tls = EtcdSettings { endpoints: vec![no_tls.clone()], ..tls(&server, Some("ca.pem"), false) };
    let problem = Node::start_with(&from_tls, quick(), facts(1)).problem().await?;
    assert!(problem.contains(&no_tls) && problem.contains("write http://"), "{problem}");
    Ok(())
}
