//! Conformance suite, broker launchers and test helpers of anybroker

pub mod brokers;
