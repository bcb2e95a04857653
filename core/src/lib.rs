//! Core of anybroker.
