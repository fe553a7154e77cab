//! Which shared store, and how it is reached.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::engine::mask::Mask;
use crate::engine::stage::StageError;

/// Where a shared store is. Credentials come from the environment, as the tools of each cloud read them.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteSettings {
    /// `s3://bucket/path`, `gs://bucket/path`, `az://container/path` or `file:///path`.
    #[serde(rename = "remote")]
    pub address: String,
    /// Whether results are only taken from it, and none sent.
    #[serde(default)]
    pub read_only: bool,
    /// Further settings by the names that `object_store` gives them, such as `endpoint` and `region`.
    #[serde(default)]
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

/// Beginnings of the variables that the clouds' own tools read.
pub(super) const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl RemoteSettings {
    /// Whether it is a folder that machines mount.
    pub fn is_folder(&self) -> bool {
        self.address.starts_with("file:") || !self.address.contains("://")
    }

    /// Refuses addresses that hold a credential, which would be shown, and options that a folder does not have.
    pub(super) fn check(&self) -> Result<(), StageError> {
        let after = self.address.split_once("://").map_or("", |(_, rest)| rest);
        let host = after.split('/').next().unwrap_or_default();
        if host.contains('@') || after.contains('?') {
            return Err(
                StageError::new("the address of the shared store holds a credential or a query")
                    .hint("credentials come from variables such as AWS_SECRET_ACCESS_KEY; s3://bucket/path names the place alone"),
            );
        }
        match self.options.keys().next() {
            Some(option) if self.is_folder() => Err(StageError::new(format!(
                "option `{option}` of the shared store: `{}` is a folder, which has none",
                self.address
            ))),
            _ => Ok(()),
        }
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

/// Returns a text without the queries of addresses in it: some clouds sign them.
pub(super) fn without_queries(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at);
        shown.push_str(before);
        let end = after
            .find(|sign: char| sign.is_whitespace() || "\"'`()<>".contains(sign))
            .unwrap_or(after.len());
        let (address, further) = after.split_at(end);
        shown.push_str(address.split('?').next().unwrap_or_default());
        rest = further;
    }
    shown + rest
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
        ] {
            let Err(StageError::Failed { message, .. }) = of(bad).check() else {
                panic!("{bad}");
            };
            assert!(!message.contains("verysecret"));
        }
        assert!(of("s3://bucket/lab@home").check().is_ok());
    }

    #[test]
    fn queries_of_addresses_are_not_shown() {
        assert_eq!(
            without_queries("error for https://a.b/c?sig=x&t=1, (http://d/e?f) why? x://y"),
            "error for https://a.b/c (http://d/e) why? x://y"
        );
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
