//! Tests of anybroker as an application uses it.

/// Guides, whose code is tested as documentation is.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/guide.md")]
    mod guide {}
    #[doc = include_str!("../docs/migrate.md")]
    mod migrate {}
    #[doc = include_str!("../docs/testing.md")]
    mod testing {}
}
