//! The keys that flannel and Weft keep in etcd, and the few things that are done with them.
//!
//! ```text
//! <prefix>/config                     the network's configuration
//! <prefix>/subnets/10.5.34.0-24       a lease
//! <prefix>/weft/nodes/<identity>      what Weft remembers of a node
//! <prefix>/weft/store                 a random number, there since Weft first wrote here
//! <prefix>/weft/settling              there for the first seconds after that
//! ```
//!
//! Every read of more than one key, and every write, is one transaction that also answers with all
//! keys as they are at that revision: whoever lost a race knows the new state at once, and a watch can
//! go on from there without a gap.

use std::collections::BTreeMap;

use etcd_client::{
    Client, Compare, CompareOp, Error, EventType, GetOptions, GetResponse, KeyValue, PutOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse, WatchOptions, WatchResponse, WatchStream,
};
use netmodel::Subnet;
use overlay_core::{
    host::NodeIdentity,
    lease::RawLease,
    wire::{self, NodeRecord},
};

use super::{advice, connection::Connection, failure::Failure};

/// Largest answer that is taken, in bytes: 16 times the 65,536 leases of a /8.
const LARGEST_ANSWER: usize = 256 << 20;

/// Names of keys below a prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys(String);

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self(prefix.trim_end_matches('/').to_owned())
    }

    pub(super) fn config(&self) -> String {
        format!("{}/{}", self.0, wire::CONFIG)
    }

    /// What the keys of leases begin with.
    pub(super) fn leases(&self) -> String {
        format!("{}/{}/", self.0, wire::SUBNETS)
    }

    pub(super) fn lease(&self, key: &str) -> String {
        format!("{}{key}", self.leases())
    }

    /// What the keys of records of nodes begin with.
    fn records(&self) -> String {
        format!("{}/{}/", self.0, wire::NODES)
    }

    pub(super) fn record(&self, identity: NodeIdentity) -> String {
        format!("{}{identity}", self.records())
    }

    fn store(&self) -> String {
        format!("{}/weft/store", self.0)
    }

    fn settling(&self) -> String {
        format!("{}/weft/settling", self.0)
    }
}

/// All keys at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The revision.
    pub(super) revision: i64,
    /// The cluster that gave it.
    pub(super) cluster: u64,
    /// The configuration as it was written.
    pub(super) config: Option<String>,
    /// Leases by their key below `<prefix>/subnets/`.
    pub(super) leases: BTreeMap<String, RawLease>,
    /// What Weft remembers of nodes.
    pub(super) records: Vec<(NodeIdentity, NodeRecord)>,
    /// The mark that Weft left when it first wrote here: no two stores have the same.
    pub(super) mark: Option<String>,
    /// Weft wrote here for the first time a moment ago.
    pub(super) settling: bool,
}

/// One key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Lease(RawLease),
    LeaseGone { key: String, revision: i64 },
    Config { text: Option<String>, revision: i64 },
}

impl Change {
    pub(super) fn revision(&self) -> i64 {
        match self {
            Self::Lease(lease) => lease.modified,
            Self::LeaseGone { revision, .. } | Self::Config { revision, .. } => *revision,
        }
    }
}

/// A lease to be written.
#[derive(Clone, Debug)]
pub(super) struct Write {
    /// Its key below `<prefix>/subnets/`.
    pub(super) key: String,
    /// Its value.
    pub(super) value: String,
    /// etcd's lease to attach; 0 for a reservation.
    pub(super) ttl_lease: i64,
    /// What must hold for it to be written.
    pub(super) condition: Condition,
    /// The node's record, written with it.
    pub(super) record: (NodeIdentity, NodeRecord),
    /// Records of others that name the same subnet, removed with it.
    pub(super) outdated: Vec<NodeIdentity>,
}

/// What must hold for a lease to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// There is no such key.
    Absent,
    /// The key was last written at that revision.
    Unchanged(i64),
    /// There is no such key, and another spelling of it was last written at that revision; that one goes.
    Renamed { from: String, modified: i64 },
}

