// Painting over an image. The image, the canvas and the tools come from the component's template, and
// may be rendered anew with each image: so they are looked up whenever they are needed.
const COLOUR = "#d55e00";
let before = null; // where the stroke has got to

const tool = (name) => element.querySelector(`[data-tool="${name}"]`);

const place = (canvas, event) => {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};

const paint = (canvas, [x, y]) => {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = tool("erase").checked ? "destination-out" : "source-over";
  context.strokeStyle = COLOUR;
  context.lineCap = "round";
  context.lineWidth = (tool("size").value / 100) * canvas.width;
  context.beginPath();
  context.moveTo(...before);
  context.lineTo(x, y);
  context.stroke();
  before = [x, y];
};

element.addEventListener("pointerdown", (event) => {
  const canvas = event.target.closest("canvas");
  if (!canvas || event.button !== 0) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  before = place(canvas, event);
  paint(canvas, before);
});

element.addEventListener("pointermove", (event) => {
  const canvas = event.target.closest("canvas");
  if (!canvas || before === null) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) paint(canvas, place(canvas, each));
});

for (const name of ["pointerup", "pointercancel"])
  element.addEventListener(name, () => { before = null; });

const clear = () => {
  const canvas = element.querySelector("canvas");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
};

element.addEventListener("click", (event) => {
  if (event.target.closest('[data-tool="clear"]')) clear();
});

watch("value", clear); // what was painted was for another image
