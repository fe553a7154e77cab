use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    ChatClient, ChatOptions, Patience, Settings, SourceError, check_chat_url,
    test_server::{Reply, Request, TestServer},
};
use crate::random::Stream;

const KEY: &str = "sk-quite/secret-0123";

fn options(url: &str) -> ChatOptions {
    ChatOptions {
        url: format!("{url}/v1"),
        key: Some(KEY.to_owned()),
        patience: Patience {
            attempts: 4,
            first_pause: Duration::from_millis(2),
            silence: Duration::from_millis(400),
        },
        requests_per_minute: None,
        jitter: Stream::new(1, "test"),
    }
}

fn settings() -> Settings {
    Settings::read(&|name| (name == "PIP_CONFIG_FILE").then(|| "/dev/null".to_owned()))
}

fn client(options: ChatOptions) -> ChatClient {
    ChatClient::new(&settings(), options).unwrap()
}

/// Takes replies that begin with `ok`.
fn accept(reply: &str) -> Result<(), String> {
    let problem = || format!("`{reply}` is no reply");
    reply.starts_with("ok").then_some(()).ok_or_else(problem)
}

fn ask(client: &ChatClient, body: &str) -> Result<String, String> {
    let found = client.ask(body, &|| false, accept);
    found.map_err(|error| error.to_string())
}

#[test]
fn a_reply_that_is_no_text_is_told_as_such() {
    let server = TestServer::start(|_| Reply::new(200, b"ok \xff\xfe"));
    let error = ask(&client(options(&server.address)), "{}").unwrap_err();
    assert!(
        error.ends_with("the reply is not UTF-8 from byte 3 on"),
        "{error}"
    );
}

#[test]
fn a_server_that_misbehaves_is_asked_again_until_it_answers() {
    let faults: [fn() -> Reply; 7] = [
        || Reply::new(429, b"slow down").with("retry-after", "0"),
        || Reply::new(500, b""),
        || Reply::new(200, b"<html>no reply</html>"),
        || Reply::new(200, b"ok, but half of it").cut_after(5),
        || Reply::new(200, b"ok \xff\xfe"),
        || Reply {
            hang_up: true,
            ..Reply::new(200, b"")
        },
        || Reply {
            delay: Duration::from_secs(2),
            ..Reply::new(200, b"ok, too late")
        },
    ];
    for fault in faults {
        let server = TestServer::start(move |request| match request.number {
            0 | 1 => fault(),
            _ => Reply::new(200, b"ok"),
        });
        let mut options = options(&server.address);
        options.patience.attempts = 3;
        assert_eq!(ask(&client(options), "{}").unwrap(), "ok");
        let requests = server.requests();
        assert_eq!(requests.len(), 3);
        assert_eq!(requests[2].path, "/v1/chat/completions");
        assert_eq!(requests[2].body, "{}");
        let bearer = format!("Bearer {KEY}");
        assert_eq!(requests[2].header("authorization"), Some(&*bearer));
    }
}

#[test]
fn it_fails_clearly_after_all_tries_and_at_once_where_trying_does_not_help() {
    let server = TestServer::start(|_| Reply::new(503, b"overloaded"));
    let error = ask(&client(options(&server.address)), "{}").unwrap_err();
    assert!(
        error.ends_with("(4 attempts): status 503: overloaded"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 4);
    for status in [400, 401, 404, 301] {
        let server = TestServer::start(move |_| {
            Reply::new(status, b"{\"error\": \"no\nsuch model\"}").with("location", "/elsewhere")
        });
        let error = ask(&client(options(&server.address)), "{}").unwrap_err();
        let end = format!("answered with status {status}: {{\"error\": \"no such model\"}}");
        assert!(error.ends_with(&end), "{error}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn a_pause_that_the_server_asks_for_is_kept_unless_it_is_absurd() {
    let server = TestServer::start(|request| match request.number {
        0 => Reply::new(429, b"").with("retry-after", "1"),
        _ => Reply::new(200, b"ok"),
    });
    let begun = Instant::now();
    ask(&client(options(&server.address)), "{}").unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let server = TestServer::start(|_| Reply::new(429, b"").with("retry-after", "86400"));
    let begun = Instant::now();
    let error = ask(&client(options(&server.address)), "{}").unwrap_err();
    assert!(error.ends_with("it asks to wait 86400 seconds"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn the_key_comes_back_in_no_reply_and_no_error() {
    // A server that repeats what it was sent, as it is and escaped.
    let echo = |status: u16| {
        move |request: &Request| {
            let token = request.header("authorization").unwrap_or_default();
            let text = format!("ok {token} {}", token.replace('/', "\\/"));
            Reply::new(status, text.as_bytes())
        }
    };
    let server = TestServer::start(echo(200));
    let reply = ask(&client(options(&server.address)), "{}").unwrap();
    assert_eq!(reply, "ok Bearer [key] Bearer [key]");
    for status in [401, 503] {
        let server = TestServer::start(echo(status));
        let error = ask(&client(options(&server.address)), "{}").unwrap_err();
        assert!(
            error.contains("[key]") && !error.contains("secret"),
            "{error}"
        );
    }
    // Not even where it is no key at all.
    let mut wrong = options("http://127.0.0.1:1");
    wrong.key = Some("two\nlines".to_owned());
    let error = ChatClient::new(&settings(), wrong).err().unwrap();
    assert!(matches!(error, SourceError::Key) && !error.to_string().contains("two"));
}

#[test]
fn requests_keep_their_distance_over_all_threads() {
    let server = TestServer::start(|_| Reply::new(200, b"ok"));
    let mut options = options(&server.address);
    options.requests_per_minute = Some(1200.0);
    let client = client(options);
    let starts = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (client, starts) = (&client, &starts);
            scope.spawn(move || {
                for number in 0..2 {
                    ask(client, &format!("{thread} {number}")).unwrap();
                    starts.lock().unwrap().push(Instant::now());
                }
            });
        }
    });
    let starts = starts.into_inner().unwrap();
    let (first, last) = (starts.iter().min().unwrap(), starts.iter().max().unwrap());
    // Six starts, 50 ms from one to the next.
    assert!(*last - *first >= Duration::from_millis(200));
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn a_cancellation_ends_a_pause() {
    let server = TestServer::start(|_| Reply::new(429, b"").with("retry-after", "60"));
    let client = client(options(&server.address));
    let cancelled = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let is_cancelled = || cancelled.load(Ordering::Relaxed);
            client.ask("{}", &is_cancelled, accept)
        });
        std::thread::sleep(Duration::from_millis(100));
        cancelled.store(true, Ordering::Relaxed);
        assert!(matches!(asked.join().unwrap(), Err(SourceError::Cancelled)));
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn addresses_that_would_give_secrets_away_are_refused() {
    for good in ["https://api.openai.com/v1", "http://127.0.0.1:8000/v1/"] {
        check_chat_url(good).unwrap();
    }
    for bad in [
        "https://user:key@host/v1",
        "https://host/v1?api-key=1",
        "http://host/v1",
        "https://host/v1/chat/completions",
        "host",
    ] {
        assert!(check_chat_url(bad).is_err(), "{bad}");
    }
}
