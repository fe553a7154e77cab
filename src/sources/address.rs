//! Web addresses that keep their secrets.

use std::fmt;

/// An `https:` address, or an `http:` one on this machine. Printed without credentials and query.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    secure: bool,
    /// `user:password` as written, percent-encoded.
    credentials: Option<String>,
    /// Host and port.
    host: String,
    /// Begins with `/`; without the query.
    path: String,
    query: Option<String>,
}

impl Address {
    /// Reads an absolute address; a fragment is left out. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (secure, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err("an address begins with https://");
        };
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("an address has no spaces and no characters beyond ASCII");
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials.to_owned()), host),
            None => (None, authority),
        };
        if host.is_empty() {
            return Err("the address has no host");
        }
        if !secure && !is_this_machine(host) {
            return Err("http:// is for this machine only");
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        Ok(Self {
            secure,
            credentials,
            host: host.to_ascii_lowercase(),
            path: if path.is_empty() { "/" } else { path }.to_owned(),
            query,
        })
    }

    /// Resolves a reference found on the page at this address (RFC 3986, section 5.2). Credentials go
    /// along to the same host only.
    pub(super) fn join(&self, reference: &str) -> Result<Self, &'static str> {
        let scheme = if self.secure { "https" } else { "http" };
        let reference = reference.split('#').next().unwrap_or_default();
        let is_scheme = |text: &str| {
            text.starts_with(|letter: char| letter.is_ascii_alphabetic())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        };
        let has_scheme = reference
            .split_once(':')
            .is_some_and(|(scheme, _)| is_scheme(scheme));
        let absolute = if has_scheme {
            reference.to_owned()
        } else if let Some(rest) = reference.strip_prefix("//") {
            format!("{scheme}://{rest}")
        } else {
            let (path, query) = match reference.split_once('?') {
                Some((path, query)) => (path, format!("?{query}")),
                None => (reference, String::new()),
            };
            let path = if path.starts_with('/') {
                path.to_owned()
            } else {
                let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
                format!("{folder}/{path}")
            };
            format!("{scheme}://{}{}{query}", self.host, without_dots(&path))
        };
        let mut joined = Self::parse(&absolute)?;
        if joined.credentials.is_none() && joined.is_of_server(self) {
            joined.credentials.clone_from(&self.credentials);
        }
        Ok(joined)
    }

    /// The address of a page below this one.
    pub(super) fn below(&self, path: &str) -> Self {
        Self {
            path: format!("{}/{path}", self.path.trim_end_matches('/')),
            query: None,
            ..self.clone()
        }
    }

    pub(super) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// Whether it is an address of the same server.
    pub(super) fn is_of_server(&self, other: &Self) -> bool {
        self.secure == other.secure && self.host == other.host
    }

    /// Whether the server is on this machine.
    pub(super) fn is_local(&self) -> bool {
        is_this_machine(&self.host)
    }

    /// The address to ask for, without credentials, with the query.
    pub(super) fn request_target(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}"));
        let scheme = if self.secure { "https" } else { "http" };
        format!(
            "{scheme}://{}{}{}",
            self.host,
            self.path,
            query.unwrap_or_default()
        )
    }

    /// The value of the `Authorization` header (RFC 7617), if there are credentials.
    pub(super) fn authorization(&self) -> Option<String> {
        let credentials = self.credentials.as_ref()?;
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let mut bytes = percent_decoded(user);
        bytes.push(b':');
        bytes.extend(percent_decoded(password));
        Some(format!("Basic {}", base64(&bytes)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.host, self.path)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "Address({self})")
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

/// Removes `.` and `..` segments from an absolute path.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut rest = text.as_bytes();
    let mut decoded = Vec::new();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => decoded.push(*byte),
        }
    }
    decoded
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            if place <= group.len() {
                let digit = bits >> (18 - 6 * place) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_sent_and_never_printed() {
        let address =
            Address::parse("https://me%40x:p%2Fw@Index.org:8443/simple?token=abc#frag").unwrap();
        assert_eq!(address.to_string(), "https://index.org:8443/simple");
        assert_eq!(
            format!("{address:?}"),
            "Address(https://index.org:8443/simple)"
        );
        assert_eq!(
            address.request_target(),
            "https://index.org:8443/simple?token=abc"
        );
        // base64.b64encode(b"me@x:p/w")
        assert_eq!(address.authorization().unwrap(), "Basic bWVAeDpwL3c=");
        assert_eq!(Address::parse("https://a/b").unwrap().authorization(), None);
    }

    #[test]
    fn base64_agrees_with_the_standard() {
        // RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn references_are_resolved_against_their_page() {
        let page = Address::parse("https://u:p@host/simple/name/").unwrap();
        for (reference, expected) in [
            ("../../files/a.whl#sha256=12", "https://host/files/a.whl"),
            ("a.whl?x=1", "https://host/simple/name/a.whl?x=1"),
            ("/a.whl", "https://host/a.whl"),
            ("//other/a.whl", "https://other/a.whl"),
            ("https://other/a.whl", "https://other/a.whl"),
            ("../../../../../a", "https://host/a"),
        ] {
            let joined = page.join(reference).unwrap();
            assert_eq!(joined.request_target(), expected);
            assert_eq!(
                joined.has_credentials(),
                expected.starts_with("https://host/")
            );
        }
        assert!(page.join("http://elsewhere/a").is_err());
        assert_eq!(
            page.below("x").request_target(),
            "https://host/simple/name/x"
        );
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        for text in [
            "http://127.0.0.1:80/a",
            "http://localhost",
            "http://[::1]:8080/",
        ] {
            assert!(Address::parse(text).unwrap().is_local());
        }
        for text in [
            "http://example.org/",
            "http://127.0.0.1.evil.org/",
            "http://localhost@evil.org/",
            "ftp://x/",
            "https:///x",
            "https://a b/",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
