//! Files on the Hugging Face hub, and in the hub's own cache.

use std::{fmt::Write, path::PathBuf};

use fs_err as fs;

use super::{
    SourceError, cache::Cache, client::Client, download::Download, fetched::Fetched,
    options::FetchOptions, settings::Settings, sha256::Sha256, source::HubFile,
};

pub(super) fn fetch(
    file: &HubFile,
    expected: Option<Sha256>,
    name: &str,
    client: &Client,
    cache: &Cache,
    options: &FetchOptions,
) -> Result<Fetched, SourceError> {
    // A branch may have moved on; a commit cannot.
    let look = !options.refresh || is_commit(file.revision());
    if let Some(path) = in_hub_cache(file, &options.settings).filter(|_| look) {
        let found = Fetched::read_here(&path, options)?;
        if expected.is_none_or(|expected| expected == found.sha256) {
            return Ok(found);
        }
    }
    let hub = options
        .settings
        .hub()
        .map_err(|(problem, setting)| SourceError::Syntax {
            text: setting.to_owned(),
            problem,
            hint: "https://HOST".into(),
        })?;
    let kind = if file.dataset { "datasets/" } else { "" };
    let address = hub.value.below(&format!(
        "{kind}{}/resolve/{}/{}",
        file.repository,
        file.revision(),
        percent_encoded(&file.path)
    ));
    let token = options.settings.hub_token.as_ref();
    let headers: Vec<(&str, String)> = token
        .map(|token| ("authorization", format!("Bearer {token}")))
        .into_iter()
        .collect();
    let download = Download {
        address: &address,
        headers: &headers,
        expected,
        name,
    };
    download.run(client, cache, options)
}

impl HubFile {
    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// The file in the standard cache of the hub's tools:
/// `models--ORG--REPO/snapshots/COMMIT/PATH`, with `refs/REVISION` naming the commit.
fn in_hub_cache(file: &HubFile, settings: &Settings) -> Option<PathBuf> {
    let kind = if file.dataset { "datasets" } else { "models" };
    let folder = format!("{kind}--{}", file.repository.replace('/', "--"));
    let folder = settings.hub_cache.as_ref()?.join(folder);
    let revision = file.revision().replace("%2F", "/").replace("%2f", "/");
    let commit = if is_commit(&revision) {
        revision
    } else if revision
        .split('/')
        .any(|part| part == ".." || part.is_empty())
    {
        return None;
    } else {
        fs::read_to_string(folder.join("refs").join(revision))
            .ok()?
            .trim()
            .to_owned()
    };
    if !is_commit(&commit) {
        return None;
    }
    let path = folder.join("snapshots").join(commit).join(&file.path);
    path.is_file().then_some(path)
}

/// Encodes what a path of an address cannot hold.
fn percent_encoded(path: &str) -> String {
    let mut encoded = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/!$&'()*+,;=:@".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded() {
        assert_eq!(percent_encoded("a b/ä?#%.txt"), "a%20b/%C3%A4%3F%23%25.txt");
        assert_eq!(percent_encoded("data/a-1_2.parquet"), "data/a-1_2.parquet");
    }
}
