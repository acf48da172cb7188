//! Administration: the public gRPC service. Any master takes a call; the leader carries it out, a follower
//! passes it on over the wire. Reads are linearizable, writes are idempotent: one whose outcome is unknown
//! may be repeated.

#[cfg(not(feature = "sim"))]
mod grpc;
mod ops;
mod status;
#[cfg(all(test, not(feature = "sim")))]
mod tests;

#[cfg(not(feature = "sim"))]
pub use grpc::AdminServer;

use super::Shared;
use super::rpc::must_lead;
use crate::errno::Errno;
use crate::ids::ServerId;
use crate::pb::{self, admin_answer::Answer, admin_call::Call};
use crate::raft::ProposeError;
use crate::tables::TableError;
use crate::wire::{CallError, Incoming, Outgoing, Refusal, RefusalCode, calls};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Response, Status};

/// How long a follower waits for the leader's answer; longer than the leader lets any call take.
const FORWARD_DEADLINE: Duration = Duration::from_secs(25);
/// How long the status waits for a leader before one master's own knowledge has to do.
const STATUS_DEADLINE: Duration = Duration::from_secs(3);

/// Why a call was not carried out: a gRPC code and one line for the administrator.
#[derive(Clone, Debug)]
struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    /// `what` the namespace said no to, and why.
    fn errno(what: &str, errno: Errno) -> Failure {
        let code = match errno {
            Errno::ENOENT | Errno::ENOTDIR => Code::NotFound,
            Errno::EINVAL | Errno::ENAMETOOLONG | Errno::EISDIR => Code::InvalidArgument,
            Errno::EEXIST => Code::AlreadyExists,
            Errno::ENOSPC => Code::ResourceExhausted,
            _ => Code::FailedPrecondition,
        };
        Failure::new(code, format!("{what}: {errno}"))
    }

    /// The tables could not be read: this master ends.
    fn broken(shared: &Shared, error: &TableError) -> Failure {
        shared.broken(error).into()
    }
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Failure {
        let code = match error {
            // Certainly not done, and worth another try.
            ProposeError::NotLeader(_) | ProposeError::Busy => Code::Unavailable,
            ProposeError::Refused(_) => Code::FailedPrecondition,
            ProposeError::Unknown(_) | ProposeError::Deadline => Code::Unknown,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let code = match refusal.code {
            RefusalCode::BadRequest => Code::FailedPrecondition,
            RefusalCode::Internal => Code::Unknown,
            _ => Code::Unavailable,
        };
        Failure::new(code, refusal.to_string())
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        Status::new(failure.code, failure.message)
    }
}

/// The service of one master.
#[derive(Clone)]
pub struct Admin {
    shared: Arc<Shared>,
}

impl Admin {
    pub(super) fn new(shared: Arc<Shared>) -> Admin {
        Admin { shared }
    }

    /// Active chunkservers that this master, if it leads, has not heard a whole report of: what their replicas
    /// lack it does not know.
    pub fn unreported(&self) -> Vec<ServerId> {
        status::unreported(&self.shared)
    }

    async fn call(&self, call: Call) -> Result<Answer, Failure> {
        if must_lead(&self.shared).is_ok() {
            return ops::carry_out(&self.shared, call).await;
        }
        let Some((node, address)) = self.shared.raft.leader() else {
            return Err(Failure::new(Code::Unavailable, "no leader is known: is a majority up?"));
        };
        if node == self.shared.raft.node() {
            return Err(Failure::new(Code::Unavailable, "the leader has just been elected"));
        }
        crate::mark!("administration passed on to the leader");
        self.forward(&address, call).await
    }

    async fn forward(&self, leader: &str, call: Call) -> Result<Answer, Failure> {
        let request = pb::AdminCall { call: Some(call) };
        let pool = &self.shared.pool;
        let answer = pool.call::<calls::Admin>(leader, &request, vec![], FORWARD_DEADLINE).await;
        let answer = match answer {
            Ok((answer, _)) => answer,
            Err(CallError::Refused(refusal)) => return Err(refusal.into()),
            Err(error) => {
                let unknown = error.outcome_unknown();
                let code = if unknown { Code::Unknown } else { Code::Unavailable };
                return Err(Failure::new(code, format!("leader {leader}: {error}")));
            }
        };
        match (Code::from_i32(answer.code), answer.answer) {
            (Code::Ok, Some(answer)) => Ok(answer),
            (Code::Ok, None) => Err(Failure::new(Code::Internal, "the leader's answer is empty")),
            (code, _) => Err(Failure::new(code, answer.message)),
        }
    }

