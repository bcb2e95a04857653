use std::fmt::Write as _;
use std::fs;

use super::cache::once;
use super::{Programs, need, run};
use crate::brokers::Error;

/// Java libraries, with all that they depend on.
#[derive(Debug)]
pub(crate) struct Jars {
    /// The name of their folder.
    pub(crate) name: String,
    /// `group:artifact:version`.
    pub(crate) artifacts: Vec<String>,
}

impl Jars {
    pub(crate) fn install(&self) -> Result<Programs, Error> {
        once(&self.name, |folder| {
            need("java", &["default-jre-headless"])?;
            need("mvn", &["maven"])?;
            let pom = folder.join("pom.xml");
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&pom, self.pom()))
                .map_err(Error::io(format!("cannot write {}", pom.display())))?;
            run(
                "mvn",
                &[
                    "--quiet",
                    "--batch-mode",
                    "--file",
                    &pom.display().to_string(),
                    "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
                    "-DincludeScope=runtime",
                    &format!("-DoutputDirectory={}", folder.display()),
                ],
            )
        })
        .map(Programs::Folder)
    }

    fn pom(&self) -> String {
        let mut dependencies = String::new();
        for artifact in &self.artifacts {
            let mut parts = artifact.splitn(3, ':');
            dependencies.push_str("<dependency>");
            for tag in ["groupId", "artifactId", "version"] {
                let part = parts.next().unwrap_or_default();
                let _ = write!(dependencies, "<{tag}>{part}</{tag}>");
            }
            dependencies.push_str("</dependency>");
        }
        format!(
            "<project><modelVersion>4.0.0</modelVersion><groupId>anybroker</groupId>\
             <artifactId>{}</artifactId><version>1</version>\
             <dependencies>{dependencies}</dependencies></project>",
            self.name
        )
    }
}
