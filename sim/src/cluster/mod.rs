//! Real servers on simulated machines.

pub mod full;
pub mod raft_only;
pub mod rows;

use mooseng::ids::Uuid;
use std::net::Ipv4Addr;

/// The id of every simulated cluster.
pub const CLUSTER: Uuid = Uuid(*b"simulatedcluster");
/// Port of masters.
pub const MASTER_PORT: u16 = 9420;

/// Address of master `number`, from 1.
pub fn master_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, number as u8)
}

/// Address of chunkserver `number`, from 1.
pub fn chunkserver_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, number as u8)
}

/// Whether chunkserver `number` answers at this host:port.
pub fn is_chunkserver(address: &str, number: u32) -> bool {
    address.starts_with(&format!("{}:", chunkserver_ip(number)))
}

/// Address of client `number`, from 1.
pub fn client_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 3, number as u8)
}

/// host:port of the masters 1 to `count`.
pub fn master_addresses(count: u32) -> Vec<String> {
    (1..=count).map(|number| format!("{}:{MASTER_PORT}", master_ip(number))).collect()
}
