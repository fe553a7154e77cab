//! Which shared store: what is given, or else the variable, or else the user's file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_yaml::{Mapping, Value as Yaml};

use super::super::{Failure, interrupts, user_file};
use crate::engine::store::{Remote, RemoteSettings};

/// The variable that names it.
pub(super) const VARIABLE: &str = "FLOWGRAPH_REMOTE";
/// What is given so that nothing is shared.
const NONE: &str = "none";
/// The user's file.
const FILE: &str = "config.yaml";

/// Returns the settings of the address that is given, or of the variable or the user's file, if there is one.
pub(super) fn settings(given: &str) -> Result<Option<RemoteSettings>, Failure> {
    let of_environment = || std::env::var(VARIABLE).unwrap_or_default();
    let given = match given {
        "" => of_environment(),
        given => given.to_owned(),
    };
    if given == NONE {
        return Ok(None);
    }
    let given = RemoteSettings {
        address: given,
        ..RemoteSettings::default()
    };
    let settings = match configured()? {
        configured if given.address.is_empty() => configured,
        // Its options are for that place.
        Some(configured) if configured.is_same_place(&given) => Some(configured),
        _ => Some(given),
    };
    if let Some(settings) = &settings {
        settings.check().map_err(as_usage)?;
    }
    Ok(settings)
}

/// Opens the shared store of an address, or of the variable or the user's file, if there is one.
pub(super) fn open(given: &str) -> Result<Option<Remote>, Failure> {
    let settings = settings(given)?;
    let open = |settings| Remote::open(settings, &interrupts::stop_flag()).map_err(as_usage);
    settings.as_ref().map(open).transpose()
}

fn as_usage(error: crate::engine::stage::StageError) -> Failure {
    match Failure::from(error) {
        Failure::Other { message, hint, .. } => Failure::Other {
            message,
            hint,
            code: super::exit_code::USAGE,
        },
        failure @ Failure::Load(_) => failure,
    }
}

/// Returns what the user's file says.
fn configured() -> Result<Option<RemoteSettings>, Failure> {
    let Some(file) = user_file(FILE).filter(|file| file.exists()) else {
        return Ok(None);
    };
    let text = fs_err::read_to_string(&file).map_err(|error| Failure::usage(error.to_string()))?;
    let yaml: Yaml = serde_yaml::from_str(&text).map_err(|error| {
        // The message of the parser may repeat a value, which may be a credential.
        let at = error.location();
        let at = at.map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
        wrong(&file, &at, "it is no YAML")
    })?;
    read(&yaml).map_err(|what| wrong(&file, "", &what))
}

fn wrong(file: &Path, at: &str, what: &str) -> Failure {
    Failure::Other {
        message: format!("{}{at}: {what}", file.display()),
        hint: Some(
            "remote: s3://bucket/path, or remote: { address: \"s3://bucket/path\", read_only: true, options: { region: eu-west-1 } }"
                .to_owned(),
        ),
        code: super::exit_code::USAGE,
    }
}

/// Reads the settings; what is wrong is told without a value.
fn read(yaml: &Yaml) -> Result<Option<RemoteSettings>, String> {
    let settings = match yaml {
        Yaml::Null => return Ok(None),
        Yaml::Mapping(settings) => settings,
        _ => return Err("expected settings by name".to_owned()),
    };
    known(settings, &["remote"])?;
    let remote = match settings.get("remote") {
        None | Some(Yaml::Null) => return Ok(None),
        Some(Yaml::String(address)) if address == NONE => return Ok(None),
        Some(Yaml::String(address)) => {
            return Ok(Some(RemoteSettings {
                address: address.clone(),
                ..RemoteSettings::default()
            }));
        }
        Some(Yaml::Mapping(remote)) => remote,
        Some(_) => return Err("`remote` is an address, or settings by name".to_owned()),
    };
    known(remote, &["address", "read_only", "options"])?;
    let address = remote.get("address").and_then(Yaml::as_str);
    let address = address.ok_or("`remote.address` is an address")?.to_owned();
    let read_only = match remote.get("read_only") {
        None => false,
        Some(value) => value
            .as_bool()
            .ok_or("`remote.read_only` is true or false")?,
    };
    let options = match remote.get("options") {
        None => BTreeMap::new(),
        Some(Yaml::Mapping(options)) => options
            .iter()
            .map(|(name, value)| {
                let name = name
                    .as_str()
                    .ok_or("a name of `remote.options` is no text")?;
                let value = match value {
                    Yaml::String(text) => text.clone(),
                    Yaml::Bool(truth) => truth.to_string(),
                    Yaml::Number(number) => number.to_string(),
                    _ => return Err(format!("`remote.options.{name}` is no text")),
                };
                Ok((name.to_owned(), value))
            })
            .collect::<Result<_, String>>()?,
        Some(_) => return Err("`remote.options` are settings by name".to_owned()),
    };
    Ok(Some(RemoteSettings {
        address,
        read_only,
        options,
    }))
}

/// Refuses what nobody reads.
fn known(settings: &Mapping, names: &[&str]) -> Result<(), String> {
    let unknown = settings.keys().find(|key| {
        let key = key.as_str().unwrap_or_default();
        !names.contains(&key)
    });
    let Some(unknown) = unknown else {
        return Ok(());
    };
    let unknown = unknown.as_str().unwrap_or("what is no text");
    Err(format!(
        "unknown setting `{unknown}`: expected {}",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<RemoteSettings>, String> {
        read(&serde_yaml::from_str(text).unwrap())
    }

    #[test]
    fn an_address_or_settings_by_name_are_read() {
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("remote: none"), Ok(None));
        assert_eq!(of("remote: s3://b/x").unwrap().unwrap().address, "s3://b/x");
        let whole = "remote: { address: s3://b, read_only: true, options: { region: eu, allow_http: true, n: 3 } }";
        let whole = of(whole).unwrap().unwrap();
        assert!(whole.read_only);
        let options: Vec<&str> = whole.options.values().map(String::as_str).collect();
        assert_eq!(options, ["true", "3", "eu"]);
    }

    #[test]
    fn a_slip_is_told_by_its_name_and_without_a_value() {
        for (text, told) in [
            ("remotes: verysecret", "`remotes`"),
            ("remote: [verysecret]", "`remote`"),
            ("remote: { adress: verysecret }", "`adress`"),
            ("remote: { read_only: true }", "`remote.address`"),
            (
                "remote: { address: x, read_only: verysecret }",
                "`remote.read_only`",
            ),
            (
                "remote: { address: x, options: verysecret }",
                "`remote.options`",
            ),
            (
                "remote: { address: x, options: { k: [verysecret] } }",
                "`remote.options.k`",
            ),
            ("[verysecret]", "expected settings by name"),
        ] {
            let what = of(text).unwrap_err();
            assert!(
                what.contains(told) && !what.contains("verysecret"),
                "{what}"
            );
        }
    }
}
