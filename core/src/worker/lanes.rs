use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;

/// Keeps the items of one key in order: while one is out, the others of its key wait.
pub(super) struct Lanes<T> {
    waiting: HashMap<String, VecDeque<T>>,
    count: usize,
}

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self { waiting: HashMap::new(), count: 0 }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Lets the item through when its key is free, and takes the key; else keeps it.
    pub(super) fn enter(&mut self, key: Option<&str>, item: T) -> Option<T> {
        let Some(key) = key else { return Some(item) };
        match self.waiting.entry(key.to_owned()) {
            Entry::Vacant(lane) => {
                lane.insert(VecDeque::new());
                Some(item)
            }
            Entry::Occupied(mut lane) => {
                lane.get_mut().push_back(item);
                self.count += 1;
                None
            }
        }
    }

    /// Frees the key, or passes it to the next item, which is answered.
    pub(super) fn leave(&mut self, key: &str) -> Option<T> {
        let next = self.waiting.get_mut(key)?.pop_front();
        if next.is_some() {
            self.count -= 1;
        } else {
            self.waiting.remove(key);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_one_key_pass_one_after_the_other() {
        let mut lanes = Lanes::new();
        assert_eq!(lanes.enter(Some("a"), 1), Some(1));
        assert_eq!(lanes.enter(Some("a"), 2), None);
        assert_eq!(lanes.enter(Some("b"), 3), Some(3));
        assert_eq!(lanes.enter(None, 4), Some(4));
        assert_eq!(lanes.len(), 1);
        assert_eq!(lanes.leave("a"), Some(2));
        assert_eq!(lanes.leave("a"), None);
        assert_eq!(lanes.enter(Some("a"), 5), Some(5));
    }
}