/// What became of a write.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// The condition held and all was written.
    pub(super) written: bool,
    /// Everything, right after.
    pub(super) snapshot: Snapshot,
}

/// flannel's part of an etcd cluster.
#[derive(Debug)]
pub(super) struct Store {
    etcd: Connection,
    pub(super) keys: Keys,
}

impl Store {
    pub(super) fn new(etcd: Connection, prefix: &str) -> Self {
        Self { etcd, keys: Keys::new(prefix) }
    }

    /// The URL of the member that answered last.
    pub(super) fn endpoint(&self) -> &str {
        self.etcd.endpoint()
    }

    /// What to tell an operator who has to write the configuration.
    pub(super) async fn no_config(&self) -> String {
        advice::no_config(&self.keys.config(), self.endpoint(), self.etcd.settings()).await
    }

    /// All keys.
    pub(super) async fn list(&mut self) -> Result<Snapshot, Failure> {
        let txn = Txn::new().and_then(self.read_all());
        self.transact(txn).await.map(|(_, snapshot)| snapshot)
    }

    /// The lease of a key with the revision and the cluster of the answer, to see whether this is still
    /// the history that we know.
    pub(super) async fn look(&mut self, key: &str) -> Result<(i64, u64, Option<RawLease>), Failure> {
        let (key, prefix) = (self.keys.lease(key), self.keys.leases());
        let answer = self
            .etcd
            .call(|client| {
                let key = key.clone();
                async move { client.kv_client().get(key, None).await }
            })
            .await?;
        let (revision, cluster) = answer.header().map_or((0, 0), |h| (h.revision(), h.cluster_id()));
        Ok((revision, cluster, answer.kvs().first().map(|kv| raw_lease(kv, &prefix))))
    }

    /// An etcd lease of that many seconds: its number, and the seconds that were granted.
    pub(super) async fn grant(&mut self, seconds: i64) -> Result<(i64, u64), Failure> {
        let grant = |mut client: Client| async move { client.lease_grant(seconds, None).await };
        let answer = self.etcd.call(grant).await?;
        Ok((answer.id(), u64::try_from(answer.ttl()).unwrap_or(0)))
    }

    /// The seconds that an etcd lease lasts still; less than one if it has ended.
    pub(super) async fn left(&mut self, ttl_lease: i64) -> Result<i64, Failure> {
        let ask = |mut client: Client| async move { client.lease_time_to_live(ttl_lease, None).await };
        Ok(self.etcd.call(ask).await?.ttl())
    }

    /// Gives an etcd lease back. Nobody depends on it: one that stays ends by itself.
    pub(super) async fn revoke(&mut self, ttl_lease: i64) {
        let revoke = |mut client: Client| async move { client.lease_revoke(ttl_lease).await };
        if let Err(error) = self.etcd.call(revoke).await {
            tracing::debug!(%error, ttl_lease, "failed to give an etcd lease back");
        }
    }

    /// Writes a lease with the node's record, if its condition holds.
    pub(super) async fn write(&mut self, write: &Write) -> Result<Outcome, Failure> {
        let key = self.keys.lease(&write.key);
        let mut compares = Vec::new();
        let mut operations = Vec::new();
        match &write.condition {
            Condition::Absent => compares.push(Compare::version(&*key, CompareOp::Equal, 0)),
            Condition::Unchanged(modified) => {
                compares.push(Compare::mod_revision(&*key, CompareOp::Equal, *modified));
            }
            Condition::Renamed { from, modified } => {
                let from = self.keys.lease(from);
                compares.push(Compare::version(&*key, CompareOp::Equal, 0));
                compares.push(Compare::mod_revision(&*from, CompareOp::Equal, *modified));
                operations.push(TxnOp::delete(from, None));
            }
        }
        let ttl = (write.ttl_lease != 0).then(|| PutOptions::new().with_lease(write.ttl_lease));
        operations.push(TxnOp::put(key, write.value.clone(), ttl));
        let (identity, record) = &write.record;
        operations.push(TxnOp::put(self.keys.record(*identity), record.to_string(), None));
        let outdated = write.outdated.iter().filter(|other| *other != identity);
        operations.extend(outdated.map(|other| TxnOp::delete(self.keys.record(*other), None)));
        operations.extend(self.read_all());
        let txn = Txn::new().when(compares).and_then(operations).or_else(self.read_all());
        let (written, snapshot) = self.transact(txn).await?;
        Ok(Outcome { written, snapshot })
    }

