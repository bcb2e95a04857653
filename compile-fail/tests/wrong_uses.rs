//! What the compiler says to wrong uses: each case in `ui/` has the expected text beside it.
//!
//! After a change that is wanted, `TRYBUILD=overwrite cargo test -p anybroker-compile-fail` writes
//! the texts anew; read them as a newcomer would.

#[test]
fn wrong_uses_do_not_compile_and_say_why() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
