// The page: who, how, and the picture that follows.
//
// From top to bottom: requests, the figure whose joints are dragged, the drawing, people, the result, recording, start.
"use strict";

const $ = (id) => document.getElementById(id);
const page = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");
let network;

// isOfResult: whether the next picture that comes makes it obsolete.
function say(text, isError = false, isOfResult = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
  $("message").classList.toggle("of-result", isOfResult);
}

// ------------------------------------------------------------------------------------------------ requests

// An answer of the server. Throws an Error with the server's line and its status.
async function ask(url, body, type = "application/json") {
  let response;
  try {
    response = await fetch(url, body === undefined ? {} : {method: "POST", body, headers: {"Content-Type": type}});
  } catch (error) {
    throw new Error("the server cannot be reached");
  }
  if (!response.ok) {
    throw Object.assign(new Error((await response.text()).trim()), {status: response.status});
  }
  return response;
}

async function askJson(url, value) {
  return (await ask(url, value === undefined ? undefined : JSON.stringify(value))).json();
}

// Runs something that may fail, and says so where it does.
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say(error.message, true);
  }
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ------------------------------------------------------------------------------------------------ figures

const LIMBS = ["ankle knee", "knee hip", "hip shoulder", "shoulder elbow", "elbow wrist"].map((limb) => limb.split(" "));
const TORSO = ["lhip", "lshoulder", "rshoulder", "rhip"];
const PARENT = {ankle: "knee", knee: "hip", elbow: "shoulder", wrist: "elbow"};
const COLOURS = {r: "#ff5f57", l: "#2fbf5b", c: "#b9b9c4", torso: "#3f7bff"};
const SIDES = {r: "right", l: "left", c: ""};
const STEP = 0.01;  // of the picture, for an arrow key
const HISTORY = 100;

const readable = (name) => `${SIDES[name[0]]} ${name.slice(1)}`.trim();
const inside = (value) => Math.min(0.999, Math.max(0, value));
const isThere = (point) => point[0] >= 0 && point[1] >= 0;
const copyOf = (joints) => joints.map((point) => point.slice());

