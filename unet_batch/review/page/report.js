"use strict";
// The page of a run. Data come as scripts that call a method of `unetReport`, since a page that was opened as a
// file may load those but fetch nothing. Items are numbers; what is known of them stands in columns.

const unetReport = (() => {
const MARKS = ["", "good", "bad", "fix"];
const BINS = 24, KEPT_PACKS = 64, LOADING = 6, SPARE_ROWS = 2;
const $ = id => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Data -------------------------------------------------------------------------------------------------------

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
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(3)));
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
  script.onload = script.onerror = () => { script.remove(); after(); };
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

// Marks: of a mask, not of a name. Where the mask has changed since, its mark is not shown.

let marks;
const undone = [];
const storage = () => `unet-batch report ${facts.id}`;

function readMarks(kept, byPath = false) {
  const items = new Map();
  for (let item = 0; item < count; item++) items.set(byPath ? sourceOf(item).path : keyOf(item), item);
  let taken = 0, stale = 0;
  for (const [name, [mark, digest]] of Object.entries(kept)) {
    const item = items.get(name), number = MARKS.indexOf(mark);
    if (item === undefined || number < 1) continue;
    if (digest !== null && digest !== of(item, "digests")) { stale++; continue; }
    marks[item] = number;
    taken++;
  }
  return [taken, stale];
}

function marksAsJson() {
  const kept = {};
  for (let item = 0; item < count; item++) {
    if (marks[item]) kept[keyOf(item)] = [MARKS[marks[item]], of(item, "digests")];
  }
  return kept;
}

let saving = 0;
function saveMarks() {
  clearTimeout(saving);
  saving = 0;
  try {
    localStorage.setItem(storage(), JSON.stringify(marksAsJson()));
  } catch {
    say("This browser keeps no marks of this page: save them to a file.");
  }
}

function mark(item, name, advance) {
  const before = marks[item], number = MARKS.indexOf(name), now = before === number ? 0 : number;
  undone.push([item, before]);
  setMark(item, now);
  say(`${keyOf(item)}: ${now ? "marked " + name : "no mark"}`);
  if (advance && now) step(1);
}

function setMark(item, number) {
  marks[item] = number;
  if (!saving) saving = setTimeout(saveMarks, 300);
  repaint(item);
  countMarks();
}

function undo() {
  const last = undone.pop();
  if (!last) return say("Nothing to undo");
  setMark(...last);
  const place = order.indexOf(last[0]);
  if (place >= 0) setActive(place);
  say(`${keyOf(last[0])}: ${MARKS[last[1]] ? "marked " + MARKS[last[1]] : "no mark"} again`);
}

function countMarks() {
  const totals = [0, 0, 0, 0];
  for (const number of marks) totals[number]++;
  $("marked-count").textContent = (count - totals[0]).toLocaleString("en");
  for (const button of document.querySelectorAll("[data-export]")) {
    const number = MARKS.indexOf(button.dataset.export);
    const total = number < 0 ? count - totals[0] : totals[number];
    if (number > 0) button.textContent = `Save ${button.dataset.export}.txt: ${total.toLocaleString("en")}`;
    button.disabled = !total;
  }
  document.querySelectorAll("[data-marks]").forEach(label => {
    label.textContent = totals[label.dataset.marks].toLocaleString("en");
  });
}

function exportMarks(name) {
  if (name === "all") return download("marks.json", JSON.stringify({marks: marksAsJson()}, null, 1) + "\n", "application/json");
  const paths = [];
  for (let item = 0; item < count; item++) if (MARKS[marks[item]] === name) paths.push(sourceOf(item).path);
  downloadList(`${name}.txt`, paths);
}

function downloadList(name, paths) {  // one a line, as `run @list.txt` takes them
  const usable = paths.filter(path => !/[\n\r\ud800-\udfff]/u.test(path));
  download(name, usable.map(path => path + "\n").join(""), "text/plain");
  const left = paths.length - usable.length;
  say(`${usable.length} paths in ${name}` + (left ? `; ${left} left out, whose names no list can hold` : ""));
}

function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], {type}));
  make("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function importMarks(file) {
  const text = await file.text();
  let kept = {}, byPath = false;
  try {
    kept = JSON.parse(text).marks ?? {};
  } catch {
    byPath = true;
    const name = MARKS.find(each => each && file.name.includes(each)) ?? "bad";
    for (const line of text.split(/\r?\n/)) if (line.trim() && !line.startsWith("#")) kept[line] = [name, null];
  }
  const [taken, stale] = readMarks(kept, byPath);
  saveMarks();
  refresh();
  say(`${taken} marks taken from ${file.name}` + (stale ? `; ${stale} were of other masks` : ""));
}

// Order and filters ------------------------------------------------------------------------------------------

const filter = {text: "", reasons: 0, any: false, marks: new Set(), kind: "", ranges: new Map()};
let order = new Uint32Array(0), sorted = new Uint32Array(0), sortedBy = "", active = 0;

