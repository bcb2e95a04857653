//! Tests of anybroker as an application uses it.