function svgElement(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

// Draws a stick figure into an SVG of this width and height; returns where a joint is.
function drawFigure(svg, joints, width, height) {
  const at = (name) => {
    const point = joints[network.joints.indexOf(name)];
    return isThere(point) ? [point[0] * width, point[1] * height] : null;
  };
  const line = (a, b, colour) => {
    if (a && b) svgElement("path", {class: "limb", stroke: colour, d: `M${a}L${b}`}, svg);
  };
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const torso = TORSO.map(at);
  if (torso.every(Boolean)) {
    svgElement("polygon", {class: "torso", fill: COLOURS.torso, "fill-opacity": 0.55, points: torso.join(" ")}, svg);
  }
  for (const side of ["r", "l"]) {
    for (const [a, b] of LIMBS) line(at(side + a), at(side + b), COLOURS[side]);
  }
  const [left, right, nose] = ["lshoulder", "rshoulder", "cnose"].map(at);
  if (left && right) line([(left[0] + right[0]) / 2, (left[1] + right[1]) / 2], nose, COLOURS.c);
  line(nose, at("reye"), COLOURS.r);
  line(nose, at("leye"), COLOURS.l);
  return at;
}

// Width and height of an SVG with this aspect, whose joints are round and of the same size everywhere.
const figureSize = (aspect) => [1000 * Math.min(1, aspect), 1000 / Math.max(1, aspect)];

// A stick figure in an SVG whose joints are dragged, or moved by keys. changed(joints) is called after each change.
class Figure {
  // missing: where joints that are not there are listed. undo, hide: buttons.
  constructor({svg, missing, undo, hide, aspect, changed}) {
    Object.assign(this, {svg, missing, undoButton: undo, hideButton: hide, aspect, changed, joints: null, history: []});
    undo.addEventListener("click", () => this.undo());
    hide.addEventListener("click", () => this.hide(this.selected));
    svg.addEventListener("focusin", (event) => this.select(event.target.dataset.joint));
    svg.addEventListener("pointerdown", (event) => this.grab(event));
    svg.addEventListener("pointermove", (event) => this.drag(event));
    for (const type of ["pointerup", "pointercancel"]) svg.addEventListener(type, (event) => this.release(event));
    svg.addEventListener("keydown", (event) => this.key(event));
  }

  // Shows joints, without calling `changed`, and forgets what was before.
  show(joints, aspect = this.aspect) {
    Object.assign(this, {joints: copyOf(joints), aspect, history: [], held: null});
    this.select(null);
    this.draw();
  }

  // Changes the joints in a way that can be undone.
  change(joints) {
    this.remember();
    this.joints = copyOf(joints);
    this.update();
  }

  remember() {
    this.history.push(copyOf(this.joints));
    this.history.splice(0, this.history.length - HISTORY);
  }

  undo() {
    if (!this.history.length) return;
    this.joints = this.history.pop();
    this.update();
  }

  update() {
    this.draw();
    this.changed(this.joints);
  }

  draw() {
    const focused = this.svg.contains(document.activeElement) ? document.activeElement.dataset.joint : null;
    const [width, height] = figureSize(this.aspect);
    const grip = Math.max(45, 14 * width / (this.svg.clientWidth || width));  // at least 28 pixels across, for fingers
    this.svg.replaceChildren();
    const at = drawFigure(this.svg, this.joints, width, height);
    const names = network.joints.filter(at);
    const place = (name) => ({cx: at(name)[0], cy: at(name)[1], "data-joint": name});
    for (const name of names) {  // below all dots, so that each dot can be grabbed where it is seen
      svgElement("circle", {...place(name), class: "grip", r: name.endsWith("eye") ? grip / 2 : grip}, this.svg);
    }
    for (const name of names) {
      const [x, y] = this.joints[network.joints.indexOf(name)].map((value) => Math.round(100 * value));
      svgElement("circle", {...place(name), class: "joint", r: name.endsWith("eye") ? 12 : 18, stroke: COLOURS[name[0]],
        tabindex: 0, role: "button", "aria-label": `${readable(name)}, ${x} % from the left, ${y} % from the top`}, this.svg);
    }
    if (focused) this.focus(focused);
    this.undoButton.disabled = !this.history.length;
    this.listMissing();
  }

  focus(name) {
    this.svg.querySelector(`.joint[data-joint="${name}"]`)?.focus();
  }

  select(name) {
    this.selected = name;
    this.hideButton.disabled = !name || TORSO.includes(name);  // the network needs hips and shoulders
  }

  hide(name) {
    const joints = copyOf(this.joints);
    joints[network.joints.indexOf(name)] = [-1, -1];
    this.select(null);
    this.change(joints);
    this.svg.querySelector(".joint").focus();
  }

  listMissing() {
    const names = network.joints.filter((name, i) => !isThere(this.joints[i]));
    this.missing.replaceChildren(...(names.length ? ["Not seen:"] : []));
    for (const name of names) {
      const button = document.createElement("button");
      button.textContent = readable(name);
      button.title = "Put it back";
      button.addEventListener("click", () => this.putBack(name));
      this.missing.append(button);
    }
  }

  // Puts a missing joint near the one that it hangs on.
  putBack(name) {
    const joints = copyOf(this.joints);
    const parent = PARENT[name.slice(1)] ? name[0] + PARENT[name.slice(1)] : "cnose";
    const hook = joints[network.joints.indexOf(parent)];
    const i = network.joints.indexOf(name);
    joints[i] = network.standing[i].slice();
    if (isThere(hook) && name !== parent) {
      const away = name.endsWith("eye") ? [name[0] === "l" ? 0.02 : -0.02, -0.03] : [0, 0.12];
      joints[i] = [inside(hook[0] + away[0]), inside(hook[1] + away[1])];
    }
    this.change(joints);
    this.focus(name);
  }

  grab(event) {
    const name = event.target.dataset?.joint;
    if (!name || event.button || this.held) return;
    event.preventDefault();
    this.held = {name, pointer: event.pointerId, hasMoved: false};
    this.svg.setPointerCapture(event.pointerId);
    this.focus(name);
  }

  drag(event) {
    if (this.held?.pointer !== event.pointerId) return;
    if (!this.held.hasMoved) this.remember();
    this.held.hasMoved = true;
    const box = this.svg.getBoundingClientRect();
    this.place(this.held.name, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  release(event) {
    if (this.held?.pointer === event.pointerId) this.held = null;
  }

  place(name, x, y) {
    this.joints[network.joints.indexOf(name)] = [inside(x), inside(y)];
    this.update();
  }

  key(event) {
    const name = event.target.dataset?.joint;
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      this.undo();
    } else if (name && moves[event.key]) {
      const [x, y] = this.joints[network.joints.indexOf(name)];
      const step = event.shiftKey ? 5 * STEP : STEP;
      if (!event.repeat) this.remember();  // a key that is held down is undone at once
      this.place(name, x + step * moves[event.key][0], y + step * moves[event.key][1]);
    } else if (name && (event.key === "Delete" || event.key === "Backspace") && !TORSO.includes(name)) {
      this.hide(name);
    } else {
      return;
    }
    event.preventDefault();
  }
}

// Joints as in a mirror: right and left change places.
function mirrored(joints) {
  return network.joints.map((name) => {
    const other = {r: "l", l: "r", c: "c"}[name[0]] + name.slice(1);
    const [x, y] = joints[network.joints.indexOf(other)];
    return x < 0 || y < 0 ? [-1, -1] : [Math.max(0, 0.999 - x), y];
  });
}

// ------------------------------------------------------------------------------------------------ the drawing

// A canvas of the network's size on which lines are drawn and erased, white on black inside.
class Drawing {
  constructor({canvas, undo, clear, size, changed}) {
    Object.assign(this, {canvas, undoButton: undo, changed, history: [], pen: [size >> 1, size >> 1], isDown: false});
    canvas.width = canvas.height = size;
    this.context = canvas.getContext("2d", {willReadFrequently: true});
    this.fill();
    undo.addEventListener("click", () => this.undo());
    clear.addEventListener("click", () => { this.remember(); this.fill(); this.update(); });
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const type of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(type, (event) => { if (this.pointer === event.pointerId) this.pointer = null; });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { $("pen-ring").hidden = true; });
  }

  begin(event) {
    const isPensEraser = event.button === 5;
    if ((event.button && !isPensEraser) || this.pointer != null) return;
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.last = this.position(event);
    this.line(this.last, this.last, isPensEraser);
    this.update();
  }

  move(event) {
    if (this.pointer !== event.pointerId) return;
    for (const one of event.getCoalescedEvents?.() || [event]) {
      const next = this.position(one);
      this.line(this.last, next, Boolean(event.buttons & 32));
      this.last = next;
    }
    this.update();
  }

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width;
    return [(event.clientX - box.left) / box.width * scale, (event.clientY - box.top) / box.height * scale];
  }

  line(from, to, isPensEraser = false) {
    const isEraser = isPensEraser || document.querySelector("input[name=tool]:checked").value === "eraser";
    const width = Number($("pen-width").value);
    Object.assign(this.context, {lineCap: "round", lineWidth: isEraser ? 4 * width : width,
      strokeStyle: isEraser ? "#000" : network.draws_lines ? "#fff" : $("pen-colour").value});
    this.context.beginPath();
    this.context.moveTo(...from);
    this.context.lineTo(to[0] + 0.01, to[1]);
    this.context.stroke();
  }

  fill() {
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  // Begins anew with an image.
  take(image) {
    this.remember();
    this.context.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
    this.update();
  }

  remember() {
    this.history.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    this.history.splice(0, this.history.length - HISTORY);
  }

  undo() {
    if (!this.history.length) return;
    this.context.putImageData(this.history.pop(), 0, 0);
    this.update();
  }

  update() {
    this.undoButton.disabled = !this.history.length;
    this.encoded = null;
    this.changed();
  }

  // The drawing as a PNG in base64.
  png() {
    this.encoded = this.encoded || this.canvas.toDataURL("image/png").split(",")[1];
    return this.encoded;
  }

  key(event) {
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      this.undo();
    } else if (event.key === " ") {
      this.isDown = !this.isDown;
      if (this.isDown) {
        this.remember();
        this.line(this.pen, this.pen);
        this.update();
      }
      this.showPen();
    } else if (moves[event.key]) {
      const step = (event.shiftKey ? 5 : 1) * this.canvas.width / 64;
      const next = this.pen.map((value, i) => Math.min(this.canvas.width, Math.max(0, value + step * moves[event.key][i])));
      if (this.isDown) {
        this.line(this.pen, next);
        this.update();
      }
      this.pen = next;
      this.showPen();
    } else {
      return;
    }
    event.preventDefault();
  }

  // Where the keyboard's pen is.
  showPen() {
    const [x, y] = this.pen.map((value) => Math.round(100 * value / this.canvas.width));
    Object.assign($("pen-ring").style, {left: `${x}%`, top: `${y}%`});
    $("pen-ring").hidden = false;
    say(`pen ${this.isDown ? "down" : "up"}, ${x} % from the left, ${y} % from the top`);
  }
}

