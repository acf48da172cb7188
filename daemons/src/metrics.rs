//! Counters in Prometheus text, for whoever fetches anything from the metrics address.

use crate::fail::Fail;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Longest time one visitor may take; visitors are served one after the other.
const VISIT: Duration = Duration::from_secs(5);
/// Request bytes looked at before answering.
const REQUEST: usize = 4096;

/// Serves until dropped; forever pending without an address. Fails if the address cannot be bound.
pub async fn serve(
    address: Option<&str>,
    counters: impl Fn() -> Vec<(&'static str, u64)>,
) -> Result<(), Fail> {
    let Some(address) = address else { return std::future::pending().await };
    let failed = |e| {
        Fail::new(format!(
            "cannot listen on {address} for metrics: {e}; choose another under metrics in [node]"
        ))
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    loop {
        match listener.accept().await {
            Ok((visitor, _)) => {
                let text = render(&counters());
                if let Ok(Err(error)) = timeout(VISIT, answer(visitor, &text)).await {
                    tracing::debug!(%error, "metrics visitor");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "metrics");
                tokio::time::sleep(VISIT).await;
            }
        }
    }
}

fn render(counters: &[(&'static str, u64)]) -> String {
    let line = |(name, value): &(&str, u64)| {
        format!("# TYPE mooseng_{name} untyped\nmooseng_{name} {value}\n")
    };
    counters.iter().map(line).collect()
}

async fn answer(mut visitor: TcpStream, text: &str) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(REQUEST);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST {
        let mut piece = [0; 512];
        match visitor.read(&mut piece).await? {
            0 => break,
            n => request.extend_from_slice(&piece[..n]),
        }
    }
    let length = text.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    visitor.write_all(head.as_bytes()).await?;
    visitor.write_all(text.as_bytes()).await?;
    visitor.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_visitor_gets_the_counters() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = port.to_string();
        let visit = async {
            let mut stream = loop {
                match TcpStream::connect(&address).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            said
        };
        let said = tokio::select! {
            said = visit => said,
            failed = serve(Some(&address), || vec![("appends", 7)]) => panic!("{failed:?}"),
        };
        assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
        assert!(said.ends_with("mooseng_appends 7\n"), "{said}");
    }
}
