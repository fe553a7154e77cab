//! A small HTTP server for tests, which can misbehave.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    #[cfg_attr(
        not(feature = "remote"),
        expect(dead_code, reason = "only buckets are asked by other methods")
    )]
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// What was sent along.
    pub(crate) body: String,
    /// How many requests came before this one.
    pub(crate) number: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte asked for.
    fn range_start(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Wait before the body.
    pub(crate) delay: Duration,
    /// Leave the length out.
    pub(crate) without_length: bool,
    /// Close the connection without a word.
    pub(crate) hang_up: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            cut: None,
            delay: Duration::ZERO,
            without_length: false,
            hang_up: false,
        }
    }

    /// A whole file, or the range of it that is asked for, if its tag is that of the request.
    pub(crate) fn file(request: &Request, body: &[u8], etag: &str) -> Self {
        let same = request.header("if-range").is_none_or(|tag| tag == etag);
        let reply = match request.range_start() {
            Some(start) if same && start >= body.len() => Self::new(416, b""),
            Some(start) if same => Self::new(206, &body[start..]).with(
                "content-range",
                &format!("bytes {start}-{}/{}", body.len() - 1, body.len()),
            ),
            _ => Self::new(200, body),
        };
        reply.with("etag", etag)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn cut_after(self, bytes: usize) -> Self {
        Self {
            cut: Some(bytes),
            ..self
        }
    }
}

/// A server on this machine, which serves until the test ends.
pub(crate) struct TestServer {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl TestServer {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Answers one request and closes; a client that went away is no concern.
fn serve(
    stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length");
    let length = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = {
        let mut seen = seen.lock().unwrap();
        let request = Request {
            method,
            path,
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            number: seen.len(),
        };
        seen.push(request.clone());
        request
    };
    let reply = answer(&request);
    if reply.hang_up {
        return None;
    }
    let mut head = vec![format!("HTTP/1.1 {} Status", reply.status)];
    head.push("connection: close".to_owned());
    if !reply.without_length {
        head.push(format!("content-length: {}", reply.body.len()));
    }
    head.extend(
        reply
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}")),
    );
    let mut stream = stream;
    stream
        .write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes())
        .ok()?;
    stream.flush().ok()?;
    thread::sleep(reply.delay);
    let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    stream.write_all(&reply.body[..end]).ok()
}