// ------------------------------------------------------------------------------------------------ people

// People by key: {key, name, image, aspect, joints, and person, a number, or photo, an id, with the joints of everybody}.
const people = new Map();
// Which of them, by key, gives what.
const slots = {who: null, blend: null};
const nounOf = () => network.needs_joints ? "person" : "image";
const titleOf = (slot) => {
  const title = slot === "who" ? nounOf() : slot;
  return title[0].toUpperCase() + title.slice(1);
};
let activeSlot = "who";
let shown = null;  // in the editor
let editor, figure, drawing;

function whoOf(key) {
  const person = people.get(key);
  const who = person.photo ? {photo: person.photo} : {person: person.person};
  if (network.needs_joints && (person.photo || person.isCorrected)) who.joints = person.joints;
  return who;
}

function addPerson(person, isFirst = false) {
  people.set(person.key, person);
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.setAttribute("aria-label", person.name);
  const image = document.createElement("img");
  Object.assign(image, {src: person.image, alt: "", loading: "lazy", draggable: false});
  button.append(image);
  person.overlay = svgElement("svg", {class: "small", "aria-hidden": true}, button);
  button.addEventListener("click", () => choose(person.key));
  item.append(button);
  person.item = item;
  if (isFirst) $("people").prepend(item); else $("people").append(item);
  drawOverlay(person);
}

