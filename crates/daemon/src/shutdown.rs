//! The end of a daemon.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The wish that the daemon ends, from SIGTERM or SIGINT.
///
/// The first signal asks, and further ones change nothing: what the daemon is doing it finishes. Clones share
/// the wish.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<bool>);

impl Shutdown {
    fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// A wish uttered by SIGTERM or SIGINT. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// A signal handler could not be installed.
    pub fn on_signals() -> io::Result<Self> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = Self::new();
        let heard = shutdown.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "asked to end");
            heard.request();
        });
        Ok(shutdown)
    }

    fn request(&self) {
        self.0.send_replace(true);
    }

    /// Returns once the end was asked for.
    pub async fn requested(&self) {
        // This handle holds a sender, so that the channel cannot close under us.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_clones_wait_until_the_end_is_asked_for() {
        let shutdown = Shutdown::new();
        let early = tokio::time::timeout(Duration::from_secs(60), shutdown.requested()).await;
        assert!(early.is_err(), "nobody asked");
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.requested().await }
        });
        shutdown.request();
        waiting.await.unwrap();
        shutdown.requested().await;
    }
}