function sortItems() {
  const name = $("sort").value, down = $("direction").dataset.down === "true";
  if (sortedBy === name + down) return;
  sortedBy = name + down;
  const items = Uint32Array.from({length: count}, (_, item) => item);
  if (name === "name") {
    sorted = down ? items.reverse() : items;
    return;
  }
  const values = name === "mark" ? marks : columns.get(name), sign = down ? -1 : 1;
  sorted = items.sort((a, b) => {
    const x = values[a], y = values[b];
    if (x === y || (x !== x && y !== y)) return a - b;
    return x !== x ? 1 : y !== y ? -1 : sign * (x - y);  // what is not known comes last
  });
}

function passes(item, text) {
  if (filter.any && !reasons[item]) return false;
  if (filter.reasons && !(reasons[item] & filter.reasons)) return false;
  if (filter.marks.size && !filter.marks.has(marks[item])) return false;
  if (filter.kind && (of(item, "clips") !== "") !== (filter.kind === "clips")) return false;
  for (const [name, [low, high]] of filter.ranges) {
    const value = columns.get(name)[item];
    if (!(value >= low && value <= high)) return false;
  }
  return !text || keyOf(item).toLowerCase().includes(text);
}

function refresh() {
  const held = order[active];
  sortItems();
  const text = filter.text.toLowerCase();
  order = sorted.filter(item => passes(item, text));
  const place = held === undefined ? -1 : order.indexOf(held);
  active = Math.max(0, place);
  $("nothing").hidden = order.length > 0;
  drawChips();
  drawBars();
  countMarks();
  layOut();
  $("grid").scrollTop = place > 0 ? Math.max(0, Math.floor(place / perRow) * rowHeight - $("grid").clientHeight / 2) : 0;
  render();
}

function changed(words) {
  refresh();
  say(`${words ? words + ": " : ""}${order.length.toLocaleString("en")} of ${count.toLocaleString("en")} shown`);
}

function drawChips() {
  const chips = [];
  const chip = (text, clear) => chips.push(make("button", {type: "button", onclick: () => { clear(); syncFilters(); changed(); },
    ariaLabel: `Remove the filter ${text}`}, `${text} ✕`));
  if (filter.text) chip(`“${filter.text}”`, () => { filter.text = ""; });
  if (filter.any) chip("suspicious", () => { filter.any = false; });
  facts.reasons.forEach((reason, place) => {
    if (filter.reasons >> place & 1) chip(reason.label, () => { filter.reasons &= ~(1 << place); });
  });
  if (filter.marks.size) chip([...filter.marks].map(number => MARKS[number] || "no mark").join(" or "), () => filter.marks.clear());
  if (filter.kind) chip(filter.kind, () => { filter.kind = ""; });
  for (const [name, [low, high]] of filter.ranges) {
    const ends = low === -Infinity ? `≤ ${show(name, high)}` : high === Infinity ? `≥ ${show(name, low)}` : `${show(name, low)} to ${show(name, high)}`;
    chip(`${columnOf(name).label} ${ends}`, () => filter.ranges.delete(name));
  }
  if (chips.length) {
    const total = make("span", {}, `${order.length.toLocaleString("en")} of ${count.toLocaleString("en")}`);
    chips.unshift(total);
  }
  $("chips").replaceChildren(...chips);
}

function syncFilters() {
  $("search").value = filter.text;
  document.querySelectorAll("#filters input").forEach(input => { input.checked = input.isOn(); });
}

function buildFilters() {
  const panel = $("filters");
  const group = (title, ...rows) => panel.append(make("fieldset", {}, make("legend", {}, title), ...rows));
  const choice = (label, number, isOn, set, properties = {}) => {
    const input = make("input", {type: properties.type ?? "checkbox", name: properties.name ?? ""});
    input.isOn = isOn;
    input.checked = isOn();
    input.onchange = () => { set(input.checked); changed(label); };
    const total = make("b", properties.marks === undefined ? {} : {"data-marks": properties.marks}, number);
    return make("label", {className: "choice", title: properties.help ?? ""}, input, label, total);
  };
  const any = reasons.reduce((sum, bits) => sum + (bits > 0), 0);
  group("Suspicious", choice("anything", any.toLocaleString("en"), () => filter.any, on => { filter.any = on; }),
    ...facts.reasons.flatMap((reason, place) => reason.count ? [choice(reason.label, reason.count.toLocaleString("en"),
      () => Boolean(filter.reasons >> place & 1), on => { filter.reasons = on ? filter.reasons | 1 << place : filter.reasons & ~(1 << place); },
      {help: reason.help})] : []));
  group("Marks", ...[2, 3, 1, 0].map(number => choice(MARKS[number] || "no mark", "", () => filter.marks.has(number),
    on => { if (on) filter.marks.add(number); else filter.marks.delete(number); }, {marks: String(number)})));
  if (facts.clips && facts.clips < count) {
    group("Kind", ...[["all", ""], ["pictures", "pictures"], ["clips", "clips"]].map(([label, kind]) =>
      choice(label, "", () => filter.kind === kind, () => { filter.kind = kind; }, {type: "radio", name: "kind"})));
  }
  for (const column of facts.columns) if (known(column.name)) buildHistogram(panel, column);
}

