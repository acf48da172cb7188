//! The cluster itself: its identity, masters, chunkservers and storage classes.

use super::FIRST_COOKIE;
use super::chunks::vet_layout;
use super::state::{Inode, Outcome, State};
use super::tables::{
    ClassNames, Classes, Cluster, MasterIncarnations, Masters, ServerChunks, ServerUuids, Servers,
};
use crate::errno::Errno;
use crate::ids::{ChunkId, NodeId, ROOT, ServerId, Uuid};
use crate::pb::{
    self, Attr, ClusterRow, FileKind, IdRow, InodeRow, MasterRow, ServerRow, ServerState,
    StorageClass,
};
use crate::tables::Read;

/// Ids of one cluster epoch lie above those of all earlier ones (rule B4: a restored backup must not hand out
/// ids that the lost future already used).
const EPOCH_SHIFT: u32 = 40;
/// Number of the master that founded the cluster.
const FOUNDER: u64 = 1;
/// The name of class 0.
const DEFAULT_CLASS: &str = "default";

impl State<'_> {
    /// Makes an empty state machine a filesystem: identity, bounds, default class, root directory. Once; the
    /// same command again is fine, another cluster's is EEXIST.
    pub fn init_cluster(&mut self, cmd: &pb::InitClusterCmd) -> Outcome<u64> {
        if let Some(known) = self.db.get::<Cluster>(&0)? {
            let same = known.cluster == cmd.cluster;
            return if same { Ok(known.cluster_epoch) } else { Err(Errno::EEXIST.into()) };
        }
        let epoch_fits = cmd.cluster_epoch < 1 << (64 - EPOCH_SHIFT - 1);
        if Uuid::from_bytes(&cmd.cluster).is_none() || !epoch_fits {
            return Err(Errno::EINVAL.into());
        }
        vet_layout(cmd.default_layout.as_ref())?;
        let limits = cmd.limits.unwrap_or(self.limits);
        self.limits = limits;
        self.ready = true;
        self.db.put::<Cluster>(
            &0,
            &ClusterRow {
                cluster: cmd.cluster.clone(),
                cluster_epoch: cmd.cluster_epoch,
                limits: Some(limits),
            },
        )?;
        let first = (cmd.cluster_epoch << EPOCH_SHIFT) + 1;
        let counters = &mut self.counters;
        counters.next_id = counters.next_id.max(first);
        counters.next_server = counters.next_server.max(first);
        counters.next_node = counters.next_node.max(first);
        counters.next_inode = counters.next_inode.max(first).max(ROOT.get() + 1);
        counters.next_class = counters.next_class.max(1);
        self.put_class_row(0, DEFAULT_CLASS, cmd.default_layout)?;
        self.make_root()?;
        Ok(cmd.cluster_epoch)
    }

    fn make_root(&mut self) -> Outcome<()> {
        let attr = Attr {
            inode: ROOT.get(),
            kind: FileKind::Directory.into(),
            mode: 0o755,
            nlink: 2,
            atime_ns: self.now,
            mtime_ns: self.now,
            ctime_ns: self.now,
            change: 1,
            ..Attr::default()
        };
        let row = InodeRow { parent: ROOT.get(), next_cookie: FIRST_COOKIE, ..InodeRow::default() };
        self.save(Inode { attr, row })?;
        self.counters.inodes += 1;
        Ok(())
    }

    /// A master's data directory gets an id, or confirms the one it has (rule B4: the incarnation names the
    /// directory; another one under a known id is EEXIST).
    pub fn register_master(&mut self, cmd: &pb::RegisterMasterCmd) -> Outcome<u64> {
        if cmd.incarnation.is_empty() {
            return Err(Errno::EINVAL.into());
        }
        let known = self.db.get::<MasterIncarnations>(&cmd.incarnation.to_vec())?;
        let node = match known {
            Some(known) if cmd.node == 0 || cmd.node == known.id => known.id,
            Some(_) => return Err(Errno::EEXIST.into()),
            // 1 is the founder's, also when another master joins before it has registered.
            None if cmd.node == 0 => self.counters.next_node.max(FOUNDER + 1),
            None if self.db.contains::<Masters>(&NodeId(cmd.node))? => {
                crate::mark!("empty directory under a known master id refused");
                return Err(Errno::EEXIST.into());
            }
            None => cmd.node,
        };
        self.counters.next_node = self.counters.next_node.max(node + 1);
        let row =
            MasterRow { node, incarnation: cmd.incarnation.clone(), address: cmd.address.clone() };
        self.db.put::<Masters>(&NodeId(node), &row)?;
        self.db.put::<MasterIncarnations>(&cmd.incarnation.to_vec(), &IdRow { id: node })?;
        Ok(node)
    }

    /// A chunkserver announces itself: an id by its uuid, its address and disks renewed. One that was
    /// declared dead is active again, or draining as before; one that was removed stays so (ESTALE).
    pub fn register_server(&mut self, cmd: &pb::RegisterServerCmd) -> Outcome<u64> {
        if Uuid::from_bytes(&cmd.uuid).is_none() {
            return Err(Errno::EINVAL.into());
        }
        let uuid = cmd.uuid.to_vec();
        let mut row = match self.db.get::<ServerUuids>(&uuid)? {
            Some(known) => self.db.get::<Servers>(&ServerId(known.id))?.ok_or(Errno::ESTALE)?,
            None => {
                let id = self.counters.next_server;
                self.counters.next_server += 1;
                self.db.put::<ServerUuids>(&uuid, &IdRow { id })?;
                ServerRow { id, uuid: cmd.uuid.clone(), ..ServerRow::default() }
            }
        };
        match row.state() {
            ServerState::Removed => return Err(Errno::ESTALE.into()),
            _ if row.draining => row.set_state(ServerState::Draining),
            _ => row.set_state(ServerState::Active),
        }
        row.address.clone_from(&cmd.address);
        row.labels.clone_from(&cmd.labels);
        row.disks.clone_from(&cmd.disks);
        self.db.put::<Servers>(&ServerId(row.id), &row)?;
        Ok(row.id)
    }

    /// Declares a server active, draining, dead or removed. One that a chunk still counts on cannot be
    /// removed (EBUSY). Nothing else changes here, however many chunks the server has: who repairs looks at
    /// `ServerChunks` of dead servers.
    pub fn server_state(&mut self, cmd: &pb::ServerStateCmd) -> Outcome<u64> {
        let id = ServerId(cmd.server);
        let mut row = self.db.get::<Servers>(&id)?.ok_or(Errno::ENOENT)?;
        match cmd.state() {
            ServerState::Unspecified => return Err(Errno::EINVAL.into()),
            ServerState::Removed if self.has_chunks(id)? => return Err(Errno::EBUSY.into()),
            _ if row.state() == ServerState::Removed => return Err(Errno::ESTALE.into()),
            state => {
                match state {
                    ServerState::Draining => row.draining = true,
                    ServerState::Active => row.draining = false,
                    _ => {}
                }
                row.set_state(state);
            }
        }
        self.db.put::<Servers>(&id, &row)?;
        Ok(cmd.server)
    }

    fn has_chunks(&self, id: ServerId) -> Outcome<bool> {
        let (from, to) = ((id, ChunkId(0)), (ServerId(id.0 + 1), ChunkId(0)));
        Ok(self.db.range::<ServerChunks>(&from, Some(&to)).next().transpose()?.is_some())
    }

    /// Creates a storage class, once per name (another layout under a known name is EEXIST). The name
    /// "default" changes the layout of class 0, for chunks to come.
    pub fn put_class(&mut self, cmd: &pb::PutClassCmd) -> Outcome<u64> {
        vet_layout(cmd.layout.as_ref())?;
        if cmd.name.is_empty() || cmd.name.len() > crate::limits::NAME_BYTES_MAX {
            return Err(Errno::EINVAL.into());
        }
        if cmd.name == DEFAULT_CLASS {
            self.put_class_row(0, DEFAULT_CLASS, cmd.layout)?;
            return Ok(0);
        }
        if let Some(known) = self.db.get::<ClassNames>(&cmd.name.clone().into_bytes())? {
            let class = self.db.get::<Classes>(&known.id)?.ok_or(Errno::ENOENT)?;
            let same = class.layout == cmd.layout;
            return if same { Ok(known.id) } else { Err(Errno::EEXIST.into()) };
        }
        let id = self.counters.next_class;
        self.counters.next_class += 1;
        self.put_class_row(id, &cmd.name, cmd.layout)?;
        Ok(id.into())
    }

    fn put_class_row(&mut self, id: u32, name: &str, layout: Option<pb::Layout>) -> Outcome<()> {
        let row = StorageClass { id, name: name.to_owned(), layout };
        self.db.put::<Classes>(&id.into(), &row)?;
        let key = name.to_owned().into_bytes();
        Ok(self.db.put::<ClassNames>(&key, &IdRow { id: id.into() })?)
    }
}
