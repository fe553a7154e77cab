"use strict";
// What a report does beyond being read: sorting, the panel of a stage or a cell, completions, links into all of them.
// Texts become text nodes and attributes only, never markup.
(() => {
  const { stages, order, completions, names } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const collator = new Intl.Collator("en", { numeric: true });
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

  const make = (tag, properties, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties ?? {})) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null));
    return element;
  };
  const row = (heading, ...cells) => make("tr", null, make("th", { scope: "row" }, heading), cells.map((cell) => make("td", null, cell)));
  const list = (items) => make("ul", null, items.map((item) => make("li", null, item)));
  const part = (title, ...content) => [make("h4", null, title), ...content];
  const link = (key, value, text) => make("a", { href: `#${key}=${encodeURIComponent(value)}` }, text);

  // ---- Stages

  const positions = new Map(stages.map((stage, at) => [stage.name, at]));
  const templates = new Map();
  stages.forEach((stage, at) => {
    if (!templates.has(stage.template)) templates.set(stage.template, []);
    templates.get(stage.template).push(at);
  });
  const linkTo = (at) => link("stage", stages[at].name, stages[at].name);
  const WORDS = { cached: "cached", run: "to run", run_if: "to run if an input changes" };
  const state = (stage) => {
    const failed = stage.decision !== "cached" && stage.details?.log?.failure;
    return make("span", { class: `state ${failed ? "failed" : stage.decision}` }, failed ? "failed" : WORDS[stage.decision]);
  };
  const digest = (text) => make("span", { class: "digest" }, text ?? "not known yet");
  const outputOf = (at, name) => stages[at].details?.outputs.find((output) => output.name === name);
  const duration = (seconds) => (seconds < 60 ? `${seconds.toFixed(3)} s` : `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`);
  const bytes = (number) => (number < 2 ** 20 ? `${(number / 2 ** 10).toFixed(1)} KiB` : `${(number / 2 ** 20).toFixed(1)} MiB`);

  const reasonsOf = (stage) => {
    const { why, notes, log } = stage.details;
    const reason = stage.decision === "cached" ? "A record matches its whole manifest." : why;
    return part("Why", make("p", null, state(stage), " ", reason), ...notes.map((note) => make("p", { class: "note" }, note)),
      log?.failure ? make("pre", null, log.failure) : "");
  };
  const madeOf = ({ details: { made } }) => made === null ? [] : part("How it was made", make("table", null,
    row("Seconds, when it ran", duration(made.seconds)), row("CPU seconds", duration(made.cpu_seconds)), row("Peak memory", bytes(made.peak_memory_bytes)),
    row("Device", made.device), row("Numerics", made.numerics), row("Threads", String(made.threads)), row("Host", made.host),
    row("Started", made.started), row("flowgraph", made.flowgraph), row("As", `${made.stage} of ${made.pipeline}`)));
  const manifestOf = (stage) => part("Manifest", make("table", null,
    row("Kind", `${stage.kind}, version ${stage.details.version}`), row("Fingerprint", digest(stage.fingerprint)),
    stage.details.params.map(([key, value]) => row(key, value)),
    stage.inputs.map(([port, at, output]) => row(`input ${port}`, [linkTo(at), `.${output} `, digest(outputOf(at, output)?.digest)])),
    stage.details.sources.map(([key, value]) => row(`source ${key}`, digest(value))),
    stage.details.environment.map((name) => row("environment", `${name}, by the digest of its value`))));
  const outputsOf = ({ details: { outputs } }) => outputs.length === 0 ? [] : part("Outputs", ...outputs.map((output) => make("div", null,
    make("p", null, make("strong", null, output.name), ` ${output.kind}, ${bytes(output.bytes)} `, digest(output.digest)),
    list(output.files.map(([path, size, value]) => [path, ` ${bytes(size)} `, digest(value)])))));
  const auditOf = ({ details: { audit } }) => audit.length === 0 ? [] : part("Audit", list(audit.map(({ words, condition, reason }) =>
    `${words} (${condition})${reason ? `: ${reason}` : ""}`)));
  const logOf = ({ details: { log } }) => !log?.text ? [] : part(`End of its log, run ${log.run}`,
    log.left_out > 0 ? make("p", { class: "note" }, `${bytes(log.left_out)} before it are left out.`) : "", make("pre", null, log.text));

  const showInstance = (at) => {
    const stage = stages[at];
    const others = templates.get(stage.template);
    const whole = others.length > 1 ? make("p", null, link("stage", stage.template, `all ${others.length} of ${stage.template}`)) : "";
    if (!stage.details) {
      open(stage.name, whole, make("p", { class: "notice" }, "Left out to keep this file small; `flowgraph why` shows it."));
      return;
    }
    const needed = stages.flatMap((other, position) => (other.inputs.some(([, producer]) => producer === at) ? [position] : []));
    open(stage.name, whole, stage.details.description ? make("p", null, stage.details.description) : "",
      reasonsOf(stage), madeOf(stage), auditOf(stage), manifestOf(stage), outputsOf(stage),
      needed.length === 0 ? [] : part("Needed by", fold(needed)), logOf(stage));
  };
  const showMatrix = (template) => {
    const members = templates.get(template);
    open(template, make("p", null, `${count(members.length, "stage")} of kind ${stages[members[0]].kind}`),
      list(members.map((at) => [linkTo(at), " ", state(stages[at]), stages[at].seconds === null ? "" : `, took ${duration(stages[at].seconds)}`])));
  };
  const showStage = (name) => {
    const members = templates.get(name);
    if (members && members.length > 1) showMatrix(name);
    else if (positions.has(name) || members) showInstance(positions.get(name) ?? members[0]);
    else open("No such stage", make("p", null, name));
  };

  /** Stages as a list, those of a matrix together. */
  const fold = (found) => {
    const groups = new Map();
    for (const at of found) {
      const { template } = stages[at];
      groups.set(template, [...(groups.get(template) ?? []), at]);
    }
    const entry = (at) => {
      const outputs = stages[at].details?.outputs ?? [];
      return [linkTo(at), " ", outputs.map((output) => digest(`${output.name} ${output.digest.slice(0, 12)} `))];
    };
    return list([...groups].map(([template, members]) => members.length === 1
      ? [...entry(members[0]), ` ${stages[members[0]].kind}`]
      : make("details", null, make("summary", null, `${template}: ${count(members.length, "stage")}, ${stages[members[0]].kind}`), list(members.map(entry)))));
  };
  /** The stages that some stages are made of, themselves included, each before what it is made of. */
  const upstream = (starts) => {
    const reached = new Set(starts);
    for (const at of reached) stages[at].inputs.forEach(([, producer]) => reached.add(producer));
    return order.filter((at) => reached.has(at)).reverse();
  };

  // ---- Panel

  const panel = byId("panel");
  let opener = null;
  const open = (title, ...content) => {
    if (panel.hidden) opener = document.activeElement;
    panel.replaceChildren(make("button", { type: "button", class: "close", click: close }, "Close"), make("h3", { id: "panel-title" }, title), ...content.flat(Infinity));
    panel.hidden = false;
    panel.scrollTop = 0;
    panel.focus();
  };
  const close = () => {
    panel.hidden = true;
    // The same link then opens it again.
    if (location.hash.startsWith("#stage=")) history.replaceState(null, "", "#");
    opener?.focus({ preventScroll: true });
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !panel.hidden) close();
  });

  // ---- Tables

  const sort = (table, column, heading) => {
    const body = table.tBodies[0];
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows];
    const isNumber = rows.some((line) => line.cells[column].dataset.number !== undefined);
    const key = ({ cells }) => (isNumber ? Number.parseFloat(cells[column].dataset.number) : cells[column].textContent);
    const isEmpty = (value) => value === "" || Number.isNaN(value);
    const keyed = rows.map((line) => [key(line), line]);
    keyed.sort(([a], [b]) => {
      // Empty cells come last either way.
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      return sign * (isNumber ? a - b : collator.compare(a, b));
    });
    body.append(...keyed.map(([, line]) => line));
  };
  for (const table of document.querySelectorAll("main table")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = make("button", { type: "button", click: () => sort(table, column, heading) }, ...heading.childNodes);
      heading.append(button);
    });
  }

  const headings = (table) => [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  /** The runs behind a cell: their labels and values. */
  const runsOf = (block, line, heading) => {
    const runs = block.querySelector("table.runs");
    const keys = Number(block.dataset.keys);
    const column = runs ? headings(runs).indexOf(heading) : -1;
    if (column < keys || keys === 0) return [];
    const same = ({ cells }) => [...line.cells].slice(0, keys).every((cell, at) => cell.textContent === cells[at].textContent);
    const label = headings(runs)[keys];
    return [...runs.tBodies[0].rows].filter(same).map(({ cells }) => row(`${label} ${cells[keys].textContent}`, cells[column].textContent));
  };
  const runNotes = (block) => [...block.querySelectorAll("p.run")].map((note) => make("p", { class: "note" }, note.textContent));
  /** What a row was made of: the inputs whose labels are in it, or all of them. */
  const inputsOf = (block, table, line) => {
    const { inputs } = stages[Number(block.dataset.stage)];
    const cells = new Map(headings(table).map((heading, at) => [heading, line.cells[at].textContent]));
    const shown = names[block.dataset.name] ?? {};
    const isNamed = (axis, label) => cells.get(axis) === label || cells.get(axis) === shown[label];
    const labelled = inputs.filter(([, at]) => stages[at].axes.some(([axis]) => cells.has(axis)));
    const own = labelled.filter(([, at]) => stages[at].axes.every(([axis, label]) => !cells.has(axis) || isNamed(axis, label)));
    // An axis may name stages: what one of these made belongs to the rows with its name, as a training's curve does.
    const named = labelled.flatMap(([, at]) => stages[at].axes.filter(([axis]) => cells.has(axis)));
    const isOthers = ([, at]) => {
      const meant = named.filter(([, label]) => label === stages[at].template || label.startsWith(`${stages[at].template}.`));
      return meant.length > 0 && !meant.some(([axis, label]) => isNamed(axis, label));
    };
    const others = inputs.filter((input) => !labelled.includes(input) && !isOthers(input));
    return { isOwn: own.length > 0, from: [...new Set((own.length > 0 ? [...own, ...others] : inputs).map(([, at]) => at))] };
  };
  const showCell = (cell) => {
    const block = cell.closest(".block");
    const table = cell.closest("table");
    const line = cell.parentElement;
    const heading = headings(table)[cell.cellIndex];
    const next = headings(table).indexOf(`${heading} (paper)`);
    const reported = next < 0 ? "" : line.cells[next].textContent;
    const runs = runsOf(block, line, heading);
    const stage = Number(block.dataset.stage);
    const { isOwn, from } = inputsOf(block, table, line);
    const chain = upstream(from);
    const sources = chain.concat(stage).flatMap((at) => stages[at].details?.sources ?? []);
    open(`${line.cells[0].textContent}: ${heading}`, make("p", null, make("strong", null, cell.textContent || "empty"), reported ? `, the paper has ${reported}` : ""),
      runs.length > 0 ? part("Runs behind it", make("table", null, runs), ...runNotes(block)) : [],
      part("Computed by", list([[linkTo(stage), " ", digest(stages[stage].fingerprint)]])),
      from.length > 0 ? part(isOwn ? "From the inputs of this row" : "From all inputs of the table", fold(from)) : [],
      chain.length > from.length ? part("These were made of", fold(chain.filter((at) => !from.includes(at)))) : [],
      part("Sources from outside", sources.length > 0
        ? list(sources.map(([key, value]) => [`${key} `, digest(value)]))
        : make("p", null, "None: all of it was computed from the params of these stages.")));
  };
  for (const table of document.querySelectorAll("table.cells")) {
    const first = table.tBodies[0].rows[0]?.cells[0];
    if (first) first.tabIndex = 0;
    const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    table.tBodies[0].addEventListener("click", (event) => {
      const cell = event.target.closest("td");
      if (cell && getSelection().isCollapsed) showCell(cell);
    });
    table.tBodies[0].addEventListener("keydown", (event) => {
      const cell = event.target.closest("td");
      const step = STEPS[event.key];
      if (event.key === "Enter") showCell(cell);
      if (!step) return;
      event.preventDefault();
      const to = table.tBodies[0].rows[cell.parentElement.sectionRowIndex + step[0]]?.cells[cell.cellIndex + step[1]];
      if (!to) return;
      // One stop of the tab key for each table.
      cell.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });
  }

  // ---- Graph

  const edges = [...document.querySelectorAll(".edge")];
  for (const node of document.querySelectorAll("[data-node]")) {
    const near = edges.filter(({ dataset }) => dataset.from === node.dataset.node || dataset.to === node.dataset.node);
    const light = (on) => () => near.forEach((edge) => edge.classList.toggle("near", on));
    for (const [name, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) node.addEventListener(name, light(on));
  }
  byId("find").addEventListener("input", ({ target }) => {
    const MOST = 30;
    const asked = target.value.trim().toLowerCase();
    const found = asked === "" ? [] : stages.flatMap((stage, at) => (stage.name.toLowerCase().includes(asked) ? [at] : []));
    const more = found.length > MOST ? [make("li", null, `and ${found.length - MOST} more`)] : [];
    const none = asked !== "" && found.length === 0 ? [make("li", null, "No stage has this in its name.")] : [];
    byId("found").replaceChildren(...found.slice(0, MOST).map((at) => make("li", null, linkTo(at))), ...more, ...none);
  });

  // ---- Completions

  const ON_A_PAGE = 10;
  const { columns, prompts } = completions;
  const asked = { text: "", template: "", page: 0, chosen: -1 };
  const isAsked = ([stage]) => asked.template === "" || stages[stage].template === asked.template;
  const matching = () => {
    const text = asked.text.toLowerCase();
    const has = (words) => words.toLowerCase().includes(text);
    return [...prompts.keys()].filter((at) => {
      const answers = prompts[at].answers.filter(isAsked);
      return answers.length > 0 && (text === "" || has(prompts[at].text) || answers.some(([, words]) => has(words)));
    });
  };
  const marked = (words) => {
    if (asked.text === "") return [words];
    const pieces = [];
    const [whole, text] = [words.toLowerCase(), asked.text.toLowerCase()];
    let from = 0;
    // Lower case of some letters is longer: then places would not be those of the text.
    while (whole.length === words.length) {
      const at = whole.indexOf(text, from);
      if (at < 0) break;
      pieces.push(words.slice(from, at), make("mark", null, words.slice(at, at + text.length)));
      from = at + text.length;
    }
    return [...pieces, words.slice(from)];
  };
  /** What tells the stages that answered a prompt from each other: their templates and axes, as far as these differ. */
  const labelsOf = (shown) => {
    const differs = (value) => new Set(shown.map(([at]) => value(stages[at]))).size > 1;
    const valueOf = (axis) => ({ axes }) => axes.find(([name]) => name === axis)?.[1];
    const axes = [...new Set(shown.flatMap(([at]) => stages[at].axes.map(([axis]) => axis)))].filter((axis) => differs(valueOf(axis)));
    const isOne = !differs(({ template }) => template);
    return (at) => {
      const own = stages[at].axes.filter(([axis]) => axes.includes(axis)).map(([axis, value]) => `${axis}=${value}`).join(", ");
      return isOne && own !== "" ? own : `${stages[at].template}${own === "" ? "" : `, ${own}`}`;
    };
  };
  const showPrompt = (at) => {
    const { text, sample, answers } = prompts[at];
    const shown = answers.filter(isAsked);
    const label = labelsOf(shown);
    const used = columns.map((_, column) => column).filter((column) => shown.some(([, , , scores]) => scores[column] !== null));
    const heading = (words, isNumber) => make("th", { scope: "col", class: isNumber ? "number" : null }, words);
    const line = ([stage, words, isTruncated, scores]) => make("tr", null, make("td", null, link("stage", stages[stage].name, label(stage))),
      make("td", { class: "answer" }, marked(words), isTruncated ? make("em", { class: "note" }, " (the horizon ended it)") : ""),
      used.map((column) => scores[column] === null ? make("td") : make("td", { "data-number": scores[column], "data-name": columns[column] }, String(scores[column]))));
    return make("article", { class: at === asked.chosen ? "prompt chosen" : "prompt", id: `prompt=${at}` },
      link("prompt", at, `Prompt ${at}${sample > 0 ? `, sample ${sample}` : ""}`), make("p", { class: "question" }, ...marked(text)),
      make("div", { class: "scroll" }, make("table", null,
        make("thead", null, make("tr", null, heading("Sampled by"), heading("Completion"), used.map((column) => heading(columns[column], true)))),
        make("tbody", null, shown.map(line)))));
  };
  const showPrompts = () => {
    const found = matching();
    const last = Math.max(0, Math.ceil(found.length / ON_A_PAGE) - 1);
    if (asked.chosen >= 0) asked.page = Math.floor(Math.max(0, found.indexOf(asked.chosen)) / ON_A_PAGE);
    asked.page = Math.min(asked.page, last);
    const from = asked.page * ON_A_PAGE;
    const page = found.slice(from, from + ON_A_PAGE);
    byId("prompts").replaceChildren(...page.map(showPrompt));
    byId("place").textContent = page.length === 0 ? "no prompt" : `${from + 1} to ${from + page.length} of ${count(found.length, "prompt")}`;
    byId("before").disabled = asked.page === 0;
    byId("after").disabled = asked.page === last;
  };
  const ask = (change) => {
    Object.assign(asked, { chosen: -1 }, change);
    showPrompts();
  };
  const choose = (at) => {
    if (!(at in prompts)) return;
    byId("search").value = "";
    byId("sampled").value = "";
    ask({ text: "", template: "", chosen: at });
    byId(`prompt=${at}`).scrollIntoView();
  };
  if (prompts.length > 0) {
    byId("completions").hidden = false;
    byId("to-completions").hidden = false;
    const sampled = new Set(prompts.flatMap(({ answers }) => answers.map(([stage]) => stages[stage].template)));
    const option = (value, text) => make("option", { value }, text);
    byId("sampled").append(option("", "all"), ...[...sampled].map((template) => option(template, template)));
    const notes = ["The same prompt answered by each stage that sampled it."];
    if (prompts.length < completions.all) notes.push(`The first ${prompts.length} of ${completions.all} prompts: the others are left out to keep this file small.`);
    if (completions.cut > 0) notes.push(`${count(completions.cut, "long text")} cut: \`[... bytes ...]\` says how much is left out.`);
    byId("completions-note").textContent = notes.join(" ");
    byId("search").addEventListener("input", ({ target }) => ask({ text: target.value.trim(), page: 0 }));
    byId("sampled").addEventListener("change", ({ target }) => ask({ template: target.value, page: 0 }));
    byId("before").addEventListener("click", () => ask({ page: asked.page - 1 }));
    byId("after").addEventListener("click", () => ask({ page: asked.page + 1 }));
    showPrompts();
  }

  // ---- Links

  const follow = () => {
    let hash = location.hash.slice(1);
    try {
      hash = decodeURIComponent(hash);
    } catch {
      // A link that nobody encoded.
    }
    const [, key, value] = /^(\w+)=(.*)$/s.exec(hash) ?? [];
    if (key === "stage") showStage(value);
    else if (!panel.hidden) close();
    if (key === "prompt") choose(Number(value));
    if (key === "table" && byId(hash)) {
      byId(hash).open = true;
      byId(hash).scrollIntoView();
    }
  };
  addEventListener("hashchange", follow);
  follow();
  // Tests read how long it took, in milliseconds.
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
