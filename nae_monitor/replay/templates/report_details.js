const inspector = byId("inspector");
let pinned = null;

const gauge = (row) => {
  const node = el("div", "gauge");
  const bar = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  bar.append(svg("rect", { class: "track", width: 100, height: 8 }));
  if (row.fve !== null) {
    bar.append(svg("rect", { class: "b-" + row.bucket, width: Math.max(row.fve <= 0 ? 2 : 0, Math.min(100, 100 * row.fve)), height: 8 }));
  }
  node.append(el("span", "muted", "FVE"), bar, el("b", "", row.fve === null ? "unknown" : signed(row.fve)));
  return node;
};

const explanation = (row) => {
  if (data.withheld) return el("p", "i-text muted", "Explanation withheld.");
  const node = el("p", "i-text" + (row.cut ? " cut" : ""));
  let at = 0;
  for (const [start, end] of row.marks) {
    node.append(revealed(row.text.slice(at, start)), el("mark", "", row.text.slice(start, end)));
    at = end;
  }
  node.append(revealed(row.text.slice(at)));
  return node;
};

const pairs = (className, values) => {
  const node = el("p", className);
  for (const [name, value] of values) {
    const item = el("span", "", name + " ");
    item.append(el("b", "", value));
    node.append(item);
  }
  return node;
};

const numbers = (row) => {
  const values = [];
  if (row.cosine !== null) values.push(["cosine", row.cosine.toFixed(3)]);
  if (row.rank !== null) values.push(["rank", row.rank + " of " + ((row.bank ?? 0) + 1)]);
  if (row.support !== null) values.push(["support", row.support.toFixed(2)]);
  values.push(["chosen by", row.reason]);
  return pairs("i-nums", values);
};

const scores = (row) => {
  const node = el("div", "i-scores");
  node.append(el("h4", "", "Screen scores"));
  const most = Math.max(...row.scores.map(([, score]) => score), 1e-9);
  for (const [index, score] of row.scores) {
    const bar = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(svg("rect", { class: "track", width: 100, height: 6 }), svg("rect", { class: "z-" + step(score), width: Math.max(0, (100 * score) / most), height: 6 }));
    node.append(el("span", "mono", data.directions[index]), bar, el("b", "", signed(score)));
  }
  return node;
};

// Words that a rule found in what was said are marked there, while the token is pinned.
const markSaid = () => {
  if (!("highlights" in CSS)) return;
  CSS.highlights.delete("evidence");
  if (!pinned) return;
  const { conversation, row } = pinned;
  const ranges = row.findings.flatMap((f) => f.evidence).filter(([, , , , tokens]) => tokens).map(([, , , , [first, last]]) => {
    const [from, to] = [conversation.places[first], conversation.places[last]];
    if (!from?.[0] || !to?.[0]) return null;
    const range = new Range();
    range.setStart(from[0], from[1]);
    range.setEnd(to[0], to[2]);
    return range;
  });
  CSS.highlights.set("evidence", new Highlight(...ranges.filter(Boolean)));
};

const proof = ([selection, field, words, score]) => {
  const node = el("li");
  node.append(el("span", "mono", selection));
  if (words) node.append(el("q", "", words));
  const where = [field === "explanation" ? "" : field, score ? "score " + score : ""].filter(Boolean).join(", ");
  if (where || !words) node.append(el("span", "muted", where || field));
  return node;
};

const finding = (f) => {
  const node = el("li");
  const mark = f.state === "match" ? f.severity : "undecided";
  const top = el("div", "f-head");
  top.append(el("span", "chip sev-" + mark, mark));
  if (f.alert) {
    const link = el("a", "", f.severity === "informational" ? "to the sign" : "to the alert");
    link.href = "#" + f.alert;
    top.append(link);
  }
  node.append(top, el("p", "t", f.title), el("p", "s", `rule ${f.rule} v${f.version}`));
  if (f.evidence.length) {
    const list = el("ul", "proofs");
    list.append(...f.evidence.map(proof));
    node.append(list);
  }
  if (f.support !== null) node.append(el("p", "s", "support of the words that matched: " + f.support));
  for (const why of f.undecided) node.append(el("p", "s", "no answer: " + why));
  return node;
};

const hint = () => {
  const node = el("div", "hint");
  node.append(el("p", "", "Point at a coloured or underlined token to read what the model was representing there."));
  const keys = el("p");
  keys.append("Click or ", el("kbd", "", "Enter"), " pins it, ", el("kbd", "", "←"), " ", el("kbd", "", "→"), " move along, ", el("kbd", "", "Esc"), " lets go.");
  node.append(keys);
  return node;
};

const top = (row) => {
  const node = el("div", "i-head");
  node.append(el("span", "i-tok", data.withheld ? "withheld" : visible(row.t).trim() || "·"));
  if (pinned) {
    const button = el("button", "ghost", "Unpin");
    button.type = "button";
    button.addEventListener("click", () => unpin(true));
    node.append(button);
  }
  return node;
};

const inspect = (node) => {
  inspector.classList.toggle("pinned", pinned !== null);
  if (!node) return inspector.replaceChildren(hint());
  const row = node.row;
  const parts = [top(row), el("p", "i-sub", `${row.phase ? row.phase + " " : ""}token ${row.p} of ${node.conversation.id}`)];
  if (row.decoded) {
    parts.push(explanation(row), gauge(row));
    if (row.reused) parts.push(el("p", "i-sub", "The explanation was made for another row and is used again here."));
    if (row.cut) parts.push(el("p", "i-sub", "The explanation was cut off before its closing tag."));
  }
  if (row.dropped) parts.push(el("p", "i-text muted", (row.decoded ? "Dropped: " : "Not decoded: ") + row.dropped.replace(/_/g, " ") + "."));
  parts.push(numbers(row));
  if (row.findings.length) {
    const hits = el("ul", "i-find");
    hits.append(...row.findings.map(finding));
    parts.push(hits);
  } else if (row.decoded) {
    parts.push(el("p", "i-sub", "No rule matched."));
  }
  if (row.scores.length) parts.push(scores(row));
  inspector.replaceChildren(...parts);
  inspector.scrollTop = 0;
};

const pin = (node) => {
  if (pinned) pinned.setAttribute("aria-pressed", "false");
  pinned = node;
  node.setAttribute("aria-pressed", "true");
  for (const other of node.conversation.tokens) other.tabIndex = -1;
  node.tabIndex = 0;
  inspect(node);
  markSaid();
};
const unpin = (focus) => {
  const node = pinned;
  pinned = null;
  node?.setAttribute("aria-pressed", "false");
  inspect(null);
  markSaid();
  if (focus) node?.focus();
};

// Draws the token wherever it is, pins it and brings it into view.
const visit = (c, position) => {
  c.node.hidden = false;
  unclamp(c);
  const node = byId("c" + c.index + "-p" + position);
  if (!node) return c.node.scrollIntoView();
  pin(node);
  node.scrollIntoView({ block: "center", behavior: "instant" });
  node.focus({ preventScroll: true });
};
const visitAlert = (node) => {
  node.hidden = false;
  node.closest("details")?.setAttribute("open", "");
  node.tabIndex = -1;
  node.scrollIntoView({ block: "center", behavior: "instant" });
  node.focus({ preventScroll: true });
};
const follow = () => {
  const place = /^#c(\d+)-p(\d+)$/.exec(location.hash);
  const c = place && conversations[Number(place[1])];
  if (c) return visit(c, Number(place[2]));
  const alert = /^#[as]\d+$/.test(location.hash) && byId(location.hash.slice(1));
  if (alert) visitAlert(alert);
};
