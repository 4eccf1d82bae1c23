//! The client over real sockets: owns the claims that need one; knows no broker, a small peer speaks the protocol.

// Clippy lets tests unwrap, and what serves tests only if it is marked as such.
#[cfg(test)]
mod connections;
#[cfg(test)]
mod peer;
#[cfg(test)]
mod records;
