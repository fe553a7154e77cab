//! The usual settings of other tools: pip's and uv's index, certificates, the Hugging Face hub.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::address::Address;

const DEFAULT_INDEX: &str = "https://pypi.org/simple";
const DEFAULT_HUB: &str = "https://huggingface.co";

/// A setting and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting<T> {
    pub(super) value: T,
    pub(super) origin: &'static str,
}

/// Where packages, models and trusted certificates are found.
#[derive(Clone)]
pub struct Settings {
    /// Root of the simple index, as text: it may hold credentials.
    index: Setting<String>,
    /// PEM files of certificates trusted beside the built-in roots.
    pub(super) certificates: Vec<Setting<PathBuf>>,
    hub: Setting<String>,
    /// Access token for the hub.
    pub(super) hub_token: Option<String>,
    /// Folder of the hub's own cache.
    pub(super) hub_cache: Option<PathBuf>,
}

impl std::fmt::Debug for Settings {
    /// Leaves out the token and the credentials of the index.
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("index", &self.index().map(|index| index.value))
            .field("certificates", &self.certificates)
            .field("hub", &self.hub().map(|hub| hub.value))
            .field("hub_cache", &self.hub_cache)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads the environment of this process and pip's configuration files.
    pub fn from_environment() -> Self {
        Self::read(&|name| std::env::var(name).ok())
    }

    /// Reads an environment given as a function.
    ///
    /// - Index: `PIP_INDEX_URL`, `UV_DEFAULT_INDEX`, `UV_INDEX_URL`, `global.index-url` of pip's
    ///   configuration files (`PIP_CONFIG_FILE`, those of the virtual environment, the user and the
    ///   machine), `https://pypi.org/simple`.
    /// - Certificates: all of `SSL_CERT_FILE`, `PIP_CERT`, `REQUESTS_CA_BUNDLE`, pip's `global.cert`; if none
    ///   is set, the system's.
    /// - Hub: `HF_ENDPOINT`; `HF_TOKEN` or the file `HF_HOME/token`; `HF_HUB_CACHE` or `HF_HOME/hub`.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let pip = pip_configuration(&variable);
        let pip_value = |key: &str| {
            pip.iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value.clone())
        };
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| {
                variable(name).map(|value| Setting {
                    value,
                    origin: name,
                })
            })
        };
        let index = first(&["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"])
            .or_else(|| {
                pip_value("index-url").map(|value| Setting {
                    value,
                    origin: "pip's configuration",
                })
            })
            .unwrap_or(Setting {
                value: DEFAULT_INDEX.to_owned(),
                origin: "the default",
            });
        let mut certificates: Vec<Setting<PathBuf>> = Vec::new();
        let files = ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"]
            .map(|name| (name, variable(name)))
            .into_iter()
            .chain([("pip's configuration", pip_value("cert"))]);
        for (origin, value) in files {
            if let Some(value) = value.map(PathBuf::from)
                && !certificates.iter().any(|known| known.value == value)
            {
                certificates.push(Setting { value, origin });
            }
        }
        let hub_home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))?;
            Some(cache.join("huggingface"))
        });
        let token_file = || fs::read_to_string(hub_home.as_ref()?.join("token")).ok();
        Self {
            index,
            certificates,
            hub: first(&["HF_ENDPOINT"]).unwrap_or(Setting {
                value: DEFAULT_HUB.to_owned(),
                origin: "the default",
            }),
            hub_token: variable("HF_TOKEN")
                .or_else(token_file)
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            hub_cache: variable("HF_HUB_CACHE")
                .map(PathBuf::from)
                .or_else(|| Some(hub_home?.join("hub"))),
        }
    }

    /// The root of the package index.
    pub(super) fn index(&self) -> Result<Setting<Address>, (&'static str, &'static str)> {
        // uv allows a name before the address: `name=https://...`.
        let text = match self.index.value.split_once('=') {
            Some((name, address)) if !name.contains("://") => address,
            _ => &self.index.value,
        };
        parse(text, self.index.origin)
    }

    /// The root of the hub.
    pub(super) fn hub(&self) -> Result<Setting<Address>, (&'static str, &'static str)> {
        parse(&self.hub.value, self.hub.origin)
    }
}

/// Gives the address, or what is wrong with it and where it comes from.
fn parse(
    text: &str,
    origin: &'static str,
) -> Result<Setting<Address>, (&'static str, &'static str)> {
    match Address::parse(text.trim()) {
        Ok(value) => Ok(Setting { value, origin }),
        Err(problem) => Err((problem, origin)),
    }
}

