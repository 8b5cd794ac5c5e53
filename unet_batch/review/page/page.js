// The rest of the page, what keys and clicks do, and how it begins.

// Failures, and the run --------------------------------------------------------------------------------------

let shownFailures = 0;
function moreFailures() {
  const more = failures.slice(shownFailures, shownFailures + 200);
  shownFailures += more.length;
  const why = ({path, message}) => message.startsWith(path + ": ") ? message.slice(path.length + 2) : message;
  $("failures").append(...more.map(failure => make("li", {}, make("b", {}, failure.path), make("br"), why(failure),
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
  $("reload").onclick = () => location.reload();
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

window.unetReport = {  // what data call
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
