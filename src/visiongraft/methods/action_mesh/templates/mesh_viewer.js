"use strict";
const viewer = document.currentScript.closest(".mesh-viewer");
const part = (name) => viewer.querySelector(`[data-part=${name}]`);
const canvas = part("view");
const layout = JSON.parse(viewer.dataset.layout);
const fps = +viewer.dataset.fps;
const count = layout.vertices.length;
const oneTopology = layout.faces.length === 1 && layout.vertices.every((n) => n === layout.vertices[0]);
const degrees = Math.PI / 180;
const FIELD = 30 * degrees;  // of view, over the shorter side
const start = { yaw: +viewer.dataset.yaw, pitch: +viewer.dataset.pitch, zoom: 1 };
const view = { ...start };
let clock = +viewer.dataset.frame;
let playing = false;
let visible = true;
let tinted = layout.colors > 0;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
// meshes of their own are not blended
const shownFrame = () => (oneTopology ? Math.min(clock, count - 1) : Math.floor(clock));

// ---- the data: faces, positions of all frames, colours
const bytes = Uint8Array.from(atob(part("data").textContent), (character) => character.charCodeAt(0));
part("data").remove();
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const faces = new Uint32Array(bytes.buffer, 0, 3 * sum(layout.faces));
const positions = new Int16Array(bytes.buffer, faces.byteLength, 3 * sum(layout.vertices));
const colors = new Uint8Array(bytes.buffer, faces.byteLength + positions.byteLength, 3 * layout.colors);
const starts = (numbers) => numbers.map((_, k) => sum(numbers.slice(0, k)));
const vertexStarts = starts(layout.vertices);
const faceStarts = starts(layout.faces);
const topology = (k) => (oneTopology ? 0 : k);
const facesOf = (k) => faces.subarray(3 * faceStarts[topology(k)], 3 * (faceStarts[topology(k)] + layout.faces[topology(k)]));
const positionsOf = (k) => positions.subarray(3 * vertexStarts[k], 3 * (vertexStarts[k] + layout.vertices[k]));

// smooth normals, weighted by area, in 8 bits
function normalsOf(k) {
  const place = positionsOf(k), index = facesOf(k);
  const total = new Float32Array(place.length);
  for (let f = 0; f < index.length; f += 3) {
    const [a, b, c] = [3 * index[f], 3 * index[f + 1], 3 * index[f + 2]];
    const ux = place[b] - place[a], uy = place[b + 1] - place[a + 1], uz = place[b + 2] - place[a + 2];
    const vx = place[c] - place[a], vy = place[c + 1] - place[a + 1], vz = place[c + 2] - place[a + 2];
    const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
    for (const corner of [a, b, c]) { total[corner] += x; total[corner + 1] += y; total[corner + 2] += z; }
  }
  const normals = new Int8Array((4 * place.length) / 3);
  for (let i = 0, j = 0; i < total.length; i += 3, j += 4) {
    const length = Math.hypot(total[i], total[i + 1], total[i + 2]) || 1;
    for (let axis = 0; axis < 3; axis++) normals[j + axis] = Math.round((127 * total[i + axis]) / length);
  }
  return normals;
}

// ---- drawing
const gl = canvas.getContext("webgl2", { alpha: true, antialias: true, preserveDrawingBuffer: true });
const VERTEX = `#version 300 es
layout(location = 0) in vec3 here;  layout(location = 1) in vec3 there;
layout(location = 2) in vec3 hereNormal;  layout(location = 3) in vec3 thereNormal;
layout(location = 4) in vec3 color;
uniform mat4 toClip;  uniform float blend;
out vec3 normal;  out vec3 place;  out vec3 tint;
void main() {
  place = mix(here, there, blend);
  normal = mix(hereNormal, thereNormal, blend);
  tint = color;
  gl_Position = toClip * vec4(place, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 normal;  in vec3 place;  in vec3 tint;
uniform vec3 eye;  uniform bool flat_color;  uniform vec3 plain;
out vec4 color;
void main() {
  if (flat_color) { color = vec4(plain * 0.35, 0.35); return; }
  vec3 n = normalize(dot(normal, normal) > 1e-6 ? normal : cross(dFdx(place), dFdy(place)));
  vec3 toEye = normalize(eye - place);
  if (!gl_FrontFacing) n = -n;
  // a lamp over the viewer's shoulder, sky above, ground below
  vec3 side = normalize(cross(vec3(0.0, 1.0, 0.0), toEye) + vec3(1e-4));
  vec3 lamp = normalize(toEye + 0.6 * vec3(0.0, 1.0, 0.0) - 0.5 * side);
  float light = 0.34 + 0.14 * n.y + 0.62 * max(dot(n, lamp), 0.0);
  float shine = 0.16 * pow(max(dot(n, normalize(lamp + toEye)), 0.0), 40.0);
  vec3 lit = tint * light + shine;
  // the inside of an open mesh is darker
  color = vec4(pow(clamp(lit * (gl_FrontFacing ? 1.0 : 0.55), 0.0, 1.0), vec3(0.85)), 1.0);
}`;
const CLAY = [0.76, 0.75, 0.73];
let place;
let buffers;
let indexBuffers;
let colorBuffer;
let grid;

