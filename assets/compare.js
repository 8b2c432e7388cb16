// The body of the player's js_on_load (element, props and watch are given): two to four videos drawn from one clock.
// Frames are decoded once and drawn together, so they cannot drift; beyond MEMORY the videos play themselves and are put right.
"use strict";
const MEMORY = 256 * 2 ** 20; // bytes of decoded frames
const host = element.querySelector(".player");
const part = (selector) => host.querySelector(selector);
const screens = part(".screens"), overlay = part(".overlay"), stage = part(".overlay canvas"), curve = part(".curve"), scrub = part(".scrub");
const picks = [...host.querySelectorAll("[data-pick]")], amount = part(".amount input");
const LEVELS = {
  wipe: { words: "Position", min: 0, max: 100, step: 1, value: 50 },
  onion: { words: "Second one's share", min: 0, max: 100, step: 1, value: 50 },
  difference: { words: "Gain", min: 1, max: 20, step: 1, value: 4 },
};

let value = { videos: [], fps: 1, ticks: 1 };
let sources = []; // one for each video
let tick = 0; // the clock, in frames of the fastest video
let playing = false, started = { at: 0, tick: 0 }, next = 0;
let view = "side";

// Decoded frames of one video: exact, whatever the clock does.
class Frames {
  constructor(video) {
    Object.assign(this, { video, pictures: [], shown: 0, stopped: false });
    this.ready = this.decode();
  }
  async decode() {
    const { video } = this, player = await open(video);
    for (let index = 0; index < video.frames && !this.stopped; index++) {
      await seek(player, (index + 0.5) / video.fps);
      this.pictures.push(await createImageBitmap(player));
      if (!this.stopped) tell();
      if (index === 0) draw();
    }
    player.removeAttribute("src");
    player.load();
  }
  get done() { return this.pictures.length === this.video.frames; }
  show(frame) { this.shown = Math.max(0, Math.min(frame, this.pictures.length - 1)); }
  get picture() { return this.pictures[this.shown]; }
  close() {
    const free = () => this.pictures.forEach((picture) => picture.close());
    this.stopped = true;
    this.ready.then(free, free);
  }
}

// A video too large for that: it plays by itself and is moved when it is half a frame off.
class Follower {
  constructor(video) {
    Object.assign(this, { video, stopped: false, picture: null });
    this.ready = open(video).then((player) => {
      this.picture = player;
      player.addEventListener("seeked", draw);
      draw();
    });
  }
  get done() { return this.picture !== null; }
  get shown() { return this.picture ? Math.min(this.video.frames - 1, Math.floor(this.picture.currentTime * this.video.fps + 1e-3)) : 0; }
  show(frame, running, speed, ahead) {
    const player = this.picture, { fps, frames } = this.video;
    if (!player || player.seeking) return;
    const middle = (frame + 0.5) / fps, plays = running && frame < frames - 1;
    if (plays) {
      player.playbackRate = speed;
      if (player.paused) player.play().catch(() => {});
      if (Math.abs(player.currentTime - ahead) > 0.5 / fps) player.currentTime = Math.min(ahead, (frames - 0.5) / fps);
    } else {
      if (!player.paused) player.pause();
      if (Math.abs(player.currentTime - middle) > 0.25 / fps) player.currentTime = middle;
    }
  }
  close() { this.stopped = true; this.ready.then(() => { this.picture.pause(); this.picture.removeAttribute("src"); this.picture.load(); }, () => {}); }
}

function open(video) {
  return new Promise((done, failed) => {
    const player = document.createElement("video");
    Object.assign(player, { muted: true, playsInline: true, preload: "auto" });
    player.addEventListener("loadeddata", () => done(player), { once: true });
    player.addEventListener("error", () => failed(new Error(`${video.label} cannot be read. It may have been deleted.`)), { once: true });
    player.src = video.src;
  });
}
function seek(player, time) {
  return new Promise((done) => {
    player.addEventListener("seeked", done, { once: true });
    player.currentTime = time;
  });
}

// Which frame of a video the clock shows; studio/comparison.py does the same.
const frameOf = (video) => Math.min(video.frames - 1, Math.floor(tick * video.fps / value.fps + 1e-6));

