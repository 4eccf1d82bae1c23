//! The body of every response with an error, for ever: owns its layout; knows no API.

use super::body::{BodyError, text};
use crate::error::{ErrorCode, Outcome};

archived! {
    /// What a response carries whose frame has an error other than 0, whatever the API and its version.
    pub struct ErrorBody: 17 {
        /// What went wrong, for people; UTF-8.
        0 message: Vec<u8>,
        /// Facts for programs and logs, such as the name or the number that was refused; UTF-8, may be empty.
        8 detail: Vec<u8>,
        /// An [`Outcome`]: whether the write may have happened.
        16 outcome: u8,
    }
}

impl ErrorBody {
    /// The body for `code`, with its meaning as the message.
    #[must_use]
    pub fn new(code: ErrorCode, detail: &str) -> Self {
        Self {
            message: code.meaning().as_bytes().to_vec(),
            detail: detail.as_bytes().to_vec(),
            outcome: code.outcome().code(),
        }
    }
}

impl ArchivedErrorBody {
    /// The message.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn message(&self) -> Result<&str, BodyError> {
        text("error message", &self.message)
    }

    /// The detail.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn detail(&self) -> Result<&str, BodyError> {
        text("error detail", &self.detail)
    }

    /// Whether the write may have happened; a number of a newer version counts as unknown.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::from_code(self.outcome).unwrap_or(Outcome::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{access, encode};

    #[test]
    fn says_what_the_code_says() {
        let mut body = Vec::new();
        encode(&ErrorBody::new(ErrorCode::PartitionOffline, "orders-3"), &mut body);
        let archived = access::<ErrorBody>(&body).unwrap();
        assert_eq!(archived.message(), Ok(ErrorCode::PartitionOffline.meaning()));
        assert_eq!(archived.detail(), Ok("orders-3"));
        assert_eq!(archived.outcome(), Outcome::Unknown);
    }

    #[test]
    fn an_outcome_of_a_newer_version_is_unknown() {
        let mut body = Vec::new();
        encode(&ErrorBody { outcome: 77, ..ErrorBody::default() }, &mut body);
        assert_eq!(access::<ErrorBody>(&body).unwrap().outcome(), Outcome::Unknown);
    }
}
