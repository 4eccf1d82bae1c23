//! DescribeBroker, API 21: owns its bodies and the numbers of origins; knows no configuration key.

/// Where a value of the broker's configuration comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// Built in, or computed from the machine.
    Default = 0,
    /// The configuration file.
    File = 1,
    /// An environment variable.
    Environment = 2,
    /// A flag of the command line.
    Flag = 3,
}

impl Origin {
    /// The origin with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Default),
            1 => Some(Self::File),
            2 => Some(Self::Environment),
            3 => Some(Self::Flag),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_flags};

    archived! {
        /// Asks for the effective configuration.
        pub struct Request: 1 {
            /// None is defined: 0.
            0 flags: u8,
        }
    }

    archived! {
        /// The effective configuration.
        pub struct Response: 16 {
            /// The broker's version, UTF-8.
            0 version: Vec<u8>,
            /// Every key, by name.
            8 entries: Vec<Entry>,
        }
    }

    archived! {
        /// One key.
        pub struct Entry: 25 {
            /// The key, UTF-8.
            0 key: Vec<u8>,
            /// Its effective value as text, UTF-8.
            8 value: Vec<u8>,
            /// A number of [`Origin`](super::Origin).
            16 origin: u8,
            /// The file and line, the variable or the flag, UTF-8; empty for a default.
            17 origin_detail: Vec<u8>,
        }
    }

    impl Check for ArchivedRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BodyError, encode, open};

    #[test]
    fn every_origin_reads_back_from_its_number() {
        for origin in [Origin::Default, Origin::File, Origin::Environment, Origin::Flag] {
            assert_eq!(Origin::from_code(origin.code()), Some(origin));
        }
        assert_eq!(Origin::from_code(4), None);
    }

    #[test]
    fn flags_are_refused() {
        let mut body = Vec::new();
        encode(&v1::Request { flags: 1 }, &mut body);
        assert_eq!(open::<v1::Request>(&body).unwrap_err(), BodyError::UnknownFlags { known: 0, found: 1 });
    }
}
