use std::time::SystemTime;

use tokio::time::Instant;

/// The wall clock, moved by as much as a test moved tokio's clock.
///
/// Times that are written into messages (`time`, `expires`, `notbefore`) and the timers that wait
/// for them must agree, also where a test pauses and advances tokio's clock. In a program that
/// does not, this is [`SystemTime::now`].
pub fn now() -> SystemTime {
    let (virtual_now, real_now) = (Instant::now().into_std(), std::time::Instant::now());
    let wall = SystemTime::now();
    if virtual_now > real_now {
        wall + (virtual_now - real_now)
    } else {
        wall.checked_sub(real_now - virtual_now).unwrap_or(wall)
    }
}
