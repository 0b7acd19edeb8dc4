//! Messages to the service manager (`sd_notify(3)`); without `NOTIFY_SOCKET` they go nowhere.

use sd_notify::NotifyState;

/// Start-up is done: a unit of `Type=notify` becomes active.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&text.replace('\n', " "))]);
}

/// The daemon ends because it was asked to.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "failed to notify the service manager");
    }
}
