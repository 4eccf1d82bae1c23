//! The key inside a JSON line: owns how `--key-field` names a field; changes nothing in the line.

use std::fmt;

use serde_json::Value;

/// Names of a field and of the objects around it, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyField {
    names: Vec<String>,
}

/// Why a line has no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoKey {
    /// It is no JSON.
    NotJson {
        /// Where it stops to be, from 1.
        column: usize,
    },
    /// It is JSON and no object.
    NotAnObject,
    /// It has no such field, or null in it.
    Missing {
        /// The field as it was named.
        field: String,
    },
    /// The field holds an object or a list.
    NotAScalar {
        /// The field as it was named.
        field: String,
    },
}

impl fmt::Display for NoKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { column } => write!(formatter, "no JSON from column {column} on"),
            Self::NotAnObject => formatter.write_str("JSON, but no object"),
            Self::Missing { field } => write!(formatter, "no field {field:?}"),
            Self::NotAScalar { field } => write!(formatter, "field {field:?} is no text, number or boolean"),
        }
    }
}

impl KeyField {
    /// `userId`, or `payload.userId` for a field of a field.
    pub(crate) fn new(text: &str) -> Self {
        Self { names: text.split('.').map(str::to_owned).collect() }
    }

    /// The key of a line: the bytes of a text, or a number or boolean as it is written.
    pub(crate) fn key(&self, line: &[u8]) -> Result<Vec<u8>, NoKey> {
        let root: Value =
            serde_json::from_slice(line).map_err(|error| NoKey::NotJson { column: error.column().max(1) })?;
        if !root.is_object() {
            return Err(NoKey::NotAnObject);
        }
        let field = || self.names.join(".");
        // A field whose own name has dots in it comes first.
        let found = root.get(field()).or_else(|| self.names.iter().try_fold(&root, |value, name| value.get(name)));
        match found {
            None | Some(Value::Null) => Err(NoKey::Missing { field: field() }),
            Some(Value::String(text)) => Ok(text.clone().into_bytes()),
            Some(scalar @ (Value::Number(_) | Value::Bool(_))) => Ok(scalar.to_string().into_bytes()),
            Some(_) => Err(NoKey::NotAScalar { field: field() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_at_any_depth() {
        let table = [
            ("userId", r#"{"userId":"u1"}"#, "u1"),
            ("payload.userId", r#"{"payload":{"userId":"u2"}}"#, "u2"),
            ("a.b", r#"{"a.b":"whole","a":{"b":"parts"}}"#, "whole"),
            ("n", r#"{"n":12.50}"#, "12.5"),
            ("n", r#"{"n":true}"#, "true"),
            ("n", r#"{"n":""}"#, ""),
        ];
        for (field, line, key) in table {
            assert_eq!(KeyField::new(field).key(line.as_bytes()), Ok(key.as_bytes().to_vec()), "{line}");
        }
    }

    #[test]
    fn a_line_without_a_key_says_why() {
        let table = [
            ("", "no JSON from column 1 on"),
            ("{\"a\":", "no JSON from column 5 on"),
            ("[1]", "JSON, but no object"),
            ("{}", "no field \"a.b\""),
            (r#"{"a":{"b":null}}"#, "no field \"a.b\""),
            (r#"{"a":{"b":[]}}"#, "field \"a.b\" is no text, number or boolean"),
        ];
        for (line, message) in table {
            let error = KeyField::new("a.b").key(line.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), message, "{line}");
        }
    }
}
