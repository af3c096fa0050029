// The progress chart: every experiment, the running best with the noise band around it, keeps labelled.
function progressChart(state) {
  const cursor = {};
  const view = { whole: false };
  const figure = chart('Progress', (width, holder) => drawProgress(state, view, cursor, width, holder));
  const toggle = h('label', { class: 'no-print' }, h('input', {
    type: 'checkbox', onchange: (event) => { view.whole = event.target.checked; figure.update(); } }), 'show the whole scale');
  const sample = (content) => s('svg', { viewBox: '0 0 18 14', 'aria-hidden': 'true' }, content);
  const legend = h('ul', { class: 'legend' },
    h('li', null, sample(glyph('keep', 9, 7, 5)), 'kept'),
    h('li', null, sample(glyph('discard', 9, 7, 4)), 'discarded'),
    h('li', null, sample(s('path', { d: 'M0,7H18', stroke: 'var(--keep)', 'stroke-width': 2 })), 'best so far'),
    h('li', null, sample(s('rect', { width: 18, height: 14, fill: 'var(--band)' })), '± 2 standard deviations between seeds'),
    h('li', null, sample(s('path', { d: 'M9,1V13M6,1H12M6,13H12', stroke: 'var(--text)' })), 'standard error over seeds'),
    h('li', null, sample(glyph('crash', 9, 7, 4)), 'no score: crash, invalid, …'));
  return { element: h('div', null, figure.element, legend, h('div', { class: 'controls' }, toggle)), update: figure.update };
}

function runningBest(rows) {
  const steps = [];
  for (const row of rows) if (row.verdict === 'keep' && known(row.val_bpb)) steps.push(row);
  return steps;
}

function drawProgress(state, view, cursor, width, holder) {
  const rows = state.rows, scored = rows.filter((row) => known(row.val_bpb)), kept = runningBest(rows);
  const narrow = width < 560, height = narrow ? 330 : 460;
  const box = { left: 60, right: width - (narrow ? 8 : 16), top: 34, bottom: height - 74 };
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, width, height });
  if (!scored.length) {
    svg.append(s('text', { x: width / 2, y: height / 2, 'text-anchor': 'middle' }, 'The baseline has no score yet.'));
    return svg;
  }
  const last = Math.max(rows.length - 1, 1), sd = state.study.noise ? state.study.noise.sd_bpb : 0;
  const x = scale(0, last, box.left + 8, box.right - 8);
  const [low, high] = progressRange(scored, kept, sd, view.whole);
  const y = scale(low, high, box.bottom, box.top);
  const xMarks = ticks(0, last, narrow ? 4 : 10).filter(Number.isInteger);
  const yMarks = ticks(low, high, 6);
  svg.append(axes({ x, y, xMarks, yMarks, box, xTitle: 'experiment', yTitle: 'val_bpb (lower is better)' }));
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  svg.append(s('defs', null, s('clipPath', { id: clip }, s('rect', { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }))));
  const inside = s('g', { 'clip-path': `url(#${clip})` });
  svg.append(inside);
  const edge = (row) => y(row.val_bpb);
  let line = '', upper = '', lower = '';
  kept.forEach((row, index) => {
    const from = x(row.number), to = index + 1 < kept.length ? x(kept[index + 1].number) : x(rows.length - 1);
    line += `${index ? 'L' : 'M'}${from},${edge(row)}H${to}`;
    upper += `${index ? 'L' : 'M'}${from},${y(row.val_bpb + 2 * sd)}H${to}`;
    lower = `L${to},${y(row.val_bpb - 2 * sd)}H${from}${lower}`;
  });
  if (sd) inside.append(s('path', { d: `${upper}${lower}Z`, fill: 'var(--band)' }));
  inside.append(s('path', { d: line, fill: 'none', stroke: 'var(--keep)', 'stroke-width': 2 }));
  const marks = [];
  const strip = box.bottom + 46, size = rows.length > 150 || narrow ? 3 : 4;
  const noScore = rows.filter((row) => !known(row.val_bpb));
  if (noScore.length) svg.append(s('line', { class: 'grid', x1: box.left, x2: box.right, y1: strip, y2: strip }),
    s('text', { x: box.left - 6, y: strip + 4, 'text-anchor': 'end', class: 'axis-title' }, 'no score'));
  for (const row of rows) {
    const verdict = verdictOf(row), px = x(row.number);
    if (!known(row.val_bpb)) {
      svg.append(s('g', { opacity: 0.9 }, glyph(verdict, px, strip, size * 0.85)));
      marks.push({ row, x: px, y: strip });
      continue;
    }
    const above = row.val_bpb > high, py = above ? box.top - 5 : y(row.val_bpb);
    if (above) svg.append(s('path', { d: `M${px - 3.5},${py + 3}L${px},${py - 4}L${px + 3.5},${py + 3}Z`, fill: colour(verdict) }));
    else {
      const keep = verdict === 'keep';
      if (known(row.sem)) inside.append(errorBar(px, y(row.val_bpb - row.sem), y(row.val_bpb + row.sem), keep));
      svg.append(glyph(verdict, px, py, keep ? size + 1.5 : size));
    }
    marks.push({ row, x: px, y: py });
  }
  label(svg, kept, x, edge, box, narrow);
  const off = scored.filter((row) => row.val_bpb > high).length;
  if (off) svg.append(s('text', { x: box.right, y: box.top - 16, 'text-anchor': 'end', class: 'axis-title' }, `▲ ${off} above the scale`));
  const best = kept[kept.length - 1];
  return pointing(svg, holder, marks, { describe: describeRow, cursor,
    label: `Progress of ${plural(rows.length - 1, 'experiment')}: ${kept.length - 1} kept, best val_bpb ${best ? bpb(best.val_bpb) : 'none'}.` });
}

