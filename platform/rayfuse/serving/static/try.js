// The page that tries a model: a form for its inputs, and the prediction with what led to it.
// The form is built from the endpoint's OpenAPI document, so that it has the inputs of the model that is served.

const ROOT = document.documentElement.dataset.root;
const PREDICT = `${ROOT}/predict`;
const MAX_SCORES = 10;
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// ---- fields: each has the node of an input, its parts of a form, and ways to fill and clear it

class TextField {
  constructor(input) {
    this.input = input;
    this.isJson = !input.formats.includes("text");
    this.area = element("textarea", { id: `value-${input.name}`, "aria-labelledby": `legend-${input.name}` });
    this.node = this.area;
    if (input.maxItems > 1 && !this.isJson) this.area.placeholder = "one per line";
  }

  parts() {
    const value = this.area.value;
    if (!value.trim()) return [];
    return this.input.maxItems > 1 && !this.isJson ? value.split("\n").filter((line) => line.trim()) : [value];
  }

  fill(value) {
    const values = this.input.maxItems > 1 && !this.isJson ? value : [value];
    this.area.value = values.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join("\n");
  }

  clear() {
    this.area.value = "";
  }
}

class TableField {
  constructor(input) {
    this.controls = {};
    this.node = element("div", { class: "columns" });
    for (const [column, schema] of Object.entries(input.schema.properties)) {
      const isNumber = !schema.type.includes("string");
      const list = schema.examples ? `list-${input.name}-${column}` : null;
      const control = element("input", isNumber ? { type: "number", step: "any" } : { type: "text", list });
      this.controls[column] = { control, isNumber };
      this.node.append(element("label", {}, column, control));
      if (list) this.node.append(element("datalist", { id: list }, ...schema.examples.map((value) => element("option", { value }))));
    }
  }

  parts() {
    const filled = Object.entries(this.controls).filter(([, { control }]) => control.value.trim() !== "");
    const cells = filled.map(([column, { control, isNumber }]) => [column, isNumber ? Number(control.value) : control.value]);
    return cells.length ? [JSON.stringify(Object.fromEntries(cells))] : [];
  }

  fill(value) {
    for (const [column, cell] of Object.entries(value)) this.controls[column].control.value = cell ?? "";
  }

  clear() {
    for (const { control } of Object.values(this.controls)) control.value = "";
  }
}

class FileField {
  constructor(input) {
    this.input = input;
    this.files = [];
    this.chooser = element("input", {
      type: "file", id: `value-${input.name}`, accept: acceptOf(input), multiple: input.maxItems > 1,
      "aria-labelledby": `legend-${input.name}`, onchange: () => this.add([...this.chooser.files]),
    });
    this.preview = element("div", { class: "preview" });
    this.tools = element("div", { class: "tools" }, this.chooser, ...captureButtons(input, (file) => this.add([file])));
    this.node = element("div", {}, this.tools, this.preview);
  }

  add(files) {
    this.files = this.input.maxItems > 1 ? [...this.files, ...files].slice(0, this.input.maxItems) : files.slice(-1);
    this.preview.replaceChildren(...this.files.map(figureOf));
  }

  parts() {
    return this.files;
  }

  async fill(value) {
    for (const one of this.input.maxItems > 1 ? value : [value]) {
      const bytes = Uint8Array.from(atob(one.b64), (character) => character.charCodeAt(0));
      this.add([new File([bytes], `example-${this.input.name}`)]);
    }
  }

  clear() {
    this.chooser.value = "";
    this.files = [];
    this.preview.replaceChildren();
  }

  showSaliency(task, saliency) {
    const items = this.input.maxItems > 1 ? saliency : [saliency];
    [...this.preview.children].forEach((figure, number) => {
      if (items[number]) drawSaliency(figure, items[number], `${this.input.name}: what raised (blue) and lowered (orange) ${task}`);
    });
  }
}

