// Which items are shown, in which order.

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

const BINS = 24;
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
