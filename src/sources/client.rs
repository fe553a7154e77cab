//! HTTP requests with trusted certificates, time limits and retries.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use fs_err as fs;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{SourceError, address::Address, settings::Settings};
use crate::hint::Hint;

/// How patient requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often a request is tried without progress before it fails.
    pub attempts: u32,
    /// The pause after the first failure; it doubles after each further one, up to 30 seconds.
    pub first_pause: Duration,
    /// How long a server may take to connect, and to send something more.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(500),
            silence: Duration::from_secs(30),
        }
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Where systems keep the certificates that their administrators trust; read if no setting names any.
const SYSTEM_CERTIFICATES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// How often a request is sent on to another address.
const MOST_REDIRECTS: usize = 10;
/// The limit on tries that do make progress.
const MOST_ATTEMPTS: u32 = 1000;

/// Why one try failed.
pub(super) enum Failure {
    /// Trying again may help.
    Transient {
        problem: String,
        /// What the server asks to wait.
        pause: Option<Duration>,
        /// Whether bytes were received and kept.
        progress: bool,
        hint: Option<Hint>,
    },
    /// Trying again does not help.
    Final(SourceError),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Final(error.into())
    }
}

impl Failure {
    pub(super) fn transient(problem: impl Into<String>, progress: bool) -> Self {
        Self::Transient {
            problem: problem.into(),
            pause: None,
            progress,
            hint: None,
        }
    }
}

/// Sends requests.
pub(super) struct Client {
    /// For servers elsewhere: one agent for each set of trusted roots, tried in turn.
    agents: Vec<Agent>,
    /// For servers on this machine.
    local: Agent,
    patience: Patience,
}

impl Client {
    pub(super) fn new(settings: &Settings, patience: Patience) -> Result<Self, SourceError> {
        let mut roots = Vec::new();
        let certificates = read_certificates(settings)?;
        if !certificates.is_empty() {
            roots.push(RootCerts::Specific(Arc::new(certificates)));
        }
        roots.push(RootCerts::WebPki);
        let configuration = || {
            Agent::config_builder()
                .http_status_as_error(false)
                .user_agent(concat!("flowgraph/", env!("CARGO_PKG_VERSION")))
                // Lengths and ranges refer to the bytes as they are.
                .accept_encoding("identity")
                .timeout_connect(Some(patience.silence))
                .timeout_per_read(Some(patience.silence))
                .timeout_per_write(Some(patience.silence))
        };
        let agents = roots.into_iter().map(|roots| {
            let tls = TlsConfig::builder().root_certs(roots).build();
            let agent = configuration().https_only(true).tls_config(tls);
            agent.build().new_agent()
        });
        Ok(Self {
            agents: agents.collect(),
            local: configuration().proxy(None).build().new_agent(),
            patience,
        })
    }

    /// Calls `send` with the agents whose roots may trust the server, until one does.
    fn with_agents(
        &self,
        address: &Address,
        send: impl Fn(&Agent) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Failure> {
        let mut answer = Err(ureq::Error::ConnectionFailed);
        let agents = if address.is_local() {
            std::slice::from_ref(&self.local)
        } else {
            &self.agents
        };
        for agent in agents {
            answer = send(agent);
            if !answer.as_ref().is_err_and(is_distrust) {
                break;
            }
        }
        answer.map_err(|error| failure(address, &error))
    }

    /// Sends one POST request with a JSON body, and returns status, body (at most `limit` bytes) and what the server asks
    /// to wait. Redirects are not followed: body and token are for this server alone.
    pub(super) fn post_json(
        &self,
        address: &Address,
        token: Option<&str>,
        body: &str,
        timeout: Duration,
        limit: u64,
    ) -> Result<(u16, String, Option<Duration>), Failure> {
        let response = self.with_agents(address, |agent| {
            let mut request = agent
                .post(address.request_target())
                .config()
                .timeout_global(Some(timeout))
                .max_redirects(0)
                .max_redirects_will_error(false)
                .build()
                .content_type("application/json");
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            request.send(body)
        })?;
        let (status, wished) = (response.status().as_u16(), retry_after(response.headers()));
        let body = response.into_body().into_with_config().limit(limit);
        let bytes = body.read_to_vec().map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(limit) => Failure::Final(SourceError::TooLarge {
                what: address.to_string(),
                limit,
            }),
            other => Failure::transient(other.to_string(), false),
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            Failure::transient(
                format!("the reply is not UTF-8 from byte {valid} on"),
                false,
            )
        })?;
        Ok((status, text, wished))
    }

    /// Sends one GET request; any status but 200, 206 and 416 is a failure. Redirects are followed where an address may
    /// lead, with the `Authorization` header only to the same server.
    pub(super) fn get(
        &self,
        address: &Address,
        headers: &[(&str, String)],
    ) -> Result<Response<Body>, Failure> {
        let mut target = address.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.with_agents(&target, |agent| {
                let mut request = agent
                    .get(target.request_target())
                    .config()
                    .max_redirects(0)
                    .max_redirects_will_error(false)
                    .build();
                if let Some(authorization) = target.authorization() {
                    request = request.header("authorization", authorization);
                }
                for (name, value) in headers {
                    if *name != "authorization" || target.is_of_server(address) {
                        request = request.header(*name, value);
                    }
                }
                request.call()
            })?;
            let Some(location) = redirect(&response) else {
                return checked(address, response);
            };
            let refused = |problem: &str| {
                Failure::Final(SourceError::Network {
                    address: address.to_string(),
                    problem: format!("it redirects to an address that is not followed: {problem}"),
                    attempts: 1,
                    hint: Some(Hint::new(
                        "the server, or somebody between, sends another address than https:// on purpose or by mistake",
                    )),
                })
            };
            target = target.join(&location).map_err(refused)?;
            if target.is_local() && !address.is_local() {
                return Err(refused("it leads to this machine"));
            }
        }
        Err(failure(address, &ureq::Error::TooManyRedirects))
    }

    /// Repeats `attempt` until it succeeds or finally fails, with pauses between.
    pub(super) fn with_retries<T>(
        &self,
        address: &Address,
        cancelled: &dyn Fn() -> bool,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, SourceError> {
        let mut without_progress = 0;
        for _ in 0..MOST_ATTEMPTS {
            if cancelled() {
                return Err(SourceError::Cancelled);
            }
            let (problem, wished, hint) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient {
                    problem,
                    pause,
                    progress,
                    hint,
                }) => {
                    without_progress = if progress { 1 } else { without_progress + 1 };
                    (problem, pause, hint)
                }
            };
            if without_progress >= self.patience.attempts {
                return Err(SourceError::Network {
                    address: address.to_string(),
                    problem,
                    attempts: without_progress,
                    hint,
                });
            }
            let doubled =
                self.patience.first_pause * 2u32.saturating_pow(without_progress - 1).min(1 << 16);
            pause(wished.unwrap_or(doubled).min(LONGEST_PAUSE), cancelled)?;
        }
        Err(SourceError::Network {
            address: address.to_string(),
            problem: "it broke off again and again".to_owned(),
            attempts: MOST_ATTEMPTS,
            hint: None,
        })
    }
}

