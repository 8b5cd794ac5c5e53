// Marks: of a mask, not of a name. Where the mask has changed since, its mark is not shown.

const MARKS = ["", "good", "bad", "fix"];
let marks;  // of each item, a place in MARKS
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
