// The tree: each line holds what was tried on top of one parent, in time from left to right.
function treeChart(state) {
  const cursor = {};
  return chart('Tree', (width, holder) => drawTree(state, cursor, width, holder));
}

function drawTree(state, cursor, width, holder) {
  const rows = state.rows, children = new Map();
  for (const row of rows) {
    if (!known(row.parent)) continue;
    if (!children.has(row.parent)) children.set(row.parent, []);
    children.get(row.parent).push(row);
  }
  const parents = [...children.keys()].sort((a, b) => a - b);
  const lane = lanes(rows, parents, children), deepest = Math.max(0, ...lane.values());
  const gap = deepest > 30 ? 15 : 24, top = 30, left = 20;
  const height = top + (deepest + 1) * gap;
  const x = scale(0, Math.max(rows.length - 1, 1), left, width - 16);
  const y = (row) => top + (known(row.parent) ? lane.get(row.parent) : 0) * gap;
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, width, height });
  const onPath = ancestry(rows, state.study.incumbent);
  for (const parent of parents) {
    const brood = children.get(parent), from = rows[parent], bus = top + lane.get(parent) * gap, end = x(brood[brood.length - 1].number);
    svg.append(s('path', { d: `M${x(parent)},${y(from)}V${bus}H${end}`, fill: 'none', stroke: 'var(--line)', 'stroke-width': 1.5 }));
    const heir = brood.find((row) => onPath.has(row.number));
    if (heir) svg.append(s('path', { d: `M${x(parent)},${y(from)}V${bus}H${x(heir.number)}`, fill: 'none', stroke: 'var(--keep)', 'stroke-width': 2 }));
  }
  const size = rows.length > 150 || width < 560 ? 2.8 : 4;
  const marks = rows.map((row) => ({ row, x: x(row.number), y: y(row) }));
  for (const mark of marks) svg.append(glyph(verdictOf(mark.row), mark.x, mark.y, verdictOf(mark.row) === 'keep' ? size + 1.2 : size));
  for (const mark of marks) if (onPath.has(mark.row.number)) svg.append(s('text', { x: mark.x, y: mark.y - 8, 'text-anchor': mark.x < 40 ? 'start' : 'middle', 'font-size': 11,
    'paint-order': 'stroke', stroke: 'var(--bg)', 'stroke-width': 3 }, mark.row.number === 0 ? 'baseline' : `#${mark.row.number}`));
  return pointing(svg, holder, marks, { describe: describeRow, cursor, label: `Tree of ${plural(rows.length, 'experiment')}.` });
}

// The lane of each parent's children: below the parent's own, and shared by broods that do not overlap in time.
function lanes(rows, parents, children) {
  const lane = new Map(), busy = [];
  for (const parent of parents) {
    const brood = children.get(parent), end = brood[brood.length - 1].number;
    let at = 1 + (known(rows[parent].parent) ? lane.get(rows[parent].parent) : 0);
    while (busy[at] !== undefined && busy[at].some(([from, to]) => parent <= to + 1 && end >= from - 1)) at += 1;
    (busy[at] = busy[at] || []).push([parent, end]);
    lane.set(parent, at);
  }
  return lane;
}

function ancestry(rows, number) {
  const path = new Set();
  for (let at = number; known(at) && rows[at] && !path.has(at); at = rows[at].parent) path.add(at);
  return path;
}
