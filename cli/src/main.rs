//! The command line: parses, calls server or client, prints; holds no logic of its own.
#![forbid(unsafe_code)]

fn main() {}
