//! Which shared store, and how it is reached.

use std::collections::BTreeMap;

use crate::engine::artifact::Digest;
use crate::engine::mask::Mask;
use crate::engine::stage::StageError;
use crate::excerpt::excerpt;

/// Where a shared store is. Credentials come from variables such as AWS_SECRET_ACCESS_KEY, or from what a cloud gives its own
/// machines; files such as `~/.aws/credentials` are not read.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RemoteSettings {
    /// `s3://bucket/path`, `gs://bucket/path`, `az://container/path` or `file:///path`.
    pub address: String,
    /// Whether results are only taken from it, and none sent.
    pub read_only: bool,
    /// Further settings by the names that `object_store` gives them, such as `endpoint` and `region`.
    pub options: BTreeMap<String, String>,
}

impl std::fmt::Debug for RemoteSettings {
    /// Leaves out the values of options.
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let options: Vec<&String> = self.options.keys().collect();
        formatter
            .debug_struct("RemoteSettings")
            .field("address", &self.address)
            .field("read_only", &self.read_only)
            .field("options", &options)
            .finish()
    }
}

/// Whether a setting of a name is a credential.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["key", "secret", "token", "sas", "password"]
        .iter()
        .any(|part| name.contains(part))
}

/// Whether a setting of a name says which server is asked.
fn is_of_server(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("endpoint") || name.contains("account_name")
}

/// Beginnings of the variables that the clouds' own tools read.
pub(super) const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl RemoteSettings {
    /// Whether it is a folder that machines mount.
    pub fn is_folder(&self) -> bool {
        self.address.starts_with("file:") || !self.address.contains("://")
    }

    /// Refuses addresses that hold a credential, which would be shown, and options that a folder does not have.
    ///
    /// # Errors
    /// Those; the message repeats no part of a credential.
    pub fn check(&self) -> Result<(), StageError> {
        if self.address.trim().is_empty() {
            return Err(StageError::new("the address of the shared store is empty"));
        }
        let (scheme, after) = self.address.split_once("://").unwrap_or_default();
        let host = after.split('/').next().unwrap_or_default();
        let user = host.rsplit_once('@').map(|(user, _)| user);
        // Azure's `abfss://container@account...` holds none.
        let is_container = scheme.starts_with("abfs") && !host.contains(':');
        if user.is_some() && !is_container || after.contains(['?', '#']) {
            return Err(
                StageError::new("the address of the shared store holds a credential or a query")
                    .hint("credentials come from variables such as AWS_SECRET_ACCESS_KEY; s3://bucket/path names the place alone"),
            );
        }
        if after.split('/').any(|part| part == "..") {
            return Err(StageError::new(format!(
                "`{}`: the path of a shared store has no `..`",
                self.address
            )));
        }
        match self.options.keys().next() {
            Some(option) if self.is_folder() => Err(StageError::new(format!(
                "option `{option}` of the shared store: `{}` is a folder, which has none",
                self.address
            ))),
            _ => Ok(()),
        }
    }

    /// Returns its address without slashes at the end, as people read it.
    pub fn name(&self) -> &str {
        match self.address.trim_end_matches('/') {
            "" | "file:" => &self.address,
            name => name,
        }
    }

    /// Whether both are of one place, however it is spelled.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.spelled() == other.spelled()
    }

    /// Returns the one spelling of its address.
    fn spelled(&self) -> String {
        let (scheme, rest) = match self.address.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => ("file".to_owned(), self.address.as_str()),
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (scheme, host) = match scheme.as_str() {
            "file" => ("file", ""),
            // No bucket has a port.
            "s3a" | "s3" => ("s3", host.split(':').next().unwrap_or_default()),
            other => (other, host),
        };
        let parts = path.split('/').filter(|part| !["", "."].contains(part));
        let parts: Vec<&str> = std::iter::once(host).chain(parts).collect();
        format!("{scheme}://{}", parts.join("/"))
    }

    /// Tells two places of one address apart that lie on different servers.
    pub(super) fn place(&self) -> String {
        let servers = std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            VARIABLES.iter().any(|start| name.starts_with(start)) && is_of_server(&name)
        });
        let mut servers: Vec<String> = servers
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        servers.sort();
        let own = self.options.iter().filter(|(name, _)| !is_secret(name));
        let own: Vec<String> = own.map(|(name, value)| format!("{name}={value}")).collect();
        let text = format!("{} {} {}", self.spelled(), servers.join(" "), own.join(" "));
        Digest::of(text.as_bytes()).short()
    }

    /// What must not be shown: the values of all that looks like a credential.
    pub(super) fn mask(&self) -> Mask {
        let is_secret = |name: &str| {
            let name = name.to_ascii_lowercase();
            [
                "key",
                "secret",
                "token",
                "sas",
                "password",
                "service_account",
            ]
            .iter()
            .any(|part| name.contains(part))
        };
        let of_environment = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let is_meant = VARIABLES.iter().any(|start| name.starts_with(start));
            (is_meant && is_secret(&name)).then(|| (name, value.into_encoded_bytes()))
        });
        let own = self.options.iter().filter(|(name, _)| is_secret(name));
        let own = own.map(|(name, value)| (name.clone(), value.clone().into_bytes()));
        Mask::with(of_environment.chain(own))
    }
}

