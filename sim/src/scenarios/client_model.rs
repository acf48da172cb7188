//! One mount against the model filesystem, over one master and three chunkservers that restart or lose their power.
//!
//! The operations are drawn beforehand, so that a plan may leave out any of them and the others stay what they are.
//! The application must not notice what becomes of the machines: the same answers as the model's, and what another
//! mount, or the next one, sees is the model's tree, byte for byte (O1, O2 and O3 of one client). Not checked: what is
//! answered of an inode without name or use, clients beside it (`namespace_chaos`), more masters, and the mount's own
//! end without a word (`cluster_chaos`).

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::within;
use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::{NodeContext, Options, Role, World};
use mooseng::client::ClientConfig;
use mooseng::errno::Errno;
use mooseng::limits::Limits;
use mooseng_proptests::{App, FsOp, FsOut, ModelFs, OpGen, SplitMix, Weights, kernel_answers};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "client_model",
    about: "one mount against the model filesystem, while machines restart",
    seeds: 12,
    limit: Duration::from_secs(900),
    must_count: &[
        stats::OPERATIONS,
        "machines restarted under the mount",
        "trees compared with the model",
        "mounts replaced",
    ],
    run: |seed| Box::pin(run(seed)),
};

const STEPS: usize = 150;
/// Copies on one server, on two, and two shards of data with one of parity.
const LAYOUTS: [(u32, u32); 3] = [(1, 0), (1, 1), (2, 1)];
/// Longest that all of a program may take.
const PROGRAM: Duration = Duration::from_secs(600);

async fn run(seed: u64) {
    let (data, parity) = LAYOUTS[seed as usize % LAYOUTS.len()];
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data, parity, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let done = Arc::new(AtomicBool::new(false));
    let over = done.clone();
    mount(&world, 1, move |context, config| {
        let over = over.clone();
        // The second mount must see what the first one did.
        let limits = Limits { attr_ttl: Duration::ZERO, ..(*config.limits).clone() };
        let config = ClientConfig { limits: Arc::new(limits), ..config };
        Box::pin(async move {
            if let Err(what) = program(&context, &config, seed).await {
                violation("O1", what);
            }
            over.store(true, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    let ended = || match done.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err("the program does not end".to_owned()),
    };
    within("ms of a program", PROGRAM, trace::now_ns(), ended).await;
    cluster.converge(&world).await;
}

/// Whether this run's files are erasure-coded.
fn striped(seed: u64) -> bool {
    LAYOUTS[seed as usize % LAYOUTS.len()].0 > 1
}

/// What the application does, drawn as if nothing were left out.
fn operations(seed: u64) -> Vec<FsOp> {
    let (mut draw, mut model) = (SplitMix(seed), ModelFs::new(0));
    let weights = Weights::swarm(&mut draw);
    let mut generator = OpGen { weights, clients: 1, ..OpGen::default() };
    if striped(seed) {
        // Files of several stripes, written over and cut inside of them.
        (generator.file_bytes_max, generator.write_bytes_max) = (400_000, 200_000);
    }
    let step = |_| {
        let op = generator.next(&model, &mut draw);
        let _ = model.apply(&op);
        op
    };
    (0..STEPS).map(step).collect()
}

/// Where operations before it were left out, what it makes may have a number that is taken.
fn names_something_else(model: &ModelFs, op: &FsOp) -> bool {
    match op {
        FsOp::Create { ino, .. } => model.nodes().contains_key(ino),
        FsOp::Open { handle, .. } => model.handles().contains_key(handle),
        _ => false,
    }
}

async fn program(context: &NodeContext, config: &ClientConfig, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed).fork("around the program");
    let mut model = ModelFs::new(0);
    let mut app = App::new(connect(context, config).await);
    let said = |what: &'static str| move |errno: Errno| format!("{what}: {errno:?}");
    for (step, op) in operations(seed).into_iter().enumerate() {
        let skipped = plan::skips(&context.name) || names_something_else(&model, &op);
        if !skipped && !kernel_answers(&model, &op) {
            let asked = trace::now_ns();
            let expected = model.apply(&op).map(FsOut::timeless);
            let found = app.run(&op).await;
            trace::operation(&context.name, asked, &format!("{step}: {op:?}: {found:?}"));
            stats::count(stats::OPERATIONS);
            // What is gone no kernel can name; the masters may know it until the lazy end of its last use is told.
            let gone = expected == Err(Errno::ESTALE);
            if found != expected && !gone {
                return Err(format!("step {step}: {op:?}: {found:?}, the model says {expected:?}"));
            }
        }
        match rng.below(40) {
            0 | 1 => restart(context, &mut rng).await,
            2 => {
                app.client.shutdown().await.map_err(said("writing back at the end of a mount"))?;
                model.end_client(0);
                app.remount(connect(context, config).await);
                stats::count("mounts replaced");
                compare(&mut app, &model).await.map_err(|what| format!("step {step}: {what}"))?;
            }
            3 => {
                app.sync().await.map_err(said("fsync"))?;
                let mut other = app.through(connect(context, config).await);
                compare(&mut other, &model).await.map_err(|what| format!("step {step}: {what}"))?;
                other.client.shutdown().await.map_err(said("a mount that only looked"))?;
            }
            _ => {}
        }
    }
    app.client.shutdown().await.map_err(said("writing back at the end"))?;
    model.end_client(0);
    app.remount(connect(context, config).await);
    compare(&mut app, &model).await
}

async fn compare(app: &mut App, model: &ModelFs) -> Result<(), String> {
    stats::count("trees compared with the model");
    app.compare(model).await
}

/// One machine that is not the mount's goes down, by itself or with its power, and comes back.
async fn restart(context: &NodeContext, rng: &mut Rng) {
    let world = context.world.upgrade().expect("the world outlives its machines");
    let names = [world.names(Role::Master), world.names(Role::Chunkserver)].concat();
    let (name, power) = (rng.pick(&names).clone(), rng.chance(1, 2));
    let class = if power { FaultClass::PowerLoss } else { FaultClass::Kill };
    if plan::strikes(class) {
        match power {
            true => world.power_loss(&name),
            false => world.kill(&name),
        }
        world.restart(&name).await;
        stats::count("machines restarted under the mount");
    }
}
