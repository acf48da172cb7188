//! Two real masters with their gRPC services on loopback. The namespace is founded by the leader; what goes
//! wrong between machines is the simulator's.

use super::AdminServer;
use crate::erasure::Layout;
use crate::ids::Uuid;
use crate::limits::Limits;
use crate::master::{Master, MasterConfig, format};
use crate::pb::{self, admin_client::AdminClient};
use crate::seam::real::RealDisk;
use crate::seam::{self, Disk};
use crate::wire::{Identity, Pool, Role, calls};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;
use tonic::transport::Channel;

/// Any free port.
const ANY: &str = "127.0.0.1:0";

struct Dir(PathBuf);

#[allow(clippy::disallowed_methods)]
impl Dir {
    fn new(name: &str) -> Dir {
        let name = format!("mooseng-admin-{name}-{:x}", seam::rng::random_u64());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn disk(&self, name: &str) -> Arc<dyn Disk> {
        RealDisk::create(self.0.join(name)).unwrap()
    }
}

impl Drop for Dir {
    #[allow(clippy::disallowed_methods)]
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Node {
    master: Master,
    grpc: AdminServer,
    client: AdminClient<Channel>,
}

async fn start(disk: Arc<dyn Disk>, listen: &str, join: Vec<String>) -> Node {
    let config = MasterConfig {
        listen: listen.to_owned(),
        advertise: None,
        cluster: None,
        join,
        limits: Arc::new(Limits::production()),
        fatal: Arc::new(|line| panic!("{line}")),
        observe: None,
    };
    let master = Master::start(config, disk).await.unwrap();
    let grpc = AdminServer::start(master.admin(), "127.0.0.1:0").await.unwrap();
    let client = AdminClient::connect(format!("http://{}", grpc.local_addr())).await.unwrap();
    Node { master, grpc, client }
}

async fn founder(dir: &Dir) -> Node {
    let disk = dir.disk("first");
    let layout = Layout::new(1, 1).unwrap();
    format(&disk, Uuid([5; 16]), layout, &Limits::production()).unwrap();
    let mut node = start(disk, ANY, vec![]).await;
    let mut founded = false;
    for _ in 0..200 {
        let root = node.client.file_info(pb::FileInfoRequest { path: "/".into() }).await;
        founded = root.is_ok();
        if founded {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(founded, "the cluster is founded");
    node
}

async fn status(node: &mut Node) -> pb::StatusReply {
    node.client.status(pb::StatusRequest {}).await.unwrap().into_inner()
}

/// Introduces a chunkserver to the leader.
async fn register(leader: &str, uuid: u8) -> u64 {
    let me = Identity { cluster: None, role: Role::Chunkserver, node: 0, incarnation: 1 };
    let pool = Pool::new(me, Arc::new(Limits::production()));
    let disk = pb::DiskStatus {
        disk: vec![uuid; 16].into(),
        total_bytes: 1 << 40,
        free_bytes: 1 << 39,
        ..Default::default()
    };
    let request = pb::RegisterRequest {
        uuid: vec![uuid; 16].into(),
        address: format!("127.0.0.1:{uuid}"),
        incarnation: 1,
        disks: vec![disk],
        ..Default::default()
    };
    let wait = Duration::from_secs(5);
    let (reply, _) = pool.call::<calls::Register>(leader, &request, vec![], wait).await.unwrap();
    assert_eq!(reply.errno, 0, "{}", reply.error);
    reply.server
}

fn class(name: &str, data: u32, parity: u32) -> pb::CreateClassRequest {
    let layout = Some(pb::Layout { data, parity });
    pb::CreateClassRequest { name: name.to_owned(), layout }
}

fn choose(path: &str, class: &str) -> pb::SetClassRequest {
    pb::SetClassRequest { path: path.to_owned().into(), class: class.to_owned() }
}

#[tokio::test]
async fn classes_and_servers() {
    let dir = Dir::new("classes");
    let mut node = founder(&dir).await;
    let leader = node.master.address();
    let failed = node.client.set_class(choose("/", "wide")).await.unwrap_err();
    assert_eq!(failed.code(), Code::NotFound);
    let wide = node.client.create_class(class("wide", 4, 2)).await.unwrap().into_inner().id;
    let again = node.client.create_class(class("wide", 4, 2)).await.unwrap().into_inner().id;
    assert_eq!(wide, again, "the same class twice is one");
    let other = node.client.create_class(class("wide", 8, 2)).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    for bad in [class("none", 0, 2), class("huge", 40, 2), class("", 1, 1)] {
        let failed = node.client.create_class(bad).await.unwrap_err();
        assert_eq!(failed.code(), Code::InvalidArgument, "{failed}");
    }
    let failed = node.client.set_class(choose("/", "wide")).await.unwrap_err();
    assert_eq!(failed.code(), Code::FailedPrecondition);
    assert!(failed.message().contains("needs 6 chunkservers, the cluster has 0"), "{failed}");

    let server = register(&leader, 1).await;
    let single = node.client.create_class(class("single", 1, 0)).await.unwrap().into_inner().id;
    node.client.set_class(choose("/", "single")).await.unwrap();
    let root = node.client.file_info(pb::FileInfoRequest { path: "/".into() }).await.unwrap();
    assert_eq!(u64::from(root.into_inner().attr.unwrap().class), single);
    let failed = node.client.set_class(choose("/no/such", "single")).await.unwrap_err();
    assert_eq!(failed.code(), Code::NotFound);
    let known = node.client.list_classes(pb::ListClassesRequest {}).await.unwrap().into_inner();
    assert_eq!(known.classes.len(), 3);
    assert_eq!(known.default_class.unwrap().layout, Some(pb::Layout { data: 1, parity: 1 }));

    let seen = status(&mut node).await;
    assert_eq!((seen.servers.len(), seen.servers[0].alive), (1, true));
    assert_eq!((seen.sessions, seen.chunks, seen.warning.as_str()), (0, 0, ""));
    assert!(seen.inodes == 1 && seen.log_fsyncs > 0);
    for _ in 0..2 {
        node.client.drain_server(pb::DrainServerRequest { server }).await.unwrap();
    }
    assert_eq!(status(&mut node).await.servers[0].state(), pb::ServerState::Draining);
    let failed = node.client.drain_server(pb::DrainServerRequest { server: 99 }).await.unwrap_err();
    assert_eq!(failed.code(), Code::NotFound);
    node.grpc.stop().await;
    node.master.stop().await;
}

#[tokio::test]
async fn masters_join_are_asked_and_leave() {
    let dir = Dir::new("masters");
    let mut first = founder(&dir).await;
    let mut second = start(dir.disk("second"), ANY, vec![first.master.address()]).await;
    let address = second.master.address();
    let added = first.client.add_master(pb::AddMasterRequest { address: address.clone() }).await;
    let number = added.unwrap().into_inner().id;
    assert_eq!(number, second.master.node().get());

    // Any master takes a call.
    let id = second.client.create_class(class("two", 1, 1)).await.unwrap().into_inner().id;
    let seen = status(&mut second).await;
    assert_eq!((seen.leader, seen.masters.len()), (1, 2));
    assert!(seen.masters.iter().all(|master| master.voter));
    let known = first.client.list_classes(pb::ListClassesRequest {}).await.unwrap().into_inner();
    assert!(known.classes.iter().any(|class| u64::from(class.id) == id));
    let refused = second.client.remove_master(pb::RemoveMasterRequest { node: 77 }).await;
    assert_eq!(refused.unwrap_err().code(), Code::NotFound, "the leader's code travels");
    let health = second.client.health(pb::HealthRequest {}).await.unwrap().into_inner();
    assert!(health.serving, "{}", health.reason);

    // Without a majority one master says what it knows.
    let home = first.master.address();
    first.grpc.stop().await;
    first.master.stop().await;
    let seen = status(&mut second).await;
    assert_eq!((seen.leader, seen.masters.len()), (0, 2));
    assert!(seen.warning.contains("this is what master m2 knows"), "{}", seen.warning);
    let failed = second.client.create_class(class("three", 1, 2)).await.unwrap_err();
    assert!(matches!(failed.code(), Code::Unavailable | Code::Unknown), "{failed}");

    let mut first = start(dir.disk("first"), &home, vec![]).await;
    let mut removed = Err(tonic::Status::unavailable("not asked yet"));
    for _ in 0..100 {
        removed = first.client.remove_master(pb::RemoveMasterRequest { node: number }).await;
        if removed.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    removed.unwrap();
    assert_eq!(status(&mut first).await.masters.len(), 1);
    second.grpc.stop().await;
    second.master.stop().await;
    first.grpc.stop().await;
    first.master.stop().await;
}

/// Or a few of them, left behind by whoever looks for open ports, would keep everybody else out.
#[tokio::test]
async fn connections_that_say_nothing_are_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = Dir::new("silent");
    let mut node = founder(&dir).await;
    let address = node.grpc.local_addr();
    let mut silent = Vec::new();
    for said in [&b""[..], &b"PRI * HTTP"[..]] {
        let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
        io.write_all(said).await.unwrap();
        silent.push(io);
    }
    let began = seam::now();
    for mut io in silent {
        let mut heard = Vec::new();
        let closed = io.read_to_end(&mut heard);
        let closed = tokio::time::timeout(Duration::from_secs(9), closed).await;
        assert!(closed.is_ok(), "open after {:?}", seam::now().since(began));
    }
    assert!(seam::now().since(began) >= Duration::from_secs(4), "not without a chance");
    // One that has said something may be silent for longer.
    status(&mut node).await;
    node.grpc.stop().await;
    node.master.stop().await;
}
