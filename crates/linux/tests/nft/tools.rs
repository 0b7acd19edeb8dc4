//! What the `nft` tool sends and lists, in a form that can be compared.

use std::fmt;

use serde_json::Value as Json;
use testkit::{Netns, TempDir, netns_or_skip};

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A namespace of the test's own, or nothing where there can be none.
pub(crate) fn namespace() -> Option<Netns> {
    netns_or_skip()
}

/// What `nft -f` sends for `text`, taken from strace's dump of what it writes.
pub(crate) fn theirs(ns: &Netns, text: &str) -> Result<Vec<u8>> {
    let dir = TempDir::new("nft")?;
    let (file, trace) = (dir.write("rules.nft", text)?, dir.path().join("trace"));
    let line =
        format!("strace -e trace=sendmsg -e write=all -o {} nft -f {}", trace.display(), file.display());
    ns.cmd(line).ok()?;
    let trace = std::fs::read_to_string(trace)?;
    let dumped = trace.lines().filter_map(|line| line.strip_prefix(" | "));
    Ok(dumped.flat_map(hex_of_line).collect())
}

/// `00000  14 00 00 00 10 00 01 00  ...  ......`
fn hex_of_line(line: &str) -> Vec<u8> {
    let columns = line.get(7..55).unwrap_or_default();
    columns.split_whitespace().filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}

/// One netlink message without its sequence number and port, which prints as a tree of attributes.
#[derive(PartialEq, Eq)]
pub(crate) struct Sent {
    kind: u16,
    flags: u16,
    family: Vec<u8>,
    body: Vec<u8>,
}

/// The messages of a batch. The request for an answer is not compared: `nft` asks for one in another way.
pub(crate) fn batch_of(mut bytes: &[u8]) -> Vec<Sent> {
    const ACK: u16 = 4;
    let mut all = Vec::new();
    while bytes.len() >= 20 {
        let length = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
        let body = joined(attributes(&bytes[20..length], false));
        all.push(Sent { kind: half(4), flags: half(6) & !ACK, family: bytes[16..20].to_vec(), body });
        bytes = &bytes[length.next_multiple_of(4)..];
    }
    all
}

/// The attributes in `bytes`: kind and everything. libmnl leaves whatever was there between the end of a value
/// and the next; here it is zero.
fn attributes(mut bytes: &[u8], sort: bool) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])).max(4);
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]);
        let value = &bytes[4..length];
        let value = if kind & 0x8000 != 0 { joined(attributes(value, sort)) } else { value.to_vec() };
        let mut whole = [&bytes[..4], &value].concat();
        whole.resize(length.next_multiple_of(4), 0);
        all.push((kind & 0x3fff, whole));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    if sort {
        // Equal kinds (the entries of a list) stay in order.
        all.sort_by_key(|(kind, _)| *kind);
    }
    all
}

fn joined(attributes: Vec<(u16, Vec<u8>)>) -> Vec<u8> {
    attributes.into_iter().flat_map(|(_, bytes)| bytes).collect()
}

impl Sent {
    /// The message with its attributes in the order of their kinds, without some of them, and without the
    /// flags that say what to do if the object is there already.
    pub(crate) fn sorted_without(&self, without: &[u16]) -> Self {
        const APPEND: u16 = 0x800;
        const EXCL: u16 = 0x200;
        let mut sorted = attributes(&self.body, true);
        sorted.retain(|(kind, _)| !without.contains(kind));
        let body = joined(sorted);
        Self { flags: self.flags & !(APPEND | EXCL), family: self.family.clone(), body, ..*self }
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, flags, family, .. } = self;
        writeln!(f, "message {}:{} flags {flags:#x} family {family:?}", kind >> 8, kind & 0xff)?;
        tree(f, &self.body, 1)
    }
}

fn tree(f: &mut fmt::Formatter<'_>, mut bytes: &[u8], depth: usize) -> fmt::Result {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])).clamp(4, bytes.len());
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]);
        let indent = "  ".repeat(depth);
        if kind & 0x8000 != 0 {
            writeln!(f, "{indent}{}:", kind & 0x3fff)?;
            tree(f, &bytes[4..length], depth + 1)?;
        } else {
            let hex: String = bytes[4..length].iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(f, "{indent}{kind} = {hex} {:?}", String::from_utf8_lossy(&bytes[4..length]))?;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// A listing of `nft -j` without what differs from load to load: handles, and the order of elements.
pub(crate) fn without_handles(json: &Json) -> Json {
    match json {
        Json::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| *name != "handle" && *name != "metainfo");
            kept.map(|(name, value)| {
                let mut value = without_handles(value);
                if let (true, Json::Array(elements)) = (name == "elem", &mut value) {
                    elements.sort_by_key(ToString::to_string);
                }
                (name.clone(), value)
            })
            .collect()
        }
        Json::Array(values) => values.iter().map(without_handles).collect(),
        other => other.clone(),
    }
}
