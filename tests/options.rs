//! `docs/options.md` has each URL option that the adapters know, and no other.

use std::collections::BTreeSet;

use anybroker::connect;

const PAGE: &str = include_str!("../docs/options.md");

/// URLs of the adapters that are built in, without options.
const URLS: &[&str] = &[
    "memory://",
    #[cfg(feature = "rabbitmq")]
    "amqp://localhost",
    #[cfg(feature = "kafka")]
    "kafka://localhost",
    #[cfg(feature = "redis")]
    "redis://localhost",
    #[cfg(feature = "sqs")]
    "sqs://eu-central-1",
];

/// The adapter lists its options when it is given one that it does not know.
async fn known(url: &str) -> BTreeSet<String> {
    let error = connect(&format!("{url}?zzzzzzzz=1")).await.expect_err("an unknown option");
    let error = error.to_string();
    let (_, known) = error.split_once("known are ").unwrap_or_else(|| panic!("{error}"));
    known.split(", ").map(str::to_owned).collect()
}

/// The options in the first column of the scheme's table.
fn documented(url: &str) -> BTreeSet<String> {
    let (scheme, _) = url.split_once("://").expect("a scheme");
    let section = PAGE.split("\n## ").find(|section| section.starts_with(&format!("`{scheme}://")));
    let rows = section.expect("a section").lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split(" | ").next().unwrap_or_default());
    cells.flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches('`').to_owned()).collect()
}

#[tokio::test]
async fn the_page_of_options_is_complete() {
    for url in URLS {
        assert_eq!(documented(url), known(url).await, "{url}");
    }
}
