// What the page is told: items, failures, thumbnails. Data come as scripts that call a method of `unetReport` (at the
// end of page.js), since a page that was opened as a file may load those but fetch nothing. Items are numbers; what
// is known of them stands in columns.

const KEPT_PACKS = 64, LOADING = 6;
const $ = id => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

let facts = null, count = 0;
const blocks = [], failures = [];
let blockOf, slotOf, reasons, columns;  // of each item; columns by name

const at = (values, slot) => Array.isArray(values) ? values[slot] : values;
const of = (item, name) => at(blocks[blockOf[item]][name], slotOf[item]);
const keyOf = item => of(item, "keys");

function unpack() {
  count = blocks.reduce((sum, block) => sum + block.keys.length, 0);
  blockOf = new Uint32Array(count);
  slotOf = new Uint32Array(count);
  reasons = new Uint8Array(count);
  columns = new Map([...facts.columns.map(column => column.name), "suspicion"]
    .map(name => [name, new Float32Array(count).fill(NaN)]));
  let item = 0;
  blocks.forEach((block, number) => {
    const first = item;
    for (let slot = 0; slot < block.keys.length; slot++, item++) {
      blockOf[item] = number;
      slotOf[item] = slot;
      reasons[item] = at(block.reasons, slot);
    }
    for (const [name, values] of Object.entries(block.columns)) {
      const column = columns.get(name);
      for (let slot = 0; slot < block.keys.length; slot++) column[first + slot] = at(values, slot) ?? NaN;
    }
    block.columns = block.reasons = null;
  });
}

function sourceOf(item) {  // as `report.py` packs it: NUMBER=SUFFIX is called like its outputs, NUMBER/NAME not
  const [, number, how, rest] = /^(\d+)([=/])([^]*)$/.exec(of(item, "sources"));
  const root = facts.roots[number], name = how === "=" ? keyOf(item) + rest : rest;
  return {path: root.path.replace(/\/$/, "") + "/" + name, url: root.url === null ? null : root.url + "/" + encode(name)};
}

function encode(path) {  // bytes that were no UTF-8 are single surrogates, as Python has them
  return Array.from(path, letter => {
    const code = letter.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) return "%" + (code - 0xdc00).toString(16);
    return letter === "/" ? "/" : code >= 0xd800 && code <= 0xdfff ? "%EF%BF%BD" : encodeURIComponent(letter);
  }).join("");
}

function fileOf(item, kind) {
  const file = at(blocks[blockOf[item]].files[kind], slotOf[item]);
  if (file === 0) return null;
  const [folder, suffix] = facts.folders[kind];
  return file === 1 ? encode(folder + "/" + keyOf(item) + suffix) : encode(file);
}

const columnOf = name => facts.columns.find(column => column.name === name);
const known = name => { const values = columns.get(name); return values && values.some(value => !Number.isNaN(value)); };

function show(name, value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (columnOf(name)?.kind === "share") {
    const share = 100 * value;
    return (share === 0 || share === 100 ? share : share < 0.1 ? share.toPrecision(1)
      : share > 99.9 ? Math.min(share, 99.999).toFixed(3) : share.toFixed(1)) + " %";
  }
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

const whyOf = item => facts.reasons.filter((_, place) => reasons[item] >> place & 1);

// Packs of thumbnails: at most LOADING at once, the last asked for first, KEPT_PACKS remembered.

const packs = new Map(), wanted = new Map(), loading = new Set();

function thumbnailsOf(item) {
  const name = blocks[blockOf[item]].pack, pack = packs.get(name);
  if (pack) {
    packs.delete(name);
    packs.set(name, pack);
    return pack[slotOf[item]];
  }
  wanted.delete(name);
  wanted.set(name, true);
  return null;
}

function loadPacks() {
  const names = [...wanted.keys()].reverse();
  for (const name of names) {
    if (loading.size >= LOADING) return;
    wanted.delete(name);
    if (loading.has(name)) continue;
    loading.add(name);
    load(`report/packs/${name}.js`, () => { loading.delete(name); loadPacks(); });
  }
}

function load(source, after) {
  const script = make("script", {src: source});
  script.onload = () => { script.remove(); after(); };
  // A run that goes on replaces what this page has read of it
  script.onerror = () => { $("reload").hidden = false; script.onload(); };
  document.head.append(script);
}

function paint(image, data, kind) {
  if (data) {
    image.src = `data:image/${kind};base64,${data}`;
    image.removeAttribute("data-none");
  } else {
    image.removeAttribute("src");
    image.setAttribute("data-none", "");
  }
}
