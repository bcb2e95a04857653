//! Holds the invariants that ARCHITECTURE.md lists: who may depend on whom, and who may name whom.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const ADAPTERS: [&str; 5] = ["memory", "rabbitmq", "kafka", "sqs", "redis"];
/// Brokers and what gives them away, but for `memory`, which is a word of its own.
const BROKER_WORDS: [&str; 7] = ["rabbit", "amqp", "lapin", "kafka", "redis", "sqs", "sns"];

/// The package's own dependencies of this workspace, those of its tests left out.
fn dependencies(package: &str) -> Vec<String> {
    let manifest = fs::read_to_string(Path::new(ROOT).join(package).join("Cargo.toml")).unwrap();
    let mut section = String::new();
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            line.trim_matches(['[', ']']).clone_into(&mut section);
        } else if section == "dependencies" && line.starts_with("anybroker") {
            found.push(line.split(['.', ' ', '=']).next().unwrap().to_owned());
        }
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every line of the package's sources before the unit tests, with where it stands.
fn lines(package: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    sources(&Path::new(ROOT).join(package).join("src"), &mut files);
    assert!(!files.is_empty(), "{package} has sources");
    let mut lines = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let code = text.lines().take_while(|line| *line != "#[cfg(test)]").enumerate();
        lines.extend(code.map(|(index, line)| {
            (format!("{}:{}", file.display(), index + 1), line.to_lowercase())
        }));
    }
    lines
}

#[test]
fn imports_run_downward_only() {
    assert_eq!(dependencies("core"), Vec::<String>::new());
    assert_eq!(dependencies("core/macros"), Vec::<String>::new());
    for adapter in ADAPTERS {
        assert_eq!(dependencies(&format!("adapters/{adapter}")), ["anybroker-core"], "{adapter}");
    }
    assert_eq!(dependencies("testkit"), ["anybroker-core"]);
}

#[test]
fn every_adapter_is_held_to_this() {
    let folders = fs::read_dir(Path::new(ROOT).join("adapters")).unwrap();
    let mut folders: Vec<_> =
        folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    let mut known = ADAPTERS;
    folders.sort_unstable();
    known.sort_unstable();
    assert_eq!(folders, known);
}

#[test]
fn the_default_build_has_no_driver() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--package=anybroker", "--edges=no-dev", "--prefix=none"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("anybroker-memory "), "{tree}");
    for package in tree.lines().map(|line| line.split(' ').next().unwrap_or_default()) {
        let is_driver = BROKER_WORDS.iter().any(|word| package.contains(word));
        // What compiles C, or the clients' shared ground.
        let is_native = package.ends_with("-sys") || ["cc", "ring", "rustls"].contains(&package);
        assert!(!is_driver && !is_native, "{package} in\n{tree}");
    }
}

#[test]
fn core_names_no_broker() {
    for package in ["core", "core/macros"] {
        for (place, line) in lines(package) {
            let named = BROKER_WORDS.iter().find(|word| line.contains(**word));
            assert_eq!(named, None, "{place}: {line}");
        }
    }
}

#[test]
fn no_adapter_names_another() {
    for adapter in ADAPTERS {
        let others = ADAPTERS.iter().filter(|other| **other != adapter);
        let crates: Vec<_> = others.map(|other| format!("anybroker_{other}")).collect();
        for (place, line) in lines(&format!("adapters/{adapter}")) {
            assert!(!crates.iter().any(|other| line.contains(other)), "{place}: {line}");
        }
    }
}
