"use strict";
// Pages work without this. With it they stay fresh: whenever there is news, or every few seconds, the page is fetched again
// and its parts marked data-live are put in place of the old ones. Logs come as they are written.

const main = document.getElementById("main");
const offline = document.getElementById("offline");
const log = document.getElementById("log");
const SOONEST_MS = 700;
const MOST_LOG = 400000;
const ESCAPES = /\x1b(?:\[[0-?]*[ -\/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f]/g;

// What the site last sent for each part: what a reader did to it since, such as opening something, is no news.
const sent = new WeakMap();

let fetching = false;
let wanted = false;
let source = null;
let isOver = false;
let timer = 0;

function keepPlace(region) {
  const open = [...region.querySelectorAll("details[open][id]")].map((each) => each.id);
  const focused = region.contains(document.activeElement) ? document.activeElement : null;
  const mark = focused && { id: focused.id, tag: focused.tagName, href: focused.getAttribute("href"), label: focused.getAttribute("aria-label") };
  const scrolls = [...region.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  return () => {
    for (const id of open) {
      const details = document.getElementById(id);
      if (details) details.open = true;
    }
    region.querySelectorAll(".scroll").forEach((each, place) => { each.scrollLeft = scrolls[place] || 0; });
    if (!mark) return;
    const same = (each) => (mark.id ? each.id === mark.id : each.getAttribute("href") === mark.href && each.getAttribute("aria-label") === mark.label);
    const again = [...region.querySelectorAll(mark.tag)].find(same);
    if (again) again.focus({ preventScroll: true });
  };
}

function isSelected(region) {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && selection.containsNode(region, true);
}

function swap(fresh) {
  document.title = fresh.title;
  for (const region of document.querySelectorAll("[data-live][id]")) {
    const next = fresh.getElementById(region.id);
    if (!next || sent.get(region) === next.innerHTML || isSelected(region)) continue;
    sent.set(region, next.innerHTML);
    const back = keepPlace(region);
    region.replaceChildren(...next.childNodes);
    back();
  }
  if (log && fresh.getElementById("log")) log.dataset.empty = fresh.getElementById("log").dataset.empty;
  const poll = fresh.getElementById("main")?.dataset.poll;
  if (poll) main.dataset.poll = poll; else delete main.dataset.poll;
}

async function refresh() {
  if (fetching) { wanted = true; return; }
  fetching = true;
  wanted = false;
  const started = performance.now();
  let works = false;
  try {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (response.redirected) { location.reload(); return; }
    if (response.ok) {
      swap(new DOMParser().parseFromString(await response.text(), "text/html"));
      works = true;
    }
  } catch (error) {
    works = false;
  }
  offline.hidden = works;
  const pause = Math.max(SOONEST_MS, 8 * (performance.now() - started));
  setTimeout(() => {
    fetching = false;
    if (wanted) refresh(); else pollLater();
  }, pause);
}

function pollLater() {
  clearTimeout(timer);
  const seconds = offline.hidden ? Number(main.dataset.poll || 0) : 3;
  if (seconds && !document.hidden) timer = setTimeout(refresh, 1000 * seconds);
}

function showLog(text, anew) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  if (anew) log.textContent = "";
  log.append(text.replace(/\r\n/g, "\n").replace(ESCAPES, "").replace(CONTROLS, ""));
  if (log.textContent.length > MOST_LOG) log.textContent = log.textContent.slice(-MOST_LOG / 2);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function follow() {
  if (source || isOver || !main.dataset.events || document.hidden) return;
  let anew = true; // the stream begins at the log's beginning, whatever is on the page already
  let task = null;
  source = new EventSource(main.dataset.events);
  source.addEventListener("open", () => { anew = true; refresh(); });
  source.addEventListener("error", () => { offline.hidden = source.readyState !== EventSource.CONNECTING; });
  source.addEventListener("batch", (event) => {
    if (JSON.parse(event.data).ended_at !== null) end();
    refresh();
  });
  source.addEventListener("state", refresh);
  source.addEventListener("log", (event) => {
    const piece = JSON.parse(event.data);
    showLog(piece.text, anew || piece.task !== task);
    anew = false;
    task = piece.task;
  });
  source.addEventListener("end", () => { end(); refresh(); });
}

function end() {
  isOver = true;
  if (source) source.close();
  source = null;
}

function addCopyButtons() {
  for (const pre of document.querySelectorAll("pre.copy")) {
    const frame = document.createElement("div");
    const button = document.createElement("button");
    frame.className = "copy-frame";
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${pre.getAttribute("aria-label")}`);
    pre.replaceWith(frame);
    frame.append(pre, button);
    button.addEventListener("click", async () => {
      if (navigator.clipboard) {
        await navigator.clipboard.writeText(pre.textContent);
      } else {
        document.getSelection().selectAllChildren(pre);
        document.execCommand("copy"); // pages that did not come by HTTPS have no other way
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  } else if (main.dataset.events || main.dataset.poll) {
    if (!isOver) follow();
    refresh();
  }
});

for (const region of document.querySelectorAll("[data-live][id]")) sent.set(region, region.innerHTML);
addCopyButtons();
if (log) log.scrollTop = log.scrollHeight;
follow();
pollLater();
