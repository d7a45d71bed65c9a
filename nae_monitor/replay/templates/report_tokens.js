const CLAMP_TOKENS = 700; // of a conversation that is shown in part at first
const FIRST_TOKENS = 1500; // drawn before the whole is asked for
const PIECE_TOKENS = 400; // of a long text that are laid out together, or fewer, to end with a line
const STRIP_ROWS = 2000; // in the strip above a conversation, beside those with a finding
let direction = null; // the screen's direction that tokens are coloured by; null: their strongest

const scoreOf = (row) => {
  const found = direction === null ? row.scores[0] : row.scores.find(([index]) => index === direction);
  return found ? found[1] : null;
};
const step = (score) => (score === null ? "" : String(data.steps.filter((limit) => score > limit).length));

const label = (row) => {
  const hits = row.findings.map((f) => (f.state === "match" ? f.severity + ": " : "undecided: ") + f.title);
  const state = row.decoded ? (row.fve === null ? "FVE unknown" : "FVE " + signed(row.fve)) : "not decoded";
  const score = row.scores.length ? ["score " + signed(row.scores[0][1])] : [];
  return revealed([visible(row.t).trim() || "token", "position " + row.p, state, ...score, ...hits].join(", "));
};

const dress = (node, row) => {
  node.dataset.d = row.decoded ? "1" : "0";
  if (row.bucket) node.dataset.b = row.bucket;
  if (row.mark) node.dataset.m = row.mark;
  node.dataset.z = step(scoreOf(row));
  node.row = row;
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
  node.conversation = c;
  return node;
};

// Tokens whose text is not on record: the chosen ones alone, in the order of their positions.
const bare = (c, first, rows, body) => {
  let last = first - 1;
  for (const row of rows) {
    const known = row.t !== null && row.t !== "" && !data.withheld;
    if (known && row.p > last + 1) body.append(el("span", "sp", " … "));
    body.append(token(c, row, known ? row.t : null, false));
    last = row.p;
  }
  if (!rows.length) body.append(el("span", "muted", "no token of this part was chosen"));
};

const written = (c, texts, first, byPosition, special, body) => {
  let plain = document.createTextNode("");
  const flush = () => {
    if (plain.length) body.append(plain);
    plain = document.createTextNode("");
  };
  const alone = (position, node) => {
    flush();
    body.append(node);
    c.places[position] = [node.firstChild, 0, node.firstChild?.length ?? 0];
  };
  texts.forEach((text, offset) => {
    const position = first + offset;
    const row = byPosition.get(position);
    if (row) {
      // The mark sits on the word, not on the space that the tokenizer glued to it.
      const space = /\S/.test(text) ? text.length - text.trimStart().length : 0;
      plain.data += text.slice(0, space);
      alone(position, token(c, row, text.slice(space), special.has(position)));
    } else if (special.has(position)) {
      alone(position, el("span", "sp", text));
    } else {
      const start = plain.length;
      plain.data += revealed(text);
      c.places[position] = [plain, start, plain.length];
    }
  });
  flush();
};

const pieceEnd = (texts, at) => {
  const end = Math.min(texts.length, at + PIECE_TOKENS);
  if (end === texts.length) return end;
  for (let last = end; last > at + PIECE_TOKENS / 2; last--) if (texts[last - 1].endsWith("\n")) return last;
  return end;
};

// A part of the conversation, and what draws the rest of it where it is long.
const turn = (c, name, texts, first, rows, special) => {
  const box = el("div", "turnbox");
  const body = el("div", "toks");
  box.append(el("div", "role", name), body);
  if (texts === null) {
    bare(c, first, rows, body);
    return { box, more: null };
  }
  const byPosition = new Map(rows.map((row) => [row.p, row]));
  let at = 0;
  const pieces = (until) => {
    while (at < until && at < texts.length) {
      const end = pieceEnd(texts, at);
      const part = el("div", texts.length > PIECE_TOKENS ? "piece" : "");
      written(c, texts.slice(at, end), first + at, byPosition, special, part);
      body.append(part);
      at = end;
    }
  };
  pieces(FIRST_TOKENS);
  return { box, more: at < texts.length ? () => pieces(Infinity) : null };
};

const strip = (c) => {
  const last = c.rows.length ? c.rows[c.rows.length - 1].p + 1 : 1;
  const length = Math.max(1, (c.promptTokens ?? 0) + (c.outputTokens ?? 0), last);
  const image = svg("svg", { class: "strip", viewBox: `0 0 ${length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const least = length / 900; // a token of a long conversation would be thinner than can be seen
  const every = Math.ceil(c.rows.length / STRIP_ROWS);
  const shown = c.rows.filter((row, index) => row.mark || index % every === 0);
  for (const row of shown.sort((a, b) => RANK.indexOf(a.mark) - RANK.indexOf(b.mark))) {
    image.append(dress(svg("rect", { x: row.p, y: 0, width: Math.max(1, least), height: 1 }), row));
  }
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
  if (c.from !== null) facts.push(moment(c.from));
  if (c.promptTokens !== null) facts.push(number(c.promptTokens + c.outputTokens) + " tokens");
  facts.push(number(decoded.length) + " decoded");
  if (known.length) facts.push("median FVE " + signed(median(known)));
  const dropped = c.rows.length - decoded.length;
  if (dropped) facts.push(number(dropped) + " chosen and not decoded");
  node.append(el("span", "meta", facts.join(" · ")));
  return node;
};

const draw = (c) => {
  if (c.drawn) return;
  c.drawn = true;
  c.places = []; // of each token's text: its node, and from where to where in it
  const special = new Set(c.special);
  const border = c.promptTokens;
  const inPrompt = (row) => (border === null ? row.phase !== "completion" : row.p < border);
  c.node.append(strip(c));
  if (c.reasons.length) c.node.append(el("p", "why", "Undecided: " + c.reasons.join("; ")));
  const parts = [
    turn(c, "Prompt", c.prompt, 0, c.rows.filter(inPrompt), special),
    turn(c, "Completion", c.output, border ?? 0, c.rows.filter((row) => !inPrompt(row)), special),
  ];
  c.node.append(...parts.map((part) => part.box));
  c.rest = parts.map((part) => part.more).filter(Boolean);
  c.tokens = [...c.node.querySelectorAll(".tok")];
  if (c.tokens.length) c.tokens[0].tabIndex = 0;
  if ((c.promptTokens ?? 0) + (c.outputTokens ?? 0) > CLAMP_TOKENS) clamp(c);
};

const clamp = (c) => {
  c.node.querySelectorAll(".toks").forEach((box) => box.classList.add("clamp"));
  const more = el("button", "ghost more", "Show the whole conversation");
  more.type = "button";
  more.addEventListener("click", () => unclamp(c));
  c.node.append(more);
};
const unclamp = (c) => {
  draw(c);
  if (c.rest.length) {
    c.rest.forEach((more) => more());
    c.rest = [];
    c.tokens = [...c.node.querySelectorAll(".tok")];
  }
  c.node.querySelectorAll(".clamp").forEach((box) => box.classList.remove("clamp"));
  c.node.querySelector(".more")?.remove();
};

const recolour = () => {
  for (const node of document.querySelectorAll("#list [data-z]")) node.dataset.z = step(scoreOf(node.row));
};
