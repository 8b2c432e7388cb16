// The studio's page: buttons inside panes, keys, and what keeps the page calm while panes are drawn again.
(() => {
  "use strict";
  const DRAFT = "studio.prompt", SEEDS = 2 ** 31;  // those of draw_seed in studio/tabs/form.py, which draws all but a page's first
  const boxOf = (widget) => document.querySelector(`${widget} :is(input, textarea)`);
  const typed = (widget) => boxOf(widget)?.value;  // also what Gradio has not heard of: it listens later than there is a box
  const FORM = "studio.form", COMPARED = "studio.compared", EDIT = "studio.edit", TRAINING = "studio.training", GALLERY = "studio.gallery";
  const stored = (key) => { try { return localStorage.getItem(key) || ""; } catch { return ""; } };
  const store = (key, text) => { try { localStorage.setItem(key, text); } catch { /* a private window keeps nothing */ } };
  const formKept = (model) => { try { const kept = JSON.parse(stored(FORM)); return kept.model === model ? kept : {}; } catch { return {}; } };
  const editKept = () => { try { return JSON.parse(sessionStorage.getItem(EDIT)); } catch { return null; } };  // of this tab of the browser alone
  const drawn = String(Math.floor(Math.random() * SEEDS));
  let keeping = false, keepingTraining = false, keepingGallery = false;  // from when the form is as it was left
  window.studio = {
    draft: () => typed("#prompt") || stored(DRAFT),
    keepDraft: (text) => store(DRAFT, text || ""),
    seed(model) {
      const [seed, keep] = (formKept(model).values || []).slice(-3);
      return typed("#seed") || (keep && seed) || drawn;
    },
    // As the page was left: the videos of the Compare tab, and the whole form, with the names of its values, for the model that the studio was started with.
    left: (model) => [stored(COMPARED), JSON.stringify({ ...formKept(model), edit: editKept() })],
    // The form's values with the prompt and the seed, which the page has before Gradio knows them.
    typedIn: (model, values) => [window.studio.draft(), ...values.slice(1, -3), window.studio.seed(model), ...values.slice(-2)],
    startKeeping() { keeping = true; },
    // The form of the Training tab, when that is opened for the first time.
    keptTraining: () => keepingTraining ? "" : stored(TRAINING),
    startKeepingTraining() { keepingTraining = true; },
    // The filters of the gallery, in the same way.
    keptGallery: () => keepingGallery ? "" : stored(GALLERY),
    startKeepingGallery() { keepingGallery = true; },
    keepGallery: (values) => keepingGallery && store(GALLERY, JSON.stringify(values)),
    keepTraining: (values) => keepingTraining && store(TRAINING, JSON.stringify(values)),
    keepForm: (model, names, values) => keeping && store(FORM, JSON.stringify({ model, names, values })),
  };

  // Ticks of the gallery, of its trash and of the queue: they outlive a pane that is drawn anew. A request, or a deleted video, that has left the list is not ticked any more.
  const picked = { video: new Set(), trash: new Set(), job: new Set() };
  const lastTick = {};
  const ticks = (kind) => [...document.querySelectorAll(`.tick[data-${kind}]`)];
  function showPicked() {
    for (const [kind, ids] of Object.entries(picked)) {
      const group = document.querySelector(`.picked[data-picks="${kind}"]`);
      if (kind !== "video" && ids.size) {
        const shown = new Set(ticks(kind).map((tick) => tick.dataset[kind]));
        ids.forEach((id) => { if (!shown.has(id)) ids.delete(id); });
      }
      ticks(kind).forEach((tick) => { if (tick.checked !== ids.has(tick.dataset[kind])) tick.checked = ids.has(tick.dataset[kind]); });
      if (!group) continue;
      const count = group.querySelector("[data-picked-count]"), tools = group.querySelector(".for-picked");
      const words = ids.size ? `${ids.size} selected` : count.dataset.pickedCount;
      if (count.textContent !== words) count.textContent = words;
      if (tools.hidden !== !ids.size) tools.hidden = !ids.size;
    }
  }
  document.addEventListener("click", (event) => {
    const tick = event.target.closest?.(".tick"), group = event.target.closest?.(".picked");
    if (tick) {
      const kind = Object.keys(picked).find((name) => name in tick.dataset), all = ticks(kind), here = all.indexOf(tick);
      const from = event.shiftKey && lastTick[kind] ? all.findIndex((other) => other.dataset[kind] === lastTick[kind]) : here;
      const range = from < 0 ? [tick] : all.slice(Math.min(from, here), Math.max(from, here) + 1);
      range.forEach((one) => picked[kind][tick.checked ? "add" : "delete"](one.dataset[kind]));
      lastTick[kind] = tick.dataset[kind];
    } else if (group && event.target.closest("[data-pick-all]")) ticks(group.dataset.picks).forEach((one) => picked[group.dataset.picks].add(one.dataset[group.dataset.picks]));
    else if (group && event.target.closest("[data-pick-none]")) picked[group.dataset.picks].clear();
    else return;
    showPicked();
  });

  // Keys in the gallery.
  document.addEventListener("keydown", (event) => {
    const gallery = document.querySelector("#gallery");
    if (!gallery?.offsetParent || event.ctrlKey || event.altKey || event.metaKey || typing(event.target) && event.target.className !== "tick") return;
    if (event.key === "/") { event.preventDefault(); document.querySelector("#gallery-search :is(input, textarea)")?.focus(); return; }
    const slot = event.target.closest?.("[data-slot]"), slots = [...gallery.querySelectorAll("[data-slot]")];
    const across = slots.filter((other) => other.offsetTop === slots[0].offsetTop).length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (by) {
      const next = slots[slot ? slots.indexOf(slot) + by : 0];
      if (next) { event.preventDefault(); next.querySelector(".card").focus(); }
    } else if (slot && event.key.toLowerCase() === "x") slot.querySelector(".tick").click();
    else if (slot?.closest(".trash")) return;
    else if (slot && event.key.toLowerCase() === "s") send("star", slot.dataset.slot);
    else if (slot && event.key === "Delete") {
      picked.video.delete(slot.dataset.slot);
      (slots[slots.indexOf(slot) + 1] || slots[slots.indexOf(slot) - 1])?.querySelector(".card").focus();
      send("delete", slot.dataset.slot);
    }
  });
  const typing = (element) => element && (element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName));

  // A button with data-action writes "action:id:nonce" into a textbox that the server listens to.
  let nonce = 0;
  function tell(widget, text) {
    const box = boxOf(widget);
    if (!box) return;
    const prototype = box instanceof HTMLTextAreaElement ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    Object.getOwnPropertyDescriptor(prototype, "value").set.call(box, `${text}:${++nonce}`);
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }
  const FILLS_FORM = /^(use|edit|continue|change|use-model|use-lora|run-use)$/;
  const busOf = (action) => action === "run-clone" ? "training" : FILLS_FORM.test(action) || /^(example|edit-stop|form-back)$/.test(action) ? "form" : "action";
  const send = (action, id) => away ? nudge() : tell(`#${busOf(action)}-bus`, `${action}:${id || ""}`);

  // The page asks for the studio's version, which costs little, and has its panes drawn when that is a new one, at most once a second; when it was painted anew,
  // which it confirms; and every ten seconds in any case.
  const ASK = 400, LOOK = 1000, IN_ANY_CASE = 10000, MISSED = 2;
  let known = null, confirmed = "", looked = Date.now(), asking = false, missed = 0;
  setInterval(async () => {
    const since = Date.now() - looked, painted = typed("#painted");
    if (asking || leaving || since < LOOK || !painted && since < IN_ANY_CASE) return;  // the first painting is under way
    asking = true;
    try {
      const answer = await ask(`${window.gradio_config.root}/studio/version`, { signal: AbortSignal.timeout(IN_ANY_CASE) });
      if (!answer.ok) throw new Error(answer.statusText);
      const [built, start, version] = (await answer.text()).split(" ");
      missed = 0;
      if (present(built, start) && (version !== known || painted !== confirmed || since > IN_ANY_CASE)) {
        [known, confirmed, looked] = [version, painted, Date.now()];
        tell("#look", version);
      }
    } catch {
      if (++missed >= MISSED) absent();
    }
    asking = false;
  }, ASK);

  // The studio may be away for a while: stopped, started again, or out of reach. A line says so, and goes when it is back. Gradio would give up at the first event that gets no
  // answer, keep nothing more that is typed, and load the page again: here an event that finds no studio waits for it, and buttons that would be pressed twice are not heard.
  const ask = window.fetch.bind(window), AWAY = "The studio is not answering. What you typed is kept here, and this line goes when it is back.";
  const REPLACED = "The studio was started again with another page. What you typed is kept. ";
  const BACK = "studio.back ", isBack = (options) => String(options?.body).includes(`"${BACK}`);
  let away = false, leaving = false, first = null, returned = null, greeting = false;  // returned: resolves once it is back, and has been greeted if it was started anew
  window.addEventListener("pagehide", () => { leaving = true; });
  window.addEventListener("pageshow", () => { leaving = false; });
  const isEvent = (address) => typeof address === "string" && address.includes("/gradio_api/run/");
  window.fetch = async (address, options) => {
    if (!isEvent(address)) return ask(address, options);
    const named = { ...options, headers: new Headers(options?.headers) };
    named.headers.set("x-studio-event", `${drawn}-${Date.now()}-${Math.random()}`);  // sent again it is not done again (studio/once.py)
    for (;;) {
      if (away && !isBack(options)) await returned.promise;
      try {
        const answer = await ask(address, named);
        if (![502, 503].includes(answer.status)) return answer;  // those are a proxy's that finds no studio
      } catch (error) {
        if (leaving || error.name === "AbortError") throw error;
      }
      absent();
      await new Promise((resolve) => { setTimeout(resolve, ASK); });
    }
  };
  function absent() {
    if (away || leaving) return;
    away = true;
    let done;
    returned = { promise: new Promise((resolve) => { done = resolve; }) };
    returned.done = done;
    say(AWAY);
  }
  // Whether the studio that answers is one that this page can go on with now; one that was started anew is told first what was compared and edited here.
  function present(built, start) {
    first ||= { built, start };
    if (built !== first.built) {
      absent();
      say(REPLACED, true);
    } else if (start !== first.start) {
      absent();
      first.start = start;
      greeting = true;
      tell("#back", BACK + start);
    } else if (away && !greeting) back();
    return !away;
  }
  window.studio.greeted = () => { greeting = false; };
  function back() {
    away = false;
    returned.done();
    document.querySelector("#away")?.remove();
  }
  function say(words, reload = false) {
    const line = document.querySelector("#away") || document.body.appendChild(Object.assign(document.createElement("div"), { id: "away" }));
    if (line.dataset.words === words) return;
    line.setAttribute("role", "status");
    line.dataset.words = words;
    setTimeout(() => {  // what is in it from the beginning is not read out
      line.textContent = words;
      if (reload) line.append(Object.assign(document.createElement("button"), { textContent: "Reload", onclick: () => location.reload() }));
    }, 50);
  }
  const nudge = () => calm.matches || document.querySelector("#away").animate([{ scale: 1 }, { scale: 1.04 }, { scale: 1 }], 200);
  document.addEventListener("click", (event) => {
    if (!away || !event.target.closest("[data-action], a[download], .gradio-container button:is(.lg, .sm)")) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    nudge();
  }, true);

  // A pane that is drawn anew between press and release takes the pressed button with it, or moves it away, and the browser then sends it no click: a pointer
  // that stood still has pressed it all the same, and the one that is in its place now gets the click.
  // Or the button stays and now stands for another row, as Gradio fills the elements of a pane anew in their order: what was pressed is what is done.
  let pressed = null;
  document.addEventListener("pointerdown", (event) => {
    const button = event.button === 0 && event.target.closest?.("[data-action]");
    pressed = button && { button, says: { ...button.dataset }, x: event.clientX, y: event.clientY };
  });
  document.addEventListener("pointerup", (event) => {
    if (!pressed || Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) > 4 || pressed.button.contains(event.target)) return;
    const { action, id } = pressed.says, same = (button) => button.dataset.action === action && button.dataset.id === id;
    (pressed.button.isConnected && same(pressed.button) ? pressed.button : [...document.querySelectorAll("[data-action]")].find(same))?.click();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (!button) return;
    event.preventDefault();
    const says = event.detail && pressed?.button === button ? pressed.says : button.dataset;  // no detail: by a key
    const ticked = [...document.querySelectorAll("#viewer [data-pick]:checked")].map((box) => box.dataset.pick);
    const many = picked[says.with];
    if (many) {
      const tag = "withTag" in says ? `${document.querySelector("[data-tag]").value}|` : "";
      send(says.action, tag + [...many].join(","));
      if (says.with !== "video" || says.action === "delete-many") many.clear();
      showPicked();
      return;
    }
    if (says.action === "delete") picked.video.delete(says.id);
    send(says.action, "withPicked" in says ? [says.id, ...ticked].join(",") : says.id);
    if (FILLS_FORM.test(says.action) || says.action === "run-compare") window.scrollTo({ top: 0 });
    if (says.action === "show" || says.action === "example") {
      const stage = document.querySelector("#viewer");
      if (stage && stage.offsetParent && stage.getBoundingClientRect().top < 0) stage.scrollIntoView({ block: "start" });
    }
  });

  // A video is saved under its prompt's name; the server's own answer would name it after its file.
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[download]");
    if (!link || link.protocol === "blob:") return;
    event.preventDefault();
    const copy = document.createElement("a");
    copy.download = link.download;
    try {
      const answer = await fetch(link.href);
      if (!answer.ok) return location.assign(link.href);  // which says why
      copy.href = URL.createObjectURL(await answer.blob());
    } catch {
      return absent();
    }
    copy.click();
    setTimeout(() => URL.revokeObjectURL(copy.href), 60000);
  });

  // Files dropped anywhere go where "Open prompts, a picture or a video" puts them.
  const files = (event) => [...(event.dataTransfer?.types || [])].includes("Files") && !event.target.closest?.("[data-testid='file-upload']");
  document.addEventListener("dragover", (event) => {
    if (files(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    if (away) return nudge();
    const input = document.querySelector("#opener-box input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    document.querySelector("#tabs [role=tab]")?.click();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // The videos of the Compare tab, and what is edited, for the next visit. Nothing at first: it is not brought back yet.
  let compared = "", edit = "";
  function keepLeft() {
    const now = document.querySelector("#kept [data-compared]")?.dataset;
    if (!now) return;
    if (now.compared !== compared) store(COMPARED, compared = now.compared);
    if (now.edit !== edit) try { sessionStorage.setItem(EDIT, edit = now.edit); } catch { /* a private window keeps nothing */ }
  }

  // A button in a line of text that stands for one of the form.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-press]");
    if (button) document.querySelector(button.dataset.press)?.click();
  });

  // "Import" in the queue opens the same dialogue.
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-open-file]")) document.querySelector("#opener-box input[type=file]")?.click();
  });

  // The browser tells once, when the queue has run empty and the page is not looked at.
  const NOTIFY = "studio.notify";
  const wanted = () => { try { return localStorage.getItem(NOTIFY) === "1"; } catch { return false; } };
  let before = null;
  let refused = false;
  let batch = null;  // what was finished when the queue was last empty
  document.addEventListener("click", async (event) => {
    if (!event.target.closest("[data-notify]")) return;
    const asked = !wanted(), on = asked && "Notification" in window && (await Notification.requestPermission()) === "granted";
    refused = asked && !on;
    try { localStorage.setItem(NOTIFY, on ? "1" : "0"); } catch { /* a private window forgets */ }
    showNotify();
  });
  function showNotify() {
    const button = document.querySelector("#queue [data-notify]");
    if (!button) return;
    if (button.getAttribute("aria-pressed") !== String(wanted())) button.setAttribute("aria-pressed", String(wanted()));
    const words = !refused ? "Tell me when done" : "Notification" in window ? "The browser does not allow it: allow notifications in its settings for this page" : "This browser tells nothing on a page without https";
    if (button.textContent !== words) button.textContent = words;
  }
  function notify() {
    const badge = document.querySelector("#queue .badge");
    if (!badge) return;
    const now = { open: Number(badge.dataset.open), done: Number(badge.dataset.done), failed: Number(badge.dataset.failed), ended: Math.max(Number(badge.dataset.ended), before ? before.ended : 0) };
    if (before && before.open === now.open && before.failed === now.failed && before.done === now.done && before.ended === now.ended) return;
    const ended = before && now.open === 0 && (before.open > 0 || now.ended > before.ended);  // a short request may come and go between two looks; what comes back with Undo is older
    if (!batch || now.done < batch.done || now.failed < batch.failed) batch = { done: Math.min(now.done, batch ? batch.done : now.done), failed: Math.min(now.failed, batch ? batch.failed : now.failed) };
    const done = now.done - batch.done, failed = now.failed - batch.failed;
    if (ended && wanted() && document.hidden) {
      try {
        new Notification("The queue is done", { body: [done && `${done} ${done === 1 ? "video" : "videos"}`, failed && `${failed} failed`].filter(Boolean).join(", "), tag: "mira-studio" });
      } catch { /* Chrome on Android lets only service workers tell */ }
    }
    if (now.open === 0) batch = now;
    before = now;
  }

  // A menu stays open while its pane is drawn again, and closes at a click elsewhere, at a choice and at Escape.
  let menu = null;
  function showMenu() {
    const found = menu && document.querySelector(`details[data-menu="${menu}"]`);
    if (found && !found.open) found.open = true;
  }
  const closeMenu = () => { menu = null; document.querySelectorAll("details[data-menu][open]").forEach((element) => { element.open = false; }); };
  document.addEventListener("click", (event) => {
    const summary = event.target.closest("details[data-menu] > summary");
    if (!summary) return event.target.closest("[data-notify]") ? null : closeMenu();
    const opening = !summary.parentElement.open;
    closeMenu();
    event.preventDefault();
    if (opening) { menu = summary.parentElement.dataset.menu; showMenu(); }
  });
  const CLOSED_BY_ESCAPE = [".tour [data-tour=end]", ".toast [data-action=dismiss]", "#viewer [data-action=wall-close]"];
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (menu) closeMenu();
    else if (!typing(event.target)) CLOSED_BY_ESCAPE.map((closer) => document.querySelector(closer)).find((button) => button?.offsetParent)?.click();
  });

  // An export starts its download by itself.
  function download() {
    const link = document.querySelector("#toast a[data-now]");
    if (!link) return;
    link.removeAttribute("data-now");
    link.click();
  }

  // Text for the clipboard; a page without one (plain http from afar) selects it in a box instead.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      const box = Object.assign(document.createElement("textarea"), { value: button.dataset.copy, className: "copy-box", rows: 8 });
      box.setAttribute("aria-label", "Text to copy");
      button.closest(".panel-head").after(box);
      box.select();
    }
  });

  // A waiting request is dragged before or after another one: to the side of it that the pointer is on.
  let dragged = null;
  const row = (event) => event.target.closest?.(".job[draggable]");
  const below = (event, target) => { const box = target.getBoundingClientRect(); return event.clientY > box.top + box.height / 2; };
  const mark = (target, after) => {
    document.querySelectorAll(".job:is(.over, .over-after)").forEach((job) => job.classList.remove("over", "over-after"));
    target?.classList.add(after ? "over-after" : "over");
  };
  document.addEventListener("dragstart", (event) => {
    dragged = row(event)?.dataset.job || null;
    if (dragged) event.dataTransfer.effectAllowed = "move";
  });
  document.addEventListener("dragover", (event) => {
    const target = dragged && row(event);
    if (!target || target.dataset.job === dragged) return;
    event.preventDefault();
    mark(target, below(event, target));
  });
  document.addEventListener("drop", (event) => {
    const target = dragged && row(event);
    if (!target || target.dataset.job === dragged) return;
    event.preventDefault();
    const others = [...document.querySelectorAll(".job[draggable]")].map((job) => job.dataset.job).filter((id) => id !== dragged);
    const place = others.indexOf(target.dataset.job) + (below(event, target) ? 1 : 0);
    const hidden = document.querySelector("#queue [data-action=more-requests]");  // then the last row is not the last request
    send("place", `${dragged}>${others[place] || (hidden ? target.dataset.job : "last")}`);
  });
  document.addEventListener("dragend", () => { dragged = null; mark(null); });

  // Keys: Ctrl+Enter generates; space and arrows work the video unless someone types.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const button = document.querySelector("#generate");
      if (!button?.offsetParent) return;  // another tab is open
      event.preventDefault();
      button.click();
      return;
    }
    const focused = document.activeElement;
    const video = document.querySelector("#viewer video");
    if (!video || !video.offsetParent || event.ctrlKey || event.altKey || event.metaKey || typing(focused)) return;
    if (event.key === " " && (focused === document.body || focused === video)) {
      event.preventDefault();
      if (video.paused) video.play(); else video.pause();
    } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && !focused?.closest("[role=tablist], [role=listbox]")) {
      event.preventDefault();
      step(video, event.key === "ArrowRight" ? 1 : -1);
    }
  });

  // The viewer's transport: steps by frames; speed and loop, which the next video has too.
  const playback = { speed: "1", loop: true };
  const calm = matchMedia("(prefers-reduced-motion: reduce)");  // then nothing plays until it is asked to
  const viewed = () => document.querySelector("#viewer .stage video");
  function step(video, frames) {
    video.pause();
    video.currentTime = (video.currentTime + frames / Number(video.dataset.fps || 6) + video.duration) % video.duration;
  }
  function applyPlayback() {
    const video = viewed(), speed = document.querySelector("#viewer [data-speed]"), loop = document.querySelector("#viewer [data-loop]");
    if (!video || !speed || video.dataset.playback === JSON.stringify(playback)) return;
    video.dataset.playback = JSON.stringify(playback);
    video.playbackRate = Number(speed.value = playback.speed);
    video.loop = loop.checked = playback.loop;
    if (calm.matches && video.autoplay) {
      video.autoplay = false;
      video.pause();
    }
    if (playback.loop && video.ended) video.play().catch(() => {});
  }
  document.addEventListener("click", (event) => {
    const frames = event.target.closest("#viewer [data-frames]")?.dataset.frames;
    if (frames && viewed()) step(viewed(), Number(frames));
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("#viewer [data-speed]")) playback.speed = event.target.value;
    else if (event.target.matches("#viewer [data-loop]")) playback.loop = event.target.checked;
    else return;
    applyPlayback();
  });

  // On a phone the queue is one line until it is opened.
  function foldQueue() {
    const fold = document.querySelector("#queue [data-fold]");
    const open = document.documentElement.dataset.queue === "open";
    if (!fold || fold.getAttribute("aria-expanded") === String(open)) return;
    fold.setAttribute("aria-expanded", String(open));
    fold.textContent = open ? "Hide" : "Show";
  }
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#queue [data-fold]")) return;
    const root = document.documentElement;
    if (root.dataset.queue === "open") delete root.dataset.queue; else root.dataset.queue = "open";
    foldQueue();
  });

  // Pointing at a card or a sample, or reaching it by Tab, plays it.
  const play = (event, on) => {
    const card = event.target.closest?.(".card, .playable");
    const video = card?.querySelector("video");
    if (!video || (event.relatedTarget && card.contains(event.relatedTarget))) return;
    if (on) video.play().catch(() => {});
    else { video.pause(); video.currentTime = 0; }
  };
  document.addEventListener("mouseover", (event) => play(event, true));
  document.addEventListener("mouseout", (event) => play(event, false));
  document.addEventListener("focusin", (event) => play(event, true));
  document.addEventListener("focusout", (event) => play(event, false));

  // A new preview is drawn over the last one, and one whose file is gone (the video is done) is not shown broken.
  let preview = null;
  const isPreview = (element) => element instanceof HTMLImageElement && element.closest(".stage.live");
  document.addEventListener("load", (event) => { if (isPreview(event.target)) preview = event.target.src; }, true);
  document.addEventListener("error", (event) => { if (isPreview(event.target)) event.target.style.visibility = "hidden"; }, true);
  function underlay() {
    const image = document.querySelector(".stage.live img");
    if (!image) preview = null;
    else if (preview && !image.complete && !image.style.backgroundImage) image.style.background = `center / contain no-repeat url("${preview}")`;
  }

  // A grid's cells get what #cells says of them, each by itself: the videos that are there play on.
  function fillCells() {
    const source = document.querySelector("#cells [data-cells]");
    const wall = document.querySelector("#viewer .wall");
    if (!source || !wall) return;
    const text = source.dataset.cells;
    if (wall.dataset.filled === text) return;
    wall.dataset.filled = text;
    for (const [id, shown] of Object.entries(JSON.parse(text))) {
      const cell = wall.querySelector(`[data-cell="${id}"]`);
      const key = JSON.stringify(shown);
      if (!cell || cell.dataset.shown === key) continue;
      cell.dataset.shown = key;
      if (!shown.video) {
        const words = document.createElement("span");
        words.className = `cell-words ${shown.state}`;
        words.textContent = words.title = shown.words;
        cell.replaceChildren(words);
        continue;
      }
      const button = document.createElement("button");
      Object.assign(button.dataset, { action: "show", id });
      button.setAttribute("aria-label", `Show: ${cell.dataset.label}`);
      const video = document.createElement("video");
      Object.assign(video, { src: shown.video, poster: shown.poster, muted: true, loop: true, autoplay: !calm.matches, playsInline: true, preload: "auto" });
      button.append(video);
      cell.replaceChildren(button);
    }
  }
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-play-all]")) return;
    event.target.closest(".wall").querySelectorAll(".cell video").forEach((video) => { video.currentTime = 0; video.play().catch(() => {}); });
  });

  // The ticks of a wall are its own: those of another one, which may get its elements, begin empty.
  let wallShown = null;
  function clearWallTicks() {
    const wall = document.querySelector("#viewer .wall [data-action=compare-wall]")?.dataset.id || null;
    if (wall !== wallShown) document.querySelectorAll("#viewer [data-pick]").forEach((box) => { box.checked = false; });
    wallShown = wall;
  }

  // A pane that is drawn again gives the focus back to the button that had it: its element may be gone, or stand for another row now.
  let last = null;
  const remember = (button) => { last = button ? { button, action: button.dataset.action, id: button.dataset.id, pane: button.closest("[id]") } : null; };
  document.addEventListener("focusin", (event) => remember(event.target.closest?.("[data-action]")));
  function keepFocus() {
    const active = document.activeElement, other = last && active === last.button && (active.dataset.id !== last.id || last.id && active.dataset.action !== last.action);
    if (!last || !other && active !== document.body) return;
    const buttons = [...last.pane.querySelectorAll("[data-action]"), ...document.querySelectorAll("[data-action]")].filter((button) => button.dataset.id === last.id && button.offsetParent);
    const same = buttons.find((button) => button.dataset.action === last.action) || (last.id && last.pane.contains(buttons[0]) && buttons[0]);
    if (same) { same.focus({ preventScroll: true }); remember(same); }
    else if (other && !/^(cancel|delete)/.test(active.dataset.action)) remember(active);
    else { if (other) active.blur(); last = null; }  // the next press would end another one
  }
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest("[data-action]")) last = null;
  });
  new MutationObserver(() => {
    underlay();
    fillCells();
    applyPlayback();
    foldQueue();
    showPicked();
    showMenu();
    showNotify();
    notify();
    download();
    clearWallTicks();
    keepLeft();
    keepFocus();
  }).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["data-id", "data-action", "data-compared", "data-edit"] });

  // The first visit: three steps that point at the page and block nothing.
  const TOUR = "studio.tour";
  const STEPS = [
    ["#prompt", "Say what the video shows", "A subject, what it does, and where. The examples beside it work with the model at hand."],
    ["#generate", "Press Generate", "Or Ctrl+Enter. The line below says what will be made, and from your second video on about how long it takes."],
    ["#queue", "Watch it being made", "Requests wait here and survive a restart. The finished video comes up in the middle and stays in the Gallery."],
  ];
  function tour(step) {
    document.querySelectorAll(".tour-target").forEach((element) => element.classList.remove("tour-target"));
    document.querySelector(".tour")?.remove();
    const end = () => { try { localStorage.setItem(TOUR, "done"); } catch { /* it comes again */ } tour(STEPS.length); };
    if (step >= STEPS.length) return;
    const [target, title, text] = STEPS[step];
    document.querySelector(target)?.classList.add("tour-target");
    const card = document.createElement("aside");
    card.className = "tour";
    card.setAttribute("aria-label", "First steps");
    card.innerHTML = `<p class="note">${step + 1} of ${STEPS.length}</p><h2></h2><p></p><div class="caption-buttons"><button class="small strong" data-tour="next"></button><button class="quiet" data-tour="end">Skip</button></div>`;
    card.querySelector("h2").textContent = title;
    card.querySelector("p:not(.note)").textContent = text;
    const last = step === STEPS.length - 1;
    card.querySelector("[data-tour=next]").textContent = last ? "Start" : "Next";
    card.querySelector("[data-tour=next]").addEventListener("click", () => (last ? end() : tour(step + 1)));
    card.querySelector("[data-tour=end]").addEventListener("click", end);
    document.body.append(card);
  }
  const seen = () => { try { return localStorage.getItem(TOUR) === "done"; } catch { return true; } };
  const ready = setInterval(() => {
    if (!document.querySelector("#queue h2")) return;
    clearInterval(ready);
    if (!seen() && document.querySelector("#viewer .welcome")) tour(0);
  }, 500);
  document.addEventListener("click", (event) => {
    if (event.target.closest("#generate, .example") && document.querySelector(".tour")) { try { localStorage.setItem(TOUR, "done"); } catch { /* it comes again */ } tour(STEPS.length); }
  });
})();
