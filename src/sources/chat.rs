//! Requests to a server that speaks the chat completions API of OpenAI: patient, paced, and silent about the key.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{
    Patience, Settings, SourceError,
    address::Address,
    client::{Client, Failure, pause},
};
use crate::random::Stream;

/// The longest time that a server may ask to wait.
const LONGEST_WISH: Duration = Duration::from_mins(10);
/// The longest pause between tries where the server asks for none.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// No reply of a judge is longer.
const MOST_BYTES: u64 = 4 << 20;
/// How much of a server's explanation is repeated.
const MOST_WORDS: usize = 300;

/// How a chat server is asked.
pub struct ChatOptions {
    /// The base address of the API, such as `https://api.openai.com/v1`.
    pub url: String,
    /// The secret that goes along as a bearer token; nothing that comes back or is printed holds it.
    pub key: Option<String>,
    /// How often a request is tried, the first pause between tries, and the time limit of one try.
    pub patience: Patience,
    /// Requests a minute, tries counted, in all threads together.
    pub requests_per_minute: Option<f64>,
    /// Draws the jitter of pauses.
    pub jitter: Stream,
}

/// A server that completes chats. Threads share it.
pub struct ChatClient {
    client: Client,
    address: Address,
    key: Option<String>,
    patience: Patience,
    /// The time between the starts of two tries.
    gap: Option<Duration>,
    next_start: Mutex<Instant>,
    jitter: Stream,
}

/// Says what is wrong with the base address of an API.
pub fn check_chat_url(text: &str) -> Result<(), &'static str> {
    parse(text).map(|_| ())
}

fn parse(text: &str) -> Result<Address, &'static str> {
    let address = Address::parse(text)?;
    if address.has_credentials() {
        return Err("the address holds credentials, which records would show");
    }
    if text.contains('?') {
        return Err("the address has a query");
    }
    if text.trim_end_matches('/').ends_with("/chat/completions") {
        return Err("`/chat/completions` is added to the address");
    }
    Ok(address.below("chat/completions"))
}

impl ChatClient {
    /// Prepares requests; nothing is sent yet.
    pub fn new(settings: &Settings, options: ChatOptions) -> Result<Self, SourceError> {
        let address = parse(&options.url).map_err(|problem| SourceError::Syntax {
            // Whatever is wrong with it may be a secret.
            text: "url".to_owned(),
            problem,
            hint: "such as https://api.openai.com/v1".into(),
        })?;
        let usable = |key: &String| !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        if options.key.as_ref().is_some_and(|key| !usable(key)) {
            return Err(SourceError::Key);
        }
        Ok(Self {
            client: Client::new(settings, options.patience)?,
            address,
            key: options.key,
            patience: options.patience,
            gap: options
                .requests_per_minute
                .map(|rate| Duration::from_secs_f64(60.0 / rate)),
            next_start: Mutex::new(Instant::now()),
            jitter: options.jitter,
        })
    }

    /// Sends a request and returns the server's reply, the first that `accept` takes.
    ///
    /// What may be mended by trying again is tried again: a busy or broken server, a closed connection, a reply that
    /// `accept` refuses. Pauses double and have a jitter of a half up and down, drawn from the request alone; a pause
    /// that the server asks for is never cut short.
    pub fn ask(
        &self,
        body: &str,
        cancelled: &dyn Fn() -> bool,
        accept: impl Fn(&str) -> Result<(), String>,
    ) -> Result<String, SourceError> {
        let jitter = self.jitter.child(body);
        let attempts = self.patience.attempts.max(1);
        let mut tried = 0;
        loop {
            self.take_turn(cancelled)?;
            let answer = self.client.post_json(
                &self.address,
                self.key.as_deref(),
                body,
                self.patience.silence,
                MOST_BYTES,
            );
            tried += 1;
            let (problem, wished, hint) = match answer {
                Ok((200, reply, _)) => {
                    let reply = self.without_key(&reply);
                    match accept(&reply) {
                        Ok(()) => return Ok(reply),
                        Err(problem) => (problem, None, None),
                    }
                }
                Ok((status, reply, wished)) => {
                    let said = self.excerpt(&reply);
                    if !matches!(status, 408 | 409 | 425 | 429 | 500..=599) {
                        return Err(SourceError::Refused {
                            address: self.address.to_string(),
                            status,
                            said,
                        });
                    }
                    (format!("status {status}: {said}"), wished, None)
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient { problem, hint, .. }) => {
                    (self.without_key(&problem), None, hint)
                }
            };
            let fail = |problem: String| SourceError::Network {
                address: self.address.to_string(),
                problem,
                attempts: tried,
                hint,
            };
            if tried >= attempts {
                return Err(fail(problem));
            }
            if let Some(wished) = wished.filter(|wished| *wished > LONGEST_WISH) {
                let seconds = wished.as_secs();
                return Err(fail(format!(
                    "{problem}; it asks to wait {seconds} seconds"
                )));
            }
            let doubled = self.patience.first_pause * 2u32.saturating_pow(tried - 1).min(1 << 16);
            let swing = 0.5 + jitter.at(u64::from(tried)).uniform();
            let own = doubled.min(LONGEST_PAUSE).mul_f64(swing);
            pause(wished.unwrap_or_default().max(own), cancelled)?;
        }
    }

    /// Waits until the rate allows another try.
    fn take_turn(&self, cancelled: &dyn Fn() -> bool) -> Result<(), SourceError> {
        let wait = match self.gap {
            None => Duration::ZERO,
            Some(gap) => {
                let mut next = match self.next_start.lock() {
                    Ok(next) => next,
                    // A thread that panicked left a valid time.
                    Err(poisoned) => poisoned.into_inner(),
                };
                let now = Instant::now();
                let start = (*next).max(now);
                *next = start + gap;
                start - now
            }
        };
        pause(wait, cancelled)
    }

    /// Takes the key out of a text, as it is and as JSON would write it: a server may repeat what it was sent.
    ///
    /// A word of a few letters, as local servers take it, is no secret and may well be part of an answer.
    fn without_key(&self, text: &str) -> String {
        let Some(key) = self.key.as_ref().filter(|key| key.len() >= 8) else {
            return text.to_owned();
        };
        let quoted = serde_json::Value::from(key.as_str()).to_string();
        let escaped = quoted.trim_matches('"');
        text.replace(key, "[key]")
            .replace(escaped, "[key]")
            .replace(&escaped.replace('/', "\\/"), "[key]")
    }

    /// The beginning of what a server says about a failure, on one line.
    fn excerpt(&self, reply: &str) -> String {
        let reply = self.without_key(reply);
        let words: Vec<&str> = reply.split_whitespace().collect();
        let line = words.join(" ");
        match line.char_indices().nth(MOST_WORDS) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None if line.is_empty() => "no explanation".to_owned(),
            None => line,
        }
    }
}