function compile(kind, text) {
  const shader = gl.createShader(kind);
  gl.shaderSource(shader, text);
  gl.compileShader(shader);
  return shader;
}
function filled(target, values) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(target, buffer);
  gl.bufferData(target, values, gl.STATIC_DRAW);
  return buffer;
}
function prepare() {
  const program = gl.createProgram();
  gl.attachShader(program, compile(gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, compile(gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) || "the shader does not link");
  gl.useProgram(program);
  place = Object.fromEntries(["toClip", "blend", "eye", "flat_color", "plain"].map((name) => [name, gl.getUniformLocation(program, name)]));
  gl.enable(gl.DEPTH_TEST);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  [buffers, indexBuffers] = [[], []];
  colorBuffer = layout.colors ? filled(gl.ARRAY_BUFFER, colors) : null;
  const lines = [];
  for (let i = -5; i <= 5; i++) lines.push(i / 5, 0, -1, i / 5, 0, 1, -1, 0, i / 5, 1, 0, i / 5);
  // in units of the half box about the middle, as the positions are
  const ground = (layout.low - layout.center[1]) / layout.half;
  grid = filled(gl.ARRAY_BUFFER, new Float32Array(lines.map((value, i) => (i % 3 === 1 ? ground : 1.1 * value))));
}
// a frame goes to the graphics memory when it is first shown
function uploaded(k) {
  if (!buffers[k]) {
    const padded = new Int16Array((4 * positionsOf(k).length) / 3);
    positionsOf(k).forEach((value, i) => { padded[4 * Math.floor(i / 3) + (i % 3)] = value; });
    buffers[k] = [filled(gl.ARRAY_BUFFER, padded), filled(gl.ARRAY_BUFFER, normalsOf(k))];
  }
  if (!indexBuffers[topology(k)]) indexBuffers[topology(k)] = filled(gl.ELEMENT_ARRAY_BUFFER, facesOf(k));
  return buffers[k];
}
function attribute(location, buffer, kind, size, stride, offset = 0) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(location);
  gl.vertexAttribPointer(location, size, kind, kind !== gl.FLOAT, stride, offset);
}

// column-major 4x4 matrices, in units of the mesh's half box about its middle
function camera(width, height) {
  const [yaw, pitch] = [view.yaw * degrees, view.pitch * degrees];
  const radius = layout.radius / layout.half;
  const distance = (radius / Math.sin(FIELD / 2)) * view.zoom;
  const back = [Math.sin(yaw) * Math.cos(pitch), Math.sin(pitch), Math.cos(yaw) * Math.cos(pitch)];
  const right = [Math.cos(yaw), 0, -Math.sin(yaw)];
  const up = [back[1] * right[2] - back[2] * right[1], back[2] * right[0] - back[0] * right[2], back[0] * right[1] - back[1] * right[0]];
  const focal = 1 / Math.tan(FIELD / 2);
  const [sx, sy] = [focal * Math.min(1, height / width), focal * Math.min(1, width / height)];
  const [near, far] = [Math.max(0.01, distance - 3 * radius), distance + 3 * radius];
  const [c, d] = [-(far + near) / (far - near), (-2 * far * near) / (far - near)];
  const matrix = [];
  for (let i = 0; i < 3; i++) matrix.push(sx * right[i], sy * up[i], c * back[i], -back[i]);
  matrix.push(0, 0, -c * distance + d, distance);
  return { matrix, eye: back.map((value) => value * distance) };
}
function draw() {
  const scale = devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
  if (!buffers || !width || !height || gl.isContextLost()) return;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  gl.viewport(0, 0, width, height);
  gl.clearColor(0, 0, 0, 0);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  const { matrix, eye } = camera(width, height);
  gl.uniformMatrix4fv(place.toClip, false, matrix);
  gl.uniform3fv(place.eye, eye);
  const frame = shownFrame();
  const here = Math.floor(frame);
  const there = oneTopology ? Math.min(here + 1, count - 1) : here;
  gl.uniform1f(place.blend, oneTopology ? frame - here : 0);
  gl.uniform1i(place.flat_color, 0);
  const [a, b] = [uploaded(here), uploaded(there)];
  attribute(0, a[0], gl.SHORT, 3, 8);
  attribute(1, b[0], gl.SHORT, 3, 8);
  attribute(2, a[1], gl.BYTE, 3, 4);
  attribute(3, b[1], gl.BYTE, 3, 4);
  if (tinted) attribute(4, colorBuffer, gl.UNSIGNED_BYTE, 3, 3, oneTopology ? 0 : 3 * vertexStarts[here]);
  else { gl.disableVertexAttribArray(4); gl.vertexAttrib3f(4, ...CLAY); }
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, indexBuffers[topology(here)]);
  gl.drawElements(gl.TRIANGLES, facesOf(here).length, gl.UNSIGNED_INT, 0);
  // the ground, for a sense of up
  const ink = getComputedStyle(part("state")).color.match(/[\d.]+/g).slice(0, 3).map((value) => value / 255);
  gl.uniform1i(place.flat_color, 1);
  gl.uniform3fv(place.plain, ink);
  for (const location of [2, 3, 4]) gl.disableVertexAttribArray(location);
  attribute(0, grid, gl.FLOAT, 3, 12);
  attribute(1, grid, gl.FLOAT, 3, 12);
  gl.drawArrays(gl.LINES, 0, 44);
  viewer.dataset.drawn = frame.toFixed(2);
}