// Histograms: BINS buttons each, one of which the Tab key reaches. The outermost take what lies beyond.

const histograms = [];

function buildHistogram(panel, column) {
  const values = columns.get(column.name), usual = values.filter(value => value === value).sort();
  const low = usual[Math.floor(usual.length * .005)], high = usual[Math.ceil(usual.length * .995) - 1];
  if (!(high > low)) return;
  const whole = column.kind === "number" && usual.every(Number.isInteger) && high - low < BINS;
  const bins = whole ? high - low + 1 : BINS, width = whole ? 1 : (high - low) / bins;
  const binOf = value => Math.max(0, Math.min(bins - 1, Math.floor((value - low) / width)));
  const edges = bin => [bin === 0 ? -Infinity : low + bin * width, bin === bins - 1 ? Infinity : whole ? low + bin : low + (bin + 1) * width];
  const all = new Uint32Array(bins);
  for (const value of usual) all[binOf(value)]++;
  const buttons = Array.from(all, (_, bin) => make("button", {type: "button", tabIndex: bin ? -1 : 0, ariaPressed: "false",
    onclick: event => choose(bin, event.shiftKey)}));
  const bars = make("div", {className: "bars", role: "group", ariaLabel: `${column.label}: ${column.help}`}, ...buttons);
  bars.onkeydown = event => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!move) return;
    const next = buttons[buttons.indexOf(document.activeElement) + move];
    buttons.forEach(button => { button.tabIndex = button === next ? 0 : -1; });
    next?.focus();
    event.preventDefault();
    event.stopPropagation();
  };
  let from = -1, to = -1;
  const choose = (bin, extend) => {
    if (filter.ranges.has(column.name) && !extend && from === bin && to === bin) {
      filter.ranges.delete(column.name);
    } else {
      [from, to] = extend && filter.ranges.has(column.name) ? [Math.min(from, bin), Math.max(to, bin)] : [bin, bin];
      filter.ranges.set(column.name, [edges(from)[0], edges(to)[1]]);
    }
    changed(column.label);
  };
  const tallest = Math.max(...all);
  const height = number => number ? `max(1px, ${(100 * Math.sqrt(number / tallest)).toFixed(1)}%)` : "0";
  const draw = () => {
    const now = new Uint32Array(bins), on = filter.ranges.has(column.name);
    for (const item of order) if (values[item] === values[item]) now[binOf(values[item])]++;
    buttons.forEach((button, bin) => {
      button.style.setProperty("--all", height(all[bin]));
      button.style.setProperty("--now", height(now[bin]));
      button.ariaPressed = String(on && bin >= from && bin <= to);
      const [left, right] = edges(bin);
      const span = left === -Infinity ? `up to ${show(column.name, right)}` : right === Infinity ? `from ${show(column.name, left)}`
        : left === right ? show(column.name, left) : `${show(column.name, left)} to ${show(column.name, right)}`;
      button.title = button.ariaLabel = `${span}: ${now[bin].toLocaleString("en")} of ${all[bin].toLocaleString("en")}`;
    });
  };
  histograms.push(draw);
  panel.append(make("div", {className: "histogram"},
    make("div", {className: "histogram-name", title: column.help}, column.label), bars,
    make("div", {className: "ends"}, make("span", {}, show(column.name, low)), make("span", {}, show(column.name, high)))));
}

const drawBars = () => histograms.forEach(draw => draw());

// The grid: only the rows in view, and that of the active item, are in the document --------------------------

let perRow = 1, rowHeight = 1, cellWidth = 1, shape = .75;  // height of a frame over its width
const rows = new Map(), cells = new Map();  // rows by number; cells by item

function layOut() {
  const width = $("grid").clientWidth - (innerWidth < 560 ? 8 : 16);
  perRow = Math.max(1, Math.floor(width / Number($("size").value)));
  cellWidth = width / perRow;
  rowHeight = Math.round((cellWidth - 12) * shape) + 8 + 40;
  const total = Math.ceil(order.length / perRow);
  $("rows").style.height = `${total * rowHeight + 16}px`;
  $("grid").setAttribute("aria-rowcount", total);
  $("grid").setAttribute("aria-colcount", perRow);
  rows.forEach(row => row.remove());
  rows.clear();
  cells.clear();
}

