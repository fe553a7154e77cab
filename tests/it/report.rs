//! `flowgraph report` in a browser: what it does beyond being read. Skipped where there is no Chromium, unless
//! `FLOWGRAPH_REQUIRE_CHROMIUM` is set.

use serde_json::json;

use crate::browser::Browser;
use crate::report_files::{scored, written};
use crate::space::{Space, wait_until};

/// Opens the report of a pipeline that was run.
fn opened(space: &Space) -> Option<Browser> {
    let mut browser = Browser::start()?;
    space.flowgraph(&["run", "p.yaml", "-q"]);
    written(space);
    browser.resize(1280, 900);
    browser.open(&space.path("report.html"), "");
    Some(browser)
}

/// Follows a link within the page, and returns what the panel then says.
fn follow(browser: &mut Browser, fragment: &str) -> String {
    browser.eval(&format!(
        "location.hash = {}; new Promise((done) => setTimeout(done, 50))",
        json!(fragment)
    ));
    text_of(browser, "#panel")
}

fn text_of(browser: &mut Browser, selector: &str) -> String {
    let text = browser.eval(&format!(
        "document.querySelector({}).innerText",
        json!(selector)
    ));
    text.as_str().unwrap().to_owned()
}

/// The texts of a column of the first table with this class.
fn column(browser: &mut Browser, table: &str, at: usize) -> Vec<String> {
    let cells = browser.eval(&format!(
        "[...document.querySelector({}).tBodies[0].rows].map((row) => row.cells[{at}].textContent)",
        json!(table)
    ));
    serde_json::from_value(cells).unwrap()
}

#[test]
fn a_report_needs_no_network_fits_its_window_and_says_nothing_to_the_console() {
    let space = scored("");
    let Some(mut browser) = opened(&space) else {
        return;
    };
    for (width, dark) in [(1280, false), (1280, true), (400, false), (400, true)] {
        browser.resize(width, 900);
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.call("Emulation.setEmulatedMedia", media);
        for fragment in [
            "",
            "#stage=scores",
            "#stage=table1",
            "#prompt=5",
            "#table=table1.table",
        ] {
            browser.open(&space.path("report.html"), fragment);
            let widest = browser
                .eval("document.documentElement.scrollWidth")
                .as_u64()
                .unwrap();
            assert!(
                widest <= u64::from(width),
                "{widest} of {width} at {fragment}"
            );
            assert_eq!(browser.console(), [json!(null); 0], "{fragment}");
            let ground = browser.eval("getComputedStyle(document.body).backgroundColor");
            let expected = if dark {
                "rgb(20, 23, 26)"
            } else {
                "rgb(251, 251, 250)"
            };
            assert_eq!(ground, expected);
        }
    }
    let requests = browser.requests();
    assert!(!requests.is_empty());
    for url in requests {
        assert!(
            url.starts_with("file:///") || url.starts_with("data:image/"),
            "{url}"
        );
    }
    let printed = browser.call("Page.printToPDF", json!({ "preferCSSPageSize": true }));
    assert!(printed["data"].as_str().unwrap().len() > 1000);
}

#[test]
fn what_comes_from_outside_is_shown_and_does_nothing() {
    let space = scored("");
    let Some(mut browser) = opened(&space) else {
        return;
    };
    let drawn = browser.eval("document.querySelector('figure img').decode().then(() => document.querySelector('figure img').naturalWidth)");
    assert_eq!(drawn, 90);
    let hostile = "</script><script>hacked=1</script>";
    assert!(column(&mut browser, "#tables table.cells", 0).contains(&hostile.to_owned()));
    assert!(text_of(&mut browser, ".description").contains("</title><script>hacked = 1</script>"));
    let panel = follow(
        &mut browser,
        &format!("#stage=scores[policy={hostile},seed=1]"),
    );
    assert!(
        panel.starts_with(&format!("Close\nscores[policy={hostile},seed=1]")),
        "{panel}"
    );
    assert!(
        panel.contains("\\u{1b}[2J</script>\\u{202e}log of 1"),
        "{panel}"
    );
    let prompt =
        "</script><img src=x onerror='hacked=1'>\\u{1b}[31mred\\u{202e}txt.exe\\u{2028}end 0";
    assert!(text_of(&mut browser, "#prompts").contains(prompt));
    assert_eq!(browser.eval("typeof hacked"), "undefined");
    assert_eq!(browser.console(), [json!(null); 0]);
    // Were there a hole, the policy of the page would still run nothing.
    let script = "{ const s = document.createElement('script'); s.textContent = 'hacked = 1'; document.body.append(s); }";
    browser.eval(script);
    browser.eval(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"hacked = 1\">')",
    );
    assert!(!browser.console().is_empty(), "the policy refuses it");
    assert_eq!(browser.eval("typeof hacked"), "undefined");
}

