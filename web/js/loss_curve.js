// The losses of a training run, drawn on a canvas: every step thin, a moving average thick, held-out images dashed.

const SMOOTHING = 0.05; // weight of a step in the average of a long run; of a short one, 2 / steps so far
const DASHES = [6, 3]; // px, of the line of the held-out images
const PADDING = { left: 44, right: 8, top: 8, bottom: 16 }; // px

/** The moving average of [step, loss] points. */
export function smoothed(points) {
  let average;
  return points.map(([step, loss], index) => {
    const weight = Math.max(SMOOTHING, 1 / (index + 1));
    average = index ? average + weight * (loss - average) : loss;
    return [step, average];
  });
}

/** The least and the greatest loss to show; a few jumps of single steps do not flatten the rest. */
function range(points, heldOut) {
  const [losses, others] = [points, heldOut].map((own) => own.map(([, loss]) => loss).sort((a, b) => a - b));
  const highest = losses.length ? losses[Math.floor((losses.length - 1) * 0.98)] : -Infinity;
  return [Math.min(...losses.slice(0, 1), ...others), Math.max(highest, ...others)];
}

/** Draw the [step, loss] points of a run of that many steps, and those of its held-out images. */
export function drawCurve(canvas, points, steps, heldOut = []) {
  const { clientWidth: width, clientHeight: height } = canvas, scale = devicePixelRatio || 1;
  if (!width || !height) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  context.scale(scale, scale);
  context.font = "10px system-ui, sans-serif";
  const [finite, heldOutFinite] = [points, heldOut].map((own) => own.filter(([, loss]) => Number.isFinite(loss)));
  if (!finite.length && !heldOutFinite.length) return;
  const [low, high] = range(finite, heldOutFinite);
  const span = high - low || Math.abs(high) || 1;
  const x = (step) => PADDING.left + ((width - PADDING.left - PADDING.right) * step) / Math.max(1, steps);
  const y = (loss) => height - PADDING.bottom - (height - PADDING.top - PADDING.bottom) * Math.min(1, (loss - low) / span);
  context.fillStyle = context.strokeStyle = style.color;
  const label = (text, align, left, top) => Object.assign(context, { textAlign: align }).fillText(text, left, top);
  label(high.toPrecision(3), "right", PADDING.left - 6, PADDING.top + 8);
  label(low.toPrecision(3), "right", PADDING.left - 6, height - PADDING.bottom);
  label(String(steps), "right", width - PADDING.right, height - 4);
  label("0", "left", PADDING.left, height - 4);
  const line = (own, colour, thickness, opacity, dashes = []) => {
    Object.assign(context, { strokeStyle: colour, lineWidth: thickness, globalAlpha: opacity });
    context.setLineDash(dashes);
    context.beginPath();
    for (const [step, loss] of own) context.lineTo(x(step), y(loss));
    if (own.length === 1) context.arc(x(own[0][0]), y(own[0][1]), 1, 0, 7);
    context.stroke();
  };
  line([[0, low], [steps, low]], style.color, 1, 0.3);
  line(finite, style.color, 1, 0.45);
  line(smoothed(finite), style.getPropertyValue("--seqlora-curve"), 2, 1);
  line(heldOutFinite, style.getPropertyValue("--seqlora-held-out"), 2, 1, DASHES);
}