    /// Removes a lease if it is still the one that was read.
    pub(super) async fn remove(&mut self, lease: &RawLease) -> Result<Snapshot, Failure> {
        let key = self.keys.lease(&lease.key);
        let unchanged = Compare::mod_revision(&*key, CompareOp::Equal, lease.modified);
        let mut operations = vec![TxnOp::delete(key, None)];
        operations.extend(self.read_all());
        let txn = Txn::new().when([unchanged]).and_then(operations).or_else(self.read_all());
        self.transact(txn).await.map(|(_, snapshot)| snapshot)
    }

    /// Leaves a mark that Weft was here, `number`, and where holders of leases may come back, one beside
    /// it that goes after `settle` seconds.
    pub(super) async fn mark(&mut self, number: u64, settle: Option<i64>) -> Result<Snapshot, Failure> {
        let absent = Compare::version(self.keys.store(), CompareOp::Equal, 0);
        let mut operations = vec![TxnOp::put(self.keys.store(), format!("{number:016x}"), None)];
        if let Some(seconds) = settle {
            let (ttl_lease, _) = self.grant(seconds).await?;
            let while_leased = PutOptions::new().with_lease(ttl_lease);
            operations.push(TxnOp::put(self.keys.settling(), "{}", Some(while_leased)));
        }
        operations.extend(self.read_all());
        let txn = Txn::new().when([absent]).and_then(operations).or_else(self.read_all());
        self.transact(txn).await.map(|(_, snapshot)| snapshot)
    }

    /// Follows leases and configuration from the revision after `revision` on.
    pub(super) async fn watch(&mut self, revision: i64) -> Result<Events, Failure> {
        let (leases, config) = (self.keys.leases(), self.keys.config());
        let open = |client: Client| {
            let (leases, config) = (leases.clone(), config.clone());
            async move {
                let from = || WatchOptions::new().with_start_revision(revision + 1);
                let mut watch = client.watch_client().max_decoding_message_size(LARGEST_ANSWER);
                let mut stream = watch.watch(leases, Some(from().with_prefix())).await?;
                stream.watch(config, Some(from())).await?;
                Ok(stream)
            }
        };
        let stream = self.etcd.call(open).await?;
        Ok(Events { stream, leases, config })
    }

    /// Connections are of no more use.
    pub(super) fn disconnect(&mut self) {
        self.etcd.disconnect();
    }

    /// The watch broke off.
    pub(super) fn broke(&mut self) {
        self.etcd.broke();
    }

    /// Operations that answer with everything; [`snapshot`] reads the answers, in the same order.
    fn read_all(&self) -> Vec<TxnOp> {
        let folder = || Some(GetOptions::new().with_prefix());
        vec![
            TxnOp::get(self.keys.config(), None),
            TxnOp::get(self.keys.leases(), folder()),
            TxnOp::get(self.keys.records(), folder()),
            TxnOp::get(self.keys.store(), None),
            TxnOp::get(self.keys.settling(), Some(GetOptions::new().with_keys_only())),
        ]
    }

    async fn transact(&mut self, txn: Txn) -> Result<(bool, Snapshot), Failure> {
        let send = |client: Client| {
            let txn = txn.clone();
            async move { client.kv_client().max_decoding_message_size(LARGEST_ANSWER).txn(txn).await }
        };
        let answer = self.etcd.call(send).await?;
        Ok((answer.succeeded(), self.snapshot(&answer)))
    }

