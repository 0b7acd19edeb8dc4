//! The record of one attachment: lines, each written before what it tells of is made, so that whoever comes
//! after a kill knows what may be there.

use std::net::IpAddr;

use netmodel::IfName;

use crate::{Attachment, Error, HostAddress, Network, attachment::is_identifier};

/// The first line. A file that doesn't begin with it is garbled.
const HEADER: &str = "weft attachment 1\n";

/// The longest name of a file that a container's id goes into as it is.
const LONGEST_NAME: usize = 200;

/// Something that ADD is about to make, for one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The attachment has an interface of the host, in the network namespace of that identity.
    Host(String),
    /// The index of the interface of the host that another plugin made for it.
    Link(u32),
    /// Reservations are in that folder.
    Folder(String),
    /// The address of the range set with that number.
    Address(usize, HostAddress),
    /// The pod that the container is of, for messages.
    Pod(String),
    /// The addresses are masqueraded.
    Masquerade,
    /// What was delegated is in that file.
    Scratch(String),
    /// Ports of the host lead to the container.
    HostPorts,
    /// The bandwidth is limited.
    Limits,
}

/// What a record tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// It begins as it must.
    pub whole: bool,
    /// It ends as it must, and nothing of it is missing. What is not closed may tell too little: ADD was killed, or
    /// the file was cut short.
    pub closed: bool,
    /// [`Trace::Host`].
    pub host: Option<String>,
    /// [`Trace::Link`].
    pub link: Option<u32>,
    /// [`Trace::Folder`].
    pub folder: Option<String>,
    /// [`Trace::Address`], oldest first; of a set there may be several.
    pub addresses: Vec<(usize, HostAddress)>,
    /// [`Trace::Pod`].
    pub pod: Option<String>,
    /// [`Trace::Masquerade`].
    pub masqueraded: bool,
    /// [`Trace::Scratch`].
    pub scratch: Option<String>,
    /// [`Trace::HostPorts`].
    pub host_ports: bool,
    /// [`Trace::Limits`].
    pub limits: bool,
}

/// The folder of all state that doesn't outlive the boot: `stateDir`, or `/run/weft`.
///
/// # Errors
/// Code 6.
pub fn state_dir(network: &Network) -> Result<String, Error> {
    Ok(network.keys().filled("stateDir")?.unwrap_or("/run/weft").to_owned())
}

impl Trace {
    /// The line, with its end.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Host(namespace) => format!("host {namespace}\n"),
            Self::Link(index) => format!("link {index}\n"),
            Self::Folder(path) => format!("folder {path}\n"),
            Self::Address(set, address) => format!("address {set} {address}\n"),
            Self::Pod(name) => format!("pod {name}\n"),
            Self::Masquerade => "masquerade\n".to_owned(),
            Self::Scratch(path) => format!("scratch {path}\n"),
            Self::HostPorts => "hostports\n".to_owned(),
            Self::Limits => "limits\n".to_owned(),
        }
    }
}

impl Record {
    /// The first lines of the record of `who`.
    #[must_use]
    pub fn begin(who: &Attachment) -> String {
        format!("{HEADER}container {}\ninterface {}\n", who.container, who.ifname)
    }

    /// The last line of a record that has `length` bytes before it, once everything is made.
    #[must_use]
    pub fn end(length: usize) -> String {
        format!("made {length}\n")
    }

    /// Reads a record. A line that was cut short, as by a kill, or that isn't known counts for nothing.
    #[must_use]
    pub fn parse(content: &[u8]) -> Self {
        let text = String::from_utf8_lossy(content);
        let whole = text.starts_with(HEADER);
        let mut record = Self { whole, closed: whole && is_closed(content), ..Self::default() };
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("host", namespace) => record.host = Some(namespace.to_owned()),
                ("link", index) => record.link = index.parse().ok(),
                // Another ADD, which has released what the earlier one had elsewhere.
                ("folder", path) if path.starts_with('/') => {
                    let earlier = record.folder.replace(path.to_owned());
                    record.addresses.retain(|_| earlier.as_deref() == Some(path));
                }
                ("scratch", path) if path.starts_with('/') => record.scratch = Some(path.to_owned()),
                ("address", rest) => record.addresses.extend(numbered(rest)),
                ("pod", name) => record.pod = Some(name.to_owned()),
                ("masquerade", "") => record.masqueraded = true,
                ("hostports", "") => record.host_ports = true,
                ("limits", "") => record.limits = true,
                _ => {}
            }
        }
        record
    }

    /// The addresses, each once.
    #[must_use]
    pub fn pods(&self) -> Vec<HostAddress> {
        let mut pods: Vec<HostAddress> = Vec::with_capacity(self.addresses.len());
        for (_, address) in &self.addresses {
            if !pods.contains(address) {
                pods.push(*address);
            }
        }
        pods
    }
}

fn is_closed(content: &[u8]) -> bool {
    let last = content.split_inclusive(|byte| *byte == b'\n').next_back().unwrap_or_default();
    last == Record::end(content.len() - last.len()).as_bytes()
}

/// `0 10.42.3.2/24`.
fn numbered(text: &str) -> Option<(usize, HostAddress)> {
    let (set, text) = text.split_once(' ')?;
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    Some((set.parse().ok()?, HostAddress { address, prefix: prefix.parse().ok()? }))
}

