// The trace reader. What models and prompts say reaches the page as text alone: textContent and
// new Option(), never innerHTML. Its data are unpacked when the reader is first seen or linked to;
// the scores of a trace when that trace is opened.
(() => {
  const at = (name) => document.getElementById(`reader-${name}`);
  if (!at("list")) return;
  const FIELDS = ["label", "verdict", "kind", "source", "category"];
  const ORDERS = new Map([
    ["down", (one, other) => size(other, -Infinity) - size(one, -Infinity)],
    ["up", (one, other) => size(one, Infinity) - size(other, Infinity)],
  ]);
  const section = document.getElementById("reader");
  const [, band, , curve, mark] = at("curve").children;

  // What is asked for: the same words as in the page's address, so that a link can say all of it.
  let wish = asked();
  let data; // the unpacked index
  let listed = []; // the traces that the list shows
  let open; // the trace that is shown, with its tokens as elements and its scores as bytes
  let chosen = -1; // position of the token whose score is read out

  function asked() {
    const hash = location.hash.slice(1);
    return new URLSearchParams(hash.includes("=") ? hash : "");
  }

  function ask(name, value) {
    if (value) wish.set(name, value);
    else wish.delete(name);
    history.replaceState(null, "", `#${wish}`);
    show();
  }

  // ---- unpacking

  async function unpackedJson(element) {
    return JSON.parse(new TextDecoder().decode(await unpacked(element)));
  }

  let started;
  function start() {
    started ??= load().catch((error) => {
      at("state").textContent = `The reader does not work in this browser (${error.message}).`;
    });
    return started;
  }

  async function load() {
    data = await unpackedJson(at("index"));
    const [packed, more] = ["reader-scores", "reader-more"].map((name) => document.getElementsByClassName(name));
    data.traces.forEach((trace, place) => {
      [trace.packed, trace.more] = [packed[place], more[place]];
      trace.words = [trace.prompt, trace.pieces.join("")].join("\n").toLowerCase();
    });
    FIELDS.forEach(fill);
    at("layer").max = data.layers.length - 1;
    listen();
    at("state").hidden = true;
    at("body").hidden = false;
    await show();
  }

  function fill(field) {
    const values = [...new Set(data.traces.map((trace) => trace[field]))].filter(Boolean).sort();
    for (const value of values) at(field).append(new Option(value, value));
    at(field).parentElement.hidden = values.length < 2;
  }

  // ---- the list

  function size(trace, otherwise) {
    return trace.cliff ?? otherwise;
  }

  function fits(trace) {
    const same = (field) => !wish.get(field) || wish.get(field) === trace[field];
    return FIELDS.every(same) && trace.words.includes((wish.get("q") ?? "").toLowerCase());
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.textContent = text;
    return made;
  }

  function number(value) {
    return value.toFixed(2).replace(/^-(?=.*[1-9])/, "−").replace(/^-/, "");
  }

  function about(trace) {
    const cliff = trace.cliff === null ? "no cliff measured" : `cliff\u00a0${number(trace.cliff)}`;
    const kind = trace.kind === trace.verdict ? "" : trace.kind;
    return [trace.label, trace.verdict, kind, cliff].filter(Boolean).join(" · ");
  }

  function row(trace) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = trace.id;
    button.append(element("span", "line", trace.prompt), element("small", "", about(trace)));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  function showList() {
    const found = data.traces.filter(fits);
    const order = ORDERS.get(wish.get("sort"));
    if (order) found.sort(order);
    const same = found.length === listed.length && found.every((trace, place) => trace === listed[place]);
    if (!same) at("list").replaceChildren(...found.map(row)); // else the keyboard keeps its place
    listed = found;
    const counted = `${found.length} of ${data.traces.length} traces; cliffs are those of layer ${data.layer}`;
    const missing = wish.has("trace") && !data.traces.some((trace) => trace.id === wish.get("trace"));
    at("count").textContent = missing ? `The trace of this link is not in the page. ${counted}` : counted;
  }

  function showCurrent() {
    const list = at("list");
    listed.forEach((trace, place) => {
      const button = list.children[place].firstChild;
      if (trace !== open.trace) return button.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
      const top = button.offsetTop - list.scrollTop;
      if (top < 0 || top > list.clientHeight - button.offsetHeight) list.scrollTop = button.offsetTop;
    });
  }

  // ---- the trace

  // The trace that is asked for; else the typical one, or the first that fits the filters.
  function wanted() {
    const named = (id) => data.traces.find((trace) => trace.id === id);
    const typical = named(data.first);
    const shown = listed.includes(typical) ? typical : listed[0];
    return named(wish.get("trace")) ?? shown ?? typical;
  }

  async function read(trace) {
    const scores = trace.scored ? await unpacked(trace.packed) : new Uint8Array();
    const { heads, after } = await unpackedJson(trace.more);
    return { trace, scores, heads, after, tokens: trace.pieces.map(token), spans: trace.spans ?? [0, 0, 0] };
  }

  function token(piece, place) {
    const made = element("span", "", piece);
    made.dataset.place = place;
    return made;
  }

  function part(title, tokens, tag = "div") {
    const box = document.createElement(tag);
    const text = element("p", "tokens", "");
    text.append(...tokens);
    box.append(element(tag === "details" ? "summary" : "h4", "", title), text);
    return tokens.length ? [box] : [];
  }

  function parts(spans, tokens) {
    if (!spans) return part("Whole text; the thinking never closed, so no token has a score", tokens);
    const [prompt, thinking, closing] = spans;
    return [
      ...part("Prompt as the model reads it", tokens.slice(0, prompt), "details"),
      ...part("Thinking", tokens.slice(prompt, thinking)),
      ...part("Closing tokens", tokens.slice(thinking, closing)),
      ...part("Answer", tokens.slice(closing)),
    ];
  }

  function showTrace() {
    const { trace } = open;
    const tags = about(trace).split(" · ").map((text) => element("span", "tag", text));
    at("title").replaceChildren(element("span", "", trace.id), ...tags);
    at("prompt").textContent = trace.prompt;
    at("text").replaceChildren(...parts(trace.spans, open.tokens));
    at("text").scrollTop = 0;
    showAfter(open.after);
    at("link").href = `#${new URLSearchParams({ trace: trace.id })}`;
    chosen = -1;
  }

  // The same prompt with the heads out, at the chosen layer whatever the slider says.
  function showAfter(after) {
    at("sides").classList.toggle("two", Boolean(after));
    at("after-side").hidden = !after;
    if (!after) return;
    const [prompt, thinking, closing] = after.spans ?? [0, 0, 0];
    const tokens = after.pieces.map((piece, place) => {
      const byte = place < closing ? after.levels[place - prompt] ?? 255 : 255;
      const score = byte > data.full ? null : byte / data.full;
      const closes = place >= thinking && place < closing ? " closing" : "";
      const made = element("span", (score === null ? "answer" : `scored q${Math.round(score * data.steps)}`) + closes, piece);
      made.dataset.after = score === null ? "no score" : `score ${number(score)}`;
      return made;
    });
    at("after-name").replaceChildren("With the heads out ", element("span", "tag", after.verdict));
    at("after").replaceChildren(...parts(after.spans, tokens));
    at("after").scrollTop = 0;
  }

  // ---- what heads add at a token

  function showHeads(place) {
    const heads = open.heads;
    const [prompt, , closing] = open.spans;
    const inside = place >= prompt && place < closing;
    at("heads").hidden = !heads;
    if (!heads) return;
    const where = inside ? place : closing - 1;
    const named = inside ? "this token" : "the last closing token";
    at("heads-name").textContent = `What heads add to the refusal logit at ${named}, layer ${data.layer}`;
    const values = heads.values.map((row) => row[where - prompt] * heads.step);
    const largest = heads.step * Math.max(1, ...heads.values.flat().map(Math.abs));
    const names = [...heads.names.map((name) => `head ${name}`), "all other heads"];
    at("heads-rows").replaceChildren(...values.map((value, row) => {
      const out = heads.out.includes(heads.names[row]);
      const bar = element("i", value < 0 ? "down" : "up", "");
      bar.style.width = `${(50 * Math.abs(value)) / largest}%`;
      const track = element("span", "track", "");
      track.append(bar);
      const made = element("li", "", "");
      made.append(element("span", out ? "name out" : "name", out ? `${names[row]}, taken out` : names[row]), track, element("span", "value", signed(value)));
      return made;
    }));
  }

  function signed(value) {
    const text = number(value);
    return text.startsWith("−") || text === "0.00" ? text : `+${text}`;
  }

  function level(layer, place) {
    const [prompt, , closing] = open.spans;
    if (!open.scores.length || place < prompt || place >= closing) return null;
    const byte = open.scores[layer * (closing - prompt) + place - prompt];
    return byte > data.full ? null : byte / data.full;
  }

  // Places of the tokens that a search found, among the texts of the tokens joined.
  function hits() {
    const words = (wish.get("q") ?? "").toLowerCase();
    const found = new Set();
    if (!words) return found;
    const pieces = open.trace.pieces.map((piece) => piece.toLowerCase());
    const whole = pieces.join("");
    let from = whole.indexOf(words);
    let end = 0;
    pieces.forEach((piece, place) => {
      const begin = end;
      end += piece.length;
      while (from >= 0 && from + words.length <= begin) from = whole.indexOf(words, from + 1);
      if (from >= 0 && from < end) found.add(place);
    });
    return found;
  }

  function paint() {
    const layer = Number(at("layer").value);
    const [prompt, thinking, closing] = open.spans;
    const found = hits();
    open.tokens.forEach((made, place) => {
      const score = level(layer, place);
      const closes = place >= thinking && place < closing;
      made.className = [
        score === null ? "answer" : `scored q${Math.round(score * data.steps)}`,
        closes ? "closing" : "",
        found.has(place) ? "hit" : "",
        place === chosen ? "chosen" : "",
      ].filter(Boolean).join(" ");
    });
    at("layer-name").textContent = `${data.layers[layer]}${data.layers[layer] === data.layer ? " (chosen)" : ""}`;
    draw(layer, prompt, thinking, closing);
    tell();
  }

  // ---- the curve and the token that is read out

  function across(place) {
    const [prompt, , closing] = open.spans;
    return (1000 * (place - prompt + 0.5)) / Math.max(1, closing - prompt);
  }

  function draw(layer, prompt, thinking, closing) {
    const points = [];
    for (let place = prompt; place < closing; place++) {
      const score = level(layer, place);
      if (score !== null) points.push(`${across(place).toFixed(1)},${(78 - 76 * score).toFixed(1)}`);
    }
    curve.setAttribute("points", points.join(" "));
    band.setAttribute("x", across(thinking - 0.5));
    band.setAttribute("width", 1000 - across(thinking - 0.5));
    at("plot").hidden = !points.length;
  }

  function where(place) {
    const [prompt, thinking, closing] = open.spans;
    if (!open.trace.spans) return "";
    if (place < prompt) return "prompt";
    const part = place < thinking ? "thinking" : place < closing ? "closing tokens" : "answer";
    const offset = place - closing + 1;
    return `${part}, ${number(offset).replace(".00", "")} from the last closing token`;
  }

  function tell() {
    const [prompt, , closing] = open.spans;
    const inside = chosen >= prompt && chosen < closing;
    mark.setAttribute("visibility", inside ? "visible" : "hidden");
    showHeads(chosen);
    if (chosen < 0) {
      at("token").textContent = "Point at a token, or touch it: here stand its position and its score.";
      return;
    }
    const score = level(Number(at("layer").value), chosen);
    at("token").textContent = [
      `“${open.trace.pieces[chosen].replaceAll("\n", "↵") || "part of a character"}”`,
      `token ${chosen + 1} of ${open.tokens.length}`,
      where(chosen),
      score === null ? "no score" : `score ${number(score)}`,
    ].filter(Boolean).join(" · ");
    mark.setAttribute("x1", across(chosen));
    mark.setAttribute("x2", across(chosen));
  }

  function choose(place, scroll) {
    if (place < 0 || place >= open.tokens.length) return;
    open.tokens[chosen]?.classList.remove("chosen");
    chosen = place;
    open.tokens[place].classList.add("chosen");
    if (scroll) open.tokens[place].scrollIntoView({ block: "nearest" });
    tell();
  }

  // ---- what the reader of the page does

  function listen() {
    at("q").addEventListener("input", (event) => ask("q", event.target.value));
    for (const name of ["sort", ...FIELDS]) {
      at(name).addEventListener("change", (event) => ask(name, event.target.value));
    }
    at("layer").addEventListener("input", paint);
    // A browser allows few changes of the address a second: the slider's last place goes there.
    at("layer").addEventListener("change", (event) => ask("layer", `${data.layers[event.target.value]}`));
    at("list").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) ask("trace", button.dataset.id);
    });
    for (const what of ["pointerover", "click"]) {
      at("text").addEventListener(what, (event) => {
        if (event.target.dataset.place) choose(Number(event.target.dataset.place), false);
      });
    }
    for (const what of ["pointerover", "click"]) {
      at("after").addEventListener(what, (event) => {
        if (event.target.dataset.after) at("token").textContent = `with the heads out · “${event.target.textContent}” · ${event.target.dataset.after}`;
      });
    }
    at("text").addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      choose(chosen < 0 ? open.spans[0] : chosen + step, true);
    });
    at("curve").addEventListener("click", (event) => {
      const { left, width } = at("curve").getBoundingClientRect();
      const [prompt, , closing] = open.spans;
      choose(prompt + Math.floor(((event.clientX - left) / width) * (closing - prompt)), true);
    });
  }

  async function show() {
    for (const name of ["q", "sort", ...FIELDS]) {
      if (at(name).value !== (wish.get(name) ?? "")) at(name).value = wish.get(name) ?? "";
    }
    const layer = data.layers.indexOf(Number(wish.get("layer")));
    at("layer").value = layer < 0 ? data.layers.indexOf(data.layer) : layer;
    showList();
    const trace = wanted();
    if (trace !== open?.trace) {
      const found = await read(trace);
      if (trace !== wanted()) return; // another was asked for meanwhile
      open = found;
      showTrace();
    }
    showCurrent();
    paint();
  }

  async function follow() {
    if (![...asked().keys()].length) return;
    wish = asked();
    await start();
    if (!data) return;
    await show();
    (wish.has("trace") ? at("trace") : section).scrollIntoView();
  }

  at("state").textContent = "The traces are unpacked when this part of the page is seen.";
  window.addEventListener("hashchange", follow);
  new IntersectionObserver((seen, observer) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    observer.disconnect();
    start();
  }, { rootMargin: "300px" }).observe(section);
  follow();
})();
