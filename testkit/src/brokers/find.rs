use std::env;

use super::backing::Backing;
use super::recipe::Recipe;
use super::{Error, Server, container};

/// A server from the environment, or one of our own.
pub(super) fn find<R: Recipe + Clone + 'static>(recipe: &R) -> Result<Server, Error> {
    match in_environment(recipe, |name| env::var(name).ok())? {
        Some((url, version)) => Ok(Server::foreign(Box::new(recipe.clone()), url, version)),
        None => launch(recipe),
    }
}

/// A server of our own: from a container, else from packages.
pub(super) fn launch<R: Recipe + Clone + 'static>(recipe: &R) -> Result<Server, Error> {
    let mut why = Vec::new();
    if container::docker_answers() {
        match Backing::container(recipe) {
            Ok(backing) => return Server::started(Box::new(recipe.clone()), backing),
            Err(error) => {
                eprintln!("{error}; trying packages instead");
                why.push(error.to_string());
            }
        }
    }
    // What fails once a server is there is no reason to look elsewhere, here and above.
    match recipe.install() {
        Ok(programs) => {
            Server::started(Box::new(recipe.clone()), Backing::packages(recipe, programs)?)
        }
        Err(error) => {
            why.push(error.to_string());
            Err(Error::new(format!(
                "no {} to test with: {}\nOr start one yourself, then\n    export {}={}",
                recipe.name(),
                why.join("\n"),
                recipe.variables()[0],
                recipe.example_url(),
            )))
        }
    }
}

/// URL and version of the server that the environment names, if it is of the wanted version.
pub(super) fn in_environment(
    recipe: &dyn Recipe,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<(String, String)>, Error> {
    let variables = recipe.variables();
    for (position, name) in variables.iter().enumerate() {
        let Some(url) = variable(name).filter(|url| !url.is_empty()) else {
            continue;
        };
        let version = recipe
            .probe(&url)
            .map_err(|error| Error::new(format!("{name} is set, but {error}")))?;
        if recipe.accepts(&version) {
            return Ok(Some((url, version)));
        }
        let is_general = position + 1 == variables.len();
        if !is_general {
            return Err(Error::new(format!(
                "{name} is set, but version {version} answers there instead of {}",
                recipe.name()
            )));
        }
    }
    Ok(None)
}
