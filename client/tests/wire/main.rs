//! The client over real sockets: owns the claims that need one; knows no broker, a small peer speaks the protocol.

mod connections;
mod peer;
mod records;