let drawing = 0;
function render() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    const grid = $("grid"), total = Math.ceil(order.length / perRow);
    const first = Math.max(0, Math.floor(grid.scrollTop / rowHeight) - SPARE_ROWS);
    const last = Math.min(total - 1, Math.floor((grid.scrollTop + grid.clientHeight) / rowHeight) + SPARE_ROWS);
    const held = order.length ? Math.floor(active / perRow) : -1;
    for (const [number, row] of rows) {
      if ((number < first || number > last) && number !== held) {
        row.querySelectorAll(".cell").forEach(cell => cells.delete(cell.item));
        row.remove();
        rows.delete(number);
      }
    }
    wanted.clear();  // what has scrolled by is not worth loading
    for (let number = first; number <= last; number++) if (!rows.has(number)) addRow(number);
    if (held >= 0 && !rows.has(held)) addRow(held);
    for (const cell of cells.values()) if (!cell.painted) paintThumbnail(cell);
    loadPacks();
  });
}

function addRow(number) {
  const row = make("div", {className: "row", role: "row", "aria-rowindex": number + 1});
  row.style.transform = `translateY(${number * rowHeight}px)`;
  for (let place = number * perRow; place < Math.min(order.length, (number + 1) * perRow); place++) row.append(makeCell(place));
  const after = [...rows.keys()].filter(other => other > number).sort((a, b) => a - b)[0];
  $("rows").insertBefore(row, after === undefined ? null : rows.get(after));
  rows.set(number, row);
}

function makeCell(place) {
  const item = order[place];
  const frame = make("div", {className: "frame"}, make("img", {className: "photo", alt: "", draggable: false}),
    make("img", {className: "mask", alt: "", draggable: false}));
  frame.style.height = `${Math.round((cellWidth - 12) * shape)}px`;
  if (of(item, "clips")) frame.append(make("span", {className: "clip-sign"}, "clip"));
  frame.querySelectorAll("img").forEach(image => image.setAttribute("data-none", ""));
  const cell = make("div", {className: "cell", role: "gridcell", "aria-colindex": place % perRow + 1}, frame,
    make("div", {className: "name"}, keyOf(item).split("/").pop()), make("div", {className: "detail"}), make("span", {className: "badge"}));
  cell.style.width = `${cellWidth}px`;
  cell.title = keyOf(item);
  cell.item = item;
  cell.place = place;
  cells.set(item, cell);
  paintCell(cell);
  return cell;
}

function paintCell(cell) {
  const {item, place} = cell, name = MARKS[marks[item]], why = whyOf(item).map(reason => reason.label).join(", ");
  const by = $("sort").value, value = columns.has(by) && by !== "suspicion" ? show(by, columns.get(by)[item]) : "";
  cell.dataset.mark = name;
  cell.querySelector(".badge").textContent = name;
  cell.querySelector(".detail").textContent = [value, why].filter(Boolean).join(" · ") || (known("share") ? `${show("share", columns.get("share")[item])} marked` : "");
  cell.setAttribute("aria-selected", String(place === active));
  cell.tabIndex = place === active ? 0 : -1;
}

function paintThumbnail(cell) {
  const pair = thumbnailsOf(cell.item);
  if (!pair) return;
  const [photo, mask] = cell.querySelectorAll("img");
  paint(photo, pair[0], "jpeg");
  paint(mask, pair[1], "png");
  cell.painted = true;
}

function repaint(item) {
  const cell = cells.get(item);
  if (cell) paintCell(cell);
  if ($("zoom").open && order[active] === item) paintMarks();
}

function setActive(place, focus = true) {
  if (!order.length) return;
  const before = active, grid = $("grid");
  active = Math.max(0, Math.min(order.length - 1, place));
  const top = Math.floor(active / perRow) * rowHeight;
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + rowHeight > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + rowHeight - grid.clientHeight + 8;
  if (!rows.has(Math.floor(active / perRow))) addRow(Math.floor(active / perRow));
  for (const each of [before, active]) {
    const cell = cells.get(order[each]);
    if (cell) paintCell(cell);
  }
  render();
  if ($("zoom").open) drawZoom();
  else if (focus) cells.get(order[active])?.focus({preventScroll: true});
}

const step = by => setActive(active + by);

// A close look -----------------------------------------------------------------------------------------------

let scale = 1, left = 0, top = 0;

function openZoom() {
  if (!order.length) return;
  if (!$("zoom").open) $("zoom").showModal();
  $("zoom-name").focus();
  drawZoom();
}

function drawZoom() {
  const item = order[active], clip = of(item, "clips"), source = sourceOf(item);
  $("zoom-name").textContent = keyOf(item);
  $("zoom-at").textContent = `${(active + 1).toLocaleString("en")} / ${order.length.toLocaleString("en")}`;
  $("zoom-note").textContent = of(item, "notes");
  $("full-photo").alt = `Photo of ${keyOf(item)}`;
  $("full-mask").alt = `Mask of ${keyOf(item)}`;
  $("clip").hidden = !clip;
  $("wipe-label").hidden = false;
  setScale(1, 0, 0);
  drawFacts(item, source);
  paintMarks();
  if (clip) drawClip(item, clip);
  else drawFull(item, source);
}

