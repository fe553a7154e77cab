//! Chromium without a window, driven over the DevTools protocol through a pipe.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value as Json, json};

use crate::space::wait_until;

/// Says that tests must not pass for want of a browser.
const REQUIRED: &str = "FLOWGRAPH_REQUIRE_CHROMIUM";

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    calls: u64,
    /// What the page said since it was opened.
    events: Vec<Json>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts Chromium; `None` if there is none and nobody asked for one.
    #[expect(
        clippy::print_stderr,
        reason = "whoever runs the tests sees that some did nothing"
    )]
    pub(crate) fn start() -> Option<Self> {
        let found = Command::new("sh")
            .args(["-c", "command -v chromium"])
            .output()
            .unwrap();
        if !found.status.success() {
            assert!(
                std::env::var_os(REQUIRED).is_none(),
                "{REQUIRED} is set and there is no `chromium`: `apt-get install chromium`"
            );
            eprintln!("skipped: no `chromium`");
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        // The protocol is spoken over the files 3 and 4.
        let pipes = "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null";
        let mut child = Command::new("sh")
            .args([
                "-c",
                pipes,
                "sh",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut browser = Self {
            to: child.stdin.take().unwrap(),
            from: BufReader::new(child.stdout.take().unwrap()),
            child,
            session: None,
            calls: 0,
            events: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let asked = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", asked);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol.
    pub(crate) fn call(&mut self, method: &str, params: Json) -> Json {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        write!(self.to, "{message}\0").unwrap();
        loop {
            let mut text = Vec::new();
            self.from.read_until(0, &mut text).unwrap();
            assert_eq!(text.pop(), Some(0), "Chromium ended");
            let mut message: Json = serde_json::from_slice(&text).unwrap();
            if message["id"] != self.calls {
                self.events.push(message);
                continue;
            }
            assert!(message["error"].is_null(), "{method}: {message}");
            return message["result"].take();
        }
    }

    /// Sets the size of the window.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Opens a file in a new document, and waits until it is there.
    pub(crate) fn open(&mut self, file: &Path, fragment: &str) {
        self.call("Page.navigate", json!({ "url": "about:blank" }));
        wait_until("the page is left", || {
            (self.eval("location.href") == "about:blank").then_some(())
        });
        self.events.clear();
        let url = format!("file://{}{fragment}", file.display());
        self.call("Page.navigate", json!({ "url": url }));
        wait_until("the page is there", || {
            let there = self.eval("location.href != 'about:blank' && document.readyState");
            (there == "complete").then_some(())
        });
    }

    /// Evaluates an expression in the page, waiting for what it promises.
    pub(crate) fn eval(&mut self, expression: &str) -> Json {
        let asked =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", asked);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].take()
    }

    /// Presses a key where the focus is.
    pub(crate) fn press(&mut self, key: &str) {
        let is_enter = key == "Enter";
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": key });
            if is_enter {
                event["windowsVirtualKeyCode"] = json!(13);
                event["text"] = json!("\r");
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// What the page wrote to the console, errors of its script and refusals of its policy.
    pub(crate) fn console(&mut self) -> Vec<Json> {
        // Whatever was said before the answer has then come.
        self.eval("new Promise((done) => setTimeout(done, 50))");
        let said = [
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Log.entryAdded",
        ];
        let events = self.events.iter();
        events
            .filter(|event| said.iter().any(|said| event["method"] == *said))
            .cloned()
            .collect()
    }

    /// What the page asked for, by URL.
    pub(crate) fn requests(&self) -> Vec<&str> {
        let sent = self
            .events
            .iter()
            .filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| event["params"]["request"]["url"].as_str())
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