// A series is a file, or a csv or JSON that is pasted.
class SeriesField {
  constructor(input) {
    this.text = new TextField(input);
    this.text.area.placeholder = "paste a csv, a row per step, or JSON";
    this.file = new FileField(input);
    this.node = element("div", {}, this.text.node, this.file.node);
    this.file.chooser.id += "-file";
  }

  parts() {
    const pasted = this.text.area.value.trim();
    if (!pasted) return this.file.parts();
    return [/^[[{]/.test(pasted) ? pasted : new File([`${pasted}\n`], "series.csv", { type: "text/csv" })];
  }

  fill(value) {
    this.text.fill(value);
  }

  clear() {
    this.text.clear();
    this.file.clear();
  }
}

function createField(input) {
  if (input.isFlat && input.schema?.properties) return new TableField(input);
  if (input.formats.includes("file")) return input.formats.length > 1 ? new SeriesField(input) : new FileField(input);
  return new TextField(input);
}

// ---- media

function figureOf(file) {
  const url = URL.createObjectURL(file);
  const kind = file.type.split("/")[0];
  const media = kind === "image" || !file.type ? element("img", { src: url, alt: file.name })
    : kind === "audio" || kind === "video" ? element(kind, { src: url, controls: true, "aria-label": file.name })
    : element("span", {}, "file");
  if (media.tagName === "IMG") media.addEventListener("error", () => media.remove());
  return element("figure", {}, element("div", { class: "frame" }, media), element("figcaption", {}, `${file.name}, ${(file.size / 1000).toFixed(1)} kB`));
}

const kindOf = (input) => /^(image|audio|video)\/\*$/.exec(input.mediaTypes[0])?.[1];

// Files of other kinds, such as series, have too many names to choose from.
function acceptOf(input) {
  return kindOf(input) ? input.mediaTypes.filter((type) => type !== "application/octet-stream").join() : null;
}

// Cameras and microphones are there on secure pages only: over HTTPS and on this machine.
function captureButtons(input, add) {
  if (!navigator.mediaDevices) return [];
  const report = (error) => showError(`${input.name}: ${error.message}`);
  const button = (text, action) => element("button", { type: "button", onclick: (event) => action(event.target).catch(report) }, text);
  const buttons = {
    image: () => button("Take a photo", () => takePicture(add)),
    video: () => button("Record a video", (target) => record(target, { video: true, audio: true }, "video.webm", add)),
    audio: () => button("Record a clip", (target) => record(target, { audio: true }, "clip.webm", add)),
  };
  const kind = kindOf(input);
  return kind ? [buttons[kind]()] : [];
}

async function takePicture(add) {
  const stream = await navigator.mediaDevices.getUserMedia({ video: true });
  const video = element("video", { muted: true });
  video.srcObject = stream;
  await video.play();
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  stream.getTracks().forEach((track) => track.stop());
  canvas.toBlob((blob) => add(new File([blob], "photo.png", { type: "image/png" })), "image/png");
}

async function record(button, constraints, name, add) {
  if (button.recorder) return button.recorder.stop();
  const stream = await navigator.mediaDevices.getUserMedia(constraints);
  const text = button.textContent;
  button.recorder = new MediaRecorder(stream);
  const chunks = [];
  button.recorder.ondataavailable = ({ data }) => chunks.push(data);
  button.recorder.onstop = () => {
    stream.getTracks().forEach((track) => track.stop());
    add(new File(chunks, name, { type: constraints.video ? "video/webm" : "audio/webm" }));
    button.textContent = text;
    button.recorder = null;
  };
  button.recorder.start();
  button.textContent = "Stop";
}

function drawSaliency(figure, values, label) {
  figure.querySelectorAll("canvas, .strip").forEach((old) => old.remove());
  const largest = Math.max(...values.flat().map(Math.abs)) || 1;
  const color = (value) => `rgba(${value > 0 ? "33, 133, 208" : "224, 113, 20"}, ${Math.abs(value) / largest})`;
  if (!Array.isArray(values[0])) {
    const parts = values.map((value) => element("span", {}));
    parts.forEach((part, place) => { part.style.background = color(values[place]); });
    figure.append(element("div", { class: "strip", role: "img", "aria-label": label }, ...parts));
    return;
  }
  const canvas = element("canvas", { width: values[0].length, height: values.length, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  values.forEach((row, y) => row.forEach((value, x) => {
    context.fillStyle = color(value);
    context.fillRect(x, y, 1, 1);
  }));
  figure.querySelector(".frame").append(canvas);
}

// ---- the prediction

const format = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));

function barRow(name, value, bar) {
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, bar), element("td", { class: "number" }, format(value)));
}

