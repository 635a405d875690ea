// The gallery's tables, its films that can be stopped, light and dark. Put into the page by gallery_page.py.
"use strict";
const FIRST = 10, PAGE = 50, MEAN = 9, HALF = 10;
const COLUMNS = [["Arm", 0, "arm"], ["Split", 1, "split"], ["Metric", 2, "metric"], ["Setting", 3, "setting"],
  ["Mean", MEAN, "number mean"], ["± 95 %", HALF, "number soft"], ["On one scale", null, "plot"],
  ["n images", 4, "number"], ["Seeds", 5, "seeds"], ["Hardware", 6, "hardware soft"], ["Commit", 7, "commit soft"],
  ["Command", null, ""]];
const order = new Intl.Collator("en", {numeric: true});
const reduced = matchMedia("(prefers-reduced-motion: reduce)");

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function short(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-4 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

function digits(half) {  // so that the half interval has two digits that count
  return Math.min(8, Math.max(0, 1 - Math.floor(Math.log10(half))));
}

class Table {
  constructor(place, data) {
    Object.assign(this, data, {place, shown: FIRST, sorted: null, down: false});
    this.all = this.rows.map((row, index) => ({row, index}));
    this.controls();
    this.head();
    this.update();
  }

  text(row, column) { return this.texts[row[column]]; }

  controls() {
    const changed = () => { this.shown = FIRST; this.update(); };
    this.filter = element("input", {type: "search", placeholder: "words that a row has", oninput: changed});
    const choose = (column, chosen) => {
      const select = element("select", {onchange: changed}, element("option", {value: "", textContent: "all"}));
      for (const text of new Set(this.rows.map(row => this.text(row, column))))
        select.append(element("option", {value: text, textContent: text || "–", selected: text === chosen}));
      return select;
    };
    this.split = choose(1, this.start[0]);
    this.metric = choose(2, this.start[1]);
    const label = (name, control) => element("label", {}, name, control);
    this.count = element("p", {className: "count"});
    this.count.setAttribute("role", "status");
    this.place.append(element("div", {className: "controls"}, label("Filter", this.filter),
      label("Split", this.split), label("Metric", this.metric)), this.count);
  }

  head() {
    this.heads = COLUMNS.map(([name, column, kind]) => {
      const head = element("th", {scope: "col", className: kind.replace(" mean", "").replace(" soft", "")});
      if (column === null) head.append(element("span", {textContent: name}));
      else {
        head.append(element("button", {type: "button", textContent: name, onclick: () => this.sort(column)}));
        head.setAttribute("aria-sort", "none");
      }
      return head;
    });
    this.body = element("tbody");
    this.table = element("table", {}, element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    if (this.rows.every(row => !this.text(row, 3))) this.table.classList.add("no-setting");
    const box = element("div", {className: "scroll", tabIndex: 0}, this.table);
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Table: " + this.title);
    this.further = element("button", {type: "button", className: "button after",
      onclick: () => { this.shown += PAGE; this.update(); }});
    this.place.append(box, this.further);
  }

  sort(column) {
    this.down = this.sorted === column && !this.down;
    this.sorted = column;
    COLUMNS.forEach(([, own], index) => own === null || this.heads[index].setAttribute("aria-sort",
      own !== column ? "none" : this.down ? "descending" : "ascending"));
    this.update();
  }

  rank(place) {  // of a text among all texts of the table; sorted once, when it is first asked for
    if (!this.ranks) {
      const sorted = this.texts.map((text, index) => index);
      sorted.sort((a, b) => order.compare(this.texts[a], this.texts[b]));
      this.ranks = [];
      sorted.forEach((text, index) => this.ranks[text] = index);
    }
    return this.ranks[place];
  }

  matching() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = item => {
      if (this.split.value && this.text(item.row, 1) !== this.split.value) return false;
      if (this.metric.value && this.text(item.row, 2) !== this.metric.value) return false;
      if (!words.length) return true;
      item.words ??= item.row.slice(0, MEAN).map(place => this.texts[place]).join(" ").toLowerCase();
      return words.every(word => item.words.includes(word));
    };
    const rows = this.all.filter(wanted), column = this.sorted;
    if (column === null) return rows;
    const value = column >= MEAN ? item => item.row[column] : item => this.rank(item.row[column]);
    return rows.sort((a, b) => {
      const one = value(a), other = value(b);
      if (one === null || other === null) return (one === null) - (other === null) || a.index - b.index;
      return (this.down ? other - one : one - other) || a.index - b.index;
    });
  }

  update() {
    const rows = this.matching(), seen = rows.slice(0, this.shown);
    this.count.textContent = `${rows.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} rows` +
      (seen.length < rows.length ? `, the first ${seen.length.toLocaleString("en")} shown` : "");
    this.scale(rows);
    this.table.classList.toggle("no-split", Boolean(this.split.value));  // the choice above says it for every row
    this.table.classList.toggle("no-metric", Boolean(this.metric.value));
    this.body.replaceChildren(...seen.map(item => this.line(item.row)));
    if (!rows.length) this.body.append(element("tr", {}, element("td", {colSpan: COLUMNS.length,
      textContent: "No row has all of these words."})));
    const left = rows.length - seen.length;
    this.further.hidden = !left;
    this.further.textContent = `Show ${Math.min(PAGE, left)} more`;
  }

  scale(rows) {  // rows of one metric are drawn on one scale
    const same = new Set(rows.map(item => item.row[2])).size === 1;
    const ends = rows.filter(item => item.row[MEAN] !== null)
      .flatMap(({row}) => [row[MEAN] - (row[HALF] ?? 0), row[MEAN] + (row[HALF] ?? 0)]);
    this.low = ends.reduce((a, b) => Math.min(a, b), Infinity);
    this.range = ends.reduce((a, b) => Math.max(a, b), -Infinity) - this.low;
    this.drawn = same && this.range > 0;
    this.table.classList.toggle("no-plot", !this.drawn);
  }

  plot(mean, half) {
    const at = value => 100 * (value - this.low) / this.range;
    const track = element("span", {className: "track"}), bar = element("span", {className: "bar"});
    const dot = element("span", {className: "dot"});
    bar.style.left = at(mean - half) + "%";
    bar.style.width = at(mean + half) - at(mean - half) + "%";
    dot.style.left = at(mean) + "%";
    track.append(bar, dot);
    return track;
  }

  line(row) {
    const line = element("tr"), mean = row[MEAN], half = row[HALF];
    for (const [name, column, kind] of COLUMNS) {
      const cell = element("td", {className: kind});
      if (name === "Command") cell.append(this.opener(row, line));
      else if (kind === "plot") { if (this.drawn && mean !== null) cell.append(this.plot(mean, half ?? 0)); }
      else if (column === MEAN && mean === null) cell.textContent = "–";
      else if (column === MEAN) cell.textContent = half ? mean.toFixed(digits(half)) : short(mean);
      else if (column === HALF) cell.textContent = half === null ? "–" : half ? half.toFixed(digits(half)) : "0";
      else cell.textContent = this.text(row, column);
      line.append(cell);
    }
    return line;
  }

  opener(row, line) {
    const button = element("button", {type: "button", className: "link", textContent: "Show"});
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", "Show the command behind " + this.text(row, 0));
    button.onclick = () => {
      const open = button.getAttribute("aria-expanded") === "true";
      if (open) line.nextSibling.remove();
      else line.after(this.detail(row));
      button.setAttribute("aria-expanded", String(!open));
      button.textContent = open ? "Show" : "Hide";
    };
    return button;
  }

  detail(row) {
    const code = element("code", {textContent: this.text(row, 8)}), seeds = this.text(row, 5);
    const copy = element("button", {type: "button", className: "link", textContent: "Copy"});
    copy.onclick = async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch (error) {
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected";
      }
    };
    const told = /^\d+$/.test(seeds) ? "" : "The command of the first of the seeds " + seeds + ". ";
    return element("tr", {className: "command"}, element("td", {colSpan: COLUMNS.length},
      element("div", {}, code, element("p", {}, told, copy))));
  }
}

