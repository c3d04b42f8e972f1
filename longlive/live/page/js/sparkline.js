/** A line of recent values on a canvas, with the expected one as a rule. */

export function drawSparkline(canvas, values, expected) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  const top = Math.min(Math.max(expected * 2, ...values), expected * 4);
  const y = (value) => height - 1.5 * scale - Math.min(value / top, 1) * (height - 3 * scale);
  context.clearRect(0, 0, width, height);

  context.lineWidth = scale;
  context.strokeStyle = "rgb(255 255 255 / 28%)";
  context.setLineDash([2 * scale, 3 * scale]);
  context.beginPath();
  context.moveTo(0, y(expected));
  context.lineTo(width, y(expected));
  context.stroke();

  if (values.length < 2) return;
  const step = width / (values.length - 1);
  context.lineWidth = 1.4 * scale;
  context.lineJoin = "round";
  context.strokeStyle = getComputedStyle(canvas).color;
  context.setLineDash([]);
  context.beginPath();
  values.forEach((value, i) => context.lineTo(i * step, y(value)));
  context.stroke();
}