/// Sleeps in short pieces, so that a cancellation is heard.
pub(super) fn pause(length: Duration, cancelled: &dyn Fn() -> bool) -> Result<(), SourceError> {
    let end = Instant::now() + length;
    loop {
        if cancelled() {
            return Err(SourceError::Cancelled);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Judges the status of an answer.
fn checked(address: &Address, response: Response<Body>) -> Result<Response<Body>, Failure> {
    match response.status().as_u16() {
        200 | 206 | 416 => Ok(response),
        status @ (408 | 425 | 429 | 500 | 502 | 503 | 504) => Err(Failure::Transient {
            problem: format!("status {status}"),
            pause: retry_after(response.headers()),
            progress: false,
            hint: None,
        }),
        status => Err(Failure::Final(SourceError::Status {
            address: address.to_string(),
            status,
            hint: Hint::new(match status {
                401 | 403 => "the server wants credentials or refuses these",
                404 | 410 => "the name, the version or the path may be misspelt",
                _ => "the server may be of another kind than expected",
            }),
        })),
    }
}

/// Where an answer sends on to, if it does.
fn redirect(response: &Response<Body>) -> Option<String> {
    let status = response.status().as_u16();
    let location = response.headers().get("location")?.to_str().ok()?;
    matches!(status, 301 | 302 | 303 | 307 | 308).then(|| location.to_owned())
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim();
    Some(Duration::from_secs(seconds.parse().ok()?))
}

/// Whether the server's certificate was not trusted (rustls reports it as invalid data).
fn is_distrust(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Sorts the library's errors. Those that repeat an address, perhaps with a token in it, are reworded.
fn failure(address: &Address, error: &ureq::Error) -> Failure {
    let final_error = |problem: String, hint: Option<Hint>| {
        Failure::Final(SourceError::Network {
            address: address.to_string(),
            problem,
            attempts: 1,
            hint,
        })
    };
    if is_distrust(error) {
        return final_error(
            format!("the server's certificate is not trusted ({error})"),
            Some(Hint::new(
                "name the certificate of your proxy or mirror in SSL_CERT_FILE",
            )),
        );
    }
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            final_error("it is not a valid address".to_owned(), None)
        }
        ureq::Error::TooManyRedirects => final_error("it redirects in circles".to_owned(), None),
        ureq::Error::ConnectProxyFailed(_) | ureq::Error::InvalidProxyUrl => final_error(
            "the proxy named in HTTPS_PROXY or ALL_PROXY does not let it through".to_owned(),
            None,
        ),
        ureq::Error::HostNotFound => Failure::Transient {
            problem: "the host is not found".to_owned(),
            pause: None,
            progress: false,
            hint: Some(Hint::new("is there a network connection?")),
        },
        other => Failure::transient(other.to_string(), false),
    }
}

fn read_certificates(settings: &Settings) -> Result<Vec<Certificate<'static>>, SourceError> {
    let mut certificates = Vec::new();
    for file in &settings.certificates {
        let unusable = |problem: String| SourceError::Certificates {
            path: file.value.clone(),
            problem,
            hint: format!("{} names it", file.origin).into(),
        };
        let text = fs::read(&file.value).map_err(|error| unusable(error.to_string()))?;
        let before = certificates.len();
        certificates.extend(pem_certificates(&text));
        if certificates.len() == before {
            return Err(unusable("it holds no certificate in PEM form".to_owned()));
        }
    }
    if settings.certificates.is_empty() {
        let system = SYSTEM_CERTIFICATES
            .iter()
            .find_map(|file| fs::read(file).ok());
        certificates.extend(pem_certificates(&system.unwrap_or_default()));
    }
    Ok(certificates)
}

fn pem_certificates(text: &[u8]) -> impl Iterator<Item = Certificate<'static>> {
    parse_pem(text).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use ureq::http::HeaderValue;

    use super::*;

    #[test]
    fn servers_may_say_how_long_to_wait() {
        let wished = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", HeaderValue::from_static(value));
            retry_after(&headers)
        };
        assert_eq!(wished(" 7 "), Some(Duration::from_secs(7)));
        // A date: the usual pause is taken.
        assert_eq!(wished("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