function drawFull(item, source) {
  const photo = $("full-photo"), mask = $("full-mask"), file = fileOf(item, "mask");
  const small = () => {
    const pair = thumbnailsOf(item);
    loadPacks();
    if (pair) return pair;
    waiting = () => { if (order[active] === item) drawFull(item, source); };
    return ["", ""];
  };
  const fall = (image, place, kind, what) => {
    image.onerror = null;
    image.style.filter = "";
    paint(image, small()[place], kind);
    $("zoom-note").textContent ||= what;
  };
  photo.onerror = () => {
    const overlay = fileOf(item, "overlay");
    if (overlay === null || photo.getAttribute("src") === overlay) {
      fall(photo, 0, "jpeg", "A browser cannot show this photo at full size: this is its thumbnail.");
      return;
    }
    mask.onerror = null;
    paint(mask, "", "png");
    photo.removeAttribute("data-none");
    photo.src = overlay;
    $("zoom-note").textContent ||= "A browser cannot show this photo: this is its overlay.";
  };
  mask.onerror = () => fall(mask, 1, "png", "A browser cannot show this mask at full size: this is its thumbnail.");
  photo.style.filter = "";
  mask.style.filter = "url(#tint)";
  if (file === null || !file.endsWith(".png")) mask.onerror(); else { mask.removeAttribute("data-none"); mask.src = file; }
  if (source.url === null) photo.onerror(); else { photo.removeAttribute("data-none"); photo.src = source.url; }
  const next = order[active + 1];
  if (next !== undefined && !of(next, "clips")) {  // so that it is there when it is wanted
    if (sourceOf(next).url !== null) new Image().src = sourceOf(next).url;
    if (fileOf(next, "mask")) new Image().src = fileOf(next, "mask");
  }
}

let waiting = null;  // drawn again when a pack has come

function drawFacts(item, source) {
  const rows = facts.columns.filter(column => known(column.name)).map(column => [column.label, show(column.name, columns.get(column.name)[item])]);
  const why = whyOf(item).map(reason => reason.label).join(", ");
  const link = (text, url) => url === null ? text : make("a", {href: url, target: "_blank", rel: "noopener"}, text);
  const list = rows.filter(([, value]) => value !== "–");
  if (why) list.unshift(["suspicious", why]);
  list.push(["source", link(source.path, source.url)]);
  for (const kind of ["mask", "overlay"]) if (fileOf(item, kind)) list.push([kind, link("open", fileOf(item, kind))]);
  $("zoom-facts").replaceChildren(...list.map(([label, value]) => make("div", {}, make("dt", {}, label), make("dd", {}, value))));
}

function paintMarks() {
  document.querySelectorAll("dialog [data-mark]").forEach(button => {
    button.ariaPressed = String(MARKS[marks[order[active]]] === button.dataset.mark);
  });
}

function setScale(now, x, y) {
  const paper = $("paper");
  scale = Math.max(1, Math.min(32, now));
  const width = paper.offsetWidth, height = paper.offsetHeight;
  left = Math.min(0, Math.max(width * (1 - scale), x));
  top = Math.min(0, Math.max(height * (1 - scale), y));
  paper.style.transform = scale === 1 ? "" : `translate(${left}px,${top}px) scale(${scale})`;
  $("stage").toggleAttribute("data-large", scale > 1);
  setWipe();
}

function enlarge(by, x, y) {  // the point (x, y) of the paper stays where it is
  setScale(scale * by, x - (x - left) * Math.max(1, Math.min(32, scale * by)) / scale, y - (y - top) * Math.max(1, Math.min(32, scale * by)) / scale);
}

function setWipe() {  // bare photo left of the line: in percent of the stage, whatever the scale
  const share = Number($("wipe").value) / 100, paper = $("paper"), stage = $("stage");
  const x = share * stage.clientWidth - paper.offsetLeft;
  const inside = Math.max(0, Math.min(paper.offsetWidth, (x - left) / scale));
  $("full-mask").style.clipPath = share ? `inset(0 0 0 ${inside}px)` : "";
  $("wipe-line").hidden = !share || share === 1;
  $("wipe-line").style.left = `${100 * share}%`;
}

