//! Holds what the proofs in `tests/tests` share: the tidy rules, disks, brokers; refuses product code.

pub mod tidy;
