//! What went wrong, on which object, and what to do about it.

use std::io;

use rustix::io::Errno;

/// A request that the kernel refused, or that could not be put to it.
///
/// The text is what was tried and on what ("failed to add route 10.244.3.0/24 via 10.244.3.0 dev
/// flannel.1"); the reason is the `source`.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {object}")]
pub struct Error {
    /// What was tried: "add", "delete", "list", ...
    pub verb: &'static str,
    /// On what: kind and identity of the object.
    pub object: String,
    /// Why it failed.
    #[source]
    pub cause: Cause,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused and said why in words as well (extended acknowledgement, `NLMSGERR_ATTR_MSG`).
    #[error("{errno}: {text}")]
    Refused {
        /// The error number.
        errno: io::Error,
        /// The kernel's own words.
        text: String,
    },
    /// A system call failed, or the kernel refused with a bare error number.
    #[error(transparent)]
    Errno(io::Error),
    /// The kernel lacks a feature, which this names.
    #[error("the kernel has no {0}, nor a module for it")]
    Lacking(&'static str),
    /// The receive buffer was too small (ENOBUFS): answers or events are lost, so the state of the kernel
    /// is unknown and must be read again.
    #[error("the kernel's answers overran the receive buffer; what it holds must be read again")]
    Overrun,
    /// Each of several dumps was marked as inconsistent by the kernel (`NLM_F_DUMP_INTR`).
    #[error("the list kept changing while it was read")]
    KeptChanging,
    /// The kernel did not answer in time.
    #[error("the kernel did not answer within {0} seconds")]
    NoAnswer(u64),
    /// The answer could not be understood.
    #[error("the kernel's answer is garbled: {0}")]
    Garbled(String),
}

/// What a caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Repeat at once: the state was changing.
    Now,
    /// Read the kernel's state again, then decide: the object is there already, or gone.
    AfterObserving,
    /// Repeat after a pause.
    Backoff,
    /// Don't repeat: the privilege or the kernel feature is missing.
    Never,
}

impl Cause {
    /// From a positive error number as the kernel reports it, with its words where it gave some.
    pub(crate) fn refused(number: i32, text: Option<String>) -> Self {
        // MAX_ERRNO of the kernel.
        if !(1..4096).contains(&number) {
            return Self::Garbled(format!("{number} is not an error number"));
        }
        if number == libc::EOPNOTSUPP && text.as_deref() == Some("Unknown device type") {
            return Self::Lacking("interface of this kind");
        }
        let errno = io::Error::from_raw_os_error(number);
        match text {
            Some(text) => Self::Refused { errno, text },
            None => Self::Errno(errno),
        }
    }

    /// The error number, where there is one.
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } | Self::Errno(errno) => errno.raw_os_error(),
            Self::Lacking(_) => Some(libc::EOPNOTSUPP),
            Self::Overrun => Some(libc::ENOBUFS),
            Self::KeptChanging | Self::NoAnswer(_) | Self::Garbled(_) => None,
        }
    }

    /// The same cause once more, for each request that shared one send.
    pub(crate) fn duplicate(&self) -> Self {
        let again = |errno: &io::Error| {
            errno.raw_os_error().map_or_else(|| errno.kind().into(), io::Error::from_raw_os_error)
        };
        match self {
            Self::Refused { errno, text } => Self::Refused { errno: again(errno), text: text.clone() },
            Self::Errno(errno) => Self::Errno(again(errno)),
            Self::Lacking(feature) => Self::Lacking(feature),
            Self::Overrun => Self::Overrun,
            Self::KeptChanging => Self::KeptChanging,
            Self::NoAnswer(seconds) => Self::NoAnswer(*seconds),
            Self::Garbled(text) => Self::Garbled(text.clone()),
        }
    }
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        if errno == Errno::NOBUFS { Self::Overrun } else { Self::Errno(errno.into()) }
    }
}

impl Error {
    /// An error about `object` while trying to `verb` it.
    pub fn new(verb: &'static str, object: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self { verb, object: object.into(), cause: cause.into() }
    }

    /// The same error, but where its number is `errno` it means that the kernel lacks `feature`.
    pub(crate) fn lacking(mut self, errno: i32, feature: &'static str) -> Self {
        if self.raw_os_error() == Some(errno) {
            self.cause = Cause::Lacking(feature);
        }
        self
    }

    /// The raw error number (errno(3)), where the kernel gave one.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.cause.errno()
    }

    /// The object exists already (EEXIST).
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.cause.errno() == Some(libc::EEXIST)
    }

    /// The object does not exist: ENOENT, ESRCH (routes), ENODEV (links), ENXIO, or EADDRNOTAVAIL
    /// (addresses).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        let absent = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::ENXIO, libc::EADDRNOTAVAIL];
        self.cause.errno().is_some_and(|errno| absent.contains(&errno))
    }

    /// The privilege is missing (EPERM, EACCES).
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self.cause.errno(), Some(libc::EPERM | libc::EACCES))
    }

    /// The kernel lacks the feature (EOPNOTSUPP, EAFNOSUPPORT, EPROTONOSUPPORT).
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self.cause.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT))
    }

    /// Answers or events were lost: the state of the kernel must be read again.
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        matches!(self.cause, Cause::Overrun)
    }

    /// The nftables rules were changed since the generation that the request named (ERESTART).
    #[must_use]
    pub fn is_overtaken(&self) -> bool {
        self.cause.errno() == Some(libc::ERESTART)
    }

    /// What to do next.
    #[must_use]
    pub fn retry(&self) -> Retry {
        if matches!(self.cause, Cause::KeptChanging) {
            Retry::Now
        } else if self.is_overrun() || self.is_exists() || self.is_not_found() {
            Retry::AfterObserving
        } else if self.is_permission() || self.is_unsupported() {
            Retry::Never
        } else {
            Retry::Backoff
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn the_text_is_the_attempt_and_the_source_is_the_reason() {
        let cause = Cause::refused(101, Some("Nexthop has invalid gateway".to_owned()));
        let error = Error::new("add", "route 10.244.3.0/24 via 10.244.3.0 dev flannel.1", cause);
        assert_eq!(error.to_string(), "failed to add route 10.244.3.0/24 via 10.244.3.0 dev flannel.1");
        assert_eq!(
            error.source().unwrap().to_string(),
            "Network is unreachable (os error 101): Nexthop has invalid gateway"
        );
        assert_eq!(error.retry(), Retry::Backoff);
    }

    #[test]
    fn an_error_knows_what_to_do_next() {
        let with = |errno: Errno| Error::new("add", "link x", Cause::refused(errno.raw_os_error(), None));
        assert!(with(Errno::EXIST).is_exists() && with(Errno::SRCH).is_not_found());
        assert_eq!(with(Errno::EXIST).retry(), Retry::AfterObserving);
        assert_eq!(with(Errno::PERM).retry(), Retry::Never);
        assert_eq!(with(Errno::OPNOTSUPP).retry(), Retry::Never);
        assert_eq!(with(Errno::BUSY).retry(), Retry::Backoff);
        assert_eq!(Error::new("list", "links", Cause::KeptChanging).retry(), Retry::Now);
        assert!(Error::new("list", "links", Errno::NOBUFS).is_overrun());
    }
}