function buildTint() {  // grey levels of a mask's file to colours, as `report/packs` has them in palettes
  const levels = [0, 1, 2].map(channel => facts.classes.map(each => parseInt(each.colour.slice(1 + 2 * channel, 3 + 2 * channel), 16) / 255));
  const table = values => Array.from({length: 256}, (_, id) => values[id] ?? 0).join(" ");
  const svg = facts.ids
    ? `<feComponentTransfer in="SourceGraphic" result="c"><feFuncR type="discrete" tableValues="${table(levels[0])}"/><feFuncG type="discrete" tableValues="${table(levels[1])}"/><feFuncB type="discrete" tableValues="${table(levels[2])}"/></feComponentTransfer><feComponentTransfer in="SourceGraphic"><feFuncR type="discrete" tableValues="${table(facts.classes.map(each => each.ground ? 0 : 1))}"/></feComponentTransfer><feColorMatrix values="0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 0" result="a"/><feComposite in="c" in2="a" operator="in"/>`
    : `<feColorMatrix values="${levels.map(level => `0 0 0 0 ${level[0]}`).join(" ")} 1 0 0 0 0"/>`;
  $("full-mask").style.imageRendering = facts.ids ? "pixelated" : "";  // between two ids lies a third class
  $("filter-defs").innerHTML = `<filter id="tint" color-interpolation-filters="sRGB" x="0" y="0" width="1" height="1">${svg}</filter>`;
}

// Clips ------------------------------------------------------------------------------------------------------

const clips = new Map();

function drawClip(item, name) {
  const values = clips.get(name);
  for (const [id, kind] of [["full-photo", "jpeg"], ["full-mask", "png"]]) { $(id).onerror = null; $(id).style.filter = ""; paint($(id), "", kind); }
  if (!values) {
    load(`report/clips/${name}.js`, () => { if (clips.has(name) && order[active] === item && $("zoom").open) drawClip(item, name); });
    return;
  }
  const frames = values.frames, seconds = values.columns.seconds ?? [], scrub = $("scrub");
  $("strip").replaceChildren(...frames.map(frame => {
    const photo = make("img", {alt: "", className: "photo"}), mask = make("img", {alt: "", className: "mask"});
    paint(photo, frame.thumbnails[0], "jpeg");
    paint(mask, frame.thumbnails[1], "png");
    return make("div", {}, photo, mask);
  }));
  const first = seconds[0] ?? 0, last = seconds[seconds.length - 1] ?? 1;
  const lines = facts.classes.filter(each => !each.ground && values.columns[`area_${each.name}`])
    .map(each => [`${each.name}, share of the frame`, each.colour, values.columns[`area_${each.name}`]]);
  if (values.columns.confidence?.some(value => value !== null)) lines.push(["confidence", "var(--soft)", values.columns.confidence]);
  const place = index => 1000 * (seconds[index] - first) / (last - first || 1);
  const path = line => line.reduce((text, value, index) => value === null ? text : text + `${text ? "L" : "M"}${place(index).toFixed(1)} ${(98 - 96 * value).toFixed(1)}`, "");
  const svg = (tag, properties) => { const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value); return made; };
  const cursor = svg("line", {y1: 0, y2: 100});
  $("plot").replaceChildren(...lines.flatMap(([, colour, line]) => [svg("path", {d: path(line), class: "halo"}), svg("path", {d: path(line), style: `stroke:${colour}`})]), cursor);
  $("plot").setAttribute("aria-label", `Over ${show("", last - first)} seconds: ${lines.map(([label]) => label).join("; ")}`);
  scrub.max = Math.max(0, frames.length - 1);
  const go = () => {
    const frame = frames[scrub.value];
    if (!frame) return;
    paint($("full-photo"), frame.thumbnails[0], "jpeg");
    paint($("full-mask"), frame.thumbnails[1], "png");
    const x = 1000 * (frame.seconds - first) / (last - first || 1);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const near = seconds.reduce((best, second, index) => Math.abs(second - frame.seconds) < Math.abs(seconds[best] - frame.seconds) ? index : best, 0);
    $("legend").replaceChildren(make("span", {}, `${frame.seconds.toFixed(2)} s, frame ${frame.index}`), ...lines.map(([label, colour, line]) => {
      const sign = make("i");
      sign.style.background = colour;
      return make("span", {}, sign, `${label} ${line[near] === null ? "–" : (100 * line[near]).toFixed(1) + " %"}`);
    }));
    scrub.setAttribute("aria-valuetext", `${frame.seconds.toFixed(2)} seconds`);
  };
  scrub.value = Math.floor(frames.length / 2);
  scrub.oninput = go;
  $("strip").onclick = event => { scrub.value = Math.floor(frames.length * (event.clientX - $("strip").getBoundingClientRect().left) / $("strip").offsetWidth); go(); };
  go();
}

// Failures, and the run --------------------------------------------------------------------------------------

let shownFailures = 0;
function moreFailures() {
  const more = failures.slice(shownFailures, shownFailures + 200);
  shownFailures += more.length;
  $("failures").append(...more.map(failure => make("li", {}, make("b", {}, failure.path), make("br"), failure.message,
    failure.hint ? make("span", {}, ` (${failure.hint})`) : "", make("br"), make("span", {}, `${failure.stage} · ${failure.error}`))));
  $("more-failures").hidden = shownFailures >= failures.length;
}