function drawOverlay(person) {
  person.overlay.replaceChildren();
  if (person.joints) drawFigure(person.overlay, person.joints, ...figureSize(person.aspect));
}

// Gives somebody to the active slot, and shows them in the editor.
function choose(key) {
  slots[activeSlot] = key;
  $("invent").checked = false;
  showSlots();
  edit(key);
  request();
}

function edit(key) {
  shown = people.get(key);
  $("editor").hidden = false;
  $("editor-title").textContent = shown.joints ? `Joints of ${shown.name}` : shown.name;
  Object.assign($("editor-picture"), {src: shown.image, alt: shown.name});
  $("editor").querySelector(".frame").style.setProperty("--aspect", shown.aspect);
  $("other-person").hidden = !(shown.everybody?.length > 1);
  $("remove").hidden = !shown.photo;
  for (const id of ["editor-joints", "undo-joints", "hide-in-editor", "missing-in-editor"]) $(id).toggleAttribute("hidden", !shown.joints);
  $("take").textContent = network.draws_joints ? "Take this pose" : "Take its edges";
  $("take").hidden = network.draws_joints ? !shown.joints : shown.photo !== undefined;
  if (shown.joints) editor.show(shown.joints, shown.aspect);
}

function jointsCorrected(joints) {
  shown.joints = copyOf(joints);
  shown.isCorrected = true;
  if (shown.everybody) shown.everybody[shown.number] = shown.joints;
  drawOverlay(shown);
  request();
}

// Has somebody's pose, or a test image's edges, to start from.
async function takePose() {
  if (network.draws_joints) {
    figure.change(shown.photo ? await askJson("pose", {photo: shown.photo, joints: shown.joints}) : shown.joints);
    return;
  }
  const image = new Image();
  image.src = `people/${shown.person}.png`;
  await image.decode();
  drawing.take(image);
}

function nextPersonInPhoto() {
  shown.number = ((shown.number || 0) + 1) % shown.everybody.length;
  editor.show(shown.everybody[shown.number], shown.aspect);
  jointsCorrected(editor.joints);
}

// Takes a photo off the page.
function removePhoto() {
  shown.item.remove();
  people.delete(shown.key);
  for (const name of Object.keys(slots)) if (slots[name] === shown.key) slots[name] = null;
  shown = null;
  $("editor").hidden = true;
  showSlots();
  showDownload();
  request();
}

const photos = () => [...people.values()].filter((person) => person.photo);

// Sends the photos anew that the server has forgotten, after it was started again, say.
async function sendPhotosAgain() {
  for (const person of photos()) {
    person.photo = (await (await sendPhoto(person.file)).json()).photo;
    person.image = `photos/${person.photo}.jpg`;
  }
  request();
}

const sendPhoto = (file) => ask("photos", file, file.type || "application/octet-stream");

function showDownload() {
  $("download").hidden = !network.needs_joints || !photos().length;
}

async function showMore() {
  $("more").disabled = true;
  const start = [...people.values()].filter((person) => !person.photo).length;
  for (const {person, joints} of await askJson(`people/from/${start}`)) {
    addPerson({key: `person ${person}`, name: `${nounOf()} ${person}`, person, joints, image: `people/${person}.jpg`,
      aspect: network.aspect});
  }
  $("more").disabled = false;
  $("more").hidden = [...people.values()].filter((person) => !person.photo).length >= network.n_people;
}

