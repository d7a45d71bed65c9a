"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const conversations = data.conversations;
  const list = document.getElementById("list");
  const inspector = document.getElementById("inspector");
  const RANK = ["informational", "low", "medium", "high", "critical"];
  const SVG = "http://www.w3.org/2000/svg";
  let pinned = null;

  // All text reaches the page through textContent; nothing is ever parsed as markup.
  // Characters that only steer direction are written out, or a text could be read in another order.
  const DIRECTION = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
  const revealed = (text) => String(text).replace(DIRECTION, (sign) => "⟨U+" + sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩");
  const el = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined && text !== null) node.textContent = revealed(text);
    return node;
  };
  const svg = (name, attributes) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const number = (value) => value.toLocaleString("en");
  const signed = (value) => value.toFixed(2).replace("-", "−");
  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const visible = (text) => {
    if (text === null || text === undefined || text === "") return "·";
    if (/^\s+$/.test(text)) return text.replace(/\n/g, "⏎").replace(/ /g, "␣").replace(/\t/g, "⇥");
    return text;
  };
  const label = (row) => {
    const hits = row.findings.map((f) => (f.state === "match" ? f.severity + ": " : "undecided: ") + f.title);
    const state = row.decoded ? (row.fve === null ? "FVE unknown" : "FVE " + signed(row.fve)) : "not decoded";
    return revealed([visible(row.t).trim() || "token", "position " + row.p, state, ...hits].join(", "));
  };

  const dress = (node, row) => {
    node.dataset.d = row.decoded ? "1" : "0";
    if (row.bucket) node.dataset.b = row.bucket;
    if (row.mark) node.dataset.m = row.mark;
    return node;
  };

  const token = (c, row, text, special) => {
    const node = dress(el("span", "tok" + (special ? " sp" : "")), row);
    if (text === null) {
      node.classList.add("box");
      node.textContent = row.p;
    } else if (/^\s*$/.test(text)) {
      node.textContent = visible(text) + (text.includes("\n") ? "\n" : "");
    } else {
      node.textContent = revealed(text);
    }
    node.id = "c" + c.index + "-p" + row.p;
    node.setAttribute("role", "button");
    node.setAttribute("aria-pressed", "false");
    node.setAttribute("aria-label", label(row));
    node.tabIndex = -1;
    node.row = row;
    node.conversation = c;
    return node;
  };

  const turn = (c, name, texts, first, rows, special) => {
    const box = el("div", "turnbox");
    const body = el("div", "toks");
    box.append(el("div", "role", name), body);
    let plain = "";
    const flush = () => {
      if (plain) body.append(revealed(plain));
      plain = "";
    };
    if (texts === null) {
      let last = first - 1;
      for (const row of rows) {
        if (row.t !== null && row.t !== "" && !data.withheld) {
          if (row.p > last + 1) body.append(el("span", "sp", " … "));
          body.append(token(c, row, row.t, false));
        } else {
          body.append(token(c, row, null, false));
        }
        last = row.p;
      }
      if (!rows.length) body.append(el("span", "muted", "no token of this part was chosen"));
      return box;
    }
    const byPosition = new Map(rows.map((row) => [row.p, row]));
    texts.forEach((text, offset) => {
      const position = first + offset;
      const row = byPosition.get(position);
      if (row) {
        // The mark sits on the word, not on the space that the tokenizer glued to it.
        const space = /\S/.test(text) ? text.length - text.trimStart().length : 0;
        plain += text.slice(0, space);
        flush();
        body.append(token(c, row, text.slice(space), special.has(position)));
      } else if (special.has(position)) {
        flush();
        body.append(el("span", "sp", text));
      } else {
        plain += text;
      }
    });
    flush();
    return box;
  };

  const strip = (c) => {
    const last = c.rows.length ? c.rows[c.rows.length - 1].p + 1 : 1;
    const length = Math.max(1, (c.promptTokens ?? 0) + (c.outputTokens ?? 0), last);
    const image = svg("svg", { class: "strip", viewBox: `0 0 ${length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const row of c.rows) image.append(dress(svg("rect", { x: row.p, y: 0, width: 1, height: 1 }), row));
    if (c.promptTokens) image.append(svg("rect", { class: "turn", x: c.promptTokens, y: 0, width: length / 500, height: 1 }));
    return image;
  };

  const head = (c) => {
    const node = el("div", "conv-head");
    node.append(el("h3", "", c.id), el("span", "verdict state-" + c.state, c.state));
    if (c.severity) node.append(el("span", "chip sev-" + c.severity, c.severity));
    const decoded = c.rows.filter((row) => row.decoded);
    const known = decoded.map((row) => row.fve).filter((fve) => fve !== null);
    const facts = [];
    if (c.tenant) facts.push(c.tenant);
    if (c.session) facts.push("session " + c.session);
    if (c.promptTokens !== null) facts.push(number(c.promptTokens + c.outputTokens) + " tokens");
    facts.push(number(decoded.length) + " decoded");
    if (known.length) facts.push("median FVE " + signed(median(known)));
    const dropped = c.rows.length - decoded.length;
    if (dropped) facts.push(number(dropped) + " dropped");
    node.append(el("span", "meta", facts.join(" · ")));
    return node;
  };

  const draw = (c) => {
    if (c.drawn) return;
    c.drawn = true;
    const special = new Set(c.special);
    const border = c.promptTokens;
    const inPrompt = (row) => (border === null ? row.phase === "prompt" : row.p < border);
    c.node.append(strip(c));
    if (c.reasons.length) c.node.append(el("p", "why", "Undecided: " + c.reasons.join("; ")));
    const prompt = turn(c, "Prompt", c.prompt, 0, c.rows.filter(inPrompt), special);
    const rest = c.rows.filter((row) => !inPrompt(row));
    c.node.append(prompt, turn(c, "Completion", c.output, border ?? 0, rest, special));
    c.tokens = [...c.node.querySelectorAll(".tok")];
    if (c.tokens.length) c.tokens[0].tabIndex = 0;
    if ((c.promptTokens ?? 0) + (c.outputTokens ?? 0) > 700) clamp(c);
  };

  const clamp = (c) => {
    const boxes = [...c.node.querySelectorAll(".toks")];
    boxes.forEach((box) => box.classList.add("clamp"));
    const more = el("button", "ghost more", "Show the whole conversation");
    more.type = "button";
    more.addEventListener("click", () => unclamp(c));
    c.node.append(more);
  };
  const unclamp = (c) => {
    c.node.querySelectorAll(".clamp").forEach((box) => box.classList.remove("clamp"));
    c.node.querySelector(".more")?.remove();
  };

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
    const node = el("p", "i-text" + (row.closed ? "" : " cut"));
    if (data.withheld) return el("p", "i-text muted", "Explanation withheld.");
    let at = 0;
    for (const [start, end] of row.marks) {
      node.append(revealed(row.text.slice(at, start)), el("mark", "", row.text.slice(start, end)));
      at = end;
    }
    node.append(revealed(row.text.slice(at)));
    return node;
  };

  const numbers = (row) => {
    const node = el("p", "i-nums");
    const add = (name, value) => {
      const item = el("span", "", name + " ");
      item.append(el("b", "", value));
      node.append(item);
    };
    if (row.cosine !== null) add("cosine", row.cosine.toFixed(3));
    if (row.rank !== null) add("rank", row.rank + " of " + (row.bank + 1));
    if (row.support !== null) add("support", row.support.toFixed(2));
    add("chosen by", row.reason.replace("_", " "));
    return node;
  };

  const finding = (f) => {
    const node = el("li");
    const mark = f.state === "match" ? f.severity : "undecided";
    node.append(el("span", "chip sev-" + mark, mark), el("p", "t", f.title));
    node.append(el("p", "s", `rule ${f.rule} v${f.version}`));
    for (const where of f.elsewhere) node.append(el("p", "s", "also in " + where));
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

  const inspect = (node) => {
    inspector.classList.toggle("pinned", pinned !== null);
    if (!node) return inspector.replaceChildren(hint());
    const row = node.row;
    const top = el("div", "i-head");
    top.append(el("span", "i-tok", data.withheld ? "withheld" : visible(row.t)));
    if (pinned) {
      const button = el("button", "ghost", "Unpin");
      button.type = "button";
      button.addEventListener("click", () => unpin(true));
      top.append(button);
    }
    const parts = [top, el("p", "i-sub", `${row.phase} token ${row.p} of ${node.conversation.id}`)];
    if (row.decoded) {
      parts.push(explanation(row), gauge(row));
      if (!row.closed) parts.push(el("p", "i-sub", "The explanation was cut off before its closing tag."));
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
  };
  const unpin = (focus) => {
    const node = pinned;
    pinned = null;
    node?.setAttribute("aria-pressed", "false");
    inspect(null);
    if (focus) node?.focus();
  };

  const matches = (c, state, severity, rule, tenant, text) => {
    if (state && c.state !== state) return false;
    if (severity && RANK.indexOf(c.severity) < RANK.indexOf(severity)) return false;
    if (tenant && revealed(c.tenant ?? "") !== tenant) return false;
    if (rule && !c.rows.some((row) => row.findings.some((f) => revealed(f.rule) === rule && f.state === "match"))) return false;
    if (!text) return true;
    if (c.haystack === undefined) {
      const rows = c.rows.flatMap((row) => [row.text, ...row.findings.flatMap((f) => [f.title, f.rule])]);
      const said = [(c.prompt ?? []).join(""), (c.output ?? []).join("")];
      c.haystack = [c.id, c.tenant ?? "", c.session ?? "", ...said, ...rows].join("\n").toLowerCase();
    }
    return c.haystack.includes(text);
  };
  const value = (id) => document.getElementById(id)?.value ?? "";
  const filter = () => {
    const [state, severity, rule, tenant] = ["f-state", "f-sev", "f-rule", "f-tenant"].map(value);
    const text = value("f-text").trim().toLowerCase();
    let shown = 0;
    for (const c of conversations) {
      const fits = matches(c, state, severity, rule, tenant, text);
      c.node.hidden = !fits;
      shown += fits;
    }
    const total = number(conversations.length);
    document.getElementById("count").textContent = shown === conversations.length ? total : number(shown) + " of " + total;
    document.getElementById("nothing").hidden = shown > 0 || !conversations.length;
  };

  const follow = () => {
    const place = /^#c(\d+)-p(\d+)$/.exec(location.hash);
    const c = place && conversations[Number(place[1])];
    if (!c) return;
    c.node.hidden = false;
    draw(c);
    unclamp(c);
    const node = document.getElementById(location.hash.slice(1));
    if (!node) return c.node.scrollIntoView();
    pin(node);
    node.scrollIntoView({ block: "center", behavior: "instant" });
    node.focus({ preventScroll: true });
  };

  const theme = () => {
    const button = document.getElementById("theme");
    const choices = ["auto", "light", "dark"];
    const stored = () => {
      try { return localStorage.getItem("nae-report-theme"); } catch { return null; }
    };
    const apply = (choice) => {
      if (choice === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = choice;
      button.textContent = "Theme: " + choice;
      button.setAttribute("aria-label", "Colour theme: " + (choice === "auto" ? "automatic" : choice));
      button.choice = choice;
    };
    apply(choices.includes(stored()) ? stored() : "auto");
    button.hidden = false;
    button.addEventListener("click", () => {
      apply(choices[(choices.indexOf(button.choice) + 1) % 3]);
      try { localStorage.setItem("nae-report-theme", button.choice); } catch { /* a page without storage */ }
    });
  };

  const tokenOf = (event) => event.target.closest?.(".tok");
  const keys = (event) => {
    const node = tokenOf(event);
    if (!node) return;
    const tokens = node.conversation.tokens;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const next = tokens[tokens.indexOf(node) + step];
      if (next) {
        node.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
        if (pinned) pin(next);
      }
    } else if (event.key === "Enter" || event.key === " ") {
      pinned === node ? unpin(true) : pin(node);
    } else {
      return;
    }
    event.preventDefault();
  };

  const start = () => {
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
    list.addEventListener("click", (event) => {
      const node = tokenOf(event);
      if (node) pinned === node ? unpin(false) : pin(node);
    });
    list.addEventListener("keydown", keys);
    for (const name of ["pointerover", "focusin"]) {
      list.addEventListener(name, (event) => {
        const node = tokenOf(event);
        if (node && !pinned) inspect(node);
      });
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && pinned) unpin(true);
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select")) return;
      if (event.key === "/") {
        event.preventDefault();
        document.getElementById("f-text").focus();
      } else if (event.key === "?") {
        document.getElementById("keys").showModal();
      }
    });
    const form = document.querySelector("form.bar");
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (event.target.name === "mode") document.body.dataset.mode = event.target.value;
      else filter();
    });
    // Paper has no scrolling: everything must be there.
    window.addEventListener("beforeprint", () => conversations.forEach((c) => { draw(c); unclamp(c); }));
    window.addEventListener("hashchange", follow);
    inspector.hidden = !conversations.length;
    inspect(null);
    filter();
    theme();
    follow();
  };
  start();
})();
