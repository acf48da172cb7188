//! Serves the administration over gRPC, to a bounded number of connections.

use super::Admin;
use crate::pb::admin_server::AdminServer as Service;
use crate::seam;
use futures_util::stream::{Stream, unfold};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tonic::transport::server::{Connected, Server, TcpConnectInfo};

/// Connections at once; more are closed.
const CONNECTIONS_MAX: usize = 256;
/// Calls at once on a connection.
const STREAMS_MAX: u32 = 32;
/// Longest request, bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest call, including the wait for a master to be admitted.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// A connection that does not answer a ping sent after this long, for as long, is closed.
const PING: Duration = Duration::from_secs(20);

/// What a connection must have sent within [`PREFACE_DEADLINE`], bytes: HTTP/2's preface. Before it nothing is asked
/// whether it lives.
const PREFACE_BYTES: usize = 24;
/// See [`PREFACE_BYTES`].
const PREFACE_DEADLINE: Duration = Duration::from_secs(5);

/// A listening gRPC service.
pub struct AdminServer {
    local: SocketAddr,
    stop: watch::Sender<bool>,
    serving: seam::work::JoinHandle<()>,
}

impl AdminServer {
    /// Serves `admin` on `listen` (`host:port`) until stopped or dropped.
    pub async fn start(admin: Admin, listen: &str) -> io::Result<AdminServer> {
        let context = |error: io::Error| {
            io::Error::new(error.kind(), format!("listen on {listen} (gRPC): {error}"))
        };
        let listener = TcpListener::bind(listen).await.map_err(context)?;
        let local = listener.local_addr().map_err(context)?;
        let (stop, mut stopped) = watch::channel(false);
        let service = Service::new(admin).max_decoding_message_size(REQUEST_BYTES_MAX);
        let server = Server::builder()
            .timeout(CALL_DEADLINE)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(16 << 10)
            .http2_keepalive_interval(Some(PING))
            .http2_keepalive_timeout(Some(PING))
            .add_service(service);
        let serving = seam::spawn(async move {
            let stopped = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            let served = server.serve_with_incoming_shutdown(accepted(listener), stopped).await;
            if let Err(error) = served {
                tracing::error!(%error, "the gRPC service ended");
            }
        });
        Ok(AdminServer { local, stop, serving })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Stops listening and lets calls under way finish for a moment.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let mut serving = self.serving;
        if tokio::time::timeout(Duration::from_secs(1), &mut serving).await.is_err() {
            serving.abort();
        }
    }
}

fn accepted(listener: TcpListener) -> impl Stream<Item = io::Result<Bounded>> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    unfold((listener, room), |(listener, room)| async move {
        loop {
            match listener.accept().await {
                Ok((io, from)) => match room.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let _ = io.set_nodelay(true);
                        return Some((Ok(Bounded::new(io, permit)), (listener, room)));
                    }
                    Err(_) => tracing::warn!(%from, "too many gRPC connections: closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "accept (gRPC)");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}

/// A connection that holds its place among all, once it has said something.
struct Bounded {
    io: TcpStream,
    /// Bytes of the preface that have not come, and until when they may; `None` afterwards.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
    _permit: OwnedSemaphorePermit,
}

impl Bounded {
    fn new(io: TcpStream, permit: OwnedSemaphorePermit) -> Bounded {
        let deadline = Box::pin(tokio::time::sleep(PREFACE_DEADLINE));
        Bounded { io, preface: Some((PREFACE_BYTES, deadline)), _permit: permit }
    }
}

impl Connected for Bounded {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.io.connect_info()
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let came = buf.filled().len() - before;
        match &mut self.preface {
            Some((left, _)) if came < *left => *left -= came,
            _ => self.preface = None,
        }
        if let Some((_, deadline)) = &mut self.preface
            && read.is_pending()
            && deadline.as_mut().poll(cx).is_ready()
        {
            crate::mark!("gRPC connection that says nothing closed");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
