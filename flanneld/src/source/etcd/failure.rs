//! What went wrong with a call, and whether another member may do better.

use etcd_client::Error;

/// A call failed on every member that was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// No member answers.
    #[error("etcd does not answer: {0}")]
    Unreachable(String),
    /// Members answer, but none of them can serve: no leader, no space.
    #[error("etcd can't serve: {0}")]
    Unable(String),
    /// A member answers that it will not, or the files to reach it by are no good.
    #[error("etcd at {endpoint} can't be used: {cause}")]
    Refused {
        /// Its URL.
        endpoint: String,
        /// Its words.
        cause: String,
    },
}

impl Failure {
    /// `causes` are endpoints with what went wrong there.
    pub(super) fn unreachable(causes: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut answered = false;
        let mut lines = Vec::new();
        for (url, cause) in causes {
            answered |= cause.starts_with("etcdserver: ");
            lines.push(format!("{url}: {cause}"));
        }
        let causes = lines.join("; ");
        if answered { Self::Unable(causes) } else { Self::Unreachable(causes) }
    }

    pub(super) fn refused(endpoint: &str, cause: String) -> Self {
        Self::Refused { endpoint: endpoint.to_owned(), cause }
    }
}

/// What one member's failure means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ask another one.
    Away(String),
    /// Another one would say the same.
    Refused(String),
    /// So would it here: the user may not do that.
    Denied(String),
}

/// Numbers of gRPC's status codes (google.rpc.Code).
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// What a failure of etcd's client means.
pub(super) fn judge(error: &Error) -> Verdict {
    match error {
        Error::GRpcStatus(status) => {
            let cause = std::error::Error::source(status).map_or_else(|| status.message().to_owned(), root);
            match i32::from(status.code()) {
                code::PERMISSION_DENIED => Verdict::Denied(cause),
                code::INVALID_ARGUMENT | code::FAILED_PRECONDITION | code::UNAUTHENTICATED => {
                    Verdict::Refused(cause)
                }
                _ => Verdict::Away(cause),
            }
        }
        Error::TransportError(error) => Verdict::Away(root(error)),
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Verdict::Refused(one_line(&error.to_string()))
        }
        other => Verdict::Away(one_line(&other.to_string())),
    }
}

/// The innermost cause, which is the one that says something ("Connection refused", "invalid peer
/// certificate"), on one line.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    let text = one_line(&innermost.to_string());
    if text.is_empty() { one_line(&error.to_string()) } else { text }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_that_it_cannot_is_not_called_silent() {
        let says = |causes: &[(&str, &str)]| {
            let causes = causes.iter().map(|(url, cause)| ((*url).to_owned(), (*cause).to_owned()));
            Failure::unreachable(causes).to_string()
        };
        assert_eq!(says(&[("a", "refused")]), "etcd does not answer: a: refused");
        assert_eq!(
            says(&[("a", "etcdserver: no leader"), ("b", "refused")]),
            "etcd can't serve: a: etcdserver: no leader; b: refused"
        );
    }
}
