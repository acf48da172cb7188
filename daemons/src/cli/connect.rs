//! Reaching a master's gRPC service.

use crate::config;
use crate::fail::Fail;
use mooseng::pb::admin_client::AdminClient;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// How long one master has to accept the connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(30);
/// How often the whole list is tried: an election takes less than the pauses between.
const ROUNDS: usize = 5;
const PAUSE: Duration = Duration::from_millis(400);

/// One master's service.
pub(crate) type Client = AdminClient<Channel>;

/// gRPC services of a cluster's masters; any one that lives will do.
pub(crate) struct Masters {
    services: Vec<String>,
}

impl Masters {
    /// `services` are asked if there are any, else those beside `masters`, else the one of a master on this
    /// machine.
    pub(crate) fn new(services: &[String], masters: &[String]) -> Result<Masters, Fail> {
        if !services.is_empty() {
            return Ok(Masters { services: services.to_vec() });
        }
        let here = [config::MASTER_LISTEN.to_owned()];
        let masters = if masters.is_empty() { &here } else { masters };
        let services = masters.iter().map(|address| config::grpc_of(address));
        Ok(Masters { services: services.collect::<Result<_, _>>()? })
    }

    /// One call, tried at every master until one carries it out.
    pub(crate) async fn call<T, F>(&self, what: impl Fn(Client) -> F) -> Result<T, Fail>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = String::new();
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            for address in &self.services {
                let client = match connect(address).await {
                    Ok(client) => client,
                    Err(reason) => {
                        last = format!("{address}: {reason}");
                        continue;
                    }
                };
                match what(client).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) if elsewhere(status.code()) => {
                        last = format!("{address}: {}", status.message());
                    }
                    Err(status) => return Err(Fail::new(status.message())),
                }
            }
        }
        Err(Fail::new(format!("no master answered; the last one tried was {last}")))
    }
}

/// Whether another master, or this one a little later, may do better.
fn elsewhere(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

async fn connect(address: &str) -> Result<Client, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
    match endpoint.connect_timeout(CONNECT).timeout(CALL).connect().await {
        Ok(channel) => Ok(Client::new(channel)),
        Err(error) => Err(root_cause(&error)),
    }
}

/// "transport error" alone tells nobody anything.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
