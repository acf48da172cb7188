//! The types generated from `proto/`: wire messages, log commands, table rows and disk records.

#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::disallowed_types)]

tonic::include_proto!("mooseng.v1");
