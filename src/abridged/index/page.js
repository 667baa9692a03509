"use strict";
const form = document.getElementById("form"), hits = document.getElementById("hits"), status = document.getElementById("status");
const boxes = [document.getElementById("text"), document.getElementById("then")];
let asked = 0;

function clock(seconds) {
  const minutes = Math.floor(seconds / 60), rest = (seconds % 60).toFixed(1).padStart(4, "0");
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

function line(words, kind) {
  const found = document.createElement("p");
  found.textContent = words;
  found.className = kind || "";
  return found;
}

function show(hit, number) {
  const item = document.createElement("li"), moment = "start" in hit;
  const lines = hit.line === hit.last_line ? `line ${hit.line}` : `lines ${hit.line} – ${hit.last_line}`;
  const place = moment ? `${clock(hit.start)} – ${clock(hit.end)}` : hit.line === null ? "changed since it was indexed" : lines;
  const when = line(`${place}, ${hit.score.toFixed(3)}`, "when");
  item.tabIndex = 0;
  item.setAttribute("aria-label", `Hit ${number + 1}: ${hit.path}, ${when.textContent}${hit.text ? `: ${hit.text}` : ""}`);
  if (moment) item.append(clip(hit, when));
  item.append(line(hit.path), when);
  if (hit.text) item.append(line(hit.text, "passage"));
  return item;
}

function clip(hit, when) {
  const video = document.createElement("video");
  Object.assign(video, { src: `video/${hit.content}#t=${hit.start},${hit.end}`, preload: "metadata", controls: true, muted: true, playsInline: true, tabIndex: -1 });
  video.setAttribute("aria-label", `${hit.path}, ${when.textContent}`);
  video.addEventListener("play", () => { if (video.currentTime < hit.start - .1 || video.currentTime >= hit.end - .1) video.currentTime = hit.start; });
  video.addEventListener("timeupdate", () => { if (!video.paused && video.currentTime >= hit.end) video.pause(); });
  video.addEventListener("error", () => { when.textContent += " (this browser cannot play such a file)"; });
  return video;
}

async function about() {
  const { reads } = await (await fetch("about")).json();
  if (reads.includes("videos")) return;
  document.getElementById("next").hidden = true;
  boxes[0].placeholder = "how do I reset it";
  status.textContent = "Type and press Enter. Keys: / to the box, ↓ and ↑ from hit to hit.";
}

async function search() {
  const mine = ++asked, words = new URLSearchParams(boxes.map((box) => ["text", box.value]).filter(([, value]) => value.trim()));
  if (!words.size) return;
  status.textContent = "Searching …";
  try {
    const answer = await (await fetch(`search?${words}`)).json();
    if (mine !== asked) return;
    if (answer.error) throw new Error(answer.error);
    hits.replaceChildren(...answer.hits.map(show));
    status.textContent = answer.hits.length ? `${answer.hits.length} hits in ${answer.seconds} s` : "Nothing is found.";
  } catch (error) {
    if (mine === asked) status.textContent = `It did not work: ${error.message}`;
  }
}

form.addEventListener("submit", (event) => { event.preventDefault(); search(); });

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const here = document.activeElement, typing = boxes.includes(here), items = [...hits.children], place = items.indexOf(here);
  if (event.key === "/" && !typing) { event.preventDefault(); boxes[0].focus(); boxes[0].select(); }
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = place + (event.key === "ArrowDown" ? 1 : -1);
    if (!items.length || (place < 0 && !typing && here !== document.body)) return;
    event.preventDefault();
    if (next < 0) boxes[0].focus(); else items[Math.min(next, items.length - 1)].focus();
  } else if (place >= 0 && (event.key === " " || event.key === "Enter")) {
    const video = here.querySelector("video");
    if (!video) return;
    event.preventDefault();
    if (video.paused) video.play(); else video.pause();
  }
});

about();