#[test]
fn tables_sort_and_fold_and_their_cells_show_runs_and_sources() {
    let space = scored("");
    let Some(mut browser) = opened(&space) else {
        return;
    };
    let mean = "#tables table.cells th:nth-child(4)";
    let before = column(&mut browser, "#tables table.cells", 0);
    assert_eq!(before[..2], ["sft", "PPO"]);
    // With the keyboard alone.
    browser.eval(&format!("document.querySelector('{mean} button').focus()"));
    for (order, first) in [("ascending", "sft"), ("descending", "PPO")] {
        browser.press("Enter");
        assert_eq!(column(&mut browser, "#tables table.cells", 0)[0], first);
        assert_eq!(
            browser.eval(&format!("document.querySelector('{mean}').ariaSort")),
            order
        );
    }
    // By numbers, not by letters; empty cells last.
    let add = "{ const body = document.querySelector('#tables table.cells').tBodies[0];
        for (const number of ['10', '9e-3', undefined]) { const row = body.rows[0].cloneNode(true); const cell = row.cells[3];
        if (number) cell.dataset.number = number; else delete cell.dataset.number; cell.textContent = number ?? ''; body.prepend(row); } }";
    browser.eval(add);
    browser.eval(&format!("document.querySelector('{mean} button').click()"));
    let sorted = column(&mut browser, "#tables table.cells", 3);
    assert_eq!(
        (&*sorted[0], &*sorted[4], &*sorted[5]),
        ("9e-3", "10", ""),
        "{sorted:?}"
    );

    browser.open(&space.path("report.html"), "");
    browser
        .eval("document.querySelector('#tables table.cells').tBodies[0].rows[0].cells[0].focus()");
    for key in [
        "ArrowDown",
        "ArrowRight",
        "ArrowRight",
        "ArrowRight",
        "Enter",
    ] {
        browser.press(key);
    }
    let panel = text_of(&mut browser, "#panel");
    assert!(panel.starts_with("Close\nPPO: Mean\n"), "{panel}");
    assert!(panel.contains(", the paper has 0.872"), "{panel}");
    // Mean of 0 to 11 thousandths, one hundredth more for each seed.
    for seed in 1..=6 {
        let run = format!("seed {seed}\t0.5{seed}6");
        assert!(panel.contains(&run), "{run}: {panel}");
    }
    let links =
        browser.eval("[...document.querySelectorAll('#panel a')].map((link) => link.textContent)");
    let expected: Vec<String> = (1..=6)
        .map(|seed| format!("scores[policy=ppo,seed={seed}]"))
        .collect();
    let links: Vec<String> = serde_json::from_value(links).unwrap();
    assert_eq!(links[0], "table1");
    assert_eq!(links[1..], expected, "of its own row alone");
    let source = space.record("scores[policy=ppo,seed=1]").manifest.sources;
    let digest = source.values().next().unwrap().clone().unwrap();
    assert!(panel.contains(&digest), "{digest}: {panel}");
    browser.press("Escape");
    assert_eq!(
        browser.eval("document.getElementById('panel').hidden"),
        true
    );

    let summary = "document.querySelector('#tables .block summary')";
    browser.eval(&format!("{summary}.click()"));
    assert_eq!(
        browser.eval("document.querySelector('#tables .block').open"),
        false
    );
    follow(&mut browser, "#table=table1.table");
    assert_eq!(
        browser.eval("document.querySelector('#tables .block').open"),
        true,
        "a link opens it"
    );
}

#[test]
fn links_go_to_a_stage_and_to_a_prompt() {
    let space = scored(
        "  broken: { kind: command, params: { run: 'echo said before >&2; exit 3', outputs: { t: t } } }\n",
    );
    let Some(mut browser) = opened(&space) else {
        return;
    };
    let record = space.record("scores[policy=ppo,seed=2]");
    browser.open(
        &space.path("report.html"),
        "#stage=scores%5Bpolicy%3Dppo%2Cseed%3D2%5D",
    );
    let panel = text_of(&mut browser, "#panel");
    for part in [
        "scores[policy=ppo,seed=2]".to_owned(),
        record.fingerprint.to_string(),
        record.outputs["scores"].digest.to_string(),
        format!("{:.3} s", record.provenance.seconds),
        format!(
            "{:.1} MiB",
            record.provenance.peak_memory_bytes as f64 / f64::from(1 << 20)
        ),
        "A record matches its whole manifest.".to_owned(),
        "log of 2".to_owned(),
        "table1".to_owned(),
    ] {
        assert!(panel.contains(&part), "{part}: {panel}");
    }
    // Nodes stand to the right of what they need, none on another.
    let drawn = browser.eval(
        "(() => { const nodes = [...document.querySelectorAll('a.node rect')].map((rect) => [rect.x.baseVal.value, rect.y.baseVal.value]);
         const edges = [...document.querySelectorAll('.edge')].map((edge) => nodes[edge.dataset.from][0] < nodes[edge.dataset.to][0]);
         return [new Set(nodes.map(String)).size, edges]; })()",
    );
    assert_eq!(drawn, json!([5, [true, true]]));
    // A node of the graph stands for all of its matrix, and leads to each.
    browser.eval("document.querySelector('#panel .close').click()");
    browser.eval("document.querySelector('a.node[href=\"#stage=scores\"]').focus()");
    browser.press("Enter");
    wait_until("the node is followed", || {
        text_of(&mut browser, "#panel")
            .contains("18 stages of kind command")
            .then_some(())
    });
    assert_eq!(
        browser.eval("document.querySelectorAll('#panel li a').length"),
        18
    );
    let panel = follow(&mut browser, "#stage=broken");
    for part in ["failed", "said before", "exit"] {
        assert!(panel.contains(part), "{part}: {panel}");
    }

    browser.open(&space.path("report.html"), "#prompt=11");
    assert_eq!(text_of(&mut browser, ".chosen .question"), "what is 11 ?");
    let seen = "document.querySelector('.chosen').getBoundingClientRect().top < innerHeight";
    assert_eq!(browser.eval(seen), true);
    assert_eq!(
        browser.eval("document.querySelectorAll('.chosen tbody tr').length"),
        18,
        "all policies side by side"
    );
    assert_eq!(text_of(&mut browser, "#place"), "11 to 12 of 12 prompts");
}

