// The grid: only the rows in view, and that of the active item, are in the document.

const SPARE_ROWS = 2;  // above and below what is in view
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
