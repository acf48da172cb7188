//! Processes of one thread stand still, all of them, while a disk call that they made takes its time: a master on a disk
//! that hangs sends no heartbeats and answers nothing, and hears everything at once when it goes on.
//!
//! Only waits that are worth it are treated so; shorter ones delay the task that made the call.

use super::{Power, Role, World};
use crate::trace::Kind;
use crate::{stats, trace};
use madsim::task::NodeId;
use mooseng::seam;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// Stalls from here on stop the process.
const LEAST: Duration = Duration::from_millis(20);

/// Takes care of it as long as the world lives. Call on the simulation's first task.
pub(super) fn begin(world: &Arc<World>) {
    let (tell, mut told) = mpsc::unbounded_channel();
    seam::on_stall(Box::new(move |node, time| {
        if time >= LEAST {
            let _ = tell.send((node, time));
        }
    }));
    let world = Arc::downgrade(world);
    tokio::spawn(async move {
        while let Some((node, time)) = told.recv().await {
            stop(&world, node, time);
        }
    });
}

/// The machine counts as up meanwhile: nobody has stopped it.
fn stop(world: &Weak<World>, id: NodeId, time: Duration) {
    let Some(world) = world.upgrade() else { return };
    let found = world.nodes().values().find(|node| node.id() == id).cloned();
    let Some(node) = found.filter(|node| node.role() == Role::Master) else { return };
    if node.power() != Power::Up || node.set_stalled(true) {
        return;
    }
    let incarnation = node.incarnation();
    stats::count("fault: master stood still for its disk");
    trace::say(Kind::Disk, node.name(), &format!("stands still for its disk, {time:?}"));
    world.handle.pause(id);
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        node.set_stalled(false);
        // One that was stopped, or is gone, meanwhile is somebody else's.
        if node.power() == Power::Up && node.incarnation() == incarnation {
            world.handle.resume(id);
        }
    });
}
