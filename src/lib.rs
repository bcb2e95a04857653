//! anybroker
