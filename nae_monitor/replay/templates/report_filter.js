const FILTERS = ["state", "severity", "rule", "tenant", "model", "from", "to", "text"];
const alerts = [...document.querySelectorAll("#alerts .alert")];
const field = (name) => byId("f-" + name);

const asked = () => {
  const wish = Object.fromEntries(FILTERS.map((name) => [name, field(name)?.value ?? ""]));
  wish.text = wish.text.trim().toLowerCase();
  wish.fromMs = field("from")?.valueAsNumber ?? NaN; // the field's time, read as UTC
  wish.toMs = field("to")?.valueAsNumber ?? NaN;
  return wish;
};

const haystack = (c) => {
  if (c.haystack === undefined) {
    const rows = c.rows.flatMap((row) => [row.text, ...row.findings.flatMap((f) => [f.title, f.rule])]);
    const said = [(c.prompt ?? []).join(""), (c.output ?? []).join("")];
    c.haystack = [c.id, c.tenant ?? "", c.session ?? "", c.model ?? "", ...said, ...rows].join("\n").toLowerCase();
  }
  return c.haystack;
};

// What is not known to lie in the asked time does not.
const inTime = (first, last, wish) => {
  if (Number.isNaN(wish.fromMs) && Number.isNaN(wish.toMs)) return true;
  return Boolean(first) && !(last < wish.fromMs) && !(first >= wish.toMs);
};

const matches = (c, wish) => {
  if (wish.state && c.state !== wish.state) return false;
  if (wish.severity && RANK.indexOf(c.severity) < RANK.indexOf(wish.severity)) return false;
  if (wish.tenant && revealed(c.tenant ?? "") !== wish.tenant) return false;
  if (wish.model && revealed(c.model ?? "") !== wish.model) return false;
  if (!inTime(c.from, c.to, wish)) return false;
  const raised = (f) => f.state === "match" && revealed(f.rule) === wish.rule;
  if (wish.rule && !c.rows.some((row) => row.findings.some(raised))) return false;
  return !wish.text || haystack(c).includes(wish.text);
};

const alertMatches = (node, wish) => {
  const told = node.dataset;
  if (["state", "rule", "tenant", "model"].some((name) => wish[name] && told[name] !== wish[name])) return false;
  if (wish.severity && RANK.indexOf(told.severity) < RANK.indexOf(wish.severity)) return false;
  if (!inTime(Number(told.when), Number(told.when), wish)) return false;
  if (!wish.text || node.textContent.toLowerCase().includes(wish.text)) return true;
  const c = conversations[told.conversation];
  return c !== undefined && haystack(c).includes(wish.text);
};

const share = (shown, total) => (shown === total ? number(total) : number(shown) + " of " + number(total));

const filter = () => {
  const wish = asked();
  const active = FILTERS.filter((name) => wish[name]);
  for (const c of conversations) c.node.hidden = !matches(c, wish);
  for (const node of alerts) node.hidden = !alertMatches(node, wish);
  const shown = conversations.filter((c) => !c.node.hidden).length;
  const listed = alerts.filter((node) => !node.closest("details"));
  const listedShown = listed.filter((node) => !node.hidden).length;
  const pill = byId("alert-count");
  pill.total ??= pill.textContent;
  pill.textContent = active.length ? share(listedShown, listed.length) : pill.total;
  byId("count").textContent = share(shown, conversations.length);
  byId("nothing").hidden = shown > 0 || !conversations.length;
  if (byId("no-alert")) byId("no-alert").hidden = listedShown > 0;
  field("clear").hidden = !active.length;
  const told = active.map((name) => name + " " + wish[name].replace("T", " "));
  byId("f-said").textContent = active.length ? `Filtered by ${told.join(", ")}: ${share(listedShown, listed.length)} alerts, ${share(shown, conversations.length)} conversations.` : "";
};

const narrow = (values) => {
  for (const [name, value] of Object.entries(values)) if (field(name)) field(name).value = value;
  filter();
};
const clear = () => narrow(Object.fromEntries(FILTERS.map((name) => [name, ""])));

// A bar of the time line narrows to its stretch of time, a rule's name to the rule.
const chart = () => {
  const table = document.querySelector(".matrix");
  table?.addEventListener("click", (event) => {
    const rule = event.target.closest?.(".by-rule");
    if (rule) narrow({ rule: rule.dataset.rule });
    const bin = event.target.closest?.(".bin");
    if (!bin) return;
    const [start, width] = [Number(table.dataset.start), Number(table.dataset.width)];
    const from = start + Number(bin.dataset.bin) * width;
    const iso = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19);
    narrow({ from: iso(from), to: iso(from + width) });
    byId("alerts").scrollIntoView();
  });
};
