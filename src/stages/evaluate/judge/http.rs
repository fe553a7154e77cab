//! A language model behind an OpenAI-compatible server as the judge.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Pair;
use super::prompts::{Template, answer_of};
use crate::artifacts::judgements::{Judgement, Order, Verdict};
use crate::engine::artifact::Digest;
use crate::engine::stage::{Problem, StageError};
use crate::random::Stream;
use crate::sources::{ChatClient, ChatOptions, Patience, Settings, SourceError, check_chat_url};
use crate::stages::ranges::at_least_one;

/// Request bodies, or raw replies, by the digest of the request.
pub(super) type ByRequest = IndexMap<Digest, String>;

/// A language model behind an OpenAI-compatible server.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    /// The base address of the API; `/chat/completions` is added.
    url: String,
    /// The model, best a dated name that always means the same weights.
    model: String,
    /// The environment variable that holds the key; its value is stored and printed nowhere.
    #[serde(default, skip_serializing)]
    api_key_env: Option<String>,
    /// What the judge is asked.
    template: Template,
    /// The most tokens of a reply; the server's limit if absent.
    #[serde(default)]
    max_tokens: Option<u32>,
    /// How often a request is tried again before the stage fails; changes no result.
    #[serde(default = "max_retries", skip_serializing)]
    max_retries: u32,
    /// Requests a minute; no limit if absent; changes no result.
    #[serde(default, skip_serializing)]
    requests_per_minute: Option<f64>,
    /// How long a reply may take; changes no result.
    #[serde(default = "timeout_seconds", skip_serializing)]
    timeout_seconds: f64,
    /// Requests at the same time; changes no result.
    #[serde(default = "concurrency", skip_serializing)]
    concurrency: usize,
    /// The first pause before a request is tried again; it doubles; changes no result.
    #[serde(default = "first_pause_seconds", skip_serializing)]
    first_pause_seconds: f64,
}

fn max_retries() -> u32 {
    6
}

fn timeout_seconds() -> f64 {
    60.0
}

fn concurrency() -> usize {
    4
}

fn first_pause_seconds() -> f64 {
    1.0
}

/// What is kept of a request, and a line of `replies.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    request: Digest,
    reply: String,
}

