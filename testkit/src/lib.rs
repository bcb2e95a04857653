//! Conformance suite, broker launchers and test helpers of anybroker
