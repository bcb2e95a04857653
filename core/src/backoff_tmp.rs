//! tmp
use std::time::Duration;
/// tmp
pub struct Backoff(Duration, Duration);
/// tmp
pub enum Jitter {
    /// t
    Equal,
}
impl Backoff {
    /// tmp
    pub fn exponential(d: Duration) -> Self {
        Self(d, d)
    }
    /// tmp
    pub fn cap(self, d: Duration) -> Self {
        Self(self.0, d)
    }
    /// tmp
    pub fn jitter(self, _: Jitter) -> Self {
        self
    }
    /// tmp
    pub fn delay(&self, n: u32) -> Duration {
        (self.0 * 2u32.saturating_pow(n.saturating_sub(1).min(20))).min(self.1)
    }
}