/// Returns what may be shown of an error: without queries and user names of addresses, and of the answer of a server the code
/// and the message alone. Some clouds sign queries, and answers to a wrong signature repeat what was signed.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let text = without_body(text);
    let mut rest = text.as_str();
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = after
            .find(|sign: char| sign.is_whitespace() || "\"'`()<>".contains(sign))
            .unwrap_or(after.len());
        let (address, further) = after.split_at(end);
        let address = address.split(['?', '#']).next().unwrap_or_default();
        let (host, path) = address.split_at(address.find('/').unwrap_or(address.len()));
        shown.push_str(host.rsplit_once('@').map_or(host, |(_, host)| host));
        shown.push_str(path);
        rest = further;
    }
    shown.push_str(rest);
    let line = shown
        .trim()
        .trim_end_matches(':')
        .replace(char::is_control, " ");
    excerpt(&line, LONGEST).into_owned()
}

/// Characters of an error that are shown.
const LONGEST: usize = 600;

/// Puts the code and the message in the place of the XML that a server answered.
fn without_body(text: &str) -> String {
    let starts = ["<?xml", "<Error", "<!DOCTYPE", "<html"];
    let Some(start) = starts.iter().filter_map(|start| text.find(start)).min() else {
        return text.to_owned();
    };
    let (before, body) = text.split_at(start);
    let of = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        rest.split_once('<').map(|(value, _)| value.to_owned())
    };
    let told: Vec<String> = ["Code", "Message"].into_iter().filter_map(of).collect();
    format!("{before}{}", told.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> RemoteSettings {
        RemoteSettings {
            address: address.to_owned(),
            ..RemoteSettings::default()
        }
    }

    #[test]
    fn an_address_with_a_credential_is_refused_and_not_repeated() {
        for bad in [
            "s3://AKIA:verysecret@bucket/lab",
            "https://account.blob.core.windows.net/c?sig=verysecret",
            "abfss://container:verysecret@account.dfs.core.windows.net/x",
        ] {
            let Err(StageError::Failed { message, .. }) = of(bad).check() else {
                panic!("{bad}");
            };
            assert!(!message.contains("verysecret"));
        }
        assert!(of("s3://bucket/lab@home").check().is_ok());
        assert!(
            of("abfss://container@account.dfs.core.windows.net/x")
                .check()
                .is_ok()
        );
    }

    #[test]
    fn a_place_is_the_same_however_it_is_spelled() {
        for (one, same) in [
            ("file:///shared/x", "/shared/x/"),
            ("file:///shared/x", "file://localhost/shared/./x"),
            ("s3://lab/x", "S3://lab//x/"),
            ("s3://lab/x", "s3a://lab:99/x"),
        ] {
            assert!(of(one).is_same_place(&of(same)), "{one} {same}");
        }
        for (one, other) in [
            ("s3://lab/x", "gs://lab/x"),
            ("s3://lab/x", "s3://lab2/x"),
            ("s3://lab/x", "s3://lab/x/y"),
            ("file:///lab/x", "s3://lab/x"),
        ] {
            assert!(!of(one).is_same_place(&of(other)), "{one} {other}");
        }
    }

    #[test]
    fn an_error_shows_no_query_no_user_and_little_of_an_answer() {
        assert_eq!(
            shown("error for https://a.b/c?sig=x&t=1, (http://d/e?f) why? x://u:p@y/z"),
            "error for https://a.b/c (http://d/e) why? x://y/z"
        );
        let answer = "403: <?xml version=\"1.0\"?>\n<Error><Code>ExpiredToken</Code><Message>it is old</Message>\
                      <Token-0>verysecret</Token-0></Error>";
        assert_eq!(shown(answer), "403: ExpiredToken: it is old");
        assert!(shown(&"x".repeat(10_000)).len() < 2_000);
    }

    #[test]
    fn values_of_credentials_are_masked() {
        let settings = RemoteSettings {
            options: [
                ("secret_access_key".to_owned(), "verysecretvalue".to_owned()),
                ("endpoint".to_owned(), "http://127.0.0.1:9".to_owned()),
            ]
            .into(),
            ..of("s3://bucket")
        };
        let said = settings
            .mask()
            .text("verysecretvalue at http://127.0.0.1:9");
        assert!(!said.contains("verysecret"), "{said}");
        assert!(said.contains("127.0.0.1"), "{said}");
        assert!(!format!("{settings:?}").contains("verysecret"));
    }
}