impl Server {
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Names the environment variable that holds the key.
    pub(super) fn key_variable(&self) -> Option<String> {
        self.api_key_env.clone()
    }

    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        if let Err(problem) = check_chat_url(&self.url) {
            let problem = Problem::new("judge.url", format!("`url`: {problem}"));
            problems.push(problem.hint(
                "the base address of the API, such as https://api.openai.com/v1; a key belongs into the variable \
                 that `api_key_env` names",
            ));
        }
        if self.model.is_empty() {
            problems.push(Problem::new("judge.model", "`model` is empty"));
        }
        let is_variable = |name: &String| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        };
        if self
            .api_key_env
            .as_ref()
            .is_some_and(|name| !is_variable(name))
        {
            // Not repeated here: it may be the key itself.
            problems.push(
                Problem::new(
                    "judge.api_key_env",
                    "`api_key_env` must be the name of an environment variable: capitals, digits and `_`",
                )
                .hint("for example `api_key_env: OPENAI_API_KEY`; the key itself belongs into no file"),
            );
        }
        let mut positive = |key: &str, value: f64, most: f64| {
            if !(value > 0.0 && value <= most) {
                problems.push(Problem::new(
                    &format!("judge.{key}"),
                    format!("`{key}` must be above 0 and at most {most}"),
                ));
            }
        };
        positive(
            "requests_per_minute",
            self.requests_per_minute.unwrap_or(1.0),
            1e6,
        );
        positive("timeout_seconds", self.timeout_seconds, 3600.0);
        positive("first_pause_seconds", self.first_pause_seconds, 60.0);
        at_least_one("judge.concurrency", self.concurrency as u64, problems);
        at_least_one(
            "judge.max_tokens",
            u64::from(self.max_tokens.unwrap_or(1)),
            problems,
        );
        if self.concurrency > 256 {
            problems.push(Problem::new(
                "judge.concurrency",
                "`concurrency` must be at most 256",
            ));
        }
    }

    /// Returns the client, with the key out of the environment.
    pub(super) fn client(
        &self,
        settings: &Settings,
        variable: &dyn Fn(&str) -> Option<String>,
        seed: u64,
    ) -> Result<ChatClient, StageError> {
        let key = match &self.api_key_env {
            None => None,
            Some(name) => {
                let value = variable(name).map(|value| value.trim().to_owned());
                let value = value.filter(|value| !value.is_empty());
                Some(value.ok_or_else(|| {
                    StageError::new(format!("the environment variable {name} is not set"))
                        .hint("`api_key_env` names it; it must hold the key of the judge's server")
                })?)
            }
        };
        let options = ChatOptions {
            url: self.url.clone(),
            key,
            patience: Patience {
                attempts: self.max_retries.saturating_add(1),
                first_pause: Duration::from_secs_f64(self.first_pause_seconds),
                silence: Duration::from_secs_f64(self.timeout_seconds),
            },
            requests_per_minute: self.requests_per_minute,
            jitter: Stream::new(seed, "judge retries"),
        };
        ChatClient::new(settings, options).map_err(|error| match (error, &self.api_key_env) {
            (SourceError::Key, Some(name)) => {
                StageError::new(format!("the value of {name} cannot be a key"))
                    .hint("it holds spaces, line breaks or letters that no header can hold")
            }
            (error, _) => error.into(),
        })
    }

    /// The body of the request about a pair, as the judge sees it in this order.
    fn body(&self, pair: &Pair, order: Order) -> Result<String, StageError> {
        if pair.ours.question.trim().is_empty() {
            // Without the query a judge compares the completions as texts.
            return Err(StageError::new(format!(
                "question_id {} has an empty question: the judge would not see the query",
                pair.ours.question_id
            ))
            .hint("`completions` must have the question of each row"));
        }
        let (ours, theirs) = (&pair.ours.completion, &pair.theirs.completion);
        let (first, second) = match order {
            Order::OpponentFirst => (theirs, ours),
            Order::CompletionFirst | Order::Either => (ours, theirs),
        };
        let prompt = self.template.prompt(&pair.ours.question, first, second);
        let mut body = serde_json::json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": prompt }],
            "temperature": 0,
        });
        if let Some(most) = self.max_tokens {
            body["max_tokens"] = most.into();
        }
        Ok(body.to_string())
    }

    /// Returns what must be asked, each request once.
    pub(super) fn requests(&self, pairs: &[Pair]) -> Result<ByRequest, StageError> {
        let mut requests = ByRequest::new();
        for pair in pairs.iter().filter(|pair| !pair.is_even()) {
            for order in [Order::CompletionFirst, Order::OpponentFirst] {
                let body = self.body(pair, order)?;
                requests.insert(Digest::of(body.as_bytes()), body);
            }
        }
        Ok(requests)
    }

    /// Asks everything that is not among `kept`, and keeps each reply there as it comes.
    ///
    /// After the first request that finally fails no other is begun; those under way are kept.
    pub(super) fn ask_all(
        &self,
        client: &ChatClient,
        requests: &ByRequest,
        kept: &Path,
        cancelled: &AtomicBool,
        report: &mut dyn FnMut(usize, usize),
    ) -> Result<ByRequest, StageError> {
        let mut replies = ByRequest::new();
        let mut open: Vec<(&Digest, &str)> = Vec::new();
        for (digest, body) in requests {
            match read_kept(kept, digest) {
                Some(reply) => {
                    replies.insert(*digest, reply);
                }
                None => open.push((digest, body)),
            }
        }
        report(replies.len(), requests.len());
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let is_over = || stop.load(Ordering::Relaxed) || cancelled.load(Ordering::Relaxed);
        let accept = |reply: &str| answer_of(reply).map(|_| ());
        let ask = |digest: &Digest, body: &str| -> Result<Option<String>, StageError> {
            match client.ask(body, &is_over, accept) {
                Ok(reply) => {
                    keep(kept, digest, &reply)?;
                    Ok(Some(reply))
                }
                Err(SourceError::Cancelled) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        let mut failure = None;
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..self.concurrency.min(open.len()) {
                let sender = sender.clone();
                let (next, open, stop, ask, is_over) = (&next, &open, &stop, &ask, &is_over);
                scope.spawn(move || {
                    while !is_over() {
                        let Some((digest, body)) = open.get(next.fetch_add(1, Ordering::Relaxed))
                        else {
                            return;
                        };
                        let Some(answer) = ask(digest, body).transpose() else {
                            return;
                        };
                        stop.fetch_or(answer.is_err(), Ordering::Relaxed);
                        // The receiver outlives all senders.
                        let _ = sender.send((**digest, answer));
                    }
                });
            }
            drop(sender);
            for (digest, answer) in receiver {
                match answer {
                    Ok(reply) => {
                        replies.insert(digest, reply);
                        report(replies.len(), requests.len());
                    }
                    Err(error) => {
                        failure.get_or_insert(error);
                    }
                }
            }
        });
        if cancelled.load(Ordering::Relaxed) {
            return Err(StageError::Interrupted);
        }
        if let Some(error) = failure {
            return Err(error.hint(format!(
                "{} of {} replies are kept: the next run asks for the others alone",
                replies.len(),
                requests.len()
            )));
        }
        // In the order of the requests, whatever came first.
        let ordered = requests.keys().filter_map(|digest| {
            let reply = replies.swap_remove(digest)?;
            Some((*digest, reply))
        });
        Ok(ordered.collect())
    }

    /// Reads the verdicts out of the replies.
    pub(super) fn judgements(
        &self,
        pairs: &[Pair],
        replies: &ByRequest,
    ) -> Result<Vec<Judgement>, StageError> {
        let mut judged = Vec::with_capacity(2 * pairs.len());
        for pair in pairs {
            for order in [Order::CompletionFirst, Order::OpponentFirst] {
                if pair.is_even() {
                    judged.push(pair.judgement(order, Verdict::Tie));
                    continue;
                }
                let digest = Digest::of(self.body(pair, order)?.as_bytes());
                let reply = replies
                    .get(&digest)
                    .ok_or_else(|| StageError::new("BUG: a request without a reply"))?;
                let answer = answer_of(reply).map_err(StageError::new)?;
                judged.push(Judgement {
                    request: Some(digest.to_string()),
                    ..pair.judgement(order, self.template.verdict(&answer, order))
                });
            }
        }
        Ok(judged)
    }
}

/// Publishes a reply by renaming: a kill leaves a whole one or none.
fn keep(folder: &Path, digest: &Digest, reply: &str) -> Result<(), StageError> {
    let kept = Kept {
        request: *digest,
        reply: reply.to_owned(),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut file, &kept)?;
    file.as_file().sync_all()?;
    let path = folder.join(format!("{digest}.json"));
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Returns a reply of an earlier try. One that cannot be read is asked for again.
fn read_kept(folder: &Path, digest: &Digest) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(format!("{digest}.json"))).ok()?;
    let kept: Kept = serde_json::from_str(&text).ok()?;
    (kept.request == *digest).then_some(kept.reply)
}

/// Writes the replies into a folder, one JSON object a line.
pub(super) fn write_replies(folder: &Path, replies: &ByRequest) -> Result<(), StageError> {
    let mut text = String::new();
    for (request, reply) in replies {
        let line = Kept {
            request: *request,
            reply: reply.clone(),
        };
        text.push_str(&serde_json::to_string(&line)?);
        text.push('\n');
    }
    fs_err::write(folder.join("replies.jsonl"), text)?;
    Ok(())
}
