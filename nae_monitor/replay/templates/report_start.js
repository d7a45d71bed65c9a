const list = byId("list");

const place = () => {
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      draw(entry.target.conversation);
      watcher.unobserve(entry.target);
    }
  }, { rootMargin: "800px" });
  conversations.forEach((c, index) => {
    c.index = index;
    c.node = el("article", "conv");
    c.node.id = "c" + index;
    c.node.setAttribute("aria-label", "Conversation " + revealed(c.id));
    c.node.conversation = c;
    c.node.append(head(c));
    list.append(c.node);
    watcher.observe(c.node);
  });
};

const listen = () => {
  list.addEventListener("click", (event) => {
    const node = tokenOf(event);
    if (node) pinned === node ? unpin(false) : pin(node);
  });
  list.addEventListener("keydown", onToken);
  for (const name of ["pointerover", "focusin"]) {
    list.addEventListener(name, (event) => {
      const node = tokenOf(event);
      if (node && !pinned) inspect(node);
    });
  }
  document.addEventListener("keydown", onPage);
  // A link to where the page already is changes nothing that would be heard of.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (link && link.hash === location.hash) follow();
  });
  window.addEventListener("hashchange", follow);
};

const controls = () => {
  const bar = document.querySelector(".filters");
  bar.hidden = false;
  // What is scrolled to must not end up under the bar, however many lines it takes.
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar", bar.offsetHeight + "px")).observe(bar);
  bar.addEventListener("submit", (event) => event.preventDefault());
  bar.addEventListener("input", filter);
  field("clear").addEventListener("click", clear);
  byId("side").hidden = !conversations.length;
  document.querySelector(".colours").addEventListener("input", (event) => {
    if (event.target.name === "mode") document.body.dataset.mode = event.target.value;
  });
  const choice = byId("direction");
  if (choice) {
    data.directions.map((name, index) => [name, index]).sort().forEach(([name, index]) => choice.append(Object.assign(el("option", "", name), { value: index })));
    choice.addEventListener("input", () => {
      direction = choice.value === "" ? null : Number(choice.value);
      recolour();
    });
    const limits = data.steps.map((limit) => limit.toLocaleString("en"));
    const names = limits.length ? ["≤ " + limits[0], ...limits.slice(1).map((limit) => "≤ " + limit), "more"] : [];
    byId("steps").append(...names.map((name, index) => {
      const item = el("span");
      item.append(el("i", "key"), name);
      item.firstChild.dataset.z = index;
      return item;
    }));
  }
};

// Paper has no scrolling and nothing to point at: everything must be there, explanations too.
const notes = (c) => {
  const rows = c.rows.filter((row) => row.findings.length);
  if (!rows.length || c.node.querySelector(".notes")) return;
  const node = el("ol", "notes");
  for (const row of rows) {
    const item = el("li");
    item.append(el("b", "", `token ${row.p}${data.withheld ? "" : " “" + visible(row.t).trim() + "”"}`), ` ${row.findings.map((f) => (f.state === "match" ? f.severity : "undecided") + ", " + f.title).map(revealed).join("; ")}. `);
    if (!data.withheld) item.append(el("q", "", row.text));
    item.append(row.fve === null ? " FVE unknown" : " FVE " + signed(row.fve));
    node.append(item);
  }
  c.node.append(node);
};
const print = () => {
  for (const c of conversations.filter((c) => !c.node.hidden)) {
    unclamp(c);
    notes(c);
  }
};

place();
listen();
controls();
chart();
inspect(null);
filter();
theme();
help();
window.addEventListener("beforeprint", print);
window.addEventListener("afterprint", () => document.querySelectorAll(".notes").forEach((node) => node.remove()));
follow();
