//! What the memory broker promises, under virtual time unless threads are the point.

mod capacity;
mod close;
mod dead_letters;
mod declare;
mod delay;
mod lease;
mod order;
mod queue;
mod receiver;
mod topic;
mod waking;
