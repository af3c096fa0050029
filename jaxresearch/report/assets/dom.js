// Elements, numbers and words. Text reaches the page only through text nodes: nothing here parses HTML.
const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const known = (value) => value !== null && value !== undefined;
const bpb = (value) => (known(value) ? value.toFixed(4) : '–');
const signed = (value) => (known(value) ? (value < 0 ? '−' : '+') + Math.abs(value).toFixed(4) : '');
const percent = (share) => (share > 0 && share < 0.005 ? '< 1 %' : `${Math.round(share * 100)} %`);
const whole = (value) => Math.round(value).toLocaleString('en-US');
const usd = (value) => (value > 0 && value < 0.01 ? '< $0.01' : `$${value.toFixed(2)}`);
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? '' : 's'}`;
const shorten = (text, limit) => (text.length <= limit ? text : `${text.slice(0, limit - 1).trimEnd()}…`);
const probability = (p) => (!known(p) ? '' : p < 0.0001 ? '< 0.0001' : p.toFixed(4));

function duration(seconds) {
  if (!known(seconds)) return '–';
  if (seconds === 0) return '0 s';
  if (seconds < 59.5) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
  const rounded = Math.round(seconds), minutes = Math.round(seconds / 60); // before the parts: there is no 1 min 60 s
  if (rounded < 3600) return `${Math.floor(rounded / 60)} min ${rounded % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// A budget as the settings hold it, for people: 600000tok, 300000000000flop, 300s.
function budgetText(text) {
  const [, amount, unit] = /^([0-9.e+]+)(s|steps|tok|flop)$/.exec(text) || [];
  if (!unit) return text;
  if (unit === 'flop') return `${Number(amount).toExponential().replace('e+', 'e')} FLOPs`;
  return unit === 's' ? duration(Number(amount)) : `${whole(Number(amount))} ${unit === 'tok' ? 'tokens' : unit}`;
}

// Text with `commands` in it: what stands between backquotes becomes code.
const withCode = (text) => text.split('`').map((part, index) => (index % 2 ? h('code', null, part) : part));

function bytes(value) {
  if (!known(value)) return '–';
  return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GiB` : `${(value / 2 ** 20).toFixed(0)} MiB`;
}

const when = (at) => `${new Date(at * 1000).toISOString().slice(0, 16).replace('T', ' ')} UTC`;

const VERDICTS = ['keep', 'discard', 'crash', 'invalid', 'duplicate', 'timeout', 'infrastructure', 'pending'];
const MEANING = {
  keep: 'better beyond the noise', discard: 'not shown to be better', crash: 'failed', invalid: 'failed an integrity audit',
  duplicate: 'equal to an earlier one', timeout: 'took too long', infrastructure: 'lost by our own machinery',
  pending: 'not decided yet',
};
const verdictOf = (row) => row.verdict || 'pending';
const nameOf = (row) => (row.number === 0 && row.verdict === 'keep' ? 'baseline' : row.simpler ? 'keep (simpler)' : !row.verdict && row.quarantined ? 'quarantine' : verdictOf(row));
const colour = (verdict) => `var(--${verdict})`;

// Each verdict has a shape of its own, so that nothing depends on seeing colours.
function glyph(verdict, x, y, r) {
  const stroke = { stroke: colour(verdict), 'stroke-width': 1.6, fill: 'none' };
  const path = (d, more) => s('path', { ...stroke, ...more, d });
  switch (verdict) {
    case 'keep': return s('circle', { cx: x, cy: y, r, fill: colour(verdict), stroke: 'var(--bg)', 'stroke-width': 1 });
    case 'discard': return s('circle', { ...stroke, cx: x, cy: y, r: r * 0.8, 'stroke-width': 1.3 });
    case 'crash': return path(`M${x - r},${y - r}L${x + r},${y + r}M${x - r},${y + r}L${x + r},${y - r}`);
    case 'invalid': return path(`M${x},${y - r * 1.2}L${x + r * 1.2},${y}L${x},${y + r * 1.2}L${x - r * 1.2},${y}Z`, { fill: colour(verdict) });
    case 'duplicate': return path(`M${x - r},${y - r * 0.5}H${x + r}M${x - r},${y + r * 0.5}H${x + r}`);
    case 'timeout': return path(`M${x - r},${y - r}H${x + r}L${x},${y + r}Z`);
    case 'infrastructure': return path(`M${x - r},${y - r}H${x + r}V${y + r}H${x - r}Z`);
    default: return path(`M${x - r},${y}A${r},${r} 0 1 1 ${x},${y + r}`);
  }
}
const icon = (verdict) => s('svg', { viewBox: '-7 -7 14 14', 'aria-hidden': 'true' }, glyph(verdict, 0, 0, 5));
const chip = (row) => h('span', { class: 'chip', style: { color: colour(verdictOf(row)) }, title: MEANING[verdictOf(row)] },
  icon(verdictOf(row)), nameOf(row));
const link = (number, text) => h('a', { href: `#e${number}` }, text || `#${number}`);

function facts(pairs) {
  return h('dl', { class: 'facts' }, pairs.filter((pair) => pair && known(pair[1]) && pair[1] !== '')
    .map(([name, value]) => [h('dt', null, name), h('dd', null, value)]));
}

// Puts `children` into `parent` in this order; those that lie right already are left alone.
function arrange(parent, children) {
  let at = parent.firstElementChild;
  for (const child of children) if (child === at) at = at.nextElementSibling; else parent.insertBefore(child, at);
}

// columns: [heading, cell(item), class]
function table(items, columns, caption) {
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    h('table', null, h('thead', null, h('tr', null, columns.map(([name, , kind]) => h('th', { class: kind, scope: 'col' }, name)))),
      h('tbody', null, items.map((item) => h('tr', null, columns.map(([, cell, kind]) => h('td', { class: kind }, cell(item))))))));
}