impl Attachment {
    /// The name of the record's file: `<container>-<interface>`. Where that would be too long, or could be
    /// another attachment's, the container is replaced by a hash behind `#`, which no id begins with.
    #[must_use]
    pub fn record_name(&self) -> String {
        let name = format!("{}-{}", self.container, self.ifname);
        let is_plain = name.len() <= LONGEST_NAME && is_identifier(&self.container);
        if is_plain && !self.ifname.as_str().contains('-') {
            return name;
        }
        format!("#{:016x}-{}", self.hash(), self.ifname)
    }

    /// Whose record has that name; `None` where only its content says so.
    #[must_use]
    pub fn of_record(network: &str, name: &str) -> Option<Self> {
        let (container, ifname) = name.rsplit_once('-').filter(|_| !name.starts_with('#'))?;
        let ifname: IfName = ifname.parse().ok()?;
        let who = Self { network: network.to_owned(), container: container.to_owned(), ifname };
        is_identifier(container).then_some(who)
    }

    /// Whose record has that content.
    #[must_use]
    pub fn in_record(network: &str, content: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(content);
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        let container = value("container").filter(|container| is_identifier(container))?.to_owned();
        Some(Self { network: network.to_owned(), container, ifname: value("interface")?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn who(container: &str, ifname: &str) -> Attachment {
        Attachment { network: "n".into(), container: container.into(), ifname: ifname.parse().unwrap() }
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let pod = |text: &str| HostAddress { address: text.parse().unwrap(), prefix: 24 };
        let traces = [
            Trace::Host("4:7".into()),
            Trace::Folder("/var/lib/cni/networks/a b".into()),
            Trace::Address(0, pod("10.1.0.2")),
            Trace::Address(1, pod("fd00::2")),
            Trace::Address(0, pod("10.1.0.2")),
            Trace::Pod("default/web".into()),
            Trace::Masquerade,
            Trace::Scratch("/var/lib/cni/flannel/c1".into()),
            Trace::HostPorts,
            Trace::Limits,
        ];
        let begun = Record::begin(&who("c1", "eth0"));
        let text: String = [begun.clone()].into_iter().chain(traces.iter().map(Trace::line)).collect();
        let record = Record::parse(text.as_bytes());
        assert!(record.whole && record.masqueraded && record.host_ports && record.limits);
        assert_eq!(record.scratch.as_deref(), Some("/var/lib/cni/flannel/c1"));
        assert_eq!((record.host.as_deref(), record.pod.as_deref()), (Some("4:7"), Some("default/web")));
        assert_eq!(record.folder.as_deref(), Some("/var/lib/cni/networks/a b"));
        assert_eq!(record.pods(), [pod("10.1.0.2"), pod("fd00::2")]);
        assert_eq!(Attachment::in_record("n", text.as_bytes()), Some(who("c1", "eth0")));
        let moved = format!("{text}folder /elsewhere\naddress 0 10.9.0.2/24\n");
        assert_eq!(Record::parse(moved.as_bytes()).pods(), [pod("10.9.0.2")]);
        let cut = format!("{begun}address 0 10.1.0.2/2");
        assert!(Record::parse(cut.as_bytes()).addresses.is_empty());
        for garbage in ["", "\0\0", "{}", "address 0 x/1\nfolder relative\naddress\n"] {
            assert_eq!(Record::parse(garbage.as_bytes()), Record::default(), "{garbage:?}");
        }
    }

    #[test]
    fn only_a_complete_record_is_closed() {
        let begun = format!("{}masquerade\nlimits\n", Record::begin(&who("c1", "eth0")));
        let text = format!("{begun}{}", Record::end(begun.len()));
        assert!(Record::parse(text.as_bytes()).closed);
        for cut in 0..text.len() {
            assert!(!Record::parse(&text.as_bytes()[..cut]).closed, "{cut}");
        }
        assert!(!Record::parse(text.replace("limits\n", "").as_bytes()).closed, "a line is missing");
        let again = format!("{text}folder /elsewhere\n");
        assert!(!Record::parse(again.as_bytes()).closed, "another ADD has begun");
        let closed = format!("{again}{}", Record::end(again.len()));
        assert!(Record::parse(closed.as_bytes()).closed);
        assert!(!Record::parse(Record::end(0).as_bytes()).closed, "garbled");
    }

    #[test]
    fn names_differ_and_stay_in_the_folder() {
        assert_eq!(who("c1", "eth0").record_name(), "c1-eth0");
        assert_eq!(Attachment::of_record("n", "a-b-eth0"), Some(who("a-b", "eth0")));
        assert_ne!(who("a", "b-c").record_name(), who("a-b", "c").record_name());
        let long = who(&"x".repeat(300), "eth0").record_name();
        assert!(long.starts_with('#') && long.len() < 40, "{long}");
        assert_eq!(Attachment::of_record("n", &long), None);
        assert!(!who("../../x", "eth0").record_name().contains('/'));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(content: Vec<u8>) {
            let _ = (Record::parse(&content), Attachment::in_record("n", &content));
        }
    }
}
