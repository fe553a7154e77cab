use std::{
    cell::{Cell, RefCell},
    path::Path,
    time::Duration,
};

use fs_err as fs;

use super::{
    FetchOptions, Fetched, Patience, Settings, Sha256, Source, SourceError,
    address::Address,
    client::Client,
    fetch,
    test_server::{Reply, Request, TestServer},
};
use crate::hint::in_one_line;

/// Bytes without a period, longer than one buffer of the client.
fn content() -> Vec<u8> {
    (0..300_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

pub(super) fn options(cache: &Path, variables: &[(&str, String)]) -> FetchOptions<'static> {
    FetchOptions {
        maximum_bytes: 1 << 30,
        settings: Settings::read(&|name| {
            let default = (name == "PIP_CONFIG_FILE").then(|| "/dev/null".to_owned());
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.clone()).or(default)
        }),
        patience: Patience {
            attempts: 3,
            first_pause: Duration::from_millis(1),
            silence: Duration::from_millis(500),
        },
        ..FetchOptions::new(cache)
    }
}

fn web(server: &TestServer) -> Source {
    format!("{}/file?token=secret", server.address)
        .parse()
        .unwrap()
}

pub(super) fn assert_holds(found: &Fetched, content: &[u8]) {
    assert_eq!(fs::read(&found.path).unwrap(), content);
    assert_eq!(
        (found.sha256, found.bytes),
        (Sha256::of(content), content.len() as u64)
    );
}

#[test]
fn files_here_are_read_where_they_lie() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.csv");
    fs::write(&path, b"abc").unwrap();
    let options = options(&directory.path().join("cache"), &[]);
    let source = Source::File(path.clone());
    let found = fetch(&source, Some(Sha256::of(b"abc")), &options).unwrap();
    assert_eq!(found.path, path);
    assert_holds(&found, b"abc");
    let error = fetch(&source, Some(Sha256::of(b"other")), &options).unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");
    let folder = Source::File(directory.path().to_owned());
    let error = fetch(&folder, None, &options).unwrap_err().to_string();
    assert!(
        error.ends_with("is a folder, expected a regular file"),
        "{error}"
    );
    let error = fetch(&Source::File(path.with_extension("no")), None, &options).unwrap_err();
    assert!(error.to_string().contains("a.no"), "{error}");
    assert!(matches!(
        fetch(&Source::World, None, &options),
        Err(SourceError::Generated(_))
    ));
    assert!(!options.cache_dir.exists());
}

#[test]
fn a_file_is_downloaded_once() {
    let server = TestServer::start(|request| Reply::file(request, &content(), "\"1\""));
    let directory = tempfile::tempdir().unwrap();
    let seen = RefCell::new(Vec::new());
    let report = |progress: super::Progress| seen.borrow_mut().push(progress);
    let options = FetchOptions {
        progress: Some(&report),
        ..options(directory.path(), &[])
    };
    for _ in 0..2 {
        assert_holds(&fetch(&web(&server), None, &options).unwrap(), &content());
    }
    let pinned = Some(Sha256::of(&content()));
    assert_holds(&fetch(&web(&server), pinned, &options).unwrap(), &content());
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.requests()[0].path, "/file?token=secret");
    let last = *seen.borrow().last().unwrap();
    assert_eq!((last.bytes, last.total), (1_200_000, Some(1_200_000)));
    assert!(seen.borrow().is_sorted_by_key(|progress| progress.bytes));
}

#[test]
fn an_unpinned_source_is_looked_at_again_only_on_request() {
    let server =
        TestServer::start(|request| Reply::new(200, format!("{}", request.number).as_bytes()));
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path(), &[]);
    assert_holds(&fetch(&web(&server), None, &options).unwrap(), b"0");
    assert_holds(&fetch(&web(&server), None, &options).unwrap(), b"0");
    options.refresh = true;
    assert_holds(&fetch(&web(&server), None, &options).unwrap(), b"1");
    options.refresh = false;
    assert_holds(&fetch(&web(&server), None, &options).unwrap(), b"1");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn errors_of_the_server_are_tried_again() {
    let server = TestServer::start(|request| match request.number {
        0 => Reply::new(500, b""),
        1 => Reply::new(429, b"").with("retry-after", "0"),
        _ => Reply::new(200, b"abc"),
    });
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), &[]);
    assert_holds(&fetch(&web(&server), None, &options).unwrap(), b"abc");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn lasting_errors_are_given_up_and_keep_the_secret() {
    for (status, requests) in [(503, 3), (404, 1), (403, 1)] {
        let server = TestServer::start(move |_| Reply::new(status, b""));
        let directory = tempfile::tempdir().unwrap();
        let error = fetch(&web(&server), None, &options(directory.path(), &[])).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(
            text.contains(&status.to_string()) && !text.contains("secret"),
            "{text}"
        );
        assert_eq!(server.requests().len(), requests);
        assert!(
            fs::read_dir(directory.path().join("sha256"))
                .unwrap()
                .next()
                .is_none()
        );
    }
}