#[test]
fn completions_are_found_and_long_ones_are_cut() {
    let space = scored(
        "  picked: { kind: command, inputs: { x: 'scores[policy=ppo,seed=1]' }, params: { run: \"cp picked.jsonl s.jsonl\", code: [picked.jsonl], \
         outputs: { scores: { path: s.jsonl, kind: scores, same_rows: false } } } }\n",
    );
    let picked = json!({
        "question_id": 7, "sample": 0, "question": "what is 7 ?", "prompt": "what is 7 ?", "completion": "the pick of them",
        "truncated": false, "reward": 1.5,
    });
    space.write("picked.jsonl", &picked.to_string());
    let Some(mut browser) = opened(&space) else {
        return;
    };
    let search = |browser: &mut Browser, text: &str| {
        browser.eval(&format!(
            "{{ const search = document.getElementById('search'); search.value = {}; search.dispatchEvent(new Event('input')); }}",
            json!(text)
        ));
        text_of(browser, "#place")
    };
    assert_eq!(text_of(&mut browser, "#place"), "1 to 10 of 12 prompts");
    assert_eq!(search(&mut browser, "YES 7"), "1 to 1 of 1 prompt");
    assert_eq!(text_of(&mut browser, "#prompts mark"), "yes 7");
    // What was chosen among samples stands beside them.
    assert_eq!(search(&mut browser, "PICK OF"), "1 to 1 of 1 prompt");
    assert_eq!(text_of(&mut browser, ".question"), "what is 7 ?");
    assert_eq!(
        browser.eval("document.querySelectorAll('.prompt tbody tr').length"),
        19
    );
    assert_eq!(search(&mut browser, "what is 1"), "1 to 3 of 3 prompts");
    assert_eq!(search(&mut browser, "nobody said this"), "no prompt");
    assert_eq!(search(&mut browser, "long long"), "1 to 1 of 1 prompt");
    assert!(text_of(&mut browser, "#prompts").contains(" bytes ...] "));
    assert!(text_of(&mut browser, "#completions-note").contains("18 long texts cut"));
    search(&mut browser, "");
    browser.eval("document.getElementById('after').click()");
    assert_eq!(text_of(&mut browser, "#place"), "11 to 12 of 12 prompts");
    browser.eval("{ const find = document.getElementById('find'); find.value = 'PPO,seed=3'; find.dispatchEvent(new Event('input')); }");
    assert_eq!(text_of(&mut browser, "#found"), "scores[policy=ppo,seed=3]");
}

#[test]
fn hundreds_of_stages_are_there_within_two_seconds() {
    let space = Space::new(
        r#"
name: wide
stages:
  parts:
    matrix: { n: [COUNTS] }
    kind: command
    params: { run: "echo ${matrix.n} > out; echo made >&2", outputs: { out: out } }
  all: { kind: command, inputs: { x: "parts[*]" }, params: { run: "cat $x > out", outputs: { out: out } } }
"#
        .replace("COUNTS", &(0..651).map(|n| n.to_string()).collect::<Vec<_>>().join(", "))
        .as_str(),
    );
    let Some(mut browser) = opened(&space) else {
        return;
    };
    let bytes = std::fs::metadata(space.path("report.html")).unwrap().len();
    assert!(bytes < 5_000_000, "{bytes}");
    let ready = browser
        .eval("Number(document.documentElement.dataset.ready)")
        .as_f64()
        .unwrap();
    eprintln!("652 stages: {bytes} bytes, interactive after {ready} ms");
    assert!(
        ready > 0.0 && ready < 2000.0,
        "interactive after {ready} ms"
    );
    assert!(text_of(&mut browser, "#graph").contains("652 stages"));
    assert_eq!(
        browser.eval("document.querySelectorAll('a.node').length"),
        2
    );
    let panel = follow(&mut browser, "#stage=parts[n=650]");
    for part in ["all 651 of parts", "A record matches", "made"] {
        assert!(panel.contains(part), "{part}: {panel}");
    }
}
