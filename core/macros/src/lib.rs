//! Derives for anybroker: Event and Command
