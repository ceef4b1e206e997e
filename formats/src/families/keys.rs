//! The keys of a public family's `config.json`, read one by one. Unknown keys are nobody's business: other tools add
//! their own.

use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// One JSON object of a file.
pub(super) struct Keys<'a> {
    object: &'a Map<String, Value>,
    /// Names the file in errors.
    origin: &'a str,
    /// What stands before a key's name in errors.
    prefix: String,
}

impl<'a> Keys<'a> {
    /// The keys of a file.
    pub(super) fn new(object: &'a Map<String, Value>, origin: &'a str) -> Keys<'a> {
        Keys { object, origin, prefix: String::new() }
    }

    /// A key's value; null counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is there and not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The object under a key, if that is one.
    pub(super) fn within(&self, key: &str) -> Option<Keys<'a>> {
        let object = self.get(key)?.as_object()?;
        Some(Keys { object, origin: self.origin, prefix: format!("{}{key}.", self.prefix) })
    }

    fn refuse(&self, key: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
        Error::config(self.origin, format!("{}{key}", self.prefix), found, expected)
    }

    /// A whole number; without a default it must be there.
    pub(super) fn count(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.refuse(key, "missing", "a whole number")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|count| usize::try_from(count).ok())
                .ok_or_else(|| self.refuse(key, value, "a whole number")),
        }
    }

    /// A number.
    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.refuse(key, value, "a number")),
        }
    }

    /// One of some words, each with what it means.
    pub(super) fn word<T: Copy>(&self, key: &str, default: &str, known: &[(&str, T)]) -> Result<T> {
        let default = Value::from(default);
        let value = self.get(key).unwrap_or(&default);
        let found = known.iter().find(|(word, _)| value == word);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            self.refuse(key, value, format!("one of {}: anything else is not computed yet", words.join(", ")))
        })
    }

    /// True or false.
    pub(super) fn switch(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(key, value, "true or false")),
        }
    }

    /// Refuses any other value than this one, or none.
    pub(super) fn must_be(&self, key: &str, expected: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != expected => {
                Err(self.refuse(key, value, format!("{expected}: anything else is not computed yet")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses any other number than this one, or none.
    pub(super) fn must_equal(&self, key: &str, expected: f64) -> Result<()> {
        match self.get(key) {
            Some(value) if value.as_f64() != Some(expected) => {
                Err(self.refuse(key, value, format!("{expected}: anything else is not computed yet")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a list that holds anything but this word.
    pub(super) fn all_must_be(&self, key: &str, expected: &str) -> Result<()> {
        let Some(value) = self.get(key) else { return Ok(()) };
        let alike = value.as_array().is_some_and(|list| list.iter().all(|item| item == expected));
        if alike {
            return Ok(());
        }
        Err(self.refuse(key, value, format!("a list of {expected:?}: anything else is not computed yet")))
    }
}
