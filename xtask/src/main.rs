//! Tasks of the workspace: tests, brokers, benchmarks.
fn main() {}