function errorBar(x, top, bottom, keep) {
  return s('path', { d: `M${x},${top}V${bottom}M${x - 3},${top}H${x + 3}M${x - 3},${bottom}H${x + 3}`,
    stroke: keep ? 'var(--text)' : 'var(--discard)', opacity: keep ? 0.85 : 0.55 });
}

// From below the best to a little above the baseline: that is where it is decided. What is worse is marked at the top.
function progressRange(scored, kept, sd, whole) {
  const values = scored.map((row) => row.val_bpb);
  const bars = kept.map((row) => row.val_bpb - Math.max(row.sem || 0, 2 * sd));
  const low = Math.min(...values.filter((_, index) => scored[index].verdict !== 'invalid'), ...bars);
  const most = Math.max(...values);
  const start = kept.length ? kept[0].val_bpb : most;
  const near = Math.max(start + 3 * sd, start + 0.6 * (start - low));
  const high = whole ? most : Math.min(Math.max(near, start + 1e-4), Math.max(most, start + 2 * sd));
  const pad = (high - low || 0.01) * 0.05;
  return [low - pad, high + pad];
}

// Words go to the left of a keep: below a line that only falls there is room. The largest steps choose first; one whose
// words would run into others keeps its dot and its tip only.
function label(svg, kept, x, y, box, narrow) {
  const taken = [], size = (row) => (row.number === 0 ? Infinity : Math.abs(row.difference || 0));
  const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const line = kept.map((row, index) => ({ left: x(row.number) - 2, right: index + 1 < kept.length ? x(kept[index + 1].number) + 2 : box.right, top: y(row) - 2, bottom: y(row) + 2 }))
    .concat(kept.map((row) => ({ left: x(row.number) - 6, right: x(row.number) + 6, top: y(row) - 6, bottom: y(row) + 6 })));
  for (const row of [...kept].sort((a, b) => size(b) - size(a))) {
    for (const words of [`#${row.number} ${shorten(row.title, narrow ? 22 : 44)}`, `#${row.number}`]) {
      const text = row.number === 0 ? 'baseline' : words, wide = text.length * 5.9 + 4;
      const px = x(row.number), py = y(row);
      const places = row.number === 0 ? [[px + 4, py - 10, 'start']] : [[px - 9, py + 5, 'end'], [px - 5, py + 17, 'end'], [px + 7, py + 17, 'start'], [px + 4, py + 30, 'start']];
      const place = places.map(([left, base, anchor]) => ({ at: left, base, anchor, left: anchor === 'end' ? left - wide : left, right: anchor === 'end' ? left : left + wide, top: base - 10, bottom: base + 3 }))
        .find((each) => each.left > box.left && each.right < box.right + 4 && each.bottom < box.bottom && ![...taken, ...line].some((other) => overlaps(each, other)));
      if (!place) continue;
      taken.push(place);
      svg.append(s('text', { x: place.at, y: place.base, 'text-anchor': place.anchor, 'font-size': 11,
        'paint-order': 'stroke', stroke: 'var(--bg)', 'stroke-width': 3, 'stroke-linejoin': 'round' }, text));
      break;
    }
  }
}
