//! The scripts: each moves messages in one step, so that none is lost or doubled between two.

use std::sync::LazyLock;

use redis::{Script, Value};

macro_rules! scripts {
    ($($name:ident $file:literal)*) => {
        $(pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("lua/", $file, ".lua"))));)*
    };
}

scripts! {
    DECLARE "declare"
    SETTLE "settle"
    REPLACE "replace"
    CLAIM "claim"
    TAKE "take"
    MOVE "move"
    OWN "own"
    LOCK "lock"
    TRIM "trim"
    LEAVE "leave"
    DEPTH "depth"
    REDRIVE "redrive"
    BEGIN "begin"
    END "end"
}

/// Run as it is, in a pipeline of other commands, where a script that the server has forgotten
/// could not be loaded again.
pub(crate) const DELAY: &str = include_str!("lua/delay.lua");

/// An entry as scripts and reads answer it.
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) count: u32,
    pub(crate) fields: Vec<Value>,
}

impl Found {
    /// `[id, count, fields]`
    pub(crate) fn counted(entry: Value) -> Option<Self> {
        let Value::Array(parts) = entry else { return None };
        let [id, count, fields]: [Value; 3] = parts.try_into().ok()?;
        let count = u32::try_from(integer(&count)?).unwrap_or(u32::MAX);
        Some(Self { id: text(id)?, count, fields: array(fields) })
    }

    /// `[id, fields]`, delivered for the first time.
    pub(crate) fn first(entry: Value) -> Option<Self> {
        let Value::Array(parts) = entry else { return None };
        let [id, fields]: [Value; 2] = parts.try_into().ok()?;
        Some(Self { id: text(id)?, count: 1, fields: array(fields) })
    }
}

/// What a read of several streams answers: by the stream's name.
pub(crate) fn streams(answer: Value) -> Vec<(String, Vec<Found>)> {
    let entries = |entries| array(entries).into_iter().filter_map(Found::first).collect();
    let of_stream = |stream| {
        let [name, found]: [Value; 2] = array(stream).try_into().ok()?;
        Some((text(name)?, entries(found)))
    };
    array(answer).into_iter().filter_map(of_stream).collect()
}

/// The members of an array; none of anything else.
pub(crate) fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(members) => members,
        _ => Vec::new(),
    }
}

pub(crate) fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub(crate) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}
