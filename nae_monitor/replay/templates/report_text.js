const RANK = ["informational", "low", "medium", "high", "critical"];
const SVG = "http://www.w3.org/2000/svg";
// What is empty was left out of the page's data.
const EMPTY = { t: null, text: "", marks: [], fve: null, cosine: null, rank: null, support: null, bucket: "", scores: [], dropped: "", mark: "", findings: [] };
const data = JSON.parse(document.getElementById("data").textContent);
const conversations = data.conversations;
for (const c of conversations) c.rows = c.rows.map((row) => ({ ...EMPTY, ...row }));

// All text reaches the page through textContent; nothing is ever parsed as markup.
// Characters that only steer direction are written out, or a text could be read in another order.
const DIRECTION = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const revealed = (text) => String(text).replace(DIRECTION, (sign) => "⟨U+" + sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩");
const byId = (id) => document.getElementById(id);
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
const COUNT = new Intl.NumberFormat("en"); // made once: making it is most of its cost
const number = (value) => COUNT.format(value);
const signed = (value) => value.toFixed(2).replace("-", "−");
const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};
const visible = (text) => {
  if (text === null || text === "") return "·";
  if (/^\s+$/.test(text)) return text.replace(/\n/g, "⏎").replace(/ /g, "␣").replace(/\t/g, "⇥");
  return text;
};
const moment = (ms) => new Date(ms).toISOString().slice(0, 19).replace("T", " ") + " UTC";
