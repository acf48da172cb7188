//! Translates kernel FUSE requests to the MooseNG client; decides nothing.
#![cfg(not(feature = "sim"))]