/// The `[global]` values of pip's configuration files, those that count most first.
fn pip_configuration(variable: &dyn Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> = Vec::new();
    let in_folder = |name: &str, rest: &str| Some(Path::new(&variable(name)?).join(rest));
    match variable("PIP_CONFIG_FILE") {
        // pip's way to switch all files off.
        Some(file) if file == "/dev/null" => return Vec::new(),
        file => files.extend(file.map(PathBuf::from)),
    }
    files.extend(in_folder("VIRTUAL_ENV", "pip.conf"));
    files.extend(
        in_folder("XDG_CONFIG_HOME", "pip/pip.conf")
            .or_else(|| in_folder("HOME", ".config/pip/pip.conf")),
    );
    files.extend(in_folder("HOME", ".pip/pip.conf"));
    files.push(PathBuf::from("/etc/xdg/pip/pip.conf"));
    files.push(PathBuf::from("/etc/pip.conf"));
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| global_values(&text))
        .collect()
}

/// The values of the `[global]` section of an ini file.
fn global_values(text: &str) -> Vec<(String, String)> {
    let mut section = "";
    let mut values = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.trim();
        } else if section == "global"
            && let Some(place) = line.find(['=', ':'])
        {
            let key = line[..place].trim().to_ascii_lowercase().replace('_', "-");
            let value = line[place + 1..].trim();
            if !value.is_empty() {
                values.push((key, value.to_owned()));
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        Settings::read(&|name| {
            // Nothing of this machine's own configuration.
            let default = (name == "PIP_CONFIG_FILE").then(|| "/dev/null".to_owned());
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned()).or(default)
        })
    }

    fn index(variables: &[(&str, &str)]) -> String {
        settings(variables).index().unwrap().value.request_target()
    }

    #[test]
    fn the_index_comes_from_the_usual_variables_in_order() {
        let all = [
            ("UV_INDEX_URL", "https://c/simple"),
            ("UV_DEFAULT_INDEX", "corporate=https://b/simple?x=1"),
            ("PIP_INDEX_URL", "https://a/simple"),
        ];
        assert_eq!(index(&all), "https://a/simple");
        assert_eq!(index(&all[..2]), "https://b/simple?x=1");
        assert_eq!(index(&all[..1]), "https://c/simple");
        assert_eq!(index(&[("PIP_INDEX_URL", " ")]), DEFAULT_INDEX);
    }

    #[test]
    fn pip_configuration_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pip.conf");
        fs::write(&file, "[install]\nindex-url = https://no/\n[global]\n# index-url = https://no/\nindex_url: https://u:p@mirror:8/simple\ncert=/certs.pem\n").unwrap();
        let settings = settings(&[
            ("PIP_CONFIG_FILE", file.to_str().unwrap()),
            ("SSL_CERT_FILE", "/other.pem"),
            ("PIP_CERT", "/other.pem"),
        ]);
        let index = settings.index().unwrap();
        assert_eq!(index.value.request_target(), "https://mirror:8/simple");
        assert_eq!(index.origin, "pip's configuration");
        let files: Vec<_> = settings
            .certificates
            .iter()
            .map(|file| file.value.to_str().unwrap())
            .collect();
        assert_eq!(files, ["/other.pem", "/certs.pem"]);
        assert!(!format!("{settings:?}").contains("u:p"));
    }

    #[test]
    fn the_hub_is_set_as_its_own_tools_set_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("token"), "hf_file\n").unwrap();
        let home = directory.path().to_str().unwrap();
        let found = settings(&[("HF_HOME", home)]);
        assert_eq!(found.hub_token.as_deref(), Some("hf_file"));
        assert_eq!(found.hub_cache, Some(directory.path().join("hub")));
        assert_eq!(
            found.hub().unwrap().value.request_target(),
            "https://huggingface.co/"
        );
        let found = settings(&[
            ("HF_HOME", home),
            ("HF_TOKEN", "hf_env"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_ENDPOINT", "https://mirror"),
        ]);
        assert_eq!(found.hub_token.as_deref(), Some("hf_env"));
        assert_eq!(found.hub_cache, Some(PathBuf::from("/c")));
        assert!(!format!("{found:?}").contains("hf_env"));
        let found = settings(&[("HOME", "/home/me")]);
        assert_eq!(
            found.hub_cache,
            Some(PathBuf::from("/home/me/.cache/huggingface/hub"))
        );
    }

    #[test]
    fn a_faulty_index_is_named_by_its_origin() {
        let found = settings(&[("PIP_INDEX_URL", "http://user:secret@example.org/")]).index();
        assert_eq!(found.unwrap_err().1, "PIP_INDEX_URL");
    }
}