function describe() {
  const suspicious = reasons.reduce((sum, bits) => sum + (bits > 0), 0), number = value => value.toLocaleString("en");
  $("summary").textContent = [`${number(count)} results`, `${number(suspicious)} suspicious`, `${number(facts.failures)} failed`,
    facts.gone ? `${number(facts.gone)} without their source` : ""].filter(Boolean).join(" · ");
  $("tab-failures").textContent = facts.failures ? `Failures ${number(facts.failures)}` : "Failures";
  $("failures-head").textContent = facts.failures ? `${number(facts.failures)} failed, and are not among the results.` : "Nothing failed.";
  $("export-failures").hidden = !facts.failures;
  const list = pairs => pairs.flatMap(([label, text]) => [make("dt", {}, label), make("dd", {}, text)]);
  $("facts").append(...list([...facts.run, ["Report", `${facts.made}, by unet-batch ${facts.unet_batch}`]]));
  $("reasons").append(...list(facts.reasons.map(reason => [`${reason.label} (${number(reason.count)})`, reason.help])));
  $("columns").append(...list(facts.columns.filter(column => known(column.name)).map(column => [column.label, column.help])));
  moreFailures();
}

// Hands ------------------------------------------------------------------------------------------------------

let speaking = 0;
function say(text) {
  clearTimeout(speaking);
  speaking = setTimeout(() => { $("live").textContent = text; }, 50);
}

function setView(name) {
  document.body.dataset.view = name;
  document.querySelector(`#view [value=${name}]`).checked = true;
}

function showTab(tab) {
  document.querySelectorAll("[role=tab]").forEach(each => {
    const on = each === tab;
    each.setAttribute("aria-selected", String(on));
    each.tabIndex = on ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = !on;
  });
  if (tab.id === "tab-items") { layOut(); render(); }
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target, typing = target.matches("input[type=search], select"), sliding = target.matches("input[type=range]");
  const inGrid = Boolean(target.closest("#grid")), inZoom = $("zoom").open;
  if (typing || (!inZoom && $("panel-items").hidden)) return;
  const page = Math.max(1, Math.floor($("grid").clientHeight / rowHeight)) * perRow;
  const moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity};
  const marksOf = {g: "good", b: "bad", f: "fix"};
  if (event.key in moves && (inGrid || (inZoom && !sliding && event.key.startsWith("Arrow")))) {
    const by = inZoom ? Math.sign(moves[event.key]) : moves[event.key];
    if (inZoom || active + by >= 0 && active + by < order.length || Math.abs(by) >= page) step(by);
  } else if (event.key in marksOf && order.length) {
    mark(order[active], marksOf[event.key], true);
  } else if (event.key === "u") undo();
  else if ("123".includes(event.key)) setView(["photo", "overlay", "mask"][event.key - 1]);
  else if (event.key === " " && (inGrid || (inZoom && !target.matches("button, a")))) setView(document.body.dataset.view === "photo" ? "overlay" : "photo");
  else if (event.key === "Enter" && inGrid) openZoom();
  else if (event.key === "/" && !inZoom) $("search").focus();
  else if (inZoom && "+=-0".includes(event.key)) {
    const paper = $("paper");
    if (event.key === "0") setScale(1, 0, 0); else enlarge(event.key === "-" ? 1 / 1.5 : 1.5, paper.offsetWidth / 2, paper.offsetHeight / 2);
  } else return;
  event.preventDefault();
}

function listenToGrid() {
  const grid = $("grid");
  grid.addEventListener("scroll", render, {passive: true});
  grid.addEventListener("click", event => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    setActive(cell.place);
    if (again || matchMedia("(pointer: coarse)").matches) openZoom();
  });
  let again = false;  // it had the focus before it was clicked
  grid.addEventListener("pointerdown", event => { again = event.target.closest(".cell") === document.activeElement; });
  let size = "";
  new ResizeObserver(() => {
    const now = `${grid.clientWidth} ${grid.clientHeight}`;
    if (now === size || !grid.clientWidth) return;
    size = now;
    const row = Math.floor(grid.scrollTop / rowHeight) * perRow;
    layOut();
    grid.scrollTop = Math.floor(row / perRow) * rowHeight;
    render();
  }).observe(grid);
}

function listenToZoom() {
  const stage = $("stage"), zoom = $("zoom");
  let held = null;
  stage.onpointerdown = event => { held = {x: event.clientX, y: event.clientY, left, top}; stage.setPointerCapture(event.pointerId); if (scale === 1) wipeTo(event); };
  stage.onpointermove = event => {
    if (!held) return;
    if (scale === 1) wipeTo(event); else setScale(scale, held.left + event.clientX - held.x, held.top + event.clientY - held.y);
  };
  stage.onpointerup = stage.onpointercancel = () => { held = null; };
  stage.onwheel = event => {
    const box = $("stage").getBoundingClientRect();
    enlarge(Math.exp(-event.deltaY / 400), event.clientX - box.left - $("paper").offsetLeft, event.clientY - box.top - $("paper").offsetTop);
    event.preventDefault();
  };
  const wipeTo = event => {
    const box = stage.getBoundingClientRect();
    $("wipe").value = 100 * (event.clientX - box.left) / box.width;
    setWipe();
  };
  $("wipe").oninput = setWipe;
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  $("close").onclick = () => zoom.close();
  $("undo").onclick = undo;
  zoom.querySelectorAll("[data-mark]").forEach(button => { button.onclick = () => mark(order[active], button.dataset.mark, true); });
  zoom.onclose = () => setActive(active);
  addEventListener("resize", () => { if (zoom.open) setScale(1, 0, 0); });
}