    async fn change(&self, call: Call) -> Result<Response<pb::AdminReply>, Status> {
        match self.call(call).await? {
            Answer::Done(reply) => Ok(Response::new(reply)),
            other => Err(unexpected(&other)),
        }
    }
}

/// A call that a follower passed on.
pub(super) async fn passed_on(
    shared: &Arc<Shared>,
    request: Incoming,
) -> Result<Outgoing, Refusal> {
    let request = request.decode::<calls::Admin>()?;
    must_lead(shared)?;
    let Some(call) = request.call else {
        return Err(Refusal::new(RefusalCode::BadRequest, "an administration call of no kind"));
    };
    let answer = match ops::carry_out(shared, call).await {
        Ok(answer) => pb::AdminAnswer { answer: Some(answer), ..Default::default() },
        Err(Failure { code, message }) => {
            pb::AdminAnswer { code: code as i32, message, answer: None }
        }
    };
    Ok(Outgoing::new::<calls::Admin>(&answer))
}

fn unexpected(answer: &Answer) -> Status {
    Status::internal(format!("the leader answered another question: {answer:?}"))
}

#[tonic::async_trait]
impl pb::admin_server::Admin for Admin {
    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        let asked = self.call(Call::Status(request.into_inner()));
        match tokio::time::timeout(STATUS_DEADLINE, asked).await {
            Ok(Ok(Answer::Status(status))) => Ok(Response::new(status)),
            Ok(Ok(other)) => Err(unexpected(&other)),
            Ok(Err(failure)) => Ok(Response::new(status::alone(&self.shared, &failure.message)?)),
            Err(_) => Ok(Response::new(status::alone(&self.shared, "the leader is silent")?)),
        }
    }

    async fn health(
        &self,
        _: Request<pb::HealthRequest>,
    ) -> Result<Response<pb::HealthReply>, Status> {
        let reason = match self.shared.raft.leader() {
            Some(_) => String::new(),
            None => "no leader is known".to_owned(),
        };
        Ok(Response::new(pb::HealthReply { serving: reason.is_empty(), reason }))
    }

    async fn add_master(
        &self,
        request: Request<pb::AddMasterRequest>,
    ) -> Result<Response<pb::AdminReply>, Status> {
        self.change(Call::AddMaster(request.into_inner())).await
    }

    async fn remove_master(
        &self,
        request: Request<pb::RemoveMasterRequest>,
    ) -> Result<Response<pb::AdminReply>, Status> {
        self.change(Call::RemoveMaster(request.into_inner())).await
    }

    async fn drain_server(
        &self,
        request: Request<pb::DrainServerRequest>,
    ) -> Result<Response<pb::AdminReply>, Status> {
        self.change(Call::DrainServer(request.into_inner())).await
    }

    async fn create_class(
        &self,
        request: Request<pb::CreateClassRequest>,
    ) -> Result<Response<pb::AdminReply>, Status> {
        self.change(Call::CreateClass(request.into_inner())).await
    }

    async fn list_classes(
        &self,
        request: Request<pb::ListClassesRequest>,
    ) -> Result<Response<pb::ListClassesReply>, Status> {
        match self.call(Call::ListClasses(request.into_inner())).await? {
            Answer::Classes(reply) => Ok(Response::new(reply)),
            other => Err(unexpected(&other)),
        }
    }

    async fn file_info(
        &self,
        request: Request<pb::FileInfoRequest>,
    ) -> Result<Response<pb::FileInfoReply>, Status> {
        match self.call(Call::FileInfo(request.into_inner())).await? {
            Answer::File(reply) => Ok(Response::new(reply)),
            other => Err(unexpected(&other)),
        }
    }

    async fn set_class(
        &self,
        request: Request<pb::SetClassRequest>,
    ) -> Result<Response<pb::AdminReply>, Status> {
        self.change(Call::SetClass(request.into_inner())).await
    }
}
