const tokenOf = (event) => event.target.closest?.(".tok");
const stored = (name) => {
  try { return localStorage.getItem("nae-report-" + name); } catch { return null; }
};
const store = (name, value) => {
  try { localStorage.setItem("nae-report-" + name, value); } catch { /* a page without storage */ }
};

const focusToken = (node, next) => {
  node.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  if (pinned) pin(next);
};
const onToken = (event) => {
  const node = tokenOf(event);
  if (!node) return;
  const tokens = node.conversation.tokens;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step || event.key === "Home" || event.key === "End") {
    const next = step ? tokens[tokens.indexOf(node) + step] : tokens.at(event.key === "Home" ? 0 : -1);
    if (next) focusToken(node, next);
  } else if (event.key === "Enter" || event.key === " ") {
    pinned === node ? unpin(true) : pin(node);
  } else {
    return;
  }
  event.preventDefault();
};

// From the token that is pinned or in focus on, over all conversations that are shown, and round.
const nextMatch = (sign) => {
  const places = conversations.filter((c) => !c.node.hidden).flatMap((c) => c.rows.filter((row) => row.mark && row.mark !== "undecided").map((row) => [c, row]));
  if (!places.length) return;
  const here = pinned ?? document.activeElement?.closest?.(".tok");
  const behind = ([c, row]) => here && (c.index < here.conversation.index || (c === here.conversation && row.p <= here.row.p));
  const ahead = ([c, row]) => !here || c.index > here.conversation.index || (c === here.conversation && row.p >= here.row.p);
  const next = sign > 0 ? places.findIndex((place) => !behind(place)) : places.length - 1 - [...places].reverse().findIndex((place) => !ahead(place));
  const [c, row] = places.at(next < 0 || next >= places.length ? (sign > 0 ? 0 : -1) : next);
  visit(c, row.p);
};
const nextColour = () => {
  const choices = [...document.querySelectorAll("[name=mode]")];
  const next = choices[(choices.findIndex((choice) => choice.checked) + 1) % choices.length];
  next.checked = true;
  document.body.dataset.mode = next.value;
};
const SIGNS = {
  "/": () => field("text").focus(),
  "?": () => byId("keys").showModal(),
  n: () => nextMatch(1),
  p: () => nextMatch(-1),
  c: nextColour,
  a: () => {
    const link = inspector.querySelector(".f-head a");
    if (link) byId(link.hash.slice(1)) && visitAlert(byId(link.hash.slice(1)));
  },
};
const onPage = (event) => {
  if (event.key === "Escape" && pinned) unpin(true);
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, dialog")) return;
  if (!SIGNS[event.key] || !byId("letters").checked) return;
  event.preventDefault();
  SIGNS[event.key]();
};

const theme = () => {
  const button = byId("theme");
  const choices = ["auto", "light", "dark"];
  const apply = (choice) => {
    if (choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    button.textContent = "Theme: " + choice;
    button.choice = choice;
  };
  apply(choices.includes(stored("theme")) ? stored("theme") : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    apply(choices[(choices.indexOf(button.choice) + 1) % 3]);
    store("theme", button.choice);
  });
};
const help = () => {
  const letters = byId("letters");
  letters.checked = stored("letters") !== "off";
  letters.addEventListener("change", () => store("letters", letters.checked ? "on" : "off"));
  byId("help").hidden = false;
  byId("help").addEventListener("click", () => byId("keys").showModal());
};
