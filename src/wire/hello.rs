//! The handshake: the dialler says who it is and whom it expects, the other side answers with who it is or
//! with a refusal. Whoever refuses says why to the other and to itself.

use super::frame::{self, Decoder, Frame, FrameError, FrameLimits, Head, Kind};
use super::hook::{self, FrameInfo, Verdict};
use super::out::{OutFrame, OutQueue};
use super::{Identity, Refusal, RefusalCode, Role};
use crate::ids::Uuid;
use crate::pb;
use bytes::Bytes;
use prost::Message;
use std::future::poll_fn;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Whom the dialler expects at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expect {
    /// Which kind of node; `None`: any.
    pub role: Option<Role>,
    /// Which node; 0: any.
    pub node: u64,
}

impl Expect {
    fn check(&self, who: &Identity) -> Result<(), Refusal> {
        let role_fits = self.role.is_none_or(|role| role == who.role);
        if role_fits && (self.node == 0 || self.node == who.node) {
            return Ok(());
        }
        let role = self.role.unwrap_or(who.role);
        let message =
            format!("{role:?} {} was expected, {:?} {} answers", self.node, who.role, who.node);
        Err(Refusal::new(RefusalCode::WrongNode, message))
    }
}

fn same_cluster(mine: &Identity, theirs: &Identity) -> Result<(), Refusal> {
    match (mine.cluster, theirs.cluster) {
        (Some(mine), Some(theirs)) if mine != theirs => Err(Refusal::new(
            RefusalCode::WrongCluster,
            format!("this node belongs to cluster {mine}, the peer to {theirs}"),
        )),
        _ => Ok(()),
    }
}

impl Role {
    fn to_pb(self) -> pb::NodeRole {
        match self {
            Role::Master => pb::NodeRole::Master,
            Role::Chunkserver => pb::NodeRole::Chunkserver,
            Role::Client => pb::NodeRole::Client,
            Role::Tool => pb::NodeRole::Tool,
        }
    }

    fn from_pb(role: pb::NodeRole) -> Option<Role> {
        match role {
            pb::NodeRole::Unspecified => None,
            pb::NodeRole::Master => Some(Role::Master),
            pb::NodeRole::Chunkserver => Some(Role::Chunkserver),
            pb::NodeRole::Client => Some(Role::Client),
            pb::NodeRole::Tool => Some(Role::Tool),
        }
    }
}

fn hello(me: &Identity, expect: &Expect) -> Vec<u8> {
    let cluster = me.cluster.map_or(Bytes::new(), |uuid| Bytes::copy_from_slice(&uuid.0));
    pb::Hello {
        cluster,
        role: me.role.to_pb() as i32,
        node: me.node,
        incarnation: me.incarnation,
        expect_role: expect.role.map_or(0, |role| role.to_pb() as i32),
        expect_node: expect.node,
    }
    .encode_to_vec()
}

fn parse(body: &[u8]) -> Result<(Identity, Expect), Refusal> {
    let bad = |what: &str| Refusal::new(RefusalCode::BadRequest, format!("hello: {what}"));
    let hello = pb::Hello::decode(body).map_err(|error| bad(&error.to_string()))?;
    let role = Role::from_pb(hello.role()).ok_or_else(|| bad("unknown role"))?;
    let cluster = match hello.cluster.is_empty() {
        true => None,
        false => Some(Uuid::from_bytes(&hello.cluster).ok_or_else(|| bad("bad cluster id"))?),
    };
    let identity = Identity { cluster, role, node: hello.node, incarnation: hello.incarnation };
    let expect = Expect { role: Role::from_pb(hello.expect_role()), node: hello.expect_node };
    Ok((identity, expect))
}

/// How a handshake failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HelloError {
    /// The connection broke.
    #[error("{0}")]
    Io(String),
    /// The peer will not have us.
    #[error("refused by the peer: {0}")]
    ByPeer(Refusal),
    /// We will not have the peer.
    #[error("refused: {0}")]
    ByUs(Refusal),
}

impl From<io::Error> for HelloError {
    fn from(error: io::Error) -> HelloError {
        HelloError::Io(error.to_string())
    }
}