function draw() {
  const speed = Number(part(".speed").value), ahead = playing ? started.tick / value.fps + (performance.now() - started.at) / 1000 * speed : 0;
  sources.forEach((source, index) => {
    source.show(frameOf(value.videos[index]), playing, speed, ahead);
    const figure = screens.children[index], canvas = figure.firstChild;
    if (source.picture && view === "side") canvas.getContext("2d").drawImage(source.picture, 0, 0, canvas.width, canvas.height);
    figure.dataset.frame = source.shown;
  });
  host.dataset.tick = tick;
  if (view !== "side") drawOverlay();
  scrub.value = tick;
  part(".clock").textContent = `Frame ${tick + 1} of ${value.ticks} · ${(tick / value.fps).toFixed(2)} s`;
  curve.querySelector("line")?.setAttribute("transform", `translate(${tick} 0)`);
}

const scratch = document.createElement("canvas");
function drawOverlay() {
  const [first, second] = picks.map((pick) => sources[Number(pick.value)]);
  if (!first?.picture || !second?.picture) return;
  const { width, height } = stage, context = stage.getContext("2d", { willReadFrequently: true }), level = LEVELS[view].value;
  overlay.dataset.frame = first.shown;
  context.globalAlpha = 1;
  context.drawImage(first.picture, 0, 0, width, height);
  if (view === "wipe") {
    const x = Math.round(width * level / 100);
    context.save();
    context.beginPath();
    context.rect(x, 0, width - x, height);
    context.clip();
    context.drawImage(second.picture, 0, 0, width, height);
    context.restore();
    context.fillStyle = "#fff";
    context.fillRect(x - 1, 0, 2, height);
  } else if (view === "onion") {
    context.globalAlpha = level / 100;
    context.drawImage(second.picture, 0, 0, width, height);
    context.globalAlpha = 1;
  } else {
    Object.assign(scratch, { width, height });
    const other = scratch.getContext("2d", { willReadFrequently: true });
    other.drawImage(second.picture, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height), others = other.getImageData(0, 0, width, height).data, data = pixels.data;
    for (let i = 0; i < data.length; i++) if (i % 4 !== 3) data[i] = Math.abs(data[i] - others[i]) * level;
    context.putImageData(pixels, 0, 0);
  }
}

// The clock
const whole = () => sources.length > 0 && sources.every((source) => source.done);
function goTo(to) {
  tick = Math.max(0, Math.min(value.ticks - 1, to));
  started = { at: performance.now(), tick };
  draw();
}
function play(on) {
  playing = on && whole();
  if (playing && tick === value.ticks - 1 && !part(".loop").checked) tick = 0;
  started = { at: performance.now(), tick };
  part("[data-do=play]").textContent = playing ? "Pause" : "Play";
  draw();
  cancelAnimationFrame(next);
  if (playing) next = requestAnimationFrame(run);
}
function run(now) {
  if (!playing || !element.isConnected) return;
  next = requestAnimationFrame(run);
  if (!host.offsetParent) { // another tab is open: the clock waits
    started = { at: now, tick };
    sources.forEach((source) => source.picture?.pause?.());
    return;
  }
  const passed = started.tick + Math.floor(Math.max(0, now - started.at) / 1000 * value.fps * Number(part(".speed").value));
  if (passed < value.ticks) {
    if (passed !== tick || !(sources[0] instanceof Frames)) { tick = passed; draw(); }
  } else if (part(".loop").checked) {
    goTo(0);
  } else {
    tick = value.ticks - 1;
    play(false);
  }
}
function step(by) { play(false); goTo(tick + by); }

