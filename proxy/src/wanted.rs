//! The objects that count: what the manifests tell, without what this host can't serve, and with what an earlier run
//! left of what they can't tell yet.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use netmodel::NodeName;
use proxy_core::{
    adopt::{self, Found},
    catalog::{Catalog, Objects},
    object::{Key, Object, ObjectName},
};

use crate::{
    node::Machine,
    source::file::{FileSource, Touched},
};

/// What the manifests tell, as far as it counts.
#[derive(Debug)]
pub struct Wanted {
    node: NodeName,
    source: FileSource,
    /// Services that are not served, and the address of this host that they ask for.
    refused: BTreeMap<Key, IpAddr>,
    /// What an earlier run left of what the source could not tell yet.
    inherited: Objects,
    /// All that counts.
    pub catalog: Catalog,
}

impl Wanted {
    /// Reads the manifests at `path`. `node` is the node that we run on.
    #[must_use]
    pub fn new(path: PathBuf, node: NodeName, machine: &Machine) -> Self {
        let mut wanted = Self {
            source: FileSource::new(path, node.clone()),
            node,
            refused: BTreeMap::new(),
            inherited: Objects::new(),
            catalog: Catalog::default(),
        };
        wanted.read([&Touched::All], machine);
        wanted
    }

    /// Where the objects come from.
    #[must_use]
    pub const fn source(&self) -> &FileSource {
        &self.source
    }

    /// Reads what was touched.
    pub fn read<'a>(&mut self, touched: impl IntoIterator<Item = &'a Touched>, machine: &Machine) {
        let mut is_touched = false;
        for touched in touched {
            self.source.read(touched);
            is_touched = true;
        }
        if is_touched {
            self.fill(machine);
        }
    }

    /// Fills the catalog, also where not the manifests but the machine's addresses changed.
    pub fn fill(&mut self, machine: &Machine) {
        let objects = self.servable(machine);
        self.catalog.replace(&objects);
        self.inherit(machine);
    }

    /// Takes over from the table of an earlier run what stands for manifests that can't be read.
    pub fn inherit_from(&mut self, found: &Found, machine: &Machine) {
        if self.source.is_complete() {
            return;
        }
        let lack = |service: &ObjectName| self.source.lacks_endpoints_of(service);
        self.inherited = found.unknown_to(&self.catalog, &self.node, lack);
        self.inherit(machine);
        if !self.inherited.is_empty() {
            let objects = self.inherited.len();
            tracing::warn!(objects, "what an earlier run left stays until all manifests can be read");
        }
    }

    /// Services that are not served and why, one line each.
    pub fn refusals(&self) -> impl Iterator<Item = String> {
        self.refused.iter().map(|(key, address)| refusal(key, *address))
    }

    /// The objects of the source without the Services at an address of this host. Each that is new among these is
    /// logged.
    fn servable(&mut self, machine: &Machine) -> Objects {
        let mut objects = self.source.objects();
        let before = std::mem::take(&mut self.refused);
        objects.retain(|key, object| match machine.taken_by(object) {
            Some(address) => {
                if before.get(key) != Some(&address) {
                    tracing::error!("{}", refusal(key, address));
                }
                self.refused.insert(key.clone(), address);
                false
            }
            None => true,
        });
        objects
    }

    /// Manifests that can't be read after a restart must not cost what they stood for: until all could be read,
    /// what is in the kernel for Services that nobody tells about stays.
    fn inherit(&mut self, machine: &Machine) {
        let (source, catalog) = (&self.source, &self.catalog);
        self.inherited.retain(|key, object| match Arc::make_mut(object) {
            Object::Slice(slice) if !slice.legacy => {
                source.lacks_endpoints_of(&slice.service) && adopt::narrow(slice, catalog)
            }
            object => {
                let is_unknown = !source.is_complete_about(&key.name) && !catalog.knows(key);
                is_unknown && !machine.contradicts(object)
            }
        });
        for (key, object) in &self.inherited {
            self.catalog.set(key.clone(), Some(Arc::clone(object)));
        }
    }
}

fn refusal(key: &Key, address: IpAddr) -> String {
    format!("{key}: {address} is an address of this host; it is passed over")
}