function scoreTable(scores) {
  const sorted = Object.entries(scores).sort(([, a], [, b]) => b - a);
  const rows = sorted.slice(0, MAX_SCORES).map(([name, value]) => {
    const bar = element("div", { class: "bar" });
    bar.style.width = `${Math.max(0, Math.min(1, value)) * 100}%`;
    return barRow(name, value, bar);
  });
  const left = sorted.length - rows.length;
  return element("table", {}, element("caption", {}, left ? `scores, and ${left} lower ones` : "scores"), element("tbody", {}, ...rows));
}

function contributionTable({ score, value, base_value: base, contributions }) {
  const largest = Math.max(...Object.values(contributions).map(Math.abs)) || 1;
  const rows = Object.entries(contributions).map(([name, one]) => {
    const bar = element("div", { class: `bar ${one < 0 ? "lower" : "raise"}` });
    bar.style.width = `${(Math.abs(one) / largest) * 100}%`;
    return barRow(name, one, element("div", { class: "both" }, bar));
  });
  const caption = `what each input contributed to ${score}: ${format(base)} without any, ${format(value)} with all`;
  return element("table", {}, element("caption", {}, caption), element("tbody", {}, ...rows));
}

function outputNodes(output) {
  return Object.entries(output).map(([key, value]) => {
    if (key === "scores" && value && typeof value === "object" && !Array.isArray(value)) return scoreTable(value);
    const simple = value === null || typeof value !== "object" || value.every?.((one) => typeof one !== "object");
    return simple
      ? element("p", { class: "answer" }, `${key}: ${Array.isArray(value) ? value.map(format).join(", ") || "none" : format(value)}`)
      : element("pre", {}, `${key}: ${JSON.stringify(value, null, 1)}`);
  });
}

function showPrediction(prediction, fields, seconds, timing, curl) {
  const nodes = [element("h2", {}, "Prediction")];
  for (const [task, output] of Object.entries(prediction.outputs)) {
    nodes.push(element("h3", {}, task), ...outputNodes(output));
    const explained = prediction.explain?.tasks?.[task];
    if (!explained) continue;
    nodes.push(contributionTable(explained));
    for (const [name, saliency] of Object.entries(explained.saliency ?? {})) {
      if (saliency?.length) fields.get(name)?.showSaliency?.(task, saliency);
    }
  }
  const used = prediction.inputs_used.length ? prediction.inputs_used.join(", ") : "none";
  nodes.push(
    element("h3", {}, "Inputs used"), element("p", { id: "used" }, used),
    element("h3", {}, "Latency"), element("p", { id: "latency" }, `${Math.round(seconds * 1000)} ms in all${timing ? `; ${timing}` : ""}`),
    element("h3", {}, "The same request"), element("pre", { id: "curl" }, curl),
    element("button", { type: "button", onclick: () => navigator.clipboard?.writeText(curl) }, "Copy"),
  );
  byId("result").replaceChildren(...nodes);
  byId("result").scrollIntoView({ block: "nearest" });
}

function showError(text) {
  byId("result").replaceChildren(element("p", { class: "error", role: "alert" }, text));
}

function curlCommand(parts, explain, needsKey) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const options = parts.map(([name, value]) => (value instanceof File
    ? `-F ${quoted(`${name}=@${value.name}`)}` : `--form-string ${quoted(`${name}=${value}`)}`));
  if (needsKey) options.unshift('-H "Authorization: Bearer $RAYFUSE_API_KEY"');
  if (explain) options.push("-F explain=true");
  return [`curl ${new URL(PREDICT, location.href)}`, ...options].join(" \\\n  ");
}

