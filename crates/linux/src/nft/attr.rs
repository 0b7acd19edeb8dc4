//! Attributes of netlink messages, written and read: length and kind (16 bits each), then the value, padded
//! to four bytes; a nest is an attribute whose value is attributes.

/// The value consists of attributes.
const NESTED: u16 = 0x8000;
/// What of a kind is its number; the rest are flags.
const KIND: u16 = 0x3fff;
/// Bytes of length and kind.
const HEADER: usize = 4;

/// Netlink messages being packed.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    /// Something is longer than the 16 bits of its length can say: the messages must not be sent.
    pub(super) is_too_long: bool,
}

/// Where something that has a length in front began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(usize);

impl Writer {
    /// The header that every message of netfilter has: family, version 0, number of a resource.
    pub(super) fn family_header(&mut self, family: u8, resource: u16) {
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    /// Begins a message; its length comes with [`end_message`](Self::end_message).
    pub(super) fn message(&mut self, kind: u16, flags: u16, sequence: u32) -> Mark {
        let mark = Mark(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        mark
    }

    pub(super) fn end_message(&mut self, mark: Mark) {
        // Messages are split long before 4 GiB.
        let length = (self.bytes.len() - mark.0) as u32;
        self.bytes[mark.0..mark.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sets further flags of the message that begins at `mark`.
    pub(super) fn add_flags(&mut self, mark: Mark, flags: u16) {
        for (byte, more) in self.bytes[mark.0 + 6..].iter_mut().zip(flags.to_ne_bytes()) {
            *byte |= more;
        }
    }

    pub(super) fn raw(&mut self, kind: u16, value: &[u8]) {
        let length = self.checked(HEADER + value.len());
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The length as it stands in front of an attribute.
    fn checked(&mut self, length: usize) -> u16 {
        u16::try_from(length).unwrap_or_else(|_| {
            self.is_too_long = true;
            u16::MAX
        })
    }

    pub(super) fn byte(&mut self, kind: u16, value: u8) {
        self.raw(kind, &[value]);
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    pub(super) fn be64(&mut self, kind: u16, value: u64) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// Text with a zero at its end.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.raw(kind, &value);
    }

    /// Begins a nest; its length comes with [`end_nest`](Self::end_nest).
    pub(super) fn begin_nest(&mut self, kind: u16) -> Mark {
        let mark = Mark(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        mark
    }

    pub(super) fn end_nest(&mut self, mark: Mark) {
        let length = self.checked(self.length_since(mark));
        self.bytes[mark.0..mark.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes written since `mark`.
    pub(super) fn length_since(&self, mark: Mark) -> usize {
        self.bytes.len() - mark.0
    }

    /// A nest that is filled by `fill`.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mark = self.begin_nest(kind);
        fill(self);
        self.end_nest(mark);
    }

    /// A nest that holds one value (`NFTA_DATA_VALUE`).
    pub(super) fn value(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |nest| nest.raw(super::numbers::DATA_VALUE, value));
    }
}

/// Attributes as they were received. A cut-off rest ends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// All attributes in order: kind and value.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (length, kind) = (half(rest, 0)?, half(rest, 2)?);
            let value = rest.get(HEADER..usize::from(length))?;
            rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
            Some((kind & KIND, value))
        })
    }

    pub(super) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes inside an attribute; none where that is absent.
    pub(super) fn nest(self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }

    pub(super) fn byte(self, kind: u16) -> Option<u8> {
        self.find(kind)?.first().copied()
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn be64(self, kind: u16) -> Option<u64> {
        self.find(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// Text up to its zero.
    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.find(kind)?;
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        std::str::from_utf8(&value[..end]).ok()
    }

    /// The one value in a nest (`NFTA_DATA_VALUE`).
    pub(super) fn value(self, kind: u16) -> Option<&'a [u8]> {
        self.nest(kind).find(super::numbers::DATA_VALUE)
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.text(1, "weft");
        writer.nest(2, |nest| {
            nest.byte(1, 7);
            nest.value(3, &[1, 2, 3]);
        });
        writer.be32(3, 0x0102_0304);
        let attributes = Attributes(&writer.bytes);
        assert_eq!(attributes.text(1), Some("weft"));
        assert_eq!(attributes.nest(2).byte(1), Some(7));
        assert_eq!(attributes.nest(2).value(3), Some(&[1, 2, 3][..]));
        assert_eq!(
            (attributes.be32(3), attributes.be32(4), attributes.be64(3)),
            (Some(0x0102_0304), None, None)
        );
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for bytes in [&[][..], &[4], &[3, 0, 1, 0], &[9, 0, 1, 0, 1, 2, 3, 4], &[0, 0, 0, 0]] {
            assert_eq!(Attributes(bytes).iter().count(), 0, "{bytes:?}");
        }
    }
}
