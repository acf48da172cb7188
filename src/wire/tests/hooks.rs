//! The simulation's verdicts do what they say.

use super::*;
use crate::wire::hook::{FrameInfo, Hook, Verdict, install, uninstall};
use std::sync::Mutex;

/// Gives each verdict once, to the first frame that fits, and notes what it saw.
#[derive(Clone, Default)]
struct Script {
    send: Arc<Mutex<Vec<(Kind, u16, Verdict)>>>,
    recv: Arc<Mutex<Vec<(Kind, u16, Verdict)>>>,
    polls: Arc<Mutex<Option<u32>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn decide(list: &Mutex<Vec<(Kind, u16, Verdict)>>, frame: &FrameInfo) -> Verdict {
        let mut list = list.lock().unwrap();
        let fits = |(kind, method, _): &(Kind, u16, Verdict)| {
            *kind == frame.kind && *method == frame.method
        };
        match list.iter().position(fits) {
            Some(at) => list.remove(at).2,
            None => Verdict::Deliver,
        }
    }

    fn note(&self, way: &str, frame: &FrameInfo) {
        let to = frame.to.map_or(0, |to| to.node);
        let line = format!("{way} {:?} {} {}>{to}", frame.kind, frame.method, frame.from.node);
        self.seen.lock().unwrap().push(line);
    }
}

impl Hook for Script {
    fn on_send(&self, frame: &FrameInfo) -> Verdict {
        self.note("send", frame);
        Script::decide(&self.send, frame)
    }

    fn on_recv(&self, frame: &FrameInfo) -> Verdict {
        self.note("recv", frame);
        Script::decide(&self.recv, frame)
    }

    fn on_eof(&self, _: &Identity, _: &Identity) -> Option<Duration> {
        Some(ms(700))
    }

    fn polls_allowed(&self, _: &FrameInfo) -> Option<u32> {
        self.polls.lock().unwrap().take()
    }
}

const LEADER: u16 = calls::Leader::METHOD;
const KEEPALIVE: u16 = calls::Keepalive::METHOD;

/// One test, so that the frames come in one order.
#[tokio::test]
async fn verdicts() {
    let script = Script::default();
    install(Box::new(script.clone()));
    let (server, address, echo) = serve().await;
    let pool = pool();
    ask(&pool, &address).await.unwrap();
    let seen = std::mem::take(&mut *script.seen.lock().unwrap());
    let expected = [
        "send Hello 0 3>0",
        "recv Hello 0 3>5",
        "send Hello 0 5>3",
        "recv Hello 0 5>3",
        "send Request 35 3>5",
        "recv Request 35 3>5",
        "send Reply 35 5>3",
        "recv Reply 35 5>3",
    ];
    assert_eq!(seen, expected);

    drops_and_cuts(&script, &pool, &address, &echo).await;
    duplicates_and_delays(&script, &pool, &address, &echo).await;

    *script.polls.lock().unwrap() = Some(1);
    let error = keepalive(&pool, &address, 50, LONG).await.unwrap_err();
    assert!(error.to_string().contains("dropped"), "{error}");

    script.send.lock().unwrap().push((Kind::Hello, 0, Verdict::Drop));
    let lonely = Pool::new(who(Role::Client, 9), limits());
    let error = ask(&lonely, &address).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(_)), "{error:?}");

    let began = seam::now();
    let call = keepalive(&pool, &address, 60_000, LONG);
    let (ended, ()) = tokio::join!(call, async {
        tokio::time::sleep(ms(100)).await;
        server.stop().await;
    });
    assert!(matches!(ended, Err(CallError::Lost(_))));
    assert!(
        seam::now().since(began) >= ms(1200),
        "the end is noticed later, as after a power loss"
    );
    uninstall();
}

async fn drops_and_cuts(script: &Script, pool: &Arc<Pool>, address: &str, echo: &Echo) {
    let begun = || echo.begun.load(Ordering::SeqCst);
    let before = begun();
    script.send.lock().unwrap().push((Kind::Request, KEEPALIVE, Verdict::Drop));
    assert_eq!(keepalive(pool, address, 0, ms(300)).await, Err(CallError::Deadline));
    script.recv.lock().unwrap().push((Kind::Request, KEEPALIVE, Verdict::Drop));
    assert_eq!(keepalive(pool, address, 0, ms(300)).await, Err(CallError::Deadline));
    assert_eq!(begun(), before);
    script.send.lock().unwrap().push((Kind::Reply, KEEPALIVE, Verdict::Drop));
    assert_eq!(keepalive(pool, address, 0, ms(300)).await, Err(CallError::Deadline));
    script.recv.lock().unwrap().push((Kind::Reply, KEEPALIVE, Verdict::Drop));
    assert_eq!(keepalive(pool, address, 0, ms(300)).await, Err(CallError::Deadline));
    assert_eq!(begun(), before + 2);
    for side in [&script.send, &script.recv] {
        for kind in [Kind::Request, Kind::Reply] {
            side.lock().unwrap().push((kind, LEADER, Verdict::Cut));
            let error = ask(pool, address).await.unwrap_err();
            assert!(matches!(error, CallError::Lost(_)), "{error:?}");
            ask(pool, address).await.unwrap();
        }
    }
}

async fn duplicates_and_delays(script: &Script, pool: &Arc<Pool>, address: &str, echo: &Echo) {
    let begun = || echo.begun.load(Ordering::SeqCst);
    for side in [&script.send, &script.recv] {
        let before = begun();
        side.lock().unwrap().push((Kind::Request, KEEPALIVE, Verdict::Duplicate));
        assert_eq!(keepalive(pool, address, 20, LONG).await, Ok(20));
        tokio::time::sleep(ms(100)).await;
        assert_eq!(begun(), before + 2, "a duplicate request is executed twice");
        side.lock().unwrap().push((Kind::Reply, KEEPALIVE, Verdict::Duplicate));
        assert_eq!(keepalive(pool, address, 20, LONG).await, Ok(20));
        for kind in [Kind::Request, Kind::Reply] {
            side.lock().unwrap().push((kind, KEEPALIVE, Verdict::Delay(ms(400))));
            let began = seam::now();
            let (slow, quick) = tokio::join!(keepalive(pool, address, 1, LONG), ask(pool, address));
            assert_eq!((slow, quick.map(|reply| reply.leader)), (Ok(1), Ok(3)));
            let took = seam::now().since(began);
            assert!(took >= ms(400) && took < ms(700), "{took:?}");
        }
    }
}
