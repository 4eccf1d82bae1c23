//! The machine below the broker: executors, file ring, sockets, mesh, clock; decides nothing about data.