/// What both sides need for a handshake.
pub struct Greeter<'a, S> {
    /// The connection.
    pub io: &'a mut S,
    /// Keeps what was read beyond the handshake.
    pub decoder: &'a mut Decoder,
    /// Who this process is.
    pub me: Identity,
    /// Where the peer is.
    pub remote: &'a str,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeter<'_, S> {
    /// The dialling side: who answers.
    pub async fn dial(mut self, expect: Expect) -> Result<Identity, HelloError> {
        self.send(Kind::Hello, 0, &hello(&self.me, &expect), None, true).await?;
        let (peer, _) = self.receive(false).await?;
        let verdict = same_cluster(&self.me, &peer).and_then(|()| expect.check(&peer));
        self.conclude(verdict, peer, true).await?;
        Ok(peer)
    }

    /// The accepting side: who calls. `admit` has the last word before the answer goes out.
    pub async fn accept(
        mut self,
        admit: impl Fn(&Identity) -> Result<(), Refusal>,
    ) -> Result<Identity, HelloError> {
        let (peer, expect) = self.receive(true).await?;
        let verdict = same_cluster(&self.me, &peer)
            .and_then(|()| expect.check(&self.me))
            .and_then(|()| admit(&peer));
        self.conclude(verdict, peer, false).await?;
        let answer = hello(&self.me, &Expect::default());
        self.send(Kind::Hello, 0, &answer, Some(peer), false).await?;
        Ok(peer)
    }

    /// Says the refusal, if it is one, to the peer, and returns it.
    async fn conclude(
        &mut self,
        verdict: Result<(), Refusal>,
        peer: Identity,
        dialling: bool,
    ) -> Result<(), HelloError> {
        let Err(refusal) = verdict else { return Ok(()) };
        self.refuse(&refusal, Some(peer), dialling).await;
        Err(HelloError::ByUs(refusal))
    }

    async fn refuse(&mut self, refusal: &Refusal, peer: Option<Identity>, dialling: bool) {
        let message = refusal.message.as_bytes();
        // The connection ends anyway; a peer that does not hear why loses only the reason.
        let _ = self.send(Kind::Refusal, refusal.code as u16, message, peer, dialling).await;
    }

    async fn send(
        &mut self,
        kind: Kind,
        code: u16,
        body: &[u8],
        to: Option<Identity>,
        is_request: bool,
    ) -> Result<(), HelloError> {
        let head = Head { code, ..Head::bare(kind, 0) };
        let verdict = hook::on_send(&FrameInfo {
            kind,
            method: 0,
            is_request,
            request_id: 0,
            from: self.me,
            to,
            remote: self.remote,
            refusal: (kind == Kind::Refusal).then(|| RefusalCode::from_wire(code)),
            body,
            payload: &[],
        });
        apply(verdict).await?;
        if verdict == Verdict::Drop {
            return Ok(());
        }
        let mut out = OutQueue::default();
        out.push(OutFrame { id: 0, head: frame::encode(head, body), payload: Vec::new() });
        poll_fn(|cx| out.poll_write(&mut *self.io, cx)).await?;
        Ok(())
    }

    async fn receive(&mut self, is_request: bool) -> Result<(Identity, Expect), HelloError> {
        loop {
            let frame = self.read_frame(is_request).await?;
            if frame.kind == Kind::Refusal {
                let message = String::from_utf8_lossy(&frame.body).into_owned();
                let code = RefusalCode::from_wire(frame.code);
                return Err(HelloError::ByPeer(Refusal { code, message }));
            }
            if frame.kind != Kind::Hello {
                let refusal = Refusal::new(RefusalCode::BadRequest, "no hello before other frames");
                self.refuse(&refusal, None, !is_request).await;
                return Err(HelloError::ByUs(refusal));
            }
            let parsed = match parse(&frame.body) {
                Ok(parsed) => parsed,
                Err(refusal) => {
                    self.refuse(&refusal, None, !is_request).await;
                    return Err(HelloError::ByUs(refusal));
                }
            };
            let verdict = hook::on_recv(&FrameInfo {
                kind: frame.kind,
                method: 0,
                is_request,
                request_id: 0,
                from: parsed.0,
                to: Some(self.me),
                remote: self.remote,
                refusal: None,
                body: &frame.body,
                payload: &[],
            });
            apply(verdict).await?;
            if verdict != Verdict::Drop {
                return Ok(parsed);
            }
        }
    }

    async fn read_frame(&mut self, is_request: bool) -> Result<Frame, HelloError> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => {
                    let code = match error {
                        FrameError::Version(_) => RefusalCode::WrongVersion,
                        _ => RefusalCode::BadRequest,
                    };
                    let refusal = Refusal::new(code, error.to_string());
                    self.refuse(&refusal, None, !is_request).await;
                    return Err(HelloError::ByUs(refusal));
                }
            }
            if self.io.read_buf(&mut self.decoder.target()).await? == 0 {
                return Err(HelloError::Io("closed during the handshake".into()));
            }
        }
    }
}

/// A decoder for a new connection.
pub fn decoder() -> Decoder {
    Decoder::new(FrameLimits::HELLO)
}

async fn apply(verdict: Verdict) -> Result<(), HelloError> {
    match verdict {
        Verdict::Cut => Err(HelloError::Io("cut".into())),
        Verdict::Delay(time) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
        Verdict::Deliver | Verdict::Drop | Verdict::Duplicate => Ok(()),
    }
}
