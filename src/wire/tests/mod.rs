//! Both worlds run these: loopback sockets, and madsim's.

mod bytes_in;
mod faults;
#[cfg(feature = "sim")]
mod hooks;
mod roundtrips;

use super::frame::{Decoder, Frame, FrameLimits, Head, Kind, encode};
use super::server::Answer;
use super::*;
use crate::checksum::crc32c;
use crate::limits::Limits;
use crate::pb;
use crate::seam;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(20);
const CLUSTER: Uuid = Uuid([7; 16]);

fn who(role: Role, node: u64) -> Identity {
    Identity { cluster: Some(CLUSTER), role, node, incarnation: 99 }
}

fn limits() -> Arc<Limits> {
    Arc::new(Limits::production())
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Answers in ways that tests ask for by the method and the request's fields.
#[derive(Default)]
struct Echo {
    running: AtomicUsize,
    running_max: AtomicUsize,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// Counts a handler from its start to its end or drop.
struct Running(Arc<Echo>);

impl Running {
    fn new(echo: &Arc<Echo>) -> Running {
        echo.begun.fetch_add(1, Ordering::SeqCst);
        let now = echo.running.fetch_add(1, Ordering::SeqCst) + 1;
        echo.running_max.fetch_max(now, Ordering::SeqCst);
        Running(echo.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Handler for Echo {
    fn handle(self: Arc<Self>, peer: Arc<Peer>, request: Incoming) -> Answer {
        Box::pin(async move {
            let running = Running::new(&self);
            let answer = echo(&peer, request).await;
            running.0.ended.fetch_add(1, Ordering::SeqCst);
            answer
        })
    }

    fn admit(&self, peer: &Identity) -> Result<(), Refusal> {
        match peer.incarnation {
            13 => Err(Refusal::new(RefusalCode::WrongIncarnation, "thirteen is not welcome")),
            _ => Ok(()),
        }
    }
}

async fn echo(peer: &Peer, request: Incoming) -> Result<Outgoing, Refusal> {
    match request.method {
        calls::Leader::METHOD => {
            let millis = request.deadline.since(seam::now()).as_millis() as u64;
            let address = peer.address.clone();
            let reply = pb::LeaderReply {
                leader: peer.identity.node,
                address,
                term: millis,
                masters: vec![],
            };
            Ok(Outgoing::new::<calls::Leader>(&reply).with_payload(vec![request.payload]))
        }
        calls::Keepalive::METHOD => {
            let session = request.decode::<calls::Keepalive>()?.session;
            tokio::time::sleep(ms(session)).await;
            Ok(Outgoing::new::<calls::Keepalive>(&pb::KeepaliveReply { errno: 0, ttl_ms: session }))
        }
        calls::CloseSession::METHOD => {
            let code = request.decode::<calls::CloseSession>()?.session as u16;
            Err(Refusal::new(RefusalCode::from_wire(code), format!("code {code}")))
        }
        calls::Append::METHOD => {
            let crc = request.decode::<calls::Append>()?.crcs[0];
            assert_eq!(crc, crc32c(&request.payload));
            let length = request.payload.len() as u64;
            Ok(Outgoing::new::<calls::Append>(&pb::AppendReply { length, incarnation: 0 }))
        }
        calls::Read::METHOD => {
            let len = request.decode::<calls::Read>()?.len as usize;
            let piece = Bytes::from(vec![0x5a; len.min(100_000)]);
            let pieces = (0..len).step_by(100_000).map(|at| piece.slice(..(len - at).min(100_000)));
            let reply = pb::ReadReply { crcs: vec![], offset: 0, length: len as u64 };
            Ok(Outgoing::new::<calls::Read>(&reply).with_payload(pieces.collect()))
        }
        calls::Stat::METHOD => {
            request.memory.pass_on();
            std::future::pending().await
        }
        method => Err(Refusal::not_served(method)),
    }
}

async fn serve_with(limits: Arc<Limits>) -> (Server, String, Arc<Echo>) {
    let echo = Arc::new(Echo::default());
    let me = who(Role::Master, 5);
    let server = Server::start("127.0.0.1:0", me, limits, echo.clone()).await.unwrap();
    let address = server.local_addr().to_string();
    (server, address, echo)
}

async fn serve() -> (Server, String, Arc<Echo>) {
    serve_with(limits()).await
}

fn pool() -> Arc<Pool> {
    Pool::new(who(Role::Client, 3), limits())
}

async fn ask(pool: &Arc<Pool>, address: &str) -> Result<pb::LeaderReply, CallError> {
    let asked = pool.call::<calls::Leader>(address, &pb::LeaderRequest {}, vec![], LONG).await;
    asked.map(|(reply, _)| reply)
}

async fn keepalive(
    pool: &Arc<Pool>,
    address: &str,
    sleep_ms: u64,
    deadline: Duration,
) -> Result<u64, CallError> {
    let request = pb::KeepaliveRequest { session: sleep_ms };
    let answer = pool.call::<calls::Keepalive>(address, &request, vec![], deadline).await;
    answer.map(|(reply, _)| reply.ttl_ms)
}

/// A peer made of bytes.
struct Raw {
    io: TcpStream,
    decoder: Decoder,
}

impl Raw {
    fn new(io: TcpStream) -> Raw {
        Raw { io, decoder: Decoder::new(FrameLimits::FULL) }
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// The next frame, `None` at the end of the stream.
    async fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.decoder.target()).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// A connection that has said hello.
    async fn greeted(address: &str) -> Raw {
        let mut raw = Raw::new(TcpStream::connect(address).await.unwrap());
        raw.send(&hello_bytes()).await.unwrap();
        assert_eq!(raw.receive().await.unwrap().kind, Kind::Hello);
        raw
    }

    /// Whether the peer closes within a while, whatever it says before.
    async fn closes(&mut self) -> bool {
        let ended = async { while self.receive().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(5), ended).await.is_ok()
    }
}

fn hello_bytes() -> Vec<u8> {
    let hello = pb::Hello { role: pb::NodeRole::Client as i32, node: 1, ..pb::Hello::default() };
    encode(Head::bare(Kind::Hello, 0), &hello.encode_to_vec()).to_vec()
}

fn request<C: Call>(id: u64, message: &C::Request) -> Vec<u8> {
    let head = Head { method: C::METHOD, deadline_ms: 20_000, ..Head::bare(Kind::Request, id) };
    encode(head, &message.encode_to_vec()).to_vec()
}

/// Listens, greets one dialler, and hands the connection over.
async fn raw_server() -> (String, impl Future<Output = Raw>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let greeted = async move {
        let mut raw = Raw::new(listener.accept().await.unwrap().0);
        assert_eq!(raw.receive().await.unwrap().kind, Kind::Hello);
        raw.send(&hello_bytes()).await.unwrap();
        raw
    };
    (address, greeted)
}