#[test]
fn a_broken_download_continues_where_it_broke_off() {
    let server = TestServer::start(|request| {
        let reply = Reply::file(request, &content(), "\"1\"");
        if request.number < 4 {
            reply.cut_after(200_000)
        } else {
            reply
        }
    });
    let directory = tempfile::tempdir().unwrap();
    // More breaks than attempts: bytes received count as progress.
    assert_holds(
        &fetch(&web(&server), None, &options(directory.path(), &[])).unwrap(),
        &content(),
    );
    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    assert_eq!(requests[0].header("range"), None);
    for (earlier, later) in requests.iter().zip(&requests[1..]) {
        let start = |request: &Request| {
            let range = request.header("range").unwrap_or("bytes=0-");
            range[6..range.len() - 1].parse::<u64>().unwrap()
        };
        assert!(start(later) > start(earlier), "{later:?}");
        assert_eq!(later.header("if-range"), Some("\"1\""));
    }
}

#[test]
fn a_file_that_changed_is_downloaded_from_the_start() {
    let server = TestServer::start(|request| match request.number {
        0 => Reply::file(request, &content(), "\"1\"").cut_after(100_000),
        _ => Reply::file(request, b"another file", "\"2\""),
    });
    let directory = tempfile::tempdir().unwrap();
    let found = fetch(&web(&server), None, &options(directory.path(), &[])).unwrap();
    assert_holds(&found, b"another file");
}

