//! Holds what the proofs in `tests/tests` share: the tidy rules, fuzz bodies, disks, brokers; refuses product code.

pub mod block_device;
pub mod broker;
pub mod chance;
pub mod checker;
pub mod fuzz;
pub mod mounts;
pub mod power_cut;
pub mod rig;
pub mod sim;
pub mod tidy;
pub mod wire;