// ---- time: the clock runs from 0 to the number of frames, so that the last frame is shown as long as the others
let requested = false;
let before = null;
function redraw() {
  const frame = shownFrame();
  part("state").value = count > 1 ? `frame ${Math.round(frame) + 1} of ${count}` : `${layout.faces[0].toLocaleString("en")} faces`;
  if (count > 1) part("scrub").value = frame;
  if (requested) return;
  requested = true;
  requestAnimationFrame((now) => {
    requested = false;
    if (playing && visible) {
      clock = (clock + (before === null ? 0 : ((now - before) / 1000) * fps)) % count;
      before = now;
    }
    draw();
    if (playing && visible) redraw();
  });
}
function setPlaying(on) {
  playing = on && count > 1;
  before = null;
  if (count > 1) part("play").textContent = playing ? "Pause" : "Play";
  redraw();
}
function show(time) {
  clock = clamp(time, 0, count - 1);
  setPlaying(false);
}

// ---- looking around
function look(yaw, pitch, zoom = view.zoom) {
  view.yaw = ((((yaw + 180) % 360) + 360) % 360) - 180;
  view.pitch = clamp(pitch, -90, 90);
  view.zoom = clamp(zoom, 0.2, 4);
  redraw();
}
const reset = () => look(start.yaw, start.pitch, start.zoom);
const zoomBy = (factor) => look(view.yaw, view.pitch, view.zoom * factor);

const pointers = new Map();
const spread = () => { const [a, b] = [...pointers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
canvas.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
  canvas.focus({ preventScroll: true });
});
canvas.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const apart = pointers.size === 2 ? spread() : 0;
  const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (apart) return zoomBy(apart / Math.max(1, spread()));
  // the mesh follows the pointer; across the whole view it turns half round
  const perPixel = 180 / Math.min(canvas.clientWidth, canvas.clientHeight);
  look(view.yaw - dx * perPixel, view.pitch + dy * perPixel);
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => pointers.delete(event.pointerId));
canvas.addEventListener("wheel", (event) => {
  // within a longer page the wheel scrolls until the viewer has been clicked
  if (viewer.dataset.embedded && document.activeElement !== canvas) return;
  event.preventDefault();
  zoomBy(Math.exp(event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 0.03 : 0.001)));
}, { passive: false });
const keys = {
  ArrowLeft: () => look(view.yaw - 5, view.pitch),
  ArrowRight: () => look(view.yaw + 5, view.pitch),
  ArrowUp: () => look(view.yaw, view.pitch + 5),
  ArrowDown: () => look(view.yaw, view.pitch - 5),
  "+": () => zoomBy(0.9),
  "=": () => zoomBy(0.9),
  "-": () => zoomBy(1 / 0.9),
  " ": () => setPlaying(!playing),
  ",": () => show(Math.ceil(shownFrame()) - 1),
  ".": () => show(Math.floor(shownFrame()) + 1),
  c: () => part("tint").click(),
  0: reset,
  Home: reset,
};
canvas.addEventListener("keydown", (event) => {
  if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key]();
});

// ---- buttons
part("reset").addEventListener("click", reset);
part("tint").hidden = !layout.colors;
part("tint").addEventListener("click", () => {
  tinted = !tinted && layout.colors > 0;
  part("tint").setAttribute("aria-pressed", tinted);
  redraw();
});
if (count > 1) {
  part("play").addEventListener("click", () => setPlaying(!playing));
  part("scrub").addEventListener("input", () => show(+part("scrub").value));
}
if (document.fullscreenEnabled) {
  part("full").hidden = false;
  part("full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : part("frame").requestFullscreen()));
}

// ---- the start
function refuse(reason) {
  viewer.dataset.failed = "";
  part("problem").textContent = reason;
  part("problem").hidden = false;
}
if (!gl) {
  refuse("This browser has no WebGL 2, which showing the mesh needs.");
} else {
  try {
    prepare();
    canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); buffers = null; });
    canvas.addEventListener("webglcontextrestored", () => { prepare(); redraw(); });
    new ResizeObserver(redraw).observe(canvas);
    new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; before = null; redraw(); }).observe(canvas);
    setPlaying("play" in viewer.dataset && !matchMedia("(prefers-reduced-motion: reduce)").matches);
  } catch (error) {
    refuse(`This browser does not let the viewer draw the mesh (${error.message}).`);
  }
}