#[test]
fn without_a_strong_tag_only_pinned_files_continue() {
    for pinned in [false, true] {
        let server = TestServer::start(|request| {
            let reply = Reply::file(request, &content(), "W/\"1\"");
            if request.number == 0 {
                reply.cut_after(100_000)
            } else {
                reply
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let expected = pinned.then(|| Sha256::of(&content()));
        let found = fetch(&web(&server), expected, &options(directory.path(), &[])).unwrap();
        assert_holds(&found, &content());
        assert_eq!(server.requests()[1].header("range").is_some(), pinned);
    }
}

#[test]
fn a_pin_that_is_given_up_does_not_vouch_for_the_part_downloaded_with_it() {
    let server = TestServer::start(|request| Reply::file(request, &content(), "W/\"1\""));
    let directory = tempfile::tempdir().unwrap();
    let received = Cell::new(0);
    let report = |progress: super::Progress| received.set(progress.bytes);
    let cancelled = || received.get() > 50_000;
    let stopped = FetchOptions {
        progress: Some(&report),
        cancelled: Some(&cancelled),
        ..options(directory.path(), &[])
    };
    let pinned = Some(Sha256::of(&content()));
    assert!(matches!(
        fetch(&web(&server), pinned, &stopped),
        Err(SourceError::Cancelled)
    ));
    let options = options(directory.path(), &[]);
    assert_holds(&fetch(&web(&server), None, &options).unwrap(), &content());
    assert_eq!(server.requests()[1].header("range"), None);
}

#[test]
fn another_range_than_the_one_asked_for_is_not_taken() {
    for status in [206, 416] {
        let server = TestServer::start(move |request| match request.number {
            0 => Reply::file(request, &content(), "\"1\"").cut_after(100_000),
            1 => Reply::new(status, &content()).with("content-range", "bytes 0-1199999/1200000"),
            _ => Reply::file(request, &content(), "\"1\""),
        });
        let directory = tempfile::tempdir().unwrap();
        let found = fetch(&web(&server), None, &options(directory.path(), &[])).unwrap();
        assert_holds(&found, &content());
        let requests = server.requests();
        assert!(requests[1].header("range").is_some() && requests[2].header("range").is_none());
    }
}

#[test]
fn a_pinned_file_glued_from_two_states_is_downloaded_again() {
    let changed: Vec<u8> = content().iter().map(|byte| !byte).collect();
    let server = TestServer::start(move |request| match request.number {
        // Another file at first, under the same tag.
        0 => Reply::file(request, &changed, "\"1\"").cut_after(100_000),
        _ => Reply::file(request, &content(), "\"1\""),
    });
    let directory = tempfile::tempdir().unwrap();
    let expected = Some(Sha256::of(&content()));
    let found = fetch(&web(&server), expected, &options(directory.path(), &[])).unwrap();
    assert_holds(&found, &content());
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn other_bytes_than_the_pinned_ones_are_refused() {
    let server = TestServer::start(|request| Reply::file(request, b"abd", "\"1\""));
    let directory = tempfile::tempdir().unwrap();
    let error = fetch(
        &web(&server),
        Some(Sha256::of(b"abc")),
        &options(directory.path(), &[]),
    )
    .unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");
    assert!(!error.to_string().contains("secret"));
    assert!(
        fs::read_dir(directory.path().join("sha256"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_silent_server_is_given_up_and_asked_again() {
    let server = TestServer::start(|request| {
        let mut reply = Reply::new(200, b"abc");
        if request.number == 0 {
            reply.delay = Duration::from_secs(20);
        }
        reply
    });
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path(), &[]);
    options.patience.silence = Duration::from_millis(200);
    assert_holds(&fetch(&web(&server), None, &options).unwrap(), b"abc");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn large_files_are_refused_whether_or_not_their_length_is_stated() {
    for without_length in [false, true] {
        let server = TestServer::start(move |_| Reply {
            without_length,
            ..Reply::new(200, &content())
        });
        let directory = tempfile::tempdir().unwrap();
        let reported = Cell::new(false);
        let report = |_| reported.set(true);
        let mut options = FetchOptions {
            progress: Some(&report),
            ..options(directory.path(), &[])
        };
        options.maximum_bytes = 500_000;
        let error = fetch(&web(&server), None, &options).unwrap_err();
        // A stated length is refused before anything is read.
        assert_eq!(reported.get(), without_length);
        reported.set(false);
        assert!(
            matches!(error, SourceError::TooLarge { limit: 500_000, .. }),
            "{error}"
        );
        options.maximum_bytes = 1_200_000;
        assert_holds(&fetch(&web(&server), None, &options).unwrap(), &content());
    }
}

#[test]
fn a_cancelled_download_continues_in_the_next_call() {
    let server = TestServer::start(|request| Reply::file(request, &content(), "\"1\""));
    let directory = tempfile::tempdir().unwrap();
    let received = Cell::new(0);
    let report = |progress: super::Progress| received.set(progress.bytes);
    let cancelled = || received.get() > 100_000;
    let stopped = FetchOptions {
        progress: Some(&report),
        cancelled: Some(&cancelled),
        ..options(directory.path(), &[])
    };
    assert!(matches!(
        fetch(&web(&server), None, &stopped),
        Err(SourceError::Cancelled)
    ));
    let found = fetch(&web(&server), None, &options(directory.path(), &[])).unwrap();
    assert_holds(&found, &content());
    assert!(server.requests()[1].header("range").is_some());
}

#[test]
fn a_damaged_file_in_the_cache_is_downloaded_again() {
    let server = TestServer::start(|request| Reply::file(request, b"abc", "\"1\""));
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), &[]);
    let found = fetch(&web(&server), None, &options).unwrap();
    fs::write(&found.path, b"abd").unwrap();
    assert_holds(
        &fetch(&web(&server), Some(found.sha256), &options).unwrap(),
        b"abc",
    );
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn concurrent_fetches_download_once() {
    let server = TestServer::start(|request| Reply::file(request, &content(), "\"1\""));
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let options = options(directory.path(), &[]);
                assert_holds(&fetch(&web(&server), None, &options).unwrap(), &content());
            });
        }
    });
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn redirects_lead_to_servers_only() {
    let directory = tempfile::tempdir().unwrap();
    for location in [
        "file:///etc/passwd",
        "file:/etc/passwd",
        "FILE:///etc/passwd",
        "ftp://example.org/a",
        "http://example.org/a",
    ] {
        let server = TestServer::start(move |_| Reply::new(302, b"").with("location", location));
        let source: Source = format!("{}/a", server.address).parse().unwrap();
        let error = fetch(&source, None, &options(directory.path(), &[])).unwrap_err();
        let error = in_one_line(&error);
        assert!(
            error.contains("it redirects to an address that is not followed")
                && error.contains("; hint: "),
            "{location}: {error}"
        );
        assert_eq!(server.requests().len(), 1, "{location}");
    }
    let server = TestServer::start(|_| Reply::new(302, b"").with("location", "b"));
    let source: Source = format!("{}/a", server.address).parse().unwrap();
    let error = fetch(&source, None, &options(directory.path(), &[])).unwrap_err();
    assert!(
        error.to_string().contains("it redirects in circles"),
        "{error}"
    );
}

#[test]
fn redirects_are_followed_and_tokens_stay_with_their_server() {
    let other = TestServer::start(|_| Reply::new(200, b"bytes"));
    let target = format!("{}/c", other.address);
    let server = TestServer::start(move |request| match request.path.as_str() {
        "/a" => Reply::new(307, b"").with("location", "/b"),
        _ => Reply::new(302, b"").with("location", &target),
    });
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), &[]);
    let client = Client::new(&options.settings, options.patience).unwrap();
    let address = Address::parse(&format!("{}/a", server.address)).unwrap();
    let token = [
        ("authorization", "Bearer secret".to_owned()),
        ("range", "bytes=0-".to_owned()),
    ];
    let Ok(response) = client.get(&address, &token) else {
        panic!("no answer");
    };
    assert_eq!(response.status(), 200);
    let authorised = |server: &TestServer| -> Vec<bool> {
        let requests = server.requests().into_iter();
        requests
            .map(|request| request.header("authorization").is_some())
            .collect()
    };
    assert_eq!(authorised(&server), [true, true]);
    assert_eq!(authorised(&other), [false]);
    assert_eq!(other.requests()[0].header("range"), Some("bytes=0-"));
}
