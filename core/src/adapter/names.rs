use crate::name::{LONGEST, SEPARATOR};
use crate::{Destination, Error, ErrorKind, Result};

/// The name of a destination, or of a group's own, under which it is stored: with the prefix, unless
/// the destination is native.
///
/// # Errors
/// `Invalid` where prefix, destination and group take more than 64 bytes together.
pub fn prefixed(
    prefix: Option<&str>,
    joint: &str,
    destination: &Destination,
    name: &str,
) -> Result<String> {
    let Some(prefix) = prefix.filter(|_| !destination.is_native()) else {
        return Ok(name.to_owned());
    };
    if prefix.len() + name.replacen(SEPARATOR, "", 1).len() <= LONGEST {
        return Ok([prefix, joint, name].concat());
    }
    let text = format!(
        "{prefix:?} and {name:?} are too long: prefix, destination and group together may take {LONGEST} bytes"
    );
    Err(Error::new(ErrorKind::Invalid, text).operation("name"))
}

/// The partition of a message among so many: by its key, so that all versions agree on it. Those
/// without a key are spread by their id.
pub fn partition(count: usize, key: Option<&str>, id: &str) -> usize {
    if count < 2 {
        return 0;
    }
    let index = stable_hash(key.unwrap_or(id)) % count as u64;
    usize::try_from(index).unwrap_or(0)
}

/// A number for a key (FNV-1a): publishers and consumers of all versions must agree on it.
pub fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Queue;

    #[test]
    fn a_prefix_stands_before_all_names_but_native_ones() {
        let queue = Destination::queue("orders");
        assert_eq!(prefixed(None, ".", &queue, "orders").expect("it fits"), "orders");
        assert_eq!(prefixed(Some("dev"), ".", &queue, "orders").expect("it fits"), "dev.orders");
        let native = Queue::native("Old_Orders").into();
        assert_eq!(
            prefixed(Some("dev"), ".", &native, "Old_Orders").expect("it fits"),
            "Old_Orders"
        );
    }

    #[test]
    fn prefix_destination_and_group_share_64_bytes() {
        let topic = Destination::topic("t".repeat(40));
        let stored = format!("{}--{}", topic.name(), "g".repeat(20));
        prefixed(Some("1234"), "--", &topic, &stored).expect("64 bytes");
        let error = prefixed(Some("12345"), "--", &topic, &stored).expect_err("65 bytes");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn keys_keep_their_partition_for_ever() {
        assert_eq!(stable_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(partition(1, Some("a"), ""), 0);
        assert_eq!(partition(5, Some("a"), "1"), partition(5, None, "a"));
        assert_eq!(partition(5, Some("a"), ""), 1);
    }
}