async function addPhotos(files) {
  const lines = [];
  for (const file of files) {
    say(`reading ${file.name} ...`);
    try {
      if (file.size > network.max_bytes) throw new Error(`expected at most ${network.max_bytes / 1e6} MB`);
      const found = await (await sendPhoto(file)).json();
      const largest = found.people.map(torsoLength).reduce((best, length, i, all) => length > all[best] ? i : best, 0);
      addPerson({key: found.photo, name: file.name, file, photo: found.photo, image: `photos/${found.photo}.jpg`,
        aspect: found.width / found.height, everybody: found.people, number: largest,
        joints: network.needs_joints ? found.people[largest] : null}, true);
      choose(found.photo);
      if (found.note) lines.push(`${file.name}: ${found.note}`);
    } catch (error) {
      lines.push(`${file.name}: ${error.message}`);
    }
  }
  say(lines.join("; "), lines.length > 0);
  showDownload();
}

function torsoLength(joints) {
  const [lhip, lshoulder, rshoulder, rhip] = TORSO.map((name) => joints[network.joints.indexOf(name)]);
  return Math.hypot(lhip[0] + rhip[0] - lshoulder[0] - rshoulder[0], lhip[1] + rhip[1] - lshoulder[1] - rshoulder[1]);
}

async function downloadDataSet() {
  const send = () => ask("dataset", JSON.stringify({photos: photos().map(({photo, joints}) => ({photo, joints}))}));
  let answer;
  try {
    answer = await send();
  } catch (error) {
    if (error.status !== 410) throw error;
    await sendPhotosAgain();
    answer = await send();
  }
  download(await answer.blob(), "people.zip");
}

function showSlots() {
  $("slots").replaceChildren();
  for (const [name, key] of Object.entries(slots)) {
    const card = document.createElement("div");
    card.className = "slot";
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), {type: "radio", name: "slot", value: name,
      checked: name === activeSlot});
    radio.addEventListener("change", () => { activeSlot = name; });
    const picture = document.createElement(key ? "img" : "span");
    if (key) Object.assign(picture, {src: people.get(key).image, alt: people.get(key).name, draggable: false}); else picture.className = "none";
    label.append(radio, picture, titleOf(name));
    card.append(label);
    if (key && name !== "who") {
      const button = Object.assign(document.createElement("button"), {textContent: "×"});
      button.setAttribute("aria-label", `Remove ${titleOf(name)}`);
      button.addEventListener("click", () => {
        slots[name] = null;
        showSlots();
        document.querySelector(`.slot input[value=${name}]`).focus();
        request();
      });
      card.append(button);
    }
    $("slots").append(card);
  }
  $("share-label").hidden = !slots.blend;
}

// ------------------------------------------------------------------------------------------------ the result

let sample = 1;
let isWanted = false, isAsking = false;
let resultBlob = null;
const times = [];  // of the last requests, in ms

// Joints, or a drawing.
const shapeNow = () => network.draws_joints ? copyOf(figure.joints) : drawing.png();

// What the server is to render now.
function order() {
  const wanted = {page, shape: shapeNow()};
  if ($("invent").checked) return {...wanted, sample};
  const parts = {};
  for (const part of network.parts) {
    if (slots[part]) parts[part] = whoOf(slots[part]);
  }
  return {...wanted, who: whoOf(slots.who), blend: slots.blend && whoOf(slots.blend),
    share: Number($("share").value) / 100, parts};
}

const canRender = () => $("invent").checked || slots.who !== null;

// Has the picture made anew; what changes while one is made is in the next one.
async function request() {
  $("another").disabled = !$("invent").checked;
  isWanted = true;
  if (isAsking) return;
  isAsking = true;
  while (isWanted) {
    isWanted = false;
    if (canRender()) await showPicture();
  }
  isAsking = false;
}

async function showPicture() {
  const start = performance.now();
  try {
    const blob = await (await ask("render", JSON.stringify(order()))).blob();
    const url = URL.createObjectURL(blob), old = $("result").src;
    $("result").src = url;
    await $("result").decode();
    if (old) URL.revokeObjectURL(old);
    resultBlob = blob;
    noteTime(performance.now() - start);
    if ($("message").classList.contains("of-result")) say("");
  } catch (error) {
    if (error.status === 409) return;
    if (error.status === 410) await attempt(sendPhotosAgain);
    else say(error.message, true, true);
  }
}

