//! Memory broker of anybroker
