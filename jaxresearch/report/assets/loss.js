// Loss curves of chosen experiments, one line for each seed.
const DASHES = ['', '7 3', '2 3', '9 3 2 3', '4 2', '1 3', '12 4'];

function lossChart(state) {
  const view = { whole: false };
  const chosen = h('input', { type: 'text', inputmode: 'numeric', size: 18, 'aria-describedby': 'loss-help',
    onchange: () => { state.compare = new Set((chosen.value.match(/\d+/g) || []).map(Number).filter((n) => state.rows[n])); changed(); } });
  const legend = h('ul', { class: 'legend', 'aria-label': 'Compared experiments' });
  const figure = chart('Loss', (width) => drawLoss(state, view, width));
  const pick = (name, numbers) => h('button', { type: 'button', onclick: () => { state.compare = new Set(numbers()); changed(); } }, name);
  async function changed() {
    chosen.value = [...state.compare].join(', ');
    await Promise.all([...state.compare].map((number) => state.detail(number)));
    const removable = (row) => h('button', { type: 'button', 'aria-label': `Take experiment ${row.number} out`, class: 'no-print',
      onclick: () => { state.compare.delete(row.number); changed(); } }, '×');
    legend.replaceChildren(...[...state.compare].map((number, index) => {
      const row = state.rows[number];
      return h('li', null, s('svg', { viewBox: '0 0 18 14', 'aria-hidden': 'true' }, s('path', { d: 'M0,7H18', stroke: `var(--c${index % 7})`, 'stroke-width': 2.5, 'stroke-dasharray': DASHES[index % 7] })),
        h('span', null, link(number), ` ${shorten(row.title, 48)}`, known(row.val_bpb) ? ` (${bpb(row.val_bpb)})` : ''), removable(row));
    }));
    figure.update();
  }
  state.onCompare = changed;
  const keeps = () => state.rows.filter((row) => row.verdict === 'keep').map((row) => row.number);
  const element = h('div', null,
    h('div', { class: 'controls' },
      h('label', null, 'Experiments', chosen), pick('baseline and best', () => [0, state.study.incumbent]), pick('all kept', () => keeps().slice(-7)),
      h('label', null, h('input', { type: 'checkbox', onchange: (event) => { view.whole = event.target.checked; figure.update(); } }), 'from the start'),
      h('span', { id: 'loss-help', class: 'note' }, 'numbers, such as 0, 12; or choose “compare” in an experiment')),
    figure.element, legend);
  changed();
  return { element, update: changed };
}

function drawLoss(state, view, width) {
  const narrow = width < 560, height = narrow ? 270 : 340;
  const box = { left: 54, right: width - 12, top: 30, bottom: height - 44 };
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img',
    'aria-label': `Training loss over the budget, experiments ${[...state.compare].join(', ')}.` });
  const lines = [];
  [...state.compare].forEach((number, index) => {
    const detail = state.details.get(number);
    for (const run of (detail && detail.runs) || []) if (run.curve.length > 2) lines.push({ index, curve: run.curve });
  });
  if (!lines.length) {
    svg.append(s('text', { x: width / 2, y: height / 2, 'text-anchor': 'middle' }, 'No loss curve of these experiments.'));
    return svg;
  }
  let low = Infinity, high = -Infinity;
  const first = view.whole ? 0 : 150;
  for (const { curve } of lines) for (let i = 0; i < curve.length; i += 2) {
    low = Math.min(low, curve[i + 1]);
    if (curve[i] >= first) high = Math.max(high, curve[i + 1]);
  }
  if (high < low) high = Math.max(...lines.map(({ curve }) => curve[1]));
  const pad = (high - low || 0.1) * 0.05;
  const x = scale(0, 1000, box.left, box.right), y = scale(low - pad, high + pad, box.bottom, box.top);
  svg.append(axes({ x, y, box, xMarks: [0, 250, 500, 750, 1000], yMarks: ticks(low - pad, high + pad, 5), xText: (mark) => `${mark / 10} %`,
    xTitle: 'of the budget spent', yTitle: 'training loss (nats per token)' }));
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  svg.append(s('defs', null, s('clipPath', { id: clip }, s('rect', { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }))));
  svg.append(s('g', { 'clip-path': `url(#${clip})`, fill: 'none' }, lines.map(({ index, curve }) => {
    let d = '';
    for (let i = 0; i < curve.length; i += 2) d += `${i ? 'L' : 'M'}${x(curve[i]).toFixed(1)},${y(curve[i + 1]).toFixed(1)}`;
    return s('path', { d, stroke: `var(--c${index % 7})`, 'stroke-width': 1.6, 'stroke-dasharray': DASHES[index % 7], opacity: 0.9 });
  })));
  return svg;
}
