"use strict";
// Shows a trace: its tokens, the attention of a layer, and norms and logit lens of a token.
// The data may come from an untrusted file. It becomes text nodes and pixels, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { start, rows: count } = data; // the trace has `count` tokens of the context, from `start`
  const last = start + count;
  const layers = Object.keys(data.attention).map(Number).sort((a, b) => a - b);
  const state = { layer: layers.length ? layers[0] : null, head: 0, token: count - 1 };
  let hovered = null; // the token under the pointer, or null

  function make(tag, parent, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function visible(text) {
    return JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replaceAll(" ", "\u00b7") || "\u2205";
  }

  const bytes = new Map();
  function probs(layer) {
    if (!bytes.has(layer)) {
      const text = atob(data.attention[layer].data);
      const array = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) array[i] = text.charCodeAt(i);
      bytes.set(layer, array);
    }
    return bytes.get(layer);
  }

  const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").split(",").map(Number);

  function paint(canvas, layer, head, row) {
    const keys = data.attention[layer].keys;
    const values = probs(layer);
    canvas.width = keys;
    canvas.height = count;
    const context = canvas.getContext("2d");
    const image = context.createImageData(keys, count);
    for (let i = 0; i < count * keys; i++) {
      const value = values[head * count * keys + i];
      image.data.set(accent, 4 * i);
      image.data[4 * i + 3] = row === undefined || Math.floor(i / keys) === row ? value : value / 2.2;
    }
    context.putImageData(image, 0, 0);
  }

  // ---- the parts of the page ----

  make("h1", document.body, "", data.title);
  make("p", document.body, "note",
    data.summary + "  Point at a token to look from it, click to stay there.");
  const strip = make("div", document.body, "tokens");
  const spans = data.pieces.map((piece, position) => { // the whole context
    const inside = position >= start && position < last;
    const span = make("span", strip, inside ? "token" : "token outside", visible(piece));
    span.title = `token ${position}, id ${data.ids[position]}`;
    if (!inside) {
      span.title += ", not among the tokens of this trace";
      return span;
    }
    const row = position - start;
    span.dataset.token = row;
    span.addEventListener("click", () => show({ token: row }));
    span.addEventListener("mouseenter", () => hover(row));
    return span;
  });
  const tokens = spans.slice(start, last);
  strip.addEventListener("mouseleave", () => hover(null));
  const panes = make("div", document.body, "panes");

  const attention = make("section", layers.length ? panes : null);
  make("h2", attention, "", "attention: rows look at columns");
  const layerBar = make("div", attention, "bar");
  layerBar.id = "layers";
  const layerButtons = layers.map((layer) => {
    const button = make("button", layerBar, "", `layer ${layer}`);
    button.dataset.layer = layer;
    button.addEventListener("click", () => show({ layer }));
    return button;
  });
  const heads = make("div", attention, "heads");
  heads.id = "heads";
  const large = make("canvas", attention);
  large.id = "large";
  const under = make("p", attention, "note", "\u00a0");
  under.id = "under";
  let shownLayer = null;

  function cell(event) {
    const box = large.getBoundingClientRect();
    const keys = data.attention[state.layer].keys;
    const row = Math.floor((event.clientY - box.top) / box.height * count);
    const column = Math.floor((event.clientX - box.left) / box.width * keys);
    return [Math.min(Math.max(row, 0), count - 1), Math.min(Math.max(column, 0), keys - 1)];
  }

  large.addEventListener("mousemove", (event) => {
    const [row, column] = cell(event);
    const keys = data.attention[state.layer].keys;
    const value = probs(state.layer)[(state.head * count + row) * keys + column] / 255;
    under.textContent =
      `${visible(data.pieces[start + row])} (${start + row}) attends to ` +
      `${visible(data.pieces[column])} (${column}): ${value.toFixed(2)}`;
  });
  large.addEventListener("click", (event) => show({ token: cell(event)[0] }));

  const side = make("section", data.lens || Object.keys(data.norms).length ? panes : null);

  function showHeads() {
    if (shownLayer === state.layer) return;
    shownLayer = state.layer;
    heads.replaceChildren();
    for (let head = 0; head < data.attention[state.layer].heads; head++) {
      const box = make("div", heads, "head");
      box.dataset.head = head;
      const canvas = make("canvas", box);
      paint(canvas, state.layer, head);
      canvas.style.width = canvas.style.height = "68px";
      make("span", box, "", `head ${head}`);
      box.addEventListener("click", () => show({ head }));
    }
  }

  function showAttention() {
    const { heads: number, keys } = data.attention[state.layer];
    state.head = Math.min(state.head, number - 1);
    showHeads();
    for (const button of layerButtons) {
      button.classList.toggle("chosen", Number(button.dataset.layer) === state.layer);
    }
    for (const box of heads.children) {
      box.classList.toggle("chosen", Number(box.dataset.head) === state.head);
    }
    const t = hovered ?? state.token;
    paint(large, state.layer, state.head, t);
    const scale = Math.max(1, Math.min(14, Math.floor(560 / keys)));
    large.style.width = `${keys * scale}px`;
    large.style.height = `${count * scale}px`;
    const row = probs(state.layer).subarray((state.head * count + t) * keys);
    spans.forEach((span, position) => {
      const value = row[position] / 255;
      span.style.background = position <= start + t ? `rgba(${accent.join(",")},${value})` : "";
    });
  }

  function showToken() {
    side.replaceChildren();
    const t = hovered ?? state.token;
    make("h2", side, "", `token ${start + t}: ${visible(data.pieces[start + t])}`).id = "token";
    for (const [family, { layers: rows, values }] of Object.entries(data.norms)) {
      make("h2", side, "", `norm of ${family}`);
      const table = make("table", side);
      const most = Math.max(...values.map((row) => row[t] ?? 0), 1e-30);
      rows.forEach((layer, i) => {
        const line = make("tr", table);
        make("th", line, "", `layer ${layer}`);
        const track = make("div", make("td", line), "track");
        make("div", track).style.width = `${100 * (values[i][t] ?? 0) / most}%`;
        make("td", line, "", values[i][t] === null ? "not finite" : values[i][t].toPrecision(4));
      });
    }
    if (!data.lens) return;
    make("h2", side, "", "logit lens: most likely next token of each layer");
    const table = make("table", side);
    table.id = "lens";
    data.lens.names.forEach((name, i) => {
      const line = make("tr", table);
      make("th", line, "", name);
      data.lens.pieces[i][t].forEach((piece, k) => {
        const p = data.lens.probs[i][t][k] ?? 0;
        const guess = make("span", make("td", line), "guess", visible(piece));
        guess.style.background = `rgba(${accent.join(",")},${0.85 * p})`;
        guess.title = p.toFixed(3);
      });
    });
  }

  function hover(i) {
    hovered = i;
    show({});
  }

  function show(change) {
    Object.assign(state, change);
    tokens.forEach((span, i) => span.classList.toggle("chosen", i === state.token));
    if (state.layer !== null) showAttention();
    showToken();
  }

  show({});
})();
