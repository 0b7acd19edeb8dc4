//! The end of a daemon.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Asked,
    Hurried,
}

/// The wish that the daemon ends, from SIGTERM, SIGINT or [`Shutdown::request`].
///
/// The first signal asks; work in progress is finished. The second one hurries: nothing is waited
/// for any more. Clones share the wish.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<Stage>);

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A wish that only [`request`](Self::request) can utter.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(Stage::Running))
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
            loop {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "asked to end");
                heard.request();
            }
        });
        Ok(shutdown)
    }

    /// Asks for the end; from the second call on, hurries it.
    pub fn request(&self) {
        self.0.send_modify(|stage| {
            *stage = if *stage == Stage::Running { Stage::Asked } else { Stage::Hurried };
        });
    }

    /// The end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= Stage::Asked
    }

    /// Returns once the end was asked for.
    pub async fn requested(&self) {
        self.reached(Stage::Asked).await;
    }

    /// Waits for `work` after the end was asked for, no longer than `deadline` and not beyond a
    /// second signal. Whether the work was finished.
    pub async fn drain(&self, deadline: Duration, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = work => true,
            () = tokio::time::sleep(deadline) => {
                tracing::warn!(seconds = deadline.as_secs_f32(), "work was not finished in time; ending anyway");
                false
            }
            () = self.reached(Stage::Hurried) => false,
        }
    }

    async fn reached(&self, wanted: Stage) {
        // This handle holds a sender, so that the channel cannot close under us.
        let _ = self.0.subscribe().wait_for(|stage| *stage >= wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_request_asks_and_the_second_hurries() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_requested());
        shutdown.request();
        shutdown.requested().await;
        assert!(shutdown.drain(Duration::from_secs(5), async {}).await);
        let hurry = shutdown.clone();
        tokio::spawn(async move { hurry.request() });
        assert!(!shutdown.drain(Duration::from_secs(60), std::future::pending()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_ends_at_the_deadline() {
        let shutdown = Shutdown::new();
        shutdown.request();
        assert!(!shutdown.drain(Duration::from_secs(3), std::future::pending()).await);
    }
}