function film(image) {  // an animated figure can be stopped, and does not move where motion is not wanted
  const canvas = element("canvas", {hidden: true});
  const button = element("button", {type: "button", className: "button", textContent: "Pause"});
  const show = moving => {
    image.hidden = !moving;
    canvas.hidden = moving;
    button.textContent = moving ? "Pause" : "Play";
  };
  const stop = () => {
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    canvas.getContext("2d").drawImage(image, 0, 0);
    show(false);
  };
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", image.alt);
  button.setAttribute("aria-label", "Pause or play: " + image.alt);
  button.onclick = () => canvas.hidden ? stop() : show(true);
  image.after(canvas);
  image.closest("figure").append(button);
  if (!reduced.matches) return;
  if (image.complete && image.naturalWidth) stop();
  else image.addEventListener("load", stop, {once: true});
}

const tables = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll("[data-table]").forEach(place => new Table(place, tables[Number(place.dataset.table)]));
document.querySelectorAll('img[src$=".gif"]').forEach(film);

const root = document.documentElement, toggle = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
const named = () => { toggle.textContent = isDark() ? "Light" : "Dark"; toggle.hidden = false; };
toggle.onclick = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* it is forgotten, then */ }
  named();
};
system.addEventListener("change", named);
named();

const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
const watch = new IntersectionObserver(entries => entries.forEach(({isIntersecting, target}) => {
  if (isIntersecting) links.forEach((link, key) => key === target.id ? link.setAttribute("aria-current", "true")
    : link.removeAttribute("aria-current"));
}), {rootMargin: "-20% 0px -75% 0px"});
document.querySelectorAll("main > section, .top").forEach(section => watch.observe(section));