// What the server says: the same videos keep their frames and the clock its place.
function tell() {
  const total = value.videos.reduce((sum, video) => sum + video.frames, 0);
  const have = sources.reduce((sum, source) => sum + (source.pictures ? source.pictures.length : source.done ? source.video.frames : 0), 0);
  part(".reading").textContent = have < total ? `Reading the frames: ${have} of ${total}` : "";
  host.dataset.ready = String(have === total && total > 0);
}
function update() {
  const before = value.videos.map((video) => video.src).join(" ");
  value = props.value?.videos ? props.value : { videos: [], fps: 1, ticks: 1 };
  const { videos } = value, after = videos.map((video) => video.src).join(" ");
  host.hidden = !videos.length;
  if (before !== after) load(videos);
  label(videos);
  plot();
  goTo(Math.min(tick, value.ticks - 1));
}
function load(videos) {
  const large = videos.reduce((sum, video) => sum + video.width * video.height * 4 * video.frames, 0) > MEMORY;
  const kind = large ? Follower : Frames, had = sources;
  const resumed = playing || !had.length || had.every((source) => !videos.some((video) => video.src === source.video.src));
  if (had.every((source) => !videos.some((video) => video.src === source.video.src))) tick = 0;
  sources = videos.map((video) => had.find((source) => source instanceof kind && source.video.src === video.src) || new kind(video));
  had.filter((source) => !sources.includes(source)).forEach((source) => source.close());
  host.dataset.drawn = large ? "videos" : "frames";
  const current = sources;
  part(".reading").classList.remove("bad");
  screens.replaceChildren(...videos.map((video) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    Object.assign(canvas, { width: video.width, height: video.height });
    canvas.setAttribute("role", "img");
    canvas.style.setProperty("--aspect", video.width / video.height);
    figure.append(canvas, document.createElement("figcaption"));
    return figure;
  }));
  screens.style.setProperty("--columns", videos.length === 4 ? 2 : Math.max(2, videos.length));
  picks.forEach((pick, place) => {
    pick.replaceChildren(...videos.map((video, index) => new Option(video.label.slice(0, 1), index)));
    pick.value = Math.min(place, videos.length - 1);
    pick.parentElement.hidden = videos.length < 3;
  });
  if (videos.length < 2) view = "side";
  part(".segments").hidden = videos.length < 2;
  play(false);
  setView(view);
  tell();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  Promise.all(current.map((source) => source.ready)).then(
    () => { if (sources === current) { tell(); play(resumed && !calm && videos.length > 0); } },
    (error) => {
      if (sources !== current) return;
      part(".reading").textContent = error.message;
      part(".reading").classList.add("bad");
    },
  );
}
function label(videos) {
  videos.forEach((video, index) => {
    const [canvas, caption] = screens.children[index].children;
    canvas.setAttribute("aria-label", `${video.label}: ${video.prompt}`);
    caption.textContent = video.label;
  });
  describe();
}
function describe() {
  const [first, second] = picks.map((pick) => value.videos[Number(pick.value)]?.label || "");
  const words = { wipe: `Left: ${first}. Right: ${second}.`, onion: `${first} with ${second} over it.`, difference: `What differs between ${first} and ${second}; black is the same.` }[view] || "";
  stage.setAttribute("aria-label", words);
  overlay.querySelector("figcaption").textContent = words;
}
function plot() {
  const compared = value.videos.length > 1 && !value.blind, series = value.series || [], highest = Math.max(0.02, ...series.flat());
  curve.toggleAttribute("hidden", !compared); // its place is kept while it is measured
  part(".jumps").hidden = !compared;
  part("[data-do=most]").disabled = !series.length;
  part("[data-do=part]").disabled = !series.length || value.part === null;
  curve.setAttribute("viewBox", `0 0 ${Math.max(1, value.ticks - 1)} 100`);
  const space = curve.namespaceURI;
  curve.replaceChildren(...series.map((values) => {
    const line = document.createElementNS(space, "polyline");
    line.setAttribute("points", values.map((height, index) => `${index},${96 - 92 * height / highest}`).join(" "));
    return line;
  }));
  const cursor = document.createElementNS(space, "line");
  for (const [name, at] of Object.entries({ x1: 0, x2: 0, y1: 0, y2: 100 })) cursor.setAttribute(name, at);
  if (series.length) curve.append(cursor);
  scrub.max = value.ticks - 1;
  const strokes = ["line", "dashes", "dots"], names = series.map((_, index) => (series.length > 1 ? `${"BCD"[index]} (${strokes[index]})` : "B")).join(", ");
  const parted = value.part === null ? "No frame differs by more than 1 %." : value.part === 0 ? "They differ from the first frame on." : `They part at frame ${value.part + 1}.`;
  const words = series.length ? `Mean difference of ${names} from A, up to ${(100 * Math.max(...series.flat())).toFixed(1)} %. ${parted}` : compared && !value.series ? "Measuring how much they differ …" : "";
  part(".legend").textContent = words;
  curve.setAttribute("aria-label", words);
}
function most() {
  const heights = Array.from({ length: value.ticks }, (_, index) => Math.max(...value.series.map((values) => values[index])));
  return heights.indexOf(Math.max(...heights));
}
function setView(name) {
  view = name;
  host.querySelectorAll("[data-view]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === view)));
  screens.hidden = view !== "side";
  overlay.hidden = part(".overlay-tools").hidden = view === "side";
  overlay.className = `overlay ${view}`;
  if (view !== "side") {
    const { words, ...range } = LEVELS[view], shape = value.videos[Number(picks[0].value)];
    Object.assign(amount, range);
    part(".amount span").textContent = words;
    const finer = view === "wipe" ? Math.ceil(960 / shape.width) : 1; // the line between the two is thin, however small the video
    Object.assign(stage, { width: shape.width * finer, height: shape.height * finer });
    overlay.style.setProperty("--aspect", shape.width / shape.height);
  }
  describe();
  draw();
}

// Hands
host.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.view) setView(button.dataset.view);
  const act = { first: () => step(-value.ticks), back: () => step(-1), play: () => play(!playing), on: () => step(1), last: () => step(value.ticks), part: () => { play(false); goTo(value.part); }, most: () => { play(false); goTo(most()); } };
  act[button.dataset.do]?.();
});
scrub.addEventListener("input", () => { play(false); goTo(Number(scrub.value)); });
amount.addEventListener("input", () => { LEVELS[view].value = Number(amount.value); draw(); });
picks.forEach((pick) => pick.addEventListener("change", () => setView(view)));
part(".speed").addEventListener("change", () => goTo(tick));
const drag = (target, move) => {
  const held = (event) => {
    const box = target.getBoundingClientRect();
    move(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
  };
  target.addEventListener("pointerdown", (event) => { target.setPointerCapture(event.pointerId); held(event); });
  target.addEventListener("pointermove", (event) => { if (target.hasPointerCapture(event.pointerId)) held(event); });
};
drag(curve, (share) => { play(false); goTo(Math.round(share * (value.ticks - 1))); });
drag(stage, (share) => {
  if (view !== "wipe") return;
  amount.value = LEVELS.wipe.value = Math.round(100 * share);
  draw();
});

// Keys work the player that has the focus, else the one that was touched last, else the first on the page.
const mark = () => { document.querySelectorAll("[data-player]").forEach((other) => other.toggleAttribute("data-touched", other === host)); };
host.addEventListener("pointerdown", mark);
host.addEventListener("focusin", mark);
document.addEventListener("keydown", function key(event) {
  if (!element.isConnected) { document.removeEventListener("keydown", key); return; }
  if (!host.offsetParent || event.ctrlKey || event.altKey || event.metaKey) return;
  const focused = document.activeElement, inside = host.contains(focused);
  if (/^(TEXTAREA|SELECT)$/.test(focused.tagName) || focused.isContentEditable || focused.closest("[role=tablist], [role=listbox]")) return;
  if (focused.tagName === "INPUT" && focused !== scrub && focused.type !== "checkbox") return;
  if (value.blind && "120".includes(event.key) && event.key.length === 1) {
    document.querySelector(`[data-vote="${event.key}"]`)?.click();
    return;
  }
  const players = [...document.querySelectorAll("[data-player]")].filter((other) => other.offsetParent);
  const mine = players.find((other) => other.contains(focused)) || players.find((other) => other.hasAttribute("data-touched")) || players[0];
  if (mine !== host) return;
  const does = { " ": () => play(!playing), ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(-value.ticks), End: () => step(value.ticks) }[event.key];
  if (!does || (event.key === " " && (focused.closest("button, a, summary, [type=checkbox]") || (!inside && focused !== document.body)))) return;
  event.preventDefault();
  does();
});

watch("value", update);
update();