    fn snapshot(&self, answer: &TxnResponse) -> Snapshot {
        let (revision, cluster) = answer.header().map_or((0, 0), |h| (h.revision(), h.cluster_id()));
        let mut found = Snapshot { revision, cluster, ..Snapshot::default() };
        let read = |answer| if let TxnOpResponse::Get(get) = answer { Some(get) } else { None };
        let gets: Vec<GetResponse> = answer.op_responses().into_iter().filter_map(read).collect();
        let [config, leases, records, store, settling] = gets.as_slice() else { return found };
        found.config = config.kvs().first().map(|kv| text(kv.value()));
        let prefix = self.keys.leases();
        let by_key = |kv| {
            let lease = raw_lease(kv, &prefix);
            (lease.key.clone(), lease)
        };
        found.leases = leases.kvs().iter().map(by_key).collect();
        found.records = records.kvs().iter().filter_map(|kv| self.node_record(kv)).collect();
        found.mark = store.kvs().first().map(|kv| text(kv.value()));
        found.settling = !settling.kvs().is_empty();
        found
    }

    /// A record that can be read; one that can't is as good as none.
    fn node_record(&self, kv: &KeyValue) -> Option<(NodeIdentity, NodeRecord)> {
        let identity = kv.key_str().ok()?.strip_prefix(&self.keys.records())?.parse().ok()?;
        Some((identity, kv.value_str().ok()?.parse().ok()?))
    }
}

impl Snapshot {
    /// Takes in a change that is newer than what is known.
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Lease(lease) => drop(self.leases.insert(lease.key.clone(), lease)),
            Change::LeaseGone { key, .. } => drop(self.leases.remove(&key)),
            Change::Config { text, .. } => self.config = text,
        }
    }

    /// Records of other nodes that name that subnet.
    pub(super) fn others_of(&self, subnet: Subnet, me: NodeIdentity) -> Vec<NodeIdentity> {
        let others = self.records.iter().filter(|(id, record)| *id != me && record.subnet == subnet);
        others.map(|(id, _)| *id).collect()
    }
}

/// Changes as they happen.
pub(super) struct Events {
    stream: WatchStream,
    leases: String,
    config: String,
}

impl Events {
    /// The next changes. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// The watch broke off, and has to be opened anew; the text says why.
    pub(super) async fn next(&mut self) -> Result<Vec<Change>, Broken> {
        let answer = match self.stream.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(Broken::Away("it closed the watch".to_owned())),
            Err(Error::GRpcStatus(status)) => return Err(Broken::Away(status.message().to_owned())),
            Err(error) => return Err(Broken::Away(error.to_string())),
        };
        if answer.compact_revision() != 0 {
            return Err(Broken::Compacted);
        }
        if answer.canceled() {
            return Err(Broken::Away(answer.cancel_reason().to_owned()));
        }
        Ok(self.changes(&answer))
    }

    fn changes(&self, answer: &WatchResponse) -> Vec<Change> {
        let change = |event: &etcd_client::Event| {
            let kv = event.kv()?;
            let gone = event.event_type() == EventType::Delete;
            let revision = kv.mod_revision();
            if kv.key() == self.config.as_bytes() {
                let text = (!gone).then(|| text(kv.value()));
                return Some(Change::Config { text, revision });
            }
            let lease = raw_lease(kv, &self.leases);
            Some(if gone { Change::LeaseGone { key: lease.key, revision } } else { Change::Lease(lease) })
        };
        answer.events().iter().filter_map(change).collect()
    }
}

/// A watch that has to be opened anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The member went away; the text says how.
    Away(String),
    /// The history that it wanted to go on from is gone.
    Compacted,
}

fn raw_lease(kv: &KeyValue, prefix: &str) -> RawLease {
    let key = text(kv.key());
    RawLease {
        key: key.strip_prefix(prefix).unwrap_or(&key).to_owned(),
        value: text(kv.value()),
        created: kv.create_revision(),
        modified: kv.mod_revision(),
        ttl_lease: kv.lease(),
    }
}

/// Bytes as text; what is not UTF-8 shows as such, and is skipped by name further on.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
