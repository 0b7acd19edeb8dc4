//! A real etcd of one or more members on ports of the loopback address.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use testkit::{Cmd, Process, TempDir, eventually, free_port};

/// The prefix of all tests.
pub(crate) const PREFIX: &str = "/atomic.io/network";

/// The members of a cluster, each of which can be killed and started again.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    scheme: &'static str,
    /// Further words of every member's command line.
    extra: Vec<String>,
    /// Further words of `etcdctl`'s.
    ctl_extra: Vec<String>,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    client: u16,
    peer: u16,
    data: u32,
    process: Option<Process>,
}

impl Server {
    /// A cluster without TLS.
    pub(crate) fn start(members: usize) -> Result<Self> {
        Self::start_with(members, &[])
    }

    pub(crate) fn start_with(members: usize, extra: &[&str]) -> Result<Self> {
        let mut server = Self::prepare(TempDir::new("etcd")?, "http", members);
        server.extra = extra.iter().map(|word| (*word).to_owned()).collect();
        server.launch()?;
        Ok(server)
    }

    /// One member with the certificates in `dir`; `client_auth` demands one of the client.
    pub(crate) fn start_tls(dir: TempDir, client_auth: bool) -> Result<Self> {
        let mut server = Self::prepare(dir, "https", 1);
        let at = |name: &str| server.dir.path().join(name).display().to_string();
        server.extra = vec![
            format!("--cert-file={}", at("server.pem")),
            format!("--key-file={}", at("server.key")),
            "--enable-v2=true".to_owned(),
        ];
        server.ctl_extra = vec![
            format!("--cacert={}", at("ca.pem")),
            format!("--cert={}", at("client.pem")),
            format!("--key={}", at("client.key")),
        ];
        if client_auth {
            server.extra.push(format!("--trusted-ca-file={}", at("ca.pem")));
            server.extra.push("--client-cert-auth=true".to_owned());
        }
        server.launch()?;
        Ok(server)
    }

