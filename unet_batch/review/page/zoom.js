// A close look at one item.

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
