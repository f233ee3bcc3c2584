"use strict";
const viewer = document.currentScript.closest(".panorama-viewer");
const part = (name) => viewer.querySelector(`[data-part=${name}]`);
const canvas = part("view");
const source = part("source");
const isVideo = source instanceof HTMLVideoElement;
const degrees = Math.PI / 180;
const start = { yaw: +viewer.dataset.yaw, pitch: +viewer.dataset.pitch, fov: +viewer.dataset.fov };
const limits = { fov: [20, 130], pitch: [-90, 90] };
const view = { ...start };
const clamp = (value, [low, high]) => Math.min(high, Math.max(low, value));

// ---- drawing: every pixel of the canvas is a ray, looked up in the equirectangular picture
const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, preserveDrawingBuffer: true });
const VERTEX = `#version 300 es
void main() { gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0); }`;
const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D panorama;
uniform vec2 size;      // of the canvas in pixels
uniform float focal;    // in pixels
uniform vec2 turn;      // yaw, pitch in radians
uniform int samples;    // along each side of a pixel
out vec4 color;
const float PI = 3.141592653589793;
vec3 look(vec2 pixel) {
  // camera axes x right, y up, z forward; pitch, then yaw
  vec3 ray = vec3((pixel - size / 2.0) / focal, 1.0);
  vec2 p = vec2(cos(turn.y), sin(turn.y)), y = vec2(cos(turn.x), sin(turn.x));
  ray = vec3(ray.x, p.x * ray.y + p.y * ray.z, p.x * ray.z - p.y * ray.y);
  ray = vec3(y.x * ray.x + y.y * ray.z, ray.y, y.x * ray.z - y.y * ray.x);
  vec2 place = vec2(atan(ray.x, ray.z) / (2.0 * PI) + 0.5, 0.5 - atan(ray.y, length(ray.xz)) / PI);
  // the texture repeats in x, and has one level: a derivative across longitude 180 would draw a line there
  return textureLod(panorama, place, 0.0).rgb;
}
void main() {
  vec3 sum = vec3(0.0);
  for (int i = 0; i < samples; i++)
    for (int j = 0; j < samples; j++)
      sum += look(gl_FragCoord.xy - 0.5 + (vec2(i, j) + 0.5) / float(samples));
  color = vec4(sum / float(samples * samples), 1.0);
}`;

let place;
let textureWidth = 0;
let ready = false;

function compile(kind, text) {
  const shader = gl.createShader(kind);
  gl.shaderSource(shader, text);
  gl.compileShader(shader);
  return shader;
}
function prepare() {
  const program = gl.createProgram();
  gl.attachShader(program, compile(gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, compile(gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) || "the shader does not link");
  gl.useProgram(program);
  place = Object.fromEntries(["size", "focal", "turn", "samples"].map((name) => [name, gl.getUniformLocation(program, name)]));
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.REPEAT);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
}
function upload() {
  const [width, height] = isVideo ? [source.videoWidth, source.videoHeight] : [source.naturalWidth, source.naturalHeight];
  if (!width) return;
  const largest = gl.getParameter(gl.MAX_TEXTURE_SIZE);
  let picture = source;
  if (width > largest) {
    picture = document.createElement("canvas");
    [picture.width, picture.height] = [largest, Math.round((height * largest) / width)];
    picture.getContext("2d").drawImage(source, 0, 0, picture.width, picture.height);
  }
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, picture);
  textureWidth = Math.min(width, largest);
  ready = true;
}
// the field of view spans the longer side, so that a telephone held upright does not see a fish-eye
const focalLength = (width, height) => Math.max(width, height) / 2 / Math.tan((view.fov * degrees) / 2);
function draw() {
  const scale = devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
  if (!ready || !width || !height) return;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const focal = focalLength(width, height);
  gl.viewport(0, 0, width, height);
  gl.uniform2f(place.size, width, height);
  gl.uniform1f(place.focal, focal);
  gl.uniform2f(place.turn, view.yaw * degrees, view.pitch * degrees);
  // where the view is coarser than the picture, average, as the library does
  gl.uniform1i(place.samples, clamp(Math.ceil(textureWidth / (2 * Math.PI * focal) - 1e-6), [1, 4]));
  gl.drawArrays(gl.TRIANGLES, 0, 3);
}
let requested = false;
function redraw() {
  part("state").value = `yaw ${Math.round(view.yaw)}° · pitch ${Math.round(view.pitch)}° · field of view ${Math.round(view.fov)}°`;
  if (requested) return;
  requested = true;
  requestAnimationFrame(() => { requested = false; draw(); });
}

// ---- looking around
function look(yaw, pitch, fov = view.fov) {
  view.yaw = ((((yaw + 180) % 360) + 360) % 360) - 180;
  view.pitch = clamp(pitch, limits.pitch);
  view.fov = clamp(fov, limits.fov);
  redraw();
}
const reset = () => look(start.yaw, start.pitch, start.fov);
const zoom = (factor) => look(view.yaw, view.pitch, view.fov * factor);

const pointers = new Map();
const spread = () => { const [a, b] = [...pointers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
canvas.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
  canvas.focus({ preventScroll: true });
});
canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const apart = pointers.size === 2 ? spread() : 0;
  const [dx, dy] = [event.clientX - before.x, event.clientY - before.y];
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (apart) return zoom(apart / Math.max(1, spread()));
  // the picture follows the pointer: dragging left looks right, dragging down looks up
  const perPixel = 1 / focalLength(canvas.clientWidth, canvas.clientHeight) / degrees;
  look(view.yaw - dx * perPixel, view.pitch + dy * perPixel);
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => pointers.delete(event.pointerId));
canvas.addEventListener("wheel", (event) => {
  // within a longer page the wheel scrolls until the viewer has been clicked
  if (viewer.dataset.embedded && document.activeElement !== canvas) return;
  event.preventDefault();
  zoom(Math.exp(event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 0.03 : 0.001)));
}, { passive: false });
const keys = {
  ArrowLeft: () => look(view.yaw - 5, view.pitch),
  ArrowRight: () => look(view.yaw + 5, view.pitch),
  ArrowUp: () => look(view.yaw, view.pitch + 5),
  ArrowDown: () => look(view.yaw, view.pitch - 5),
  "+": () => zoom(0.9),
  "=": () => zoom(0.9),
  "-": () => zoom(1 / 0.9),
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
part("closer").addEventListener("click", () => zoom(0.8));
part("farther").addEventListener("click", () => zoom(1 / 0.8));
if (document.fullscreenEnabled) {
  part("full").hidden = false;
  part("full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : part("frame").requestFullscreen()));
}
if (isVideo) {
  const button = part("play");
  const name = () => { button.textContent = source.paused ? "Play" : "Pause"; };
  button.addEventListener("click", () => (source.paused ? source.play() : source.pause()));
  for (const kind of ["play", "pause"]) source.addEventListener(kind, name);
  name();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) source.play().catch(name);  // a page may be kept from playing
}

// ---- the picture
function refuse(reason) {
  viewer.dataset.failed = "";
  part("problem").textContent = reason;
  part("problem").hidden = false;
  if (isVideo) source.controls = true;
}
function show() {
  try {
    upload();
    draw();
  } catch (error) {
    refuse(`This browser does not let the viewer draw the file (${error.message}); the flat picture is shown instead.`);
  }
}
function showFrames() {
  show();
  if ("failed" in viewer.dataset) return;
  if ("requestVideoFrameCallback" in source) source.requestVideoFrameCallback(showFrames);
  else requestAnimationFrame(showFrames);
}
if (!gl) {
  refuse("This browser has no WebGL 2, which turning the panorama needs; the flat picture is shown instead.");
} else {
  prepare();
  canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); ready = false; });
  canvas.addEventListener("webglcontextrestored", () => { prepare(); show(); });
  new ResizeObserver(redraw).observe(canvas);
  source.addEventListener("error", () => refuse("The panorama could not be loaded."));
  if (!isVideo) source.decode().then(show, () => refuse("The panorama could not be decoded."));
  else if (source.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) showFrames();
  else source.addEventListener("loadeddata", showFrames, { once: true });
}
redraw();