    /// Free ports, and nothing that listens there yet.
    pub(crate) fn prepare(dir: TempDir, scheme: &'static str, members: usize) -> Self {
        let member = |_| Member { client: free_port(), peer: free_port(), data: 0, process: None };
        let members = (0..members).map(member).collect();
        Self { dir, scheme, extra: Vec::new(), ctl_extra: Vec::new(), members }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("{}://127.0.0.1:{}", self.scheme, m.client)).collect()
    }

    /// `etcdctl` with its v3 API, against the members that run.
    pub(crate) fn ctl(&self, line: &str) -> Cmd {
        let running = self.members.iter().filter(|m| m.process.is_some());
        let endpoints: Vec<_> =
            running.map(|m| format!("{}://127.0.0.1:{}", self.scheme, m.client)).collect();
        let cmd =
            Cmd::new(format!("etcdctl --command-timeout=15s --endpoints={} {line}", endpoints.join(",")));
        cmd.args(self.ctl_extra.iter().cloned()).env("ETCDCTL_API", "3").limit(Duration::from_secs(20))
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> Result<()> {
        let cmd = self.ctl("put").arg(format!("{PREFIX}/{key}")).arg(value);
        // While a new leader is found a put may fail; to write the same value twice does no harm.
        for _ in 0..5 {
            if cmd.run()?.success() {
                return Ok(());
            }
        }
        cmd.ok().map(drop)
    }

    pub(crate) fn put_config(&self) -> Result<()> {
        self.put("config", r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#)
    }

    /// Keys below the prefix and `folder`, with values, as `etcdctl` prints them.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<(String, String)>> {
        let prefix = format!("{PREFIX}/{folder}/");
        let ran = self.ctl(&format!("get --prefix {prefix}")).ok()?;
        let lines: Vec<_> = ran.stdout.lines().collect();
        let pairs = lines.chunks_exact(2);
        Ok(pairs.map(|pair| (pair[0].trim_start_matches(&prefix).to_owned(), pair[1].to_owned())).collect())
    }

    /// One key as `etcdctl -w json` prints it.
    pub(crate) fn json(&self, key: &str) -> Result<serde_json::Value> {
        self.ctl(&format!("get {PREFIX}/{key} -w json")).json()
    }

    /// The etcd lease that a key ends with; 0 for none.
    pub(crate) fn ttl_lease(&self, key: &str) -> Result<i64> {
        let answer = self.json(key)?;
        let kv = answer["kvs"].get(0).with_context(|| format!("{key} is not there"))?;
        Ok(kv["lease"].as_i64().unwrap_or(0))
    }

    pub(crate) fn revoke(&self, ttl_lease: i64) -> Result<()> {
        self.ctl(&format!("lease revoke {ttl_lease:x}")).ok().map(drop)
    }

    /// `etcdctl` against one member.
    pub(crate) fn ctl_at(&self, member: usize, line: &str) -> Cmd {
        let endpoint = &self.endpoints()[member];
        let cmd = Cmd::new(format!("etcdctl --command-timeout=15s --endpoints={endpoint} {line}"));
        cmd.env("ETCDCTL_API", "3").limit(Duration::from_secs(20))
    }

    /// Stops a member without ending it: it takes connections, and answers nothing.
    pub(crate) fn freeze(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::STOP)
    }

    pub(crate) fn thaw(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::CONT)
    }

    fn signal(&self, member: usize, signal: Signal) -> Result<()> {
        self.members[member].process.as_ref().context("the member does not run")?.signal(signal)
    }

    /// `kill -9` of one member.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill();
        }
    }

    pub(crate) fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill(member));
    }

    /// Starts the members that are not running, on the data that they had.
    pub(crate) fn launch(&mut self) -> Result<()> {
        self.spawn()?;
        let up = eventually(Duration::from_secs(30), || self.ctl("endpoint health").ok().ok());
        up.map(drop).with_context(|| format!("etcd does not answer:\n{}", self.logs()))
    }

    /// As [`Server::launch`], without waiting until they answer.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let scheme = self.scheme;
        let cluster = self.members.iter().enumerate();
        let cluster: Vec<_> = cluster.map(|(n, m)| format!("m{n}=http://127.0.0.1:{}", m.peer)).collect();
        for (n, member) in self.members.iter_mut().enumerate().filter(|(_, m)| m.process.is_none()) {
            let Member { client, peer, data, .. } = member;
            let dir = self.dir.path();
            let cmd = Cmd::new(format!(
                "etcd --name m{n} --data-dir {0}/data-{n}-{data} --initial-cluster {1}
                 --listen-client-urls {scheme}://127.0.0.1:{client} --advertise-client-urls {scheme}://127.0.0.1:{client}
                 --listen-peer-urls http://127.0.0.1:{peer} --initial-advertise-peer-urls http://127.0.0.1:{peer}",
                dir.display(),
                cluster.join(","),
            ));
            let cmd = cmd.args(self.extra.iter().cloned());
            member.process = Some(Process::spawn(&cmd, dir.join(format!("etcd-{n}.log")))?);
        }
        Ok(())
    }

    /// Runs `work` on the data of the first member, at ports that nobody else knows, while it is killed.
    pub(crate) fn launch_elsewhere(&mut self, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let (client, peer) = (self.members[0].client, self.members[0].peer);
        self.members[0].client = free_port();
        self.launch()?;
        let done = work(self);
        self.kill(0);
        self.members[0].client = client;
        self.members[0].peer = peer;
        done
    }

    /// Ends all members; the next start begins with an empty store, and with the same cluster id.
    pub(crate) fn empty(&mut self) {
        self.kill_all();
        self.members.iter_mut().for_each(|member| member.data += 1);
    }

    /// Ends all members and makes a copy of their data, which the start after [`Server::empty`] begins with.
    pub(crate) fn back_up(&mut self) -> Result<()> {
        self.kill_all();
        for (n, Member { data, .. }) in self.members.iter().enumerate() {
            let at = |data| self.dir.path().join(format!("data-{n}-{data}")).display().to_string();
            Cmd::new("cp -a").arg(at(*data)).arg(at(data + 1)).ok()?;
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let logs = (0..self.members.len()).map(|n| self.dir.path().join(format!("etcd-{n}.log")));
        logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }
}
