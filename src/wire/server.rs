//! The accepting side: listens, greets, and gives each connection a task.

use super::hello::{self, Greeter, HelloError};
use super::serve::Serving;
use super::{Identity, Incoming, Outgoing, Peer, Refusal};
use crate::limits::Limits;
use crate::seam;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// What a handler's answer is.
pub type Answer = Pin<Box<dyn Future<Output = Result<Outgoing, Refusal>> + Send>>;

/// Answers the calls of a server's peers.
///
/// An answer that is ready when first polled costs no task and no wake-up. One that is not runs on inside the
/// connection's task, beside the connection's other calls; it is polled to its end also when the caller has
/// gone, and dropped at an await only when the deadline is long over or the server has stopped. So it must not
/// block the thread, and must leave nothing half done when dropped.
pub trait Handler: Send + Sync + 'static {
    /// Begins to answer.
    fn handle(self: Arc<Self>, peer: Arc<Peer>, request: Incoming) -> Answer;

    /// Whether a peer is welcome; asked at its hello, after cluster and version were found to agree.
    fn admit(&self, _peer: &Identity) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What the tasks of a server share.
pub(super) struct Shared {
    pub identity: Mutex<Identity>,
    pub limits: Arc<Limits>,
    pub handler: Arc<dyn Handler>,
    /// Bytes of long requests that may be received now.
    pub receiving: Arc<Semaphore>,
}

impl Shared {
    pub fn identity(&self) -> Identity {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listening socket with its connections.
pub struct Server {
    local: SocketAddr,
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    stop: watch::Sender<bool>,
    accepting: seam::work::JoinHandle<()>,
}

impl Server {
    /// Listens on `listen` (`host:port`, port 0 takes a free one) and answers until stopped or dropped.
    pub async fn start(
        listen: &str,
        identity: Identity,
        limits: Arc<Limits>,
        handler: Arc<dyn Handler>,
    ) -> io::Result<Server> {
        let context =
            |error: io::Error| io::Error::new(error.kind(), format!("listen on {listen}: {error}"));
        let listener = TcpListener::bind(listen).await.map_err(context)?;
        let local = listener.local_addr().map_err(context)?;
        let room = Arc::new(Semaphore::new(limits.connections_max));
        let receiving = Arc::new(Semaphore::new(limits.receive_bytes_max));
        let shared = Shared { identity: Mutex::new(identity), limits, handler, receiving };
        let shared = Arc::new(shared);
        let (stop, stopped) = watch::channel(false);
        let accepting = seam::spawn(accept(listener, shared.clone(), room.clone(), stopped));
        Ok(Server { local, shared, room, stop, accepting })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What connections from now on are told, for a node that learns its cluster or number while running.
    pub fn set_identity(&self, identity: Identity) {
        *self.shared.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.limits.connections_max - self.room.available_permits()
    }

    /// Stops listening, reads no more requests, lets handlers finish for [`Limits::drain_max`], and closes.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let _ = (&mut self.accepting).await;
        let all = u32::try_from(self.shared.limits.connections_max).unwrap_or(u32::MAX);
        let patience = self.shared.limits.drain_max * 2 + Duration::from_secs(1);
        if tokio::time::timeout(patience, self.room.acquire_many(all)).await.is_err() {
            tracing::warn!(local = %self.local, "connections did not end in time");
        }
    }
}

/// One that is not stopped in order listens no longer either.
impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: connections that end make room.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            crate::mark!("connection over the limit closed");
            tracing::warn!(%from, "too many connections: closed");
            continue;
        };
        seam::spawn(serve(stream, from.to_string(), shared.clone(), stopped.clone(), permit));
    }
}

async fn serve(
    mut stream: TcpStream,
    address: String,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let mut decoder = hello::decoder();
    let me = shared.identity();
    let greeter = Greeter { io: &mut stream, decoder: &mut decoder, me, remote: &address };
    let greeting = greeter.accept(|peer| shared.handler.admit(peer));
    let greeted = tokio::select! {
        biased;
        _ = stopped.wait_for(|stop| *stop) => return,
        greeted = tokio::time::timeout(shared.limits.connect_deadline, greeting) => greeted,
    };
    match greeted {
        Ok(Ok(identity)) => {
            let peer = Arc::new(Peer { identity, address });
            Serving::new(stream, decoder, me, peer, shared).run(stopped, permit).await;
        }
        Ok(Err(HelloError::Io(why))) => tracing::debug!(from = %address, %why, "handshake"),
        Ok(Err(error)) => tracing::warn!(from = %address, %error, "handshake"),
        Err(_) => tracing::debug!(from = %address, "no hello in time"),
    }
}
