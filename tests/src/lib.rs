//! Holds what the proofs in `tests/tests` share: the tidy rules, fuzz bodies, disks, brokers; refuses product code.

pub mod broker;
pub mod checker;
pub mod fuzz;
pub mod sim;
pub mod tidy;
pub mod wire;
