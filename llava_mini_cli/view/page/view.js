// The page of llava-mini view: rows of an output, from files beside it, from inside the page, or from a server.
// Texts of strangers become text nodes and nothing else; no HTML is made of them, and no address that they name is
// followed but those of files, pictures and media that the program itself put into a row, and of the web.
"use strict";

const llavaMini = (() => {
  const element = (id) => document.getElementById(id);
  const BLOCK = 60; // rows that are fetched at once
  const BLOCKS_KEPT = 40;
  const TALLEST = 8e6; // pixels; browsers stop at some 16 million
  const FIELDS = ["text", "file", "status", "question", "error", "label", "kind", "low", "high", "sort", "group"];
  const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

  // Words and numbers

  /** Text without characters that control a terminal or turn the direction of a line: they are shown as escapes. */
  function shown(text) {
    return String(text).replace(CONTROLS, (char) => {
      const code = char.charCodeAt(0).toString(16);
      return char.charCodeAt(0) < 256 ? "\\x" + code.padStart(2, "0") : "\\u" + code.padStart(4, "0");
    });
  }

  /** `1:02:03.5`, as the command line writes it. */
  function clock(seconds) {
    const tenths = Math.round(seconds * 10);
    const [hours, minutes, rest] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, (tenths % 600) / 10];
    const tail = rest.toFixed(rest % 1 ? 1 : 0).padStart(rest % 1 ? 4 : 2, "0");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
  }

  const stretch = (row) =>
    row.start == null && row.end == null ? "" : `${clock(row.start ?? 0)}–${row.end == null ? "end" : clock(row.end)}`;
  const many = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 || word === "media" ? "" : "s"}`;

  /** A new element; `words` becomes a text node in it. */
  function make(tag, kind, words) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (words != null) made.textContent = shown(words);
    if (tag === "bdi") made.dir = "auto";
    if (tag === "button") made.type = "button";
    return made;
  }

  function say(words) {
    element("told").textContent = words;
    clearTimeout(say.timer);
    say.timer = setTimeout(() => (element("told").textContent = ""), 3500);
  }

  // Where rows come from. A source says what there is (`about`), finds rows (`find`), and gives them (`rows`).

  /** Rows in files beside the page, which scripts bring since a page from disk may read no file; or in the page. */
  class FromDisk {
    constructor() {
      this.chunks = new Map(); // number -> rows
      this.waiting = new Map(); // number -> what to do once it is there
    }

    take(facets) {
      this.facets = facets;
      this.columns = {};
      for (const [name, [type, data]] of Object.entries(facets.columns)) {
        const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
        this.columns[name] = new { u16: Uint16Array, u32: Uint32Array, f32: Float32Array }[type](bytes.buffer);
      }
    }

    takeChunk(number, rows) {
      this.chunks.set(number, rows);
      this.waiting.get(number)?.done();
      this.waiting.delete(number);
    }

    about() {
      return Promise.resolve(this.facets.about);
    }

    chunk(number) {
      if (this.chunks.has(number)) return Promise.resolve();
      if (!this.waiting.has(number)) {
        const wait = {};
        wait.over = new Promise((done, failed) => {
          wait.done = done;
          const script = document.createElement("script");
          script.src = `rows/${String(number).padStart(4, "0")}.js`;
          script.onload = () => script.remove();
          script.onerror = () => {
            script.remove();
            this.waiting.delete(number); // it is tried again when it is asked for again
            failed(new Error(`${script.getAttribute("src")} is not beside this page any more`));
          };
          document.head.append(script);
        });
        this.waiting.set(number, wait);
      }
      return this.waiting.get(number).over;
    }

    row(n) {
      return this.chunks.get(Math.floor(n / this.facets.chunk))[n % this.facets.chunk];
    }

    async load(numbers) {
      const chunks = new Set(Array.from(numbers, (n) => Math.floor(n / this.facets.chunk)));
      await Promise.all(Array.from(chunks, (number) => this.chunk(number)));
    }

    async find(filter) {
      const { about, order } = this.facets;
      const c = this.columns;
      const text = filter.text?.toLowerCase();
      const file = filter.file?.toLowerCase();
      if (text || file) await this.load(Array.from({ length: Math.ceil(about.rows / this.facets.chunk) }, (_, i) => i * this.facets.chunk));
      const codes = {};
      for (const name of ["status", "question", "error", "label", "kind"]) {
        if (filter[name]) codes[name] = order[name].indexOf(filter[name]) + 1;
      }
      const wanted = Object.entries(codes);
      const histogram = new Array(about.bars).fill(0);
      let numbers = [];
      for (let n = 0; n < about.rows; n++) {
        if (wanted.some(([name, code]) => c[name][n] !== code || code === 0)) continue;
        if (text || file) {
          const row = this.row(n);
          if (file && !(row.file ?? "").toLowerCase().includes(file)) continue;
          if (text && ![row.text, row.error, row.file].some((part) => part?.toLowerCase().includes(text))) continue;
        }
        const p = c.p[n];
        if (!Number.isNaN(p)) {
          const bar = Math.floor(((p - about.low) / (about.high - about.low)) * about.bars);
          histogram[Math.max(0, Math.min(about.bars - 1, bar))]++;
        }
        if (filter.low != null && !(p >= Math.fround(filter.low))) continue;
        if (filter.high != null && !(p <= Math.fround(filter.high))) continue;
        numbers.push(n);
      }
      const last = (value) => (Number.isNaN(value) ? Infinity : value);
      const orders = {
        file: (a, b) => c.place[a] - c.place[b],
        likely: (a, b) => last(-c.p[a]) - last(-c.p[b]),
        unlikely: (a, b) => last(c.p[a]) - last(c.p[b]),
        time: (a, b) => last(c.start[a]) - last(c.start[b]),
        failed: (a, b) => (order.status[c.status[a] - 1] < order.status[c.status[b] - 1] ? -1 : c.status[a] === c.status[b] ? 0 : 1),
      };
      if (filter.sort) numbers.sort((a, b) => orders[filter.sort](a, b) || a - b);
      const rows = numbers.length;
      const counts = new Map();
      for (const n of numbers) counts.set(c.medium[n], (counts.get(c.medium[n]) ?? 0) + 1);
      if (filter.group) {
        const seen = new Set();
        numbers = numbers.filter((n) => !seen.has(c.medium[n]) && seen.add(c.medium[n]));
      }
      return { rows, media: counts.size, items: numbers.length, histogram, numbers, counts: filter.group ? counts : null };
    }

    async rows(found, from, to) {
      const numbers = found.numbers.slice(from, to);
      await this.load(numbers);
      return numbers.map((n) => this.counted(n, found.counts));
    }

    counted(n, counts) {
      return counts ? { ...this.row(n), count: counts.get(this.columns.medium[n]) } : this.row(n);
    }

    async sameMedium(row) {
      const numbers = [];
      const medium = this.columns.medium;
      for (let n = 0; n < medium.length && numbers.length < 500; n++) if (medium[n] === medium[row.n]) numbers.push(n);
      await this.load(numbers);
      return numbers.map((n) => this.row(n));
    }

    async paths(found) {
      await this.load(found.numbers);
      return Array.from(new Set(Array.from(found.numbers, (n) => this.row(n).path)));
    }
  }

  /** Rows of a server; every address is below the page's own, which holds the token. */
  class FromServer {
    async get(name, values) {
      const given = Object.entries(values ?? {}).filter(([, value]) => value != null && value !== "");
      const answer = await fetch(`api/${name}?${new URLSearchParams(given)}`, { cache: "no-store" });
      if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
      return answer.json();
    }

    about() {
      return this.get("about");
    }

    async find(filter) {
      return { ...(await this.get("find", filter)), filter };
    }

    rows(found, from, to) {
      return this.get("rows", { ...found.filter, version: found.version, from, to });
    }

    sameMedium(row) {
      return this.get("medium", { n: row.n });
    }

    paths(found) {
      return this.get("paths", found.filter);
    }
  }

  // What is looked for, and what was found

  const source = document.documentElement.dataset.from === "server" ? new FromServer() : new FromDisk();
  const state = { filter: {}, lines: false, about: null, found: null, chosen: -1, open: null };
  let blocks = new Map(); // number of a block -> its rows, or a promise of them
  let asked = 0; // searches begun; an answer to an older one is thrown away

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of FIELDS) if (given.get(name)) state.filter[name] = given.get(name);
    for (const name of ["low", "high"]) if (state.filter[name] != null) state.filter[name] = Number(state.filter[name]) || 0;
    if (![...element("sort").options].some((option) => option.value === (state.filter.sort ?? ""))) delete state.filter.sort;
    if (state.filter.group !== "medium") delete state.filter.group;
    state.lines = given.get("view") === "list";
  }

  function writeAddress() {
    const values = Object.entries({ ...state.filter, view: state.lines ? "list" : "" });
    const words = new URLSearchParams(values.filter(([, value]) => value !== "" && value != null)).toString();
    history.replaceState(null, "", words ? `#${words}` : location.pathname + location.search);
  }

  /** Changes conditions, and finds the rows that meet them; an empty value takes a condition away. */
  function change(conditions) {
    for (const [name, value] of Object.entries(conditions)) {
      if (value === "" || value == null) delete state.filter[name];
      else state.filter[name] = value;
    }
    writeAddress();
    showControls();
    return find();
  }

  async function find({ stay = false } = {}) {
    const mine = ++asked;
    document.body.setAttribute("aria-busy", "true");
    try {
      const found = await source.find({ ...state.filter });
      if (mine !== asked) return;
      state.found = found;
      blocks = new Map();
      if (!stay) {
        state.chosen = -1;
        scroller.removeAttribute("aria-activedescendant");
        scroller.scrollTop = 0;
        virtual.top = 0;
      }
      showFound();
      forgetCards();
      lay();
    } catch (error) {
      if (mine === asked) say(error.message);
    } finally {
      if (mine === asked) document.body.removeAttribute("aria-busy");
    }
  }

  function showFound() {
    const { found, about } = state;
    const part = found.rows === about.rows ? many(about.rows, "row") : `${found.rows.toLocaleString("en")} of ${many(about.rows, "row")}`;
    element("count").textContent = `${part}, ${many(found.media, "media")}`;
    element("nothing").hidden = found.items > 0;
    element("nothing").textContent = about.rows ? "No row is like that." : "This output holds no rows.";
    showHistogram();
  }

  /** The row at a place of what was found, or null while it is on its way. */
  function rowAt(place) {
    const number = Math.floor(place / BLOCK);
    const block = blocks.get(number);
    if (Array.isArray(block)) return block[place % BLOCK] ?? null;
    if (!block) fetchBlock(number);
    return null;
  }

  function fetchBlock(number) {
    const found = state.found;
    const mine = blocks;
    const block = source.rows(found, number * BLOCK, Math.min(found.items, (number + 1) * BLOCK)).then(
      (rows) => {
        mine.set(number, rows);
        if (mine !== blocks) return;
        for (const old of mine.keys()) {
          if (mine.size <= BLOCKS_KEPT) break;
          if (Math.abs(old - number) > 3) mine.delete(old);
        }
        drawSoon();
      },
      (error) => {
        mine.delete(number);
        if (mine === blocks) say(error.message);
      },
    );
    mine.set(number, block);
  }

  async function rowSurely(place) {
    return rowAt(place) ?? (await blocks.get(Math.floor(place / BLOCK)), rowAt(place));
  }

  // Rows on the screen: only those in sight have elements

  const scroller = element("scroller");
  const sheet = element("sheet");
  const virtual = { top: 0, height: 0, ratio: 1 }; // pixels of all rows; above TALLEST the bar moves `ratio` at a time
  let layout = { columns: 1, width: 0, height: 0, gap: 0, edge: 0 };
  let cards = new Map(); // place -> element
  let drawing = 0;

  function lay() {
    if (!state.found) return;
    const room = scroller.clientWidth;
    if (state.lines) {
      layout = { columns: 1, width: room, height: 100, gap: 0, edge: 0 };
    } else {
      const narrow = room < 500;
      const [gap, edge] = narrow ? [8, 8] : [12, 16];
      const columns = Math.max(1, Math.floor((room - 2 * edge + gap) / ((narrow ? 160 : 210) + gap)));
      const width = Math.floor((room - 2 * edge - (columns - 1) * gap) / columns);
      layout = { columns, width, height: Math.round((width * 2) / 3) + 9 + 118, gap, edge };
    }
    sheet.classList.toggle("lines", state.lines);
    const lines = Math.ceil(state.found.items / layout.columns);
    const full = lines * (layout.height + layout.gap) - layout.gap + 2 * layout.edge;
    virtual.height = state.found.items ? full : 0;
    const tall = Math.min(virtual.height, TALLEST);
    const most = tall - scroller.clientHeight;
    virtual.ratio = most > 0 ? (virtual.height - scroller.clientHeight) / most : 1;
    sheet.style.height = `${tall}px`;
    virtual.top = Math.max(0, Math.min(virtual.top, virtual.height - scroller.clientHeight));
    draw();
  }

  function drawSoon() {
    if (!drawing) drawing = requestAnimationFrame(draw);
  }

  function draw() {
    cancelAnimationFrame(drawing);
    drawing = 0;
    if (!state.found) return;
    const step = layout.height + layout.gap;
    const first = Math.max(0, Math.floor((virtual.top - layout.edge) / step) - 1) * layout.columns;
    const last = Math.min(state.found.items, (Math.ceil((virtual.top + scroller.clientHeight) / step) + 1) * layout.columns);
    for (const [place, card] of cards) {
      if (place < first || place >= last) {
        card.remove();
        cards.delete(place);
      }
    }
    for (let place = first; place < last; place++) {
      let card = cards.get(place);
      if (!card) {
        card = make("div", "card");
        card.setAttribute("role", "option");
        card.dataset.place = place;
        card.id = `row-${place}`;
        card.setAttribute("aria-posinset", place + 1);
        card.setAttribute("aria-setsize", state.found.items);
        cards.set(place, card);
        sheet.append(card);
      }
      if (!card.dataset.n) {
        const row = rowAt(place);
        if (row) fill(card, row);
      }
      const [line, column] = [Math.floor(place / layout.columns), place % layout.columns];
      const y = line * step + layout.edge - virtual.top + scroller.scrollTop;
      card.style.transform = `translate(${layout.edge + column * (layout.width + layout.gap)}px, ${y}px)`;
      card.style.width = `${layout.width}px`;
      card.style.height = `${layout.height}px`;
      mark(card, place === state.chosen);
    }
  }

  function mark(card, chosen) {
    card.classList.toggle("chosen", chosen);
    card.setAttribute("aria-selected", String(chosen));
  }

  function forgetCards() {
    for (const card of cards.values()) card.remove();
    cards = new Map();
  }

  function moveTo(top) {
    virtual.top = Math.max(0, Math.min(top, virtual.height - scroller.clientHeight));
    scroller.scrollTop = virtual.top / virtual.ratio;
    virtual.expected = scroller.scrollTop;
    drawSoon();
  }

  scroller.addEventListener("scroll", () => {
    if (scroller.scrollTop !== virtual.expected) virtual.top = scroller.scrollTop * virtual.ratio;
    virtual.expected = null;
    drawSoon();
  });
  scroller.addEventListener(
    "wheel",
    (event) => {
      if (virtual.ratio <= 1 || event.ctrlKey) return;
      event.preventDefault();
      moveTo(virtual.top + event.deltaY * (event.deltaMode === 1 ? 30 : 1));
    },
    { passive: false },
  );
  new ResizeObserver(() => {
    const line = Math.floor(virtual.top / (layout.height + layout.gap || 1)) * layout.columns;
    lay();
    if (virtual.top > 0) moveTo(Math.floor(line / layout.columns) * (layout.height + layout.gap));
  }).observe(scroller);

  // One row as a card

  const failed = (row) => row.status === "error";
  const pictureAddress = (row) => row.picture ?? (row.kind === "image" ? row.source : null);

  function noPicture(row) {
    if (failed(row)) return row.error_type ?? "failed";
    if (row.gone) return "The file is not there";
    return row.kind === "video" ? "Video, no picture kept" : "No picture kept";
  }

  function picture(row) {
    const frame = make("div", "picture");
    const address = pictureAddress(row);
    if (address == null) {
      frame.append(make("span", "none", noPicture(row)));
      return frame;
    }
    const image = make("img");
    image.alt = "";
    image.decoding = "async";
    image.onerror = () => image.replaceWith(make("span", "none", "The picture cannot be shown"));
    image.src = address;
    frame.append(image);
    return frame;
  }

  function rate(label, p) {
    const [line, bar, inner] = [make("div", "rate"), make("i"), make("b")];
    const { low, high } = state.about;
    inner.style.width = `${Math.max(0, Math.min(1, (p - low) / (high - low))) * 100}%`;
    bar.append(inner);
    line.append(make("bdi", "", label), bar, make("span", "", p.toFixed(2)));
    return line;
  }

  /** Where in its medium rows lie, and how likely yes is along it. */
  function strip(row, rows) {
    const length = row.duration ?? Math.max(0, ...rows.map((one) => one.end ?? 0));
    const spans = rows.filter((one) => one.start != null || one.end != null);
    if (!(length > 0) || !(spans.length || row.track)) return null;
    const made = make("div", "strip");
    if (row.track) {
      made.classList.add("tracked");
      const share = 100 / row.track.length;
      const stops = row.track.map((p, bin) => {
        const colour = p == null ? "transparent" : `color-mix(in srgb, var(--accent) ${Math.round(p * 100)}%, transparent)`;
        return `${colour} ${bin * share}% ${(bin + 1) * share}%`;
      });
      made.style.backgroundImage = `linear-gradient(90deg, ${stops.join(", ")})`;
      made.title = "How likely yes is, along the video";
    }
    for (const one of spans) {
      const [start, end] = [one.start ?? 0, one.end ?? length];
      const button = make("button");
      button.title = `Play ${stretch(one)}`;
      button.setAttribute("aria-label", button.title);
      button.dataset.start = start;
      button.classList.toggle("now", one.n === row.n);
      button.style.left = `${Math.min(99, (start / length) * 100)}%`;
      button.style.width = `${Math.min(100, (Math.max(0, end - start) / length) * 100)}%`;
      made.append(button);
    }
    return made;
  }

  function fill(card, row) {
    card.dataset.n = row.n;
    card.classList.toggle("failed", failed(row));
    const frame = picture(row);
    const times = stretch(row) || (row.duration ? clock(row.duration) : "");
    if (times) frame.append(make("span", "tag", times));
    if (row.count > 1) frame.append(make("span", "tag many", many(row.count, "row")));
    const body = make("div", "body");
    if (state.about.questions.length > 1 && row.question) body.append(make("bdi", "asked", row.question));
    const words = failed(row) ? (row.error ?? "failed") : (row.text ?? "");
    if (words !== row.label) body.append(make("bdi", "text", words));
    if (row.p != null && !failed(row)) body.append(rate(row.label ?? (state.about.measure === "Score" ? "" : "yes"), row.p));
    const where = make("bdi", "where", row.file ?? row.path);
    where.title = shown(row.path);
    body.append(where);
    const bar = strip(row, [row]);
    for (const button of bar?.children ?? []) button.tabIndex = -1; // the open row has them for the keyboard
    card.append(frame, ...(bar ? [bar] : []), body);
  }

  // One row in full, with a player

  async function open(place, time = null) {
    if (!state.found?.items) return;
    choose(place);
    const row = await rowSurely(state.chosen);
    if (row) await show(row, time);
  }

  async function show(row, time = null) {
    const again = state.open && state.open.medium === row.path && player();
    if (again && time == null) time = row.start;
    state.open = { n: row.n, medium: row.path, row };
    element("detail").hidden = false;
    element("place").textContent = `${(state.chosen + 1).toLocaleString("en")} of ${state.found.items.toLocaleString("en")}`;
    const one = element("one");
    const medium = again ? one.firstElementChild : mediumOf(row, time);
    one.replaceChildren(medium, ...partsOf(row));
    if (again && time != null) playAt(time, false);
    one.scrollTop = 0;
    const rows = await source.sameMedium(row).catch((error) => (say(error.message), []));
    if (state.open?.n !== row.n || rows.length < 2) {
      const bar = strip(row, [row]);
      if (bar && state.open?.n === row.n) medium.after(bar);
      return;
    }
    const bar = strip(row, rows.filter((other) => other.question === row.question));
    if (bar) medium.after(bar);
    one.querySelector(".path").parentElement.before(othersOf(row, rows));
  }

  const player = () => element("one").querySelector("video");

  function playAt(time, begin = true) {
    const video = player();
    if (!video) return;
    video.currentTime = time;
    if (begin) video.play().catch(() => {}); // a browser may want a click first; the player is there
  }

  function mediumOf(row, time) {
    const frame = make("div", "medium");
    const address = row.source;
    if (address != null && row.kind === "video") {
      const video = make("video");
      video.setAttribute("aria-label", shown(row.file ?? row.path));
      video.controls = true;
      video.preload = "metadata";
      if (row.picture) video.poster = row.picture;
      const from = time ?? row.start;
      video.src = from == null ? address : `${address}#t=${from}`;
      if (time != null) video.autoplay = true;
      video.onerror = () => frame.replaceChildren(make("p", "none", "This browser cannot play it."));
      frame.append(video);
    } else if (pictureAddress(row) != null) {
      const image = make("img");
      image.alt = shown(row.file ?? row.path);
      image.onerror = () => {
        if (row.picture && image.getAttribute("src") !== row.picture) image.src = row.picture;
        else image.replaceWith(make("p", "none", "The picture cannot be shown."));
      };
      image.src = row.kind === "image" ? (address ?? row.picture) : row.picture;
      frame.append(image);
    } else {
      const gone = "No file has this path any more, or it lies inside another file.";
      frame.append(make("p", "none", row.gone ? gone : "There is no picture of it here."));
    }
    return frame;
  }

  function part(title, ...inside) {
    const made = make("div", "part");
    if (title) made.append(make("h2", "", title));
    made.append(...inside);
    return made;
  }

  function partsOf(row) {
    const parts = [];
    if (row.prompt || row.name) parts.push(part(row.name ?? "Question", make("bdi", "text", row.prompt ?? "")));
    if (failed(row)) {
      const why = [row.error_stage, row.error_type].filter(Boolean).join(", ");
      parts.push(part(why ? `Failed: ${why}` : "Failed", make("p", "error", row.error ?? "")));
    } else {
      parts.push(part("Answer", make("bdi", "text answer", row.text ?? "")));
    }
    if (row.warning) parts.push(part("Warning", make("bdi", "text warning", row.warning)));
    if (row.probs) {
      const rates = make("div", "rates");
      for (const [label, p] of Object.entries(row.probs).sort((a, b) => b[1] - a[1]).slice(0, 100)) {
        if (typeof p !== "number") continue;
        const line = rate(label, p);
        if (label === row.label) line.classList.add("best");
        rates.append(line);
      }
      parts.push(part("Choices", rates));
    } else if (row.p != null) {
      const rates = make("div", "rates");
      rates.append(rate(state.about.measure === "Score" ? "score" : "yes", row.p));
      parts.push(part(state.about.measure, rates));
    }
    if (Array.isArray(row.evidence) && row.evidence.length) parts.push(part("What carried it", evidenceOf(row.evidence)));
    if (row.fields) parts.push(part("Fields", make("pre", "", JSON.stringify(row.fields, null, 2))));
    const copy = make("button", "", "Copy");
    copy.title = "Copy the path (c)";
    copy.onclick = () => copyPath(row);
    const line = make("div", "path");
    line.append(make("bdi", "", row.path), copy);
    const facts = [];
    if (row.width && row.height) facts.push(`${row.width} × ${row.height}`);
    if (row.duration) facts.push(clock(row.duration));
    if (stretch(row)) facts.push(`asked about ${stretch(row)}`);
    const told = make("p", "soft", facts.join(", "));
    const inside = [line, ...(facts.length ? [told] : [])];
    const address = webAddress(row.link) ?? row.source;
    if (address != null) {
      const away = make("a", "", row.link ? "Open on the web" : "Open the file");
      away.href = address;
      away.target = "_blank";
      away.rel = "noopener noreferrer";
      inside.push(away);
    }
    parts.push(part("Medium", ...inside));
    return parts;
  }

  /** An address of the web, or null where it is another kind of link. */
  function webAddress(text) {
    if (text == null || !URL.canParse(text)) return null;
    return ["http:", "https:"].includes(new URL(text).protocol) ? text : null;
  }

  function evidenceOf(evidence) {
    const list = make("div", "others");
    for (const one of evidence.slice(0, 50)) {
      const isStretch = typeof one.start === "number";
      const line = make(isStretch ? "button" : "div");
      const at = isStretch ? stretch(one) : Array.isArray(one.box) ? one.box.map(Number).join(", ") : "all";
      line.append(make("span", "at", at), make("span"), make("span", "soft", Number(one.weight ?? 0).toFixed(2)));
      if (isStretch) line.dataset.start = one.start;
      list.append(line);
    }
    return list;
  }

  function othersOf(row, rows) {
    const list = make("div", "others");
    for (const other of rows) {
      const line = make("button");
      line.setAttribute("aria-current", String(other.n === row.n));
      const named = other.question !== row.question && stretch(other) ? `${other.question}: ` : "";
      line.append(make("span", "at", stretch(other) || other.name || "whole"));
      line.append(make("bdi", "", named + ((failed(other) ? other.error : other.text) ?? "")));
      line.append(make("span", "soft", other.p == null ? "" : other.p.toFixed(2)));
      line.onclick = () => show(other, other.start ?? null);
      list.append(line);
    }
    return part(many(rows.length, "row") + " of this medium", list);
  }

  function close() {
    if (element("detail").hidden) return false;
    element("detail").hidden = true;
    element("one").replaceChildren();
    state.open = null;
    scroller.focus({ preventScroll: true });
    return true;
  }

  async function copyPath(row) {
    try {
      await navigator.clipboard.writeText(row.path);
      say("The path is copied.");
    } catch {
      getSelection().selectAllChildren(element("one").querySelector(".path bdi") ?? document.body);
      say("The browser lets no page copy here: the path is marked, so copy it with Ctrl-C.");
    }
  }

  async function exportPaths() {
    try {
      const paths = await source.paths(state.found);
      const zero = paths.some((path) => path.includes("\n"));
      const end = zero ? "\0" : "\n";
      const away = make("a");
      away.href = URL.createObjectURL(new Blob(paths.map((path) => path + end), { type: "text/plain" }));
      away.download = zero ? "paths-null.txt" : "paths.txt";
      away.click();
      setTimeout(() => URL.revokeObjectURL(away.href), 10000);
      say(many(paths.length, "path") + (zero ? ", each ended by NUL: --files-from with -0" : ""));
    } catch (error) {
      say(error.message);
    }
  }

  // Going through the rows

  function choose(place) {
    if (cards.has(state.chosen)) mark(cards.get(state.chosen), false);
    state.chosen = Math.max(0, Math.min(place, state.found.items - 1));
    const step = layout.height + layout.gap;
    const top = Math.floor(state.chosen / layout.columns) * step + layout.edge;
    if (top < virtual.top) moveTo(top - layout.edge);
    else if (top + layout.height > virtual.top + scroller.clientHeight) moveTo(top + layout.height + layout.edge - scroller.clientHeight);
    draw(); // the card that is named must be there
    scroller.setAttribute("aria-activedescendant", `row-${state.chosen}`);
  }

  function go(by) {
    goTo(state.chosen < 0 ? 0 : state.chosen + by);
  }

  function goTo(place) {
    if (!state.found || place < 0 || place >= state.found.items) return;
    if (element("detail").hidden) choose(place);
    else open(place);
  }

  function toggleFilters() {
    const narrow = matchMedia("(max-width: 820px)").matches;
    const on = document.body.classList.toggle(narrow ? "filters-on" : "filters-off");
    element("show-filters").setAttribute("aria-expanded", String(narrow && on));
    if (narrow && !on) scroller.focus({ preventScroll: true });
  }

  const KEYS = {
    ArrowRight: () => go(1),
    ArrowLeft: () => go(-1),
    ArrowDown: () => go(layout.columns),
    ArrowUp: () => go(-layout.columns),
    j: () => go(1),
    k: () => go(-1),
    Home: () => goTo(0),
    End: () => state.found && goTo(state.found.items - 1),
    PageDown: () => moveTo(virtual.top + scroller.clientHeight * 0.9),
    PageUp: () => moveTo(virtual.top - scroller.clientHeight * 0.9),
    Enter: () => state.chosen >= 0 && open(state.chosen),
    " ": () => player() && (player().paused ? player().play().catch(() => {}) : player().pause()),
    "/": () => element("text").focus(),
    "?": () => element("keys").showModal(),
    f: toggleFilters,
    g: () => setLines(false),
    l: () => setLines(true),
    m: () => change({ group: state.filter.group ? "" : "medium" }),
    c: () => state.open && copyPath(state.open.row),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || element("keys").open) return;
    const inField = event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (inField) scroller.focus({ preventScroll: true });
      else if (!close() && document.body.classList.contains("filters-on")) toggleFilters();
      return;
    }
    if (inField || (event.target.matches("button, a, video") && (event.key === "Enter" || event.key === " "))) return;
    if (event.target.matches("video") && event.key.startsWith("Arrow")) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  document.addEventListener("click", (event) => {
    // After a click with the mouse, Enter and Space are about the rows again, and not about the button.
    if (event.detail > 0 && event.target.closest("#choices button, .tools button, #detail .bar button") && !element("keys").open) {
      scroller.focus({ preventScroll: true });
    }
  });

  function setLines(lines) {
    const place = Math.floor(virtual.top / (layout.height + layout.gap || 1)) * layout.columns;
    state.lines = lines;
    writeAddress();
    showControls();
    forgetCards();
    lay();
    moveTo(Math.floor(place / layout.columns) * (layout.height + layout.gap));
  }

  sheet.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    const span = event.target.closest(".strip button");
    open(Number(card.dataset.place), span ? Number(span.dataset.start) : null);
  });
  element("one").addEventListener("click", (event) => {
    const span = event.target.closest("button[data-start]");
    if (span) playAt(Number(span.dataset.start));
  });

  // Filters

  const FACETS = [
    ["status", "statuses", "Status"], ["question", "questions", "Question"], ["label", "labels", "Label"],
    ["error", "errors", "Kind of failure"], ["kind", "kinds", "Medium"],
  ];

  function buildChoices() {
    const kept = element("choices");
    kept.replaceChildren();
    for (const [name, values, title] of FACETS) {
      const given = state.about[values];
      if (!given.length || (given.length === 1 && ["status", "question", "kind"].includes(name) && given[0][1] === state.about.rows)) continue;
      const set = make("fieldset");
      const list = make("div", "facet");
      set.append(make("legend", "", title), list);
      for (const [value, count] of given) {
        const button = make("button");
        button.dataset.name = name;
        button.dataset.value = value;
        button.append(make("bdi", "", value), make("small", "", count.toLocaleString("en")));
        button.title = shown(value);
        button.onclick = () => change({ [name]: state.filter[name] === value ? "" : value });
        list.append(button);
      }
      kept.append(set);
    }
    const { low, high, measure, rated } = state.about;
    element("rated").hidden = !rated;
    element("measure").textContent = measure;
    for (const input of [element("low"), element("high")]) {
      input.min = low;
      input.max = high;
      input.step = (high - low) / 200;
    }
    element("histogram").replaceChildren(...Array.from({ length: state.about.bars }, () => make("i")));
  }

  function showControls() {
    const { filter, about } = state;
    for (const button of element("choices").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(filter[button.dataset.name] === button.dataset.value));
    }
    for (const name of ["text", "file"]) {
      if (document.activeElement !== element(name)) element(name).value = filter[name] ?? "";
    }
    element("sort").value = filter.sort ?? "";
    element("low").value = filter.low ?? about.low;
    element("high").value = filter.high ?? about.high;
    element("group").setAttribute("aria-pressed", String(Boolean(filter.group)));
    element("grid").setAttribute("aria-pressed", String(!state.lines));
    element("list").setAttribute("aria-pressed", String(state.lines));
    const active = FIELDS.filter((name) => filter[name] != null && !["sort", "group", "text"].includes(name)).length;
    element("active").textContent = active || "";
    element("clear").hidden = !active && !filter.text;
    showEnds();
  }

  function showEnds() {
    for (const name of ["low", "high"]) element(`${name}-shown`).textContent = Number(element(name).value).toFixed(2);
    const { low, high, bars } = state.about;
    [...element("histogram").children].forEach((bar, at) => {
      const middle = low + ((at + 0.5) / bars) * (high - low);
      bar.classList.toggle("out", middle < Number(element("low").value) || middle > Number(element("high").value));
    });
  }

  function showHistogram() {
    const most = Math.max(1, ...state.found.histogram);
    [...element("histogram").children].forEach((bar, at) => {
      const count = state.found.histogram[at];
      bar.style.height = count ? `${Math.max(3, Math.sqrt(count / most) * 100)}%` : "0";
    });
  }

  function slide(event) {
    const [low, high] = [element("low"), element("high")];
    if (Number(low.value) > Number(high.value)) (event.target === low ? low : high).value = event.target === low ? high.value : low.value;
    low.style.zIndex = Number(low.value) > (state.about.low + state.about.high) / 2 ? 1 : 0;
    showEnds();
    later("slide", 120, () => {
      const { low: least, high: most } = state.about;
      change({
        low: Number(low.value) > least ? Number(low.value) : "",
        high: Number(high.value) < most ? Number(high.value) : "",
      });
    });
  }

  function later(name, wait, act) {
    clearTimeout(later[name]);
    later[name] = setTimeout(act, wait);
  }

  element("low").addEventListener("input", slide);
  element("high").addEventListener("input", slide);
  for (const name of ["text", "file"]) {
    element(name).addEventListener("input", (event) => later(name, 200, () => change({ [name]: event.target.value })));
  }
  element("sort").addEventListener("change", (event) => change({ sort: event.target.value }));
  element("group").onclick = KEYS.m;
  element("grid").onclick = KEYS.g;
  element("list").onclick = KEYS.l;
  element("export").onclick = exportPaths;
  element("help").onclick = KEYS["?"];
  element("show-filters").onclick = toggleFilters;
  element("close").onclick = close;
  element("back").onclick = () => go(-1);
  element("next").onclick = () => go(1);
  element("clear").onclick = () => {
    const sort = { sort: state.filter.sort, group: state.filter.group };
    state.filter = {};
    for (const name of ["text", "file"]) element(name).value = "";
    change(sort);
  };

  // The beginning, and rows that a run adds

  async function start() {
    try {
      state.about = await source.about();
    } catch (error) {
      element("count").textContent = "no rows can be read";
      say(error.message);
      return;
    }
    readAddress();
    buildChoices();
    showControls();
    await find();
    if (source instanceof FromServer) setInterval(lookAgain, 3000);
  }

  async function lookAgain() {
    if (document.hidden) return;
    try {
      const about = await source.about();
      if (about.version === state.about.version) return;
      state.about = about;
      buildChoices();
      showControls();
      await find({ stay: true });
    } catch {
      if (!lookAgain.told) say("The server has ended; what is shown stays until the page is closed.");
      lookAgain.told = true;
    }
  }

  return {
    /** Called by the file facets.js. */
    facets(given) {
      source.take(given);
      if (document.documentElement.dataset.from === "disk") start();
    },
    /** Called by each file of rows. */
    chunk(number, rows) {
      source.takeChunk(number, rows);
    },
    /** Rows of what is found; for whoever looks into the page by its console. */
    rows: (from, to) => source.rows(state.found, from, Math.min(to, state.found.items)),
    start,
    state,
  };
})();

if (document.documentElement.dataset.from === "server") llavaMini.start();
