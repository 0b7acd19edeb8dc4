//! The frame around every netlink message (netlink(7)), and the answers of the kernel.

use netlink_packet_core::{
    NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NlasIterator,
};

use crate::Cause;

/// Bytes of a netlink header: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Set in an answer that carries attributes behind the error number (`NLM_F_ACK_TLVS`).
const ACK_HAS_ATTRIBUTES: u16 = netlink_packet_core::NLM_F_ACK_TLVS;
/// The kernel's own words in an extended acknowledgement (`NLMSGERR_ATTR_MSG`).
const EXTACK_TEXT: u16 = 1;

/// One message as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`: what it is about.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// The sequence number of the request that this answers; 0 in most events.
    pub sequence: u32,
    /// The port of the connection whose request this answers, or whose doing an event tells of.
    pub port: u32,
    /// What follows the netlink header: the header of the family (`rtmsg`, `nfgenmsg`, ...), then
    /// attributes.
    pub payload: &'a [u8],
}

/// What a message means to the requester.
#[derive(Debug)]
pub(super) enum Meaning<'a> {
    /// An object that was asked for, or an event.
    Object(Message<'a>),
    /// The request is done, or refused for that reason. A dump ends in the same way.
    Answer(Result<(), Cause>),
    /// The kernel lost messages.
    Overrun,
    /// Nothing to do.
    Padding,
}

/// Splits what one receive returned into messages. A cut-off rest ends it.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = u32_at(header, 0)? as usize;
        let payload = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(header, 4)?,
            flags: u16_at(header, 6)?,
            sequence: u32_at(header, 8)?,
            port: u32_at(header, 12)?,
            payload,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

impl<'a> Message<'a> {
    /// The kernel changed the list while this dump was being read.
    pub(super) fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    pub(super) fn meaning(self) -> Meaning<'a> {
        match self.kind {
            NLMSG_NOOP => Meaning::Padding,
            NLMSG_OVERRUN => Meaning::Overrun,
            NLMSG_ERROR => Meaning::Answer(self.answer(self.attributes_behind_error())),
            NLMSG_DONE => Meaning::Answer(self.answer(self.payload.get(4..))),
            _ => Meaning::Object(self),
        }
    }

    /// The verdict in an error or done message: a negative error number or 0.
    fn answer(&self, attributes: Option<&[u8]>) -> Result<(), Cause> {
        match self.payload.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number)) {
            // A done message may hold the length of the dump instead (a positive number).
            0.. => Ok(()),
            negative => {
                let text = attributes.filter(|_| self.flags & ACK_HAS_ATTRIBUTES != 0).and_then(extack_text);
                Err(Cause::refused(negative.saturating_neg(), text))
            }
        }
    }

    /// Where the attributes of an error message begin: behind the error number and the header of the
    /// refused request, and behind its body too unless the kernel left that out.
    fn attributes_behind_error(&self) -> Option<&'a [u8]> {
        let request = self.payload.get(4..4 + HEADER)?;
        let length = if self.flags & NLM_F_CAPPED != 0 { HEADER } else { u32_at(request, 0)? as usize };
        self.payload.get(4 + length.next_multiple_of(4)..)
    }
}

/// The kernel's own words among the attributes of an extended acknowledgement.
fn extack_text(attributes: &[u8]) -> Option<String> {
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == EXTACK_TEXT)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())
}

/// Appends one message with its header to `bytes`, padded to 4 bytes.
pub(super) fn append(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let length = HEADER + payload.len();
    // A length beyond 4 GiB would be cut off here; the send fails with EMSGSIZE long before.
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of the kernel: error number, header of the request, extended acknowledgement.
    fn refusal(flags: u16, body: &[u8], text: &str) -> Vec<u8> {
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        append(&mut payload, 24, 5, 7, body);
        if flags & NLM_F_CAPPED != 0 {
            payload.truncate(4 + HEADER);
        }
        payload.extend_from_slice(&(u16::try_from(4 + text.len()).unwrap() + 1).to_ne_bytes());
        payload.extend_from_slice(&EXTACK_TEXT.to_ne_bytes());
        payload.extend_from_slice(text.as_bytes());
        payload.push(0);
        let mut bytes = Vec::new();
        append(&mut bytes, NLMSG_ERROR, flags, 7, &payload);
        bytes
    }

    fn only_answer(bytes: &[u8]) -> Cause {
        let mut all = messages(bytes);
        let message = all.next().unwrap();
        assert_eq!((message.sequence, all.next()), (7, None));
        match message.meaning() {
            Meaning::Answer(Err(cause)) => cause,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_kernels_words_are_found_with_and_without_the_request() {
        for (flags, body) in
            [(NLM_F_CAPPED | ACK_HAS_ATTRIBUTES, &[1, 2, 3, 4][..]), (ACK_HAS_ATTRIBUTES, &[1, 2])]
        {
            let cause = only_answer(&refusal(flags, body, "Nexthop has invalid gateway"));
            assert_eq!(cause.to_string(), "Invalid argument (os error 22): Nexthop has invalid gateway");
        }
        assert_eq!(
            only_answer(&refusal(NLM_F_CAPPED, &[], "x")).to_string(),
            "Invalid argument (os error 22)"
        );
    }

    #[test]
    fn messages_are_split_at_four_bytes_and_a_cut_rest_is_left() {
        let mut bytes = Vec::new();
        append(&mut bytes, 20, 2, 1, &[1]);
        append(&mut bytes, NLMSG_DONE, 2, 1, &[0; 4]);
        append(&mut bytes, 20, 2, 2, &[1, 2, 3, 4]);
        bytes.pop();
        let kinds: Vec<_> = messages(&bytes).map(|m| (m.kind, m.payload.len())).collect();
        assert_eq!(kinds, [(20, 1), (NLMSG_DONE, 4)]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>, kind in 0_u16..4, flags: u16) {
            for message in messages(&bytes) {
                let _ = message.meaning();
            }
            let _ = Message { kind, flags, sequence: 1, port: 0, payload: &bytes }.meaning();
        }
    }

    #[test]
    fn an_impossible_error_number_is_garbled() {
        for number in [i32::MIN, -4096] {
            let payload = number.to_ne_bytes();
            let message = Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, port: 0, payload: &payload };
            assert!(matches!(message.meaning(), Meaning::Answer(Err(Cause::Garbled(_)))), "{number}");
        }
    }

    #[test]
    fn a_length_that_lies_ends_the_reading() {
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut bytes = Vec::new();
            append(&mut bytes, 20, 0, 1, &[]);
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "{length}");
        }
    }
}
