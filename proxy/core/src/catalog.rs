//! The objects as the source last had them, and which Services changed since we last looked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use netmodel::{NodeName, Subnet};

use crate::{
    endpoints::Slice,
    object::{Key, Kind, Object, ObjectName},
    services::Service,
};

/// Objects by what they are known by.
pub type Objects = BTreeMap<Key, Arc<Object>>;

/// All objects of a source.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    objects: Objects,
    slices_of: BTreeMap<ObjectName, BTreeSet<Key>>,
    changed: BTreeSet<ObjectName>,
}

impl Catalog {
    /// Adds, replaces or (`None`) removes one object.
    pub fn set(&mut self, key: Key, object: Option<Arc<Object>>) {
        if self.objects.get(&key) == object.as_ref() {
            return;
        }
        let slice_of = |object: &Option<Arc<Object>>| match object.as_deref() {
            Some(Object::Slice(slice)) => Some(slice.service.clone()),
            _ => None,
        };
        let new_owner = slice_of(&object);
        let before = match object {
            Some(object) => self.objects.insert(key.clone(), object),
            None => self.objects.remove(&key),
        };
        if key.kind == Kind::Service {
            self.changed.insert(key.name.clone());
        }
        if let Some(service) = slice_of(&before) {
            self.unlink(&service, &key);
            self.changed.insert(service);
        }
        if let Some(service) = new_owner {
            self.slices_of.entry(service.clone()).or_default().insert(key);
            self.changed.insert(service);
        }
    }

    /// Makes `objects` the whole content. What is the very same allocation as before costs one comparison.
    pub fn replace(&mut self, objects: &Objects) {
        let gone: Vec<_> = self.objects.keys().filter(|key| !objects.contains_key(key)).cloned().collect();
        for key in gone {
            self.set(key, None);
        }
        for (key, object) in objects {
            if !self.objects.get(key).is_some_and(|held| Arc::ptr_eq(held, object)) {
                self.set(key.clone(), Some(Arc::clone(object)));
            }
        }
    }

    /// The Services that changed, or whose endpoints did, since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.changed)
    }

    /// The Service of that name.
    #[must_use]
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        let key = Key { kind: Kind::Service, name: name.clone() };
        match self.objects.get(&key).map(|object| &**object) {
            Some(Object::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The endpoints of a Service: its EndpointSlices, or, where it has none, its Endpoints. (A cluster holds
    /// both for the same pods, and only the former tell which are going.)
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        let keys = self.slices_of.get(service);
        let legacy = !keys.is_some_and(|keys| keys.iter().any(|key| key.kind == Kind::EndpointSlice));
        let slices = keys.into_iter().flatten().filter_map(|key| match self.objects.get(key).map(|o| &**o) {
            Some(Object::Slice(slice)) => Some(slice),
            _ => None,
        });
        slices.filter(move |slice| slice.legacy == legacy)
    }

    /// There is such an object, or, for Endpoints, EndpointSlices that count in their place.
    #[must_use]
    pub fn knows(&self, key: &Key) -> bool {
        let replaced = || key.kind == Kind::Endpoints && self.slices(&key.name).next().is_some();
        self.objects.contains_key(key) || replaced()
    }

    /// The internal addresses of a Node; `None` where there is no such Node.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&[IpAddr]> {
        let key = Key { kind: Kind::Node, name: ObjectName::new("", name.as_str()) };
        match self.objects.get(&key).map(|object| &**object) {
            Some(Object::Node(addresses)) => Some(addresses),
            _ => None,
        }
    }

    /// The ranges that cluster IPs are taken from, as far as the source tells.
    #[must_use]
    pub fn service_ranges(&self) -> BTreeSet<Subnet> {
        let first = Key { kind: Kind::ServiceCidr, name: ObjectName::new("", "") };
        self.objects
            .range(first..)
            .filter_map(|(_, object)| match &**object {
                Object::ServiceCidr(ranges) => Some(ranges.iter().copied()),
                _ => None,
            })
            .flatten()
            .collect()
    }

    fn unlink(&mut self, service: &ObjectName, key: &Key) {
        if let Some(keys) = self.slices_of.get_mut(service) {
            keys.remove(key);
            if keys.is_empty() {
                self.slices_of.remove(service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{object::check, wire::Manifest};

    fn objects(text: &str) -> BTreeMap<Key, Arc<Object>> {
        let node = "n1".parse().unwrap();
        let checked = Manifest::read(text).unwrap().objects;
        let checked = checked.iter().filter_map(|object| check(object, &node).unwrap());
        checked.map(|(key, object)| (key, Arc::new(object))).collect()
    }

    fn slice(name: &str, service: &str, address: &str) -> String {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: \
             {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}, \
             ports: [{{port: 1}}], endpoints: [{{addresses: [{address}]}}]}}\n"
        )
    }

    fn changed(catalog: &mut Catalog) -> Vec<String> {
        catalog.take_changed().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_changed_object_names_its_services() {
        let mut catalog = Catalog::default();
        let before = objects(&(slice("x", "a", "10.0.0.1") + &slice("y", "b", "10.0.0.2")));
        catalog.replace(&before);
        assert_eq!(changed(&mut catalog), ["default/a", "default/b"]);
        catalog.replace(&before);
        assert_eq!(changed(&mut catalog), Vec::<String>::new());
        catalog.replace(&objects(&(slice("x", "c", "10.0.0.1") + &slice("y", "b", "10.0.0.2"))));
        assert_eq!(changed(&mut catalog), ["default/a", "default/c"], "a slice that moves concerns both");
        catalog.replace(&BTreeMap::new());
        assert_eq!(changed(&mut catalog), ["default/b", "default/c"]);
        assert!(catalog.slices_of.is_empty());
    }

    #[test]
    fn endpoints_count_where_there_is_no_slice() {
        let legacy = "---\n{apiVersion: v1, kind: Endpoints, metadata: {name: a}, \
                      subsets: [{addresses: [{ip: 10.0.0.9}], ports: [{port: 1}]}]}\n";
        let mut catalog = Catalog::default();
        let count = |catalog: &Catalog| {
            catalog.slices(&ObjectName::new("", "a")).map(|slice| slice.legacy).collect::<Vec<_>>()
        };
        catalog.replace(&objects(legacy));
        assert_eq!(count(&catalog), [true]);
        catalog.replace(&objects(&(slice("x", "a", "10.0.0.1") + legacy)));
        assert_eq!(count(&catalog), [false]);
    }

    #[test]
    fn nodes_and_service_ranges_are_found() {
        let mut catalog = Catalog::default();
        catalog.replace(&objects(
            "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [\
               {type: InternalIP, address: 10.0.0.1}, {type: Hostname, address: n1}]}}\n---\n\
             {apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, \
               spec: {cidrs: [10.96.0.0/12, 'fd00::/112']}}\n",
        ));
        assert_eq!(catalog.node(&"n1".parse().unwrap()), Some(&["10.0.0.1".parse().unwrap()][..]));
        assert_eq!(catalog.node(&"n2".parse().unwrap()), None);
        assert_eq!(catalog.service_ranges().len(), 2);
    }
}
