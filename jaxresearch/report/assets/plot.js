// What the charts share: scales, axes, and one way to point at an experiment by mouse, finger or keyboard.
function scale(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

function ticks(low, high, count) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((each) => each >= rough) || 10 * power;
  const marks = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) marks.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return marks;
}

function digits(marks) {
  const step = marks.length > 1 ? Math.abs(marks[1] - marks[0]) : 1;
  const lead = step / 10 ** Math.floor(Math.log10(step)); // nearly 2.5 where marks were subtracted
  return Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9) + (Math.abs(lead - 2.5) < 1e-6 ? 1 : 0)));
}

function axes({ x, y, xMarks, yMarks, box, xTitle, yTitle, xText, yText }) {
  const xd = digits(xMarks), yd = digits(yMarks);
  return s('g', { class: 'axis' },
    yMarks.map((mark) => [s('line', { class: 'grid', x1: box.left, x2: box.right, y1: y(mark), y2: y(mark) }),
      s('text', { x: box.left - 6, y: y(mark) + 4, 'text-anchor': 'end' }, yText ? yText(mark) : mark.toFixed(yd))]),
    xMarks.map((mark) => s('text', { x: x(mark), y: box.bottom + 17, 'text-anchor': 'middle' }, xText ? xText(mark) : mark.toFixed(xd))),
    s('text', { class: 'axis-title', x: box.right, y: box.bottom + 34, 'text-anchor': 'end' }, xTitle),
    s('text', { class: 'axis-title', x: box.left - 40, y: box.top - 16 }, yTitle));
}

// A figure that draws itself again when its width or its data change.
function chart(label, draw) {
  const holder = h('div', { class: 'chart' });
  let width = 0, scheduled = false;
  const render = () => {
    scheduled = false;
    if (!width) return;
    const focused = holder.contains(document.activeElement);
    holder.replaceChildren(draw(width, holder));
    if (focused) holder.querySelector('svg').focus({ preventScroll: true });
  };
  const schedule = () => { if (!scheduled) { scheduled = true; requestAnimationFrame(render); } };
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now >= 160 && now !== width) { width = now; schedule(); }
  }).observe(holder);
  return { element: holder, update: schedule, label };
}

// marks: [{row, x, y}] in reading order. Pointing shows a tip; a click or Enter opens the experiment.
function pointing(svg, holder, marks, { describe, cursor, label }) {
  const tip = h('div', { class: 'tip', hidden: true, 'aria-hidden': 'true' });
  const spoken = h('div', { class: 'hidden-text', 'aria-live': 'polite' });
  const ring = s('circle', { r: 8, fill: 'none', stroke: 'var(--text)', 'stroke-width': 2, visibility: 'hidden' });
  svg.append(ring);
  let at = -1;
  const show = (index, aloud) => {
    const mark = marks[index];
    if (!mark) return;
    at = index;
    cursor.number = mark.row.number;
    ring.setAttribute('cx', mark.x); ring.setAttribute('cy', mark.y); ring.setAttribute('visibility', 'visible');
    tip.replaceChildren(...describe(mark.row));
    tip.hidden = false;
    const room = holder.clientWidth;
    const left = Math.max(0, Math.min(mark.x + 12, room - tip.offsetWidth - 2));
    tip.style.left = `${left}px`;
    tip.style.top = `${mark.y + 14}px`;
    if (aloud) spoken.textContent = tip.innerText; // its lines apart
  };
  const hide = () => { tip.hidden = true; ring.setAttribute('visibility', 'hidden'); };
  const nearest = (event) => {
    const rect = svg.getBoundingClientRect();
    const ratio = svg.viewBox.baseVal.width / rect.width;
    const px = (event.clientX - rect.left) * ratio, py = (event.clientY - rect.top) * ratio;
    let best = -1, least = 900;
    marks.forEach((mark, index) => {
      const distance = (mark.x - px) ** 2 + (mark.y - py) ** 2;
      if (distance < least) { least = distance; best = index; }
    });
    return best;
  };
  svg.addEventListener('pointermove', (event) => { const index = nearest(event); if (index >= 0) show(index); else hide(); });
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('click', (event) => { const index = nearest(event); if (index >= 0) openExperiment(marks[index].row.number); });
  svg.addEventListener('keydown', (event) => {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      if (at < 0) at = marks.findIndex((mark) => mark.row.number === cursor.number);
      const next = at < 0 && moves[event.key] !== Infinity ? 0 : at + moves[event.key];
      show(Math.max(0, Math.min(marks.length - 1, next)), true);
      event.preventDefault();
    } else if (event.key === 'Enter' && at >= 0) { openExperiment(marks[at].row.number); event.preventDefault(); }
    else if (event.key === 'Escape') hide();
  });
  svg.addEventListener('blur', hide);
  fill(svg, { tabindex: 0, role: 'application', 'aria-label': `${label} Arrow keys go from one experiment to the next, Enter opens it.` }, []);
  return h('div', { style: { position: 'relative' } }, svg, tip, spoken);
}

const describeRow = (row) => [
  h('strong', null, `#${row.number} `), chip(row), h('br'),
  known(row.val_bpb) ? [`val_bpb ${bpb(row.val_bpb)}`, known(row.sem) ? ` ± ${bpb(row.sem)}` : '', known(row.difference) ? ` (${signed(row.difference)})` : '', h('br')] : null,
  shorten(row.title, 140),
].flat().filter((each) => each !== null && each !== '');
