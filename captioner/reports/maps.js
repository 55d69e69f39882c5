// Weights (n, grid) of a cubic B-spline that scales a row of `grid` cells to `n` pixels; cells at the edge are repeated.
function spline(grid, n) {
  return Array.from({ length: n }, (_, pixel) => {
    const row = new Float32Array(grid), at = (pixel + 0.5) * grid / n - 0.5, first = Math.floor(at) - 1;
    for (let i = first; i < first + 4; i++) {
      const d = Math.abs(at - i);
      row[Math.min(grid - 1, Math.max(0, i))] += d < 1 ? 2 / 3 - d * d + d * d * d / 2 : (2 - d) ** 3 / 6;
    }
    return row;
  });
}

// From dark for weight 0 to warm light for weight 1: red, green, blue, opacity at 0, 1/2 and 1.
const STOPS = [[8, 10, 30, 0.75], [110, 60, 40, 0.4], [255, 190, 60, 0.3]];
const COLOURS = Array.from({ length: 256 }, (_, shade) => {
  const place = shade / 255 * 2, i = Math.min(1, Math.floor(place)), t = place - i;
  return STOPS[i].map((from, channel) => from + (STOPS[i + 1][channel] - from) * t);
});

// Draws the attention map of word `n` of a caption on a canvas stretched over the image.
function draw(canvas, words, n) {
  const grid = +words.dataset.grid, size = Math.max(64, 2 * grid), weight = spline(grid, size);
  const all = Uint8Array.from(atob(words.dataset.maps), (c) => c.charCodeAt(0));
  const cells = all.subarray(n * grid * grid, (n + 1) * grid * grid);
  const across = new Float32Array(grid * size), smooth = new Float32Array(size * size);
  for (let y = 0; y < grid; y++) for (let x = 0; x < size; x++) for (let i = 0; i < grid; i++)
    across[y * size + x] += weight[x][i] * cells[y * grid + i];
  for (let y = 0; y < size; y++) for (let i = 0; i < grid; i++) if (weight[y][i]) for (let x = 0; x < size; x++)
    smooth[y * size + x] += weight[y][i] * across[i * size + x];
  const peak = Math.max(...cells) / Math.max(1e-6, smooth.reduce((a, b) => Math.max(a, b)));  // smoothing lowers peaks
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  smooth.forEach((value, i) => {
    const [r, g, b, a] = COLOURS[Math.min(255, Math.round(value * peak))];
    image.data.set([r, g, b, 255 * a], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

const position = (word) => [...word.parentNode.querySelectorAll("button.word")].indexOf(word);

// Shows the attention map of a word over its image; without a word, that of the pressed word, if any.
function show(card, word) {
  word ??= card.querySelector(".word[aria-pressed=true]");
  const box = card.querySelector(".image-box");
  let canvas = box.querySelector("canvas");
  card.querySelector(".word.shown")?.classList.remove("shown");
  box.querySelector(".word-label").textContent = word ? word.title : "";
  if (!word) return canvas?.remove();
  if (!canvas) box.querySelector("img").after(canvas = document.createElement("canvas"));
  word.classList.add("shown");
  draw(canvas, word.parentNode, position(word));
}

function on(event, act) {
  document.addEventListener(event, (e) => {
    const word = e.target.closest?.("button.word");
    if (word) act(word.closest(".card"), word, e);
  });
}
on("pointerover", (card, word) => show(card, word));
on("pointerout", (card) => show(card));
on("focusin", (card, word) => show(card, word));
on("focusout", (card) => show(card));
on("click", (card, word) => {
  const press = word.getAttribute("aria-pressed") === "false";
  card.querySelectorAll("button.word").forEach((other) => other.setAttribute("aria-pressed", press && other === word));
  show(card, press ? word : null);
});
on("keydown", (card, word, e) => {
  const words = [...word.parentNode.querySelectorAll("button.word")], at = words.indexOf(word);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: words.length - 1 }[e.key];
  if (!words[to]) return;
  e.preventDefault();
  word.tabIndex = -1;
  words[to].tabIndex = 0;
  words[to].focus();
});

// Draws the maps of all words in their section, unless they are there.
function drawAll(section) {
  if (section.querySelector("figure")) return;
  const card = section.closest(".card"), words = section.parentNode.querySelector(".words"), image = card.querySelector("img");
  words.querySelectorAll("button.word").forEach((word, n) => {
    const figure = document.createElement("figure"), box = document.createElement("div");
    const canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
    const copy = image.cloneNode();
    copy.alt = `attention map of ${word.textContent}`;
    box.className = "image-box";
    caption.textContent = word.textContent;
    box.append(copy, canvas);
    figure.append(box, caption);
    section.append(figure);
    draw(canvas, words, n);
  });
}

document.addEventListener("toggle", (e) => { if (e.target.matches(".word-maps[open]")) drawAll(e.target); }, true);
