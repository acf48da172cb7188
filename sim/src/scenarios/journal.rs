//! The simulator's own test: servers that append numbers to a file, sync and acknowledge, clients that send
//! numbers, and every fault there is. Checked: each acknowledged number is in its server's file after healing.
//! The planted bug NOSYNC acknowledges before the sync.

use crate::disk::SimDisk;
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::stats;
use crate::world::inject::{Budget, chaos};
use crate::world::{NodeContext, NodeSpec, Options, Role, World};
use mooseng::seam::{DiskFile, OpenMode};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const SCENARIO: Scenario = Scenario {
    name: "journal",
    about: "the simulator's own test: acknowledged numbers survive every fault",
    seeds: 20,
    limit: Duration::from_secs(120),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "fault: kill",
        "fault: power loss",
        "fault: blackout",
        "fault: pause",
        "fault: partition",
        "fault: one-way cut",
        "fault: isolation",
        "fault: lag",
        "fault: clock step",
        "fault: slow disk",
        "fault: lost sectors",
    ],
    run: |seed| Box::pin(run(seed)),
};

const SERVERS: u8 = 3;
const PORT: u16 = 7000;
const RECORD: usize = 16;

type Ledger = Arc<Mutex<BTreeMap<u8, BTreeSet<u64>>>>;

async fn run(seed: u64) {
    let world = World::new(Options { masters: 1, parity: 1, ..Options::draw(seed) });
    let ledger: Ledger = Arc::default();
    for server in 0..SERVERS {
        let name = format!("s{server}");
        let disk = SimDisk::new(&name, 1 << 20, seed);
        world.add_node(NodeSpec {
            name,
            role: Role::Chunkserver,
            ip: address(server),
            disks: vec![disk],
            start: Arc::new(|context| Box::pin(serve(context))),
        });
    }
    for client in 0..world.options.clients as u8 {
        let ledger = ledger.clone();
        world.add_node(NodeSpec {
            name: format!("c{client}"),
            role: Role::Client,
            ip: Ipv4Addr::new(10, 0, 1, client + 1),
            disks: vec![],
            start: Arc::new(move |context| Box::pin(ask(context, ledger.clone()))),
        });
    }
    tokio::spawn(world.clone().supervise());
    let time = Duration::from_millis(world.options.chaos_ms);
    chaos(world.clone(), Budget::of(&world), time).await;
    _ = world.heal().await;
    progress_again(&ledger).await;
    world.count_disk_faults();
    check(&world, &ledger);
}

fn address(server: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, server + 1)
}

async fn progress_again(ledger: &Ledger) {
    let acked = || ledger.lock().expect("ledger").values().map(BTreeSet::len).sum::<usize>();
    let before = acked();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if acked() > before + 10 {
            return;
        }
    }
    stuck("O7", "no number was acknowledged within 10 s of healing");
}

fn check(world: &World, ledger: &Ledger) {
    for (server, acked) in ledger.lock().expect("ledger").iter() {
        let disk = &world.disks(&format!("s{server}"))[0];
        let bytes = disk.durable_read("journal").unwrap_or_default();
        let found: BTreeSet<u64> = numbers(&bytes).into_iter().collect();
        if let Some(lost) = acked.difference(&found).next() {
            violation("O3", format!("s{server} acknowledged {lost}, which is not in its file"));
        }
    }
}

/// The records up to the first that does not verify.
fn numbers(bytes: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let records = bytes.chunks_exact(RECORD).map(|record| (word(&record[..8]), word(&record[8..])));
    records.take_while(|(number, check)| *check == !number).map(|(number, _)| number).collect()
}

async fn serve(context: NodeContext) {
    let disk = context.disks[0].clone();
    let file = disk.open("journal", OpenMode::Create).expect("open");
    disk.sync_dir("").expect("sync");
    let bytes = file.map(0, 1 << 20).expect("read");
    let length = Arc::new(Mutex::new(numbers(&bytes).len() * RECORD));
    // What a torn tail left must not follow what comes next.
    file.set_len(*length.lock().expect("length") as u64).expect("cut");
    file.sync_data().expect("sync");
    mooseng::seam::settle().await;
    let listener = TcpListener::bind((context.ip, PORT)).await.expect("bind");
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, file.clone(), length.clone()));
    }
}

async fn answer(mut stream: TcpStream, file: Arc<dyn DiskFile>, length: Arc<Mutex<usize>>) {
    while let Ok(number) = stream.read_u64().await {
        let mut record = number.to_le_bytes().to_vec();
        record.extend_from_slice(&(!number).to_le_bytes());
        {
            let mut length = length.lock().expect("length");
            if file.write_at(*length as u64, &record).is_err() {
                return;
            }
            *length += RECORD;
        }
        // Time in which the power may go.
        tokio::time::sleep(Duration::from_millis(4)).await;
        if !mooseng::bug!(NOSYNC) && file.sync_data().is_err() {
            return;
        }
        mooseng::seam::settle().await;
        let sent = stream.write_u64(number).await.is_ok() && stream.flush().await.is_ok();
        if !sent {
            return;
        }
    }
}

async fn ask(context: NodeContext, ledger: Ledger) {
    let tag = u64::from(context.ip.octets()[3]) << 48 | context.incarnation << 32;
    let server = |n: u64| (n % u64::from(SERVERS)) as u8;
    for number in 0.. {
        let (to, number) = (server(number), tag | number);
        if context.skips() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let call = tokio::time::timeout(Duration::from_millis(400), send(to, number));
        if call.await.is_ok_and(|sent| sent.is_ok()) {
            stats::count(stats::OPERATIONS);
            stats::count(stats::FSYNCS);
            ledger.lock().expect("ledger").entry(to).or_default().insert(number);
        }
    }
}

async fn send(server: u8, number: u64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((address(server), PORT)).await?;
    stream.write_u64(number).await?;
    stream.flush().await?;
    stream.read_u64().await?;
    Ok(())
}