function noteTime(time) {
  times.push(time);
  times.splice(0, times.length - 200);
  const sorted = [...times].sort((a, b) => a - b);
  const [median, slow] = [0.5, 0.95].map((share) => sorted[Math.floor(share * (sorted.length - 1))]);
  $("rate").textContent = `${median.toFixed(0)} ms a picture, ${(1000 / median).toFixed(0)} a second`;
  Object.assign($("rate").dataset, {median, slow, n: times.length});
}

// ------------------------------------------------------------------------------------------------ recording

const RECORDED_FPS = 25;
let frames = [], timer = null;

function toggleRecording() {
  if (timer === null) {
    if (!canRender()) {
      say("choose somebody first", true);
      return;
    }
    frames = [];
    timer = setInterval(recordFrame, 1000 / RECORDED_FPS);
  } else {
    clearInterval(timer);
    timer = null;
  }
  showRecording();
}

function recordFrame() {
  frames.push({shape: shapeNow(), share: Number($("share").value) / 100});
  $("recorded").textContent = `${(frames.length / RECORDED_FPS).toFixed(1)} s`;
  if (frames.length >= network.max_frames) toggleRecording();
}

function showRecording() {
  $("record").setAttribute("aria-pressed", timer !== null);
  $("gif").disabled = $("mp4").disabled = timer !== null || !frames.length;
}

async function saveAnimation(format) {
  say(`making a ${format.toUpperCase()} of ${frames.length} pictures ...`);
  const wanted = {...order(), frames, format, fps: RECORDED_FPS};
  download(await (await ask("animation", JSON.stringify(wanted))).blob(), `vunet.${format}`);
  say("");
}

// ------------------------------------------------------------------------------------------------ start

function setUpPose() {
  figure = new Figure({svg: $("pose"), missing: $("missing-in-pose"), undo: $("undo-pose"), hide: $("hide-in-pose"),
    aspect: network.aspect, changed: request});
  figure.show(network.standing);
  $("mirror").addEventListener("click", () => figure.change(mirrored(figure.joints)));
  $("stand").addEventListener("click", () => figure.change(network.standing));
}

function setUpDrawing() {
  $("pose-tools").hidden = true;
  $("drawing-tools").hidden = false;
  $("pen-colour-label").hidden = network.draws_lines;
  drawing = new Drawing({canvas: $("drawing"), undo: $("undo-drawing"), clear: $("clear"), size: network.size,
    changed: request});
}

function setUpPeople() {
  editor = new Figure({svg: $("editor-joints"), missing: $("missing-in-editor"), undo: $("undo-joints"), hide: $("hide-in-editor"),
    aspect: 1, changed: jointsCorrected});
  for (const part of network.parts) slots[part] = null;
  $("share").addEventListener("input", request);
  $("take").addEventListener("click", () => attempt(takePose));
  $("other-person").addEventListener("click", nextPersonInPhoto);
  $("remove").addEventListener("click", removePhoto);
  $("more").addEventListener("click", () => attempt(showMore));
  $("download").addEventListener("click", () => attempt(downloadDataSet));
  $("files").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    addPhotos(files);
  });
}

function setUpDropping() {
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", hasFiles(event));
  });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (hasFiles(event)) addPhotos([...event.dataTransfer.files]);
    else say("expected image files", true);
  });
}

function setUpResult() {
  $("save").addEventListener("click", () => {
    if (resultBlob) download(resultBlob, "vunet.png");
  });
  $("invent").addEventListener("change", request);
  $("another").addEventListener("click", () => { sample += 1; request(); });
  $("record").addEventListener("click", toggleRecording);
  for (const format of ["gif", "mp4"]) $(format).addEventListener("click", () => attempt(() => saveAnimation(format)));
}

async function start() {
  network = await askJson("network");
  document.documentElement.style.setProperty("--aspect", network.aspect);
  if (network.draws_joints) setUpPose(); else setUpDrawing();
  setUpPeople();
  setUpResult();
  if (network.sees_people) {
    setUpDropping();
  } else {
    $("who").hidden = true;
    $("invent").checked = true;
    $("invent").disabled = true;
  }
  showSlots();
  if (network.n_people) await showMore();
  const first = people.keys().next();
  if (network.sees_people && !first.done) choose(first.value);
  else if (network.sees_people) say("add a photo to begin");
  if (!network.draws_joints && shown) await takePose();
  request();
}

attempt(start);