function describeTiming(header) {
  const found = [...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
  return found.map(([, name, milliseconds]) => `${name} ${Number(milliseconds).toFixed(1)} ms`).join(", ");
}

async function predict(fields, needsKey) {
  const explain = byId("explain").checked;
  const parts = [...fields].flatMap(([name, field]) => field.parts().map((part) => [name, part]));
  const body = new FormData();
  for (const [name, part] of parts) body.append(name, part);
  if (explain) body.append("explain", "true");
  const headers = needsKey ? { Authorization: `Bearer ${byId("key-value").value}` } : {};
  const started = performance.now();
  // Without any part, a form is no request.
  const request = parts.length ? { body, headers }
    : { body: JSON.stringify({ inputs: {}, explain }), headers: { ...headers, "Content-Type": "application/json" } };
  const response = await fetch(PREDICT, { method: "POST", ...request });
  const content = await response.json();
  const seconds = (performance.now() - started) / 1000;
  if (!response.ok) return showError(`${content.title}: ${content.detail}`);
  const timing = describeTiming(response.headers.get("Server-Timing"));
  return showPrediction(content, fields, seconds, timing, curlCommand(parts, explain, needsKey));
}

// ---- the page

function inputsOf(openapi) {
  const model = openapi["x-rayfuse-model"];
  const schema = openapi.components.schemas.Inputs;
  const encoding = openapi.paths["/predict"].post.requestBody.content["multipart/form-data"].encoding;
  return Object.entries(model.inputs).map(([name, described]) => {
    const own = schema.properties[name];
    return {
      name, formats: described.formats, maxItems: described.max_items, isFlat: described.is_flat,
      schema: own.properties ? own : own.anyOf?.find((one) => one.properties), description: own.description ?? "",
      required: (schema.required ?? []).includes(name), mediaTypes: encoding[name].contentType.split(", "),
    };
  });
}

function fieldsetOf(input, field) {
  const legend = element("legend", { id: `legend-${input.name}` }, input.required ? `${input.name} (required)` : input.name);
  const node = element("fieldset", { id: `input-${input.name}` }, legend, element("p", { class: "hint" }, input.description), field.node);
  const target = field instanceof SeriesField ? field.file : field;
  if (target instanceof FileField) {
    node.addEventListener("dragover", (event) => { event.preventDefault(); node.classList.add("over"); });
    node.addEventListener("dragleave", () => node.classList.remove("over"));
    node.addEventListener("drop", (event) => {
      event.preventDefault();
      node.classList.remove("over");
      target.add([...event.dataTransfer.files]);
    });
  }
  return node;
}

async function start() {
  const openapi = await (await fetch(`${ROOT}/openapi.json`)).json();
  const operation = openapi.paths["/predict"].post;
  const needsKey = Boolean(openapi.components.securitySchemes);
  const inputs = inputsOf(openapi);
  const fields = new Map(inputs.map((input) => [input.name, createField(input)]));
  byId("about").textContent = openapi.servers[0].description;
  byId("fields").append(...inputs.map((input) => fieldsetOf(input, fields.get(input.name))));
  byId("key").hidden = !needsKey;
  const example = operation.requestBody.content["application/json"].examples.one?.value.inputs;
  byId("example").hidden = !example;
  byId("example").addEventListener("click", () => {
    for (const [name, value] of Object.entries(example)) {
      fields.get(name).clear();
      fields.get(name).fill(value);
    }
  });
  byId("form").addEventListener("reset", () => fields.forEach((field) => field.clear()));
  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("predict").disabled = true;
    await predict(fields, needsKey).catch((error) => showError(`no response: ${error.message}`));
    byId("predict").disabled = false;
  });
}

start().catch((error) => showError(`the page could not be built: ${error.message}`));