function listen() {
  document.addEventListener("keydown", onKey);
  document.querySelectorAll("[role=tab]").forEach((tab, place, tabs) => {
    tab.onclick = () => showTab(tab);
    tab.onkeydown = event => {
      const next = tabs[place + ({ArrowLeft: -1, ArrowRight: 1}[event.key] ?? 9)];
      if (next) { showTab(next); next.focus(); event.stopPropagation(); }
    };
  });
  document.querySelectorAll("#view input").forEach(input => { input.onchange = () => setView(input.value); });
  let typing = 0;
  $("search").oninput = () => { clearTimeout(typing); typing = setTimeout(() => { filter.text = $("search").value; changed(); }, 120); };
  $("sort").onchange = () => { setDirection($("sort").value !== "name" && $("sort").value !== "confidence"); sortedBy = ""; active = 0; order = new Uint32Array(0); changed(); };
  $("direction").onclick = () => { setDirection($("direction").dataset.down !== "true"); active = 0; order = new Uint32Array(0); changed(); };
  $("size").onchange = () => { refresh(); };
  $("toggle-filters").onclick = () => {
    const open = $("filters").classList.toggle("open");
    $("toggle-filters").setAttribute("aria-expanded", String(open));
  };
  document.querySelectorAll("[data-export]").forEach(button => { button.onclick = () => exportMarks(button.dataset.export); });
  $("import").onclick = () => $("import-file").click();
  $("import-file").onchange = event => { if (event.target.files[0]) importMarks(event.target.files[0]); event.target.value = ""; };
  $("clear-marks").onclick = () => { if (confirm("Forget all marks of this page?")) { marks.fill(0); undone.length = 0; saveMarks(); refresh(); } };
  document.addEventListener("click", event => { if (!event.target.closest("#marks-menu")) $("marks-menu").open = false; });
  $("marks-menu").addEventListener("keydown", event => { if (event.key === "Escape") { $("marks-menu").open = false; $("marks-menu").querySelector("summary").focus(); } });
  $("export-failures").onclick = () => downloadList("failed.txt", failures.map(failure => failure.path));
  $("more-failures").onclick = moreFailures;
  addEventListener("pagehide", () => { if (saving) saveMarks(); });
  listenToGrid();
  listenToZoom();
}

function setDirection(down) {
  $("direction").dataset.down = String(down);
  $("direction").textContent = down ? "↓" : "↑";
  $("direction").title = down ? "largest first" : "smallest first";
}

function usualShape() {  // that of most pictures, between square and 16:9
  const heights = columns.get("height"), widths = columns.get("width");
  const shapes = heights.map((height, item) => height / widths[item]).filter(value => value > 0).sort();
  return shapes.length ? Math.max(.56, Math.min(1, shapes[shapes.length >> 1])) : .75;
}

function start() {
  unpack();
  shape = usualShape();
  marks = new Uint8Array(count);
  let stale = 0;
  try {
    [, stale] = readMarks(JSON.parse(localStorage.getItem(storage()) ?? "{}"));
  } catch { /* kept by another version, or none are kept here */ }
  const sort = $("sort"), option = (value, label) => sort.append(make("option", {value}, label));
  option("suspicion", "suspicious first");
  option("name", "name");
  for (const column of facts.columns) if (known(column.name)) option(column.name, column.label);
  option("mark", "mark");
  setDirection(true);
  if (innerWidth < 560) $("size").value = "112";
  setView("overlay");
  describe();
  buildFilters();
  buildTint();
  listen();
  refresh();
  if (stale) say(`${stale} marks were of masks that have changed since, and are not shown.`);
}

document.addEventListener("DOMContentLoaded", () => {
  if (facts) start(); else $("summary").textContent = "The folder report is not beside this page, or is damaged: make the report again.";
});

return {
  facts: values => { facts = values; },
  block: values => { blocks.push(values); },
  failures: values => { for (const value of values) failures.push(value); },
  clip: (name, values) => { clips.set(name, values); },
  pack: (name, values) => {
    packs.set(name, values);
    if (packs.size > KEPT_PACKS) packs.delete(packs.keys().next().value);
    for (const cell of cells.values()) if (!cell.painted && blocks[blockOf[cell.item]].pack === name) paintThumbnail(cell);
    const then = waiting;
    waiting = null;
    then?.();
  },
};
})();
