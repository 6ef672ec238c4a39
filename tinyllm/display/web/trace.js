"use strict";
// Shows a trace: its tokens, the attention of all heads and of one, and for the chosen token the
// prediction, the logit lens, what adds to it, the largest neurons, and norms by layer.
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

  function draw(tag, parent, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  function visible(text) {
    return JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replaceAll(" ", "\u00b7")
      .replace(/[\u007f-\u00a0\u00ad\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]/g, // nothing to see
        (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`) || "\u2205";
  }

  // ---- attention weights: whole matrices, or the largest weights of each row ----

  const unpacked = new Map();
  function bytes(layer, name) {
    const key = `${layer} ${name}`;
    if (!unpacked.has(key)) {
      const text = atob(data.attention[layer][name]);
      const array = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) array[i] = text.charCodeAt(i);
      unpacked.set(key, name === "places" ? new Uint16Array(array.buffer) : array);
    }
    return unpacked.get(key);
  }

  // Calls each(key, value from 0 to 255) for the known weights of a row.
  function visit(layer, head, row, each) {
    const { keys, top } = data.attention[layer];
    const width = top || keys;
    const first = (head * count + row) * width;
    const values = bytes(layer, "data");
    const places = top ? bytes(layer, "places") : null;
    for (let i = 0; i < width; i++) each(places ? places[first + i] : i, values[first + i]);
  }

  let accent;
  function readColors() {
    accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").split(",").map(Number);
  }
  readColors();

  // ---- the parts of the page ----

  make("h1", document.body, "", data.title);
  make("p", document.body, "note", data.summary
    + "  Point at a token to look from it, click to stay there. Keys: \u2190 \u2192 token"
    + (layers.length ? ", \u2191 \u2193 layer, [ ] head." : "."));
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
  const side = make("section", null);
  const attention = make("section", null);
  const hasSide = data.lens || data.parts || data.neurons || Object.keys(data.norms).length;
  if (layers.length) panes.append(attention);
  if (hasSide) panes.append(side);
  panes.classList.toggle("single", !layers.length || !hasSide);

  const mapTitle = make("h2", attention);
  const scroller = make("div", attention, "map");
  const map = make("canvas", scroller);
  map.id = "map";
  const heading = make("h2", attention);
  heading.id = "head";
  const frame = make("div", attention, "large");
  const large = make("canvas", frame);
  large.id = "large";
  const under = make("p", attention, "note", "\u00a0");
  under.id = "under";
  const most = Math.max(0, ...layers.map((layer) => data.attention[layer].heads));
  let cellSize = 0; // of the map, in CSS pixels
  let across = false; // whether the layers go from left to right, and the heads down
  let drawn = null; // what the large picture shows

  function showMap() {
    const width = Math.max(200, attention.clientWidth - 26);
    const fit = (columns, rows) => Math.min(width / columns, 400 / rows, 56);
    across = fit(layers.length, most) > fit(most, layers.length);
    const [columns, rows] = across ? [layers.length, most] : [most, layers.length];
    cellSize = Math.max(6, Math.floor(fit(columns, rows)));
    mapTitle.textContent = "attention of all heads: a row is a "
      + (across ? "head, a column is a layer" : "layer, a column is a head");
    const ratio = Math.ceil(window.devicePixelRatio || 1);
    map.width = columns * cellSize * ratio;
    map.height = rows * cellSize * ratio;
    map.style.width = `${columns * cellSize}px`;
    map.style.height = `${rows * cellSize}px`;
    const context = map.getContext("2d");
    const small = document.createElement("canvas");
    context.imageSmoothingEnabled = false;
    layers.forEach((layer, place) => {
      const { heads, thumbRows: h, thumbColumns: w } = data.attention[layer];
      const values = bytes(layer, "thumbs");
      small.width = w;
      small.height = h;
      for (let head = 0; head < heads; head++) {
        const image = new ImageData(w, h);
        for (let i = 0; i < w * h; i++) {
          image.data.set(accent, 4 * i);
          image.data[4 * i + 3] = values[head * w * h + i];
        }
        small.getContext("2d").putImageData(image, 0, 0);
        const size = (cellSize - 2) * ratio;
        const x = (across ? place : head) * cellSize * ratio;
        const y = (across ? head : place) * cellSize * ratio;
        context.fillStyle = `rgba(${accent.join(",")},0.07)`;
        context.fillRect(x + ratio, y + ratio, size, size);
        context.drawImage(small, x + ratio, y + ratio, size, size);
        if (layer === state.layer && head === state.head) {
          context.strokeStyle = getComputedStyle(document.body).color;
          context.lineWidth = 1.5 * ratio;
          context.strokeRect(x + 1, y + 1, cellSize * ratio - 2, cellSize * ratio - 2);
        }
      }
    });
  }

  function placeOnMap(event) {
    const box = map.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / cellSize);
    const y = Math.floor((event.clientY - box.top) / cellSize);
    const layer = layers[Math.min(Math.max(across ? x : y, 0), layers.length - 1)];
    const head = across ? y : x;
    return { layer, head: Math.min(Math.max(head, 0), data.attention[layer].heads - 1) };
  }

  map.addEventListener("click", (event) => show(placeOnMap(event)));
  map.addEventListener("mousemove", (event) => {
    const { layer, head } = placeOnMap(event);
    map.title = `layer ${layer}, head ${head}`;
  });

  function cell(event) {
    const box = large.getBoundingClientRect();
    const keys = data.attention[state.layer].keys;
    const row = Math.floor((event.clientY - box.top) / box.height * count);
    const column = Math.floor((event.clientX - box.left) / box.width * keys);
    return [Math.min(Math.max(row, 0), count - 1), Math.min(Math.max(column, 0), keys - 1)];
  }

  large.addEventListener("mousemove", (event) => {
    const [row, column] = cell(event);
    let shown = null;
    visit(state.layer, state.head, row, (key, value) => { if (key === column) shown = value / 255; });
    under.textContent =
      `${visible(data.pieces[start + row])} (${start + row}) attends to ` +
      `${visible(data.pieces[column])} (${column}): ` +
      (shown === null ? "not among the largest weights" : shown.toFixed(2));
  });
  large.addEventListener("click", (event) => show({ token: cell(event)[0] }));

  // Places labels along an axis, as many as there is room for.
  function labels(kind, from, number, cellLength, place, chosen) {
    const every = Math.max(1, Math.ceil(13 / cellLength));
    for (let i = 0; i < number; i++) {
      const isChosen = i === chosen;
      if (i % every !== 0 && !isChosen) continue;
      if (!isChosen && chosen !== undefined && Math.abs(i - chosen) < every) continue;
      const span = make("span", frame, isChosen ? `${kind} chosen` : kind, visible(data.pieces[from + i]));
      span.title = `token ${from + i}`;
      place(span, (i + 0.5) * cellLength);
    }
  }

  function showLarge(t) {
    const { keys, top } = data.attention[state.layer];
    heading.textContent = `layer ${state.layer}, head ${state.head}`
      + (top ? `: the ${top} largest weights of each row` : "")
      + (keys > 64 ? " (color: the square root of the weight)" : "");
    const room = Math.max(120, attention.clientWidth - 110);
    const width = Math.min(room, 560, 26 * keys);
    const height = Math.max(13, Math.min(560, width * count / keys));
    const columns = Math.min(keys, Math.floor(width)); // at most one value per pixel
    const lines = Math.min(count, Math.max(1, Math.floor(height)));
    const key = [state.layer, state.head, t, columns, lines, accent].join();
    if (key === drawn) return;
    drawn = key;
    large.width = columns;
    large.height = lines;
    const strength = new Uint8ClampedArray(columns * lines);
    for (let row = 0; row < count; row++) {
      const y = Math.floor(row * lines / count);
      visit(state.layer, state.head, row, (k, value) => {
        const i = y * columns + Math.floor(k * columns / keys);
        const color = keys > 64 ? Math.sqrt(255 * value) : value; // many small weights
        const shown = row === t ? color : color / 1.6;
        if (shown > strength[i]) strength[i] = shown;
      });
    }
    const image = new ImageData(columns, lines);
    for (let i = 0; i < columns * lines; i++) {
      image.data.set(accent, 4 * i);
      image.data[4 * i + 3] = strength[i];
    }
    large.getContext("2d").putImageData(image, 0, 0);
    for (const span of [...frame.querySelectorAll("span")]) span.remove();
    large.style.width = `${width}px`;
    large.style.height = `${height}px`;
    large.style.left = "92px";
    large.style.top = "20px";
    labels("row", start, count, height / count, (span, at) => {
      Object.assign(span.style, { left: "0", width: "86px", top: `${20 + at - 6.5}px` });
    }, t);
    labels("column", 0, keys, width / keys, (span, at) => {
      Object.assign(span.style, { left: `${92 + at + 5}px`, top: `${height + 24}px` });
    });
    const query = make("span", frame, "axis", "query \u2193   key \u2192");
    Object.assign(query.style, { left: "0", width: "200px", top: "0" });
    frame.style.height = `${height + 114}px`;
  }

  function showAttention() {
    const { heads: number } = data.attention[state.layer];
    state.head = Math.min(state.head, number - 1);
    const t = hovered ?? state.token;
    if (hovered === null) showMap();
    showLarge(t);
    const row = new Array(spans.length).fill(0);
    visit(state.layer, state.head, t, (k, value) => { row[k] = value; });
    spans.forEach((span, position) => {
      const value = row[position] / 255;
      span.style.background =
        value > 0 && position <= start + t ? `rgba(${accent.join(",")},${value})` : "";
    });
  }

  // ---- the chosen token ----

  function bars(parent, id, found, t, digits) {
    const table = make("table", parent, "bars");
    table.id = id;
    const values = found.values[t];
    const largest = Math.max(...values.map((v) => Math.abs(v ?? 0)), 1e-30);
    found.names[t].forEach((name, i) => {
      const line = make("tr", table);
      make("td", line, "", name).title = name;
      const value = values[i];
      const track = make("div", make("td", line), value < 0 ? "track minus" : "track");
      track.style.width = `${100 * Math.abs(value ?? 0) / largest}%`;
      make("td", line, "", value === null ? "not finite" : digits(value));
    });
  }

  // Components or neurons of one token, with their names looked up.
  function at(found, t) {
    return { names: { [t]: found.indices[t].map((i) => found.names[i]) }, values: found.values };
  }

  function showLens(t, into) {
    const { names, pieces, probs } = data.lens;
    const final = names.length - 1;
    make("h2", into, "", `prediction after ${names[final]}`);
    bars(into, "prediction", {
      names: { [t]: pieces[final][t].map(visible) },
      values: { [t]: probs[final][t] },
    }, t, (p) => `${(100 * p).toFixed(1)} %`);
    make("h2", into, "", "logit lens: most likely next tokens by layer");
    const box = make("div", into, "lens");
    const table = make("table", box);
    table.id = "lens";
    for (let i = final; i >= 0; i--) { // the last layer is at the top
      const line = make("tr", table);
      const layer = /^blk\.(\d+)\./.exec(names[i])?.[1];
      line.classList.toggle("chosen", Number(layer) === state.layer && layer !== undefined);
      const label = make("th", line, "", layer ?? names[i]);
      label.title = names[i];
      if (layer in data.attention) label.addEventListener("click", () => show({ layer: Number(layer) }));
      pieces[i][t].forEach((piece, k) => {
        const p = probs[i][t][k] ?? 0;
        const guess = make("span", make("td", line), "guess", visible(piece));
        guess.style.background = `rgba(${accent.join(",")},${0.85 * p})`;
        guess.title = `${visible(piece)} ${p.toFixed(3)}`;
      });
    }
  }

  function showNorms(t, into) {
    make("h2", into, "", "norms by layer (logarithmic)");
    const series = Object.entries(data.norms).map(([family, { layers: at, values }]) =>
      ({ family, points: at.map((layer, i) => [layer, values[i][t]]).filter(([, v]) => v > 0) }));
    const all = series.flatMap(({ points }) => points);
    if (!all.length) return;
    const top = Math.log10(Math.max(...all.map(([, v]) => v)));
    const bottom = Math.min(Math.log10(Math.min(...all.map(([, v]) => v))), top - 0.1);
    const right = Math.max(1, ...all.map(([layer]) => layer));
    const svg = draw("svg", into, { viewBox: "0 0 560 190", id: "norms", role: "img" });
    const x = (layer) => 44 + 500 * layer / right;
    const y = (value) => 152 - 136 * (Math.log10(value) - bottom) / (top - bottom);
    for (let power = Math.ceil(bottom); power <= Math.floor(top); power++) {
      draw("line", svg, { x1: 44, x2: 544, y1: y(10 ** power), y2: y(10 ** power), class: "grid" });
      draw("text", svg, { x: 38, y: y(10 ** power) + 4, "text-anchor": "end" },
        power >= 0 && power < 5 ? String(10 ** power) : `1e${power}`);
    }
    if (state.layer !== null) {
      draw("line", svg, { x1: x(state.layer), x2: x(state.layer), y1: 12, y2: 152, class: "grid" });
    }
    const step = [1, 2, 5, 10, 20, 50, 100].find((s) => right / s <= 12) ?? 200;
    for (let layer = 0; layer <= right; layer += step) {
      draw("text", svg, { x: x(layer), y: 166, "text-anchor": "middle" }, layer);
    }
    const colors = ["rgb(var(--accent))", "var(--second)", "var(--third)"];
    series.forEach(({ family, points }, i) => {
      const color = colors[i % colors.length];
      const line = draw("polyline", svg, {
        points: points.map(([layer, v]) => `${x(layer).toFixed(1)},${y(v).toFixed(1)}`).join(" "),
      });
      line.style.stroke = color;
      for (const [layer, value] of points) {
        const dot = draw("circle", svg, { cx: x(layer), cy: y(value), r: 2.2 });
        dot.style.fill = color;
        draw("title", dot, {}, `${family} of layer ${layer}: ${value}`);
      }
      const name = draw("text", svg, { x: 44 + 150 * i, y: 184 }, `\u2014 ${family}`);
      name.style.fill = color;
    });
  }

  function showToken() {
    const t = hovered ?? state.token;
    const scrolled = side.querySelector(".lens")?.scrollTop ?? 0;
    const fresh = document.createDocumentFragment();
    make("h2", fresh, "", `token ${start + t}: ${visible(data.pieces[start + t])}`).id = "token";
    if (data.lens) showLens(t, fresh);
    const pair = make("div", fresh, "pair");
    const signed = (v) => (v > 0 ? "+" : "") + v.toPrecision(3);
    if (data.parts) {
      const part = make("div", pair);
      make("h2", part, "", `largest parts of the logit of ${visible(data.parts.of[t])}`);
      bars(part, "parts", at(data.parts, t), t, signed);
    }
    if (data.neurons) {
      const part = make("div", pair);
      make("h2", part, "", "largest neurons");
      bars(part, "neurons", at(data.neurons, t), t, signed);
    }
    if (Object.keys(data.norms).length) showNorms(t, fresh);
    side.replaceChildren(fresh); // at once: a shorter page would scroll
    const box = side.querySelector(".lens");
    if (box) box.scrollTop = scrolled;
  }

  function hover(i) {
    if (i === hovered) return;
    hovered = i;
    show({});
  }

  function show(change) {
    Object.assign(state, change);
    tokens.forEach((span, i) => span.classList.toggle("chosen", i === state.token));
    if (change.token !== undefined) {
      const box = tokens[state.token].getBoundingClientRect();
      const outer = strip.getBoundingClientRect();
      if (box.top < outer.top) strip.scrollTop -= outer.top - box.top + 4;
      if (box.bottom > outer.bottom) strip.scrollTop += box.bottom - outer.bottom + 4;
    }
    if (state.layer !== null) showAttention();
    showToken();
  }

  const keys = {
    ArrowLeft: () => ({ token: Math.max(0, state.token - 1) }),
    ArrowRight: () => ({ token: Math.min(count - 1, state.token + 1) }),
    ArrowUp: () => ({ layer: layers[Math.max(0, layers.indexOf(state.layer) - 1)] }),
    ArrowDown: () => ({ layer: layers[Math.min(layers.length - 1, layers.indexOf(state.layer) + 1)] }),
    "[": () => ({ head: Math.max(0, state.head - 1) }),
    "]": () => ({ head: state.head + 1 }),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    if (!layers.length && !event.key.startsWith("ArrowL") && !event.key.startsWith("ArrowR")) return;
    event.preventDefault();
    hovered = null;
    show(keys[event.key]());
  });
  window.addEventListener("resize", () => show({}));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColors();
    show({});
  });
  show({ token: state.token });
})();
