// A tournament: what it shows in one sentence, best-so-far curves with bands over repeats, the arms, and the contrasts.
const AXES = [['experiments', 'experiments', (mark) => String(mark)], ['accelerator_seconds', 'accelerator time', (mark) => duration(mark)],
  ['llm_cost_usd', 'dollars of language model', (mark) => `$${mark.toFixed(2)}`], ['flops', 'FLOPs of training', (mark) => mark.toExponential(1)]];
// A mean with its interval below it, so that a row of them fits a screen.
const spread = (found, sign) => {
  if (!found) return '–';
  const text = sign ? signed : bpb;
  return [text(found.mean), known(found.low) ? h('div', { class: 'interval' }, `${text(found.low)} to ${text(found.high)}`) : null];
};

function tournamentPage() {
  const facts_ = state.tournament, arms = facts_.strategies;
  const view = { over: 'experiments' };
  const figure = chart('Best so far', (width) => drawCurves(arms, view.over, width));
  const choices = h('div', { class: 'controls', role: 'group', 'aria-label': 'Over what' }, h('span', { class: 'note' }, 'over'), AXES.filter(([name]) => name === view.over || arms.some((arm) => ((arm.best_so_far || {})[name] || []).some((point) => point[name] > 0))).map(([name, text]) => h('button', { type: 'button', 'aria-pressed': String(name === view.over), 'data-over': name,
    onclick: (event) => { view.over = name; for (const each of event.currentTarget.parentNode.querySelectorAll('button')) each.setAttribute('aria-pressed', String(each === event.currentTarget)); figure.update(); } }, text)));
  const legend = h('ul', { class: 'legend' }, arms.map((arm, index) => h('li', null, s('svg', { viewBox: '0 0 18 14', 'aria-hidden': 'true' }, s('path', { d: 'M0,7H18', stroke: `var(--c${index % 7})`, 'stroke-width': 2.5, 'stroke-dasharray': DASHES[index % 7] })), h('span', null, arm.name))));
  const section = (id, title, ...content) => h('section', { id, 'aria-labelledby': `${id}-title` }, h('h2', { id: `${id}-title` }, title), content);
  const sections = [
    section('curves', 'Best so far', figure.element, legend, choices,
      h('p', { class: 'note' }, 'Mean over repeats of the incumbent’s val_bpb, as a paired gain on the baseline; the band is what 95 % of resamples of the repeats give, which is too narrow where repeats are few.')),
    section('arms', 'Arms', armTable(arms)),
    section('pairwise', 'Head to head', ...contrastTables(facts_)),
    section('rates', 'Rates and calibration', rateTable(arms)),
    section('money', 'Time and money', moneyTable(arms)),
    section('experiments', 'Studies', h('p', null, `Every arm of every repeat is a study of its own, in ${facts_.tournament}; `, withCode('`jaxresearch report` and `replay` work on each.')),
      h('code', { class: 'command' }, `jaxresearch compare --tournament ${facts_.tournament} --json`)),
  ];
  app.replaceChildren(h('header', { class: 'top' }, state.live ? h('p', null, h('a', { href: state.home }, '← all studies')) : null, h('h1', { title: facts_.tournament }, folderName(facts_.tournament)),
    h('p', { class: 'muted' }, `Tournament of ${plural(arms.length, 'arm')} · ${facts_.repeats} of ${plural(facts_.planned_repeats, 'repeat')} complete · each arm in each: ${facts_.budget} · ${budgetText(facts_.run_budget)} a run`),
    h('p', { class: 'verdict-line' }, facts_.conclusion), facts_.warning ? h('p', { class: 'bad' }, facts_.warning) : null),
  h('nav', { class: 'sections', 'aria-label': 'Sections' }, h('div', null, sections.map((each) => h('a', { href: `#${each.id}` }, each.querySelector('h2').textContent)))),
  h('main', null, sections), h('footer', null, `Made by jaxresearch ${state.version}; nothing on this page is fetched from elsewhere.`));
}

function armTable(arms) {
  return [table(arms, [
    ['arm', (arm) => arm.name], ['model', (arm) => arm.llm, 'roomy'], ['test_bpb', (arm) => spread(arm.test_bpb), 'n'], ['val_bpb', (arm) => spread(arm.best_val_bpb), 'n roomy'],
    ['change on the test', (arm) => spread(arm.test_change, true), 'n'], ['best so far, mean', (arm) => spread(arm.anytime_auc), 'n roomy'],
    ['experiments', (arm) => (arm.experiments ? arm.experiments.mean.toFixed(1) : '–'), 'n roomy'], ['kept', (arm) => (known(arm.rates.keep) ? percent(arm.rates.keep) : '–'), 'n'],
  ], 'Arms'), h('p', { class: 'note' }, 'val_bpb and test_bpb of each repeat’s final incumbent on fresh seeds, with 95 % intervals over repeats; the change is against the baseline on the same seeds.')];
}

function rateTable(arms) {
  const rate = (...names) => (arm) => percent(names.reduce((sum, name) => sum + (arm.rates[name] || 0), 0));
  const stated = (text) => (arm) => (arm.calibration ? text(arm.calibration) : '–');
  return [table(arms, [
    ['arm', (arm) => arm.name], ['kept', rate('keep'), 'n'], ['failed', rate('crash', 'invalid', 'timeout'), 'n'], ['duplicates', rate('duplicate'), 'n roomy'],
    ['repaired', (arm) => (known(arm.repair_rate) ? percent(arm.repair_rate) : '–'), 'n roomy'],
    ['stated chance / kept', stated((found) => `${percent(found.mean_confidence)} / ${percent(found.kept_share)}`), 'n roomy'],
    ['Brier score', stated((found) => found.brier.toFixed(3)), 'n'], ['of the share', stated((found) => found.brier_of_share.toFixed(3)), 'n roomy'],
  ], 'Rates and calibration'), h('p', { class: 'note' }, 'Shares of the experiments, and of the rounds in which an answer had to be repaired. The Brier score is the mean squared error of the stated chances to be kept; always stating the share that was kept would give the last column.')];
}

function moneyTable(arms) {
  const per = (total, arm) => (arm.repeats ? total / arm.repeats : null);
  return table(arms, [
    ['arm', (arm) => arm.name], ['accelerator, a repeat', (arm) => duration(per(arm.accelerator_seconds, arm)), 'n'], ['an experiment', (arm) => duration(arm.accelerator_seconds_per_experiment), 'n roomy'],
    ['a kept change', (arm) => duration(arm.accelerator_seconds_per_keep), 'n roomy'], ['model, a repeat', (arm) => (arm.repeats ? usd(per(arm.llm_cost_usd, arm)) : '–'), 'n'],
    ['tokens in all', (arm) => whole(arm.llm_tokens), 'n roomy'],
  ], 'Time and money');
}

function contrastTables(facts_) {
  if (!facts_.pairwise.length) return [h('p', null, 'No repeat is complete yet.')];
  const one = (found, title) => [h('h3', null, title), table(found, [
    ['', (each) => `${each.a} against ${each.b}`], ['difference', (each) => signed(each.difference), 'n'],
    ['95 % interval', (each) => (known(each.low) ? `${signed(each.low)} to ${signed(each.high)}` : '–'), 'n'], ['', (each) => contrastForest(each, found)],
    ['p, corrected', (each) => probability(each.p_value), 'n'],
  ], title)];
  return [...one(facts_.pairwise, 'On validation'), ...one(facts_.pairwise_test, 'On the sealed test'),
    h('p', { class: 'note' }, `In bits per byte, below zero: the first is better. ${facts_.control ? `The control is ${facts_.control}. ` : ''}Permutation tests over repeats; p-values are corrected by Holm’s method for all contrasts of a table.`)];
}

function contrastForest(each, all) {
  const reach = Math.max(...all.flatMap((one) => [one.difference, one.low, one.high].filter(known).map(Math.abs)), 1e-6), x = scale(-reach, reach, 6, 164);
  return s('svg', { class: 'forest', viewBox: '0 0 170 20', 'aria-hidden': 'true' }, s('path', { d: `M${x(0)},0V20`, stroke: 'var(--muted)', 'stroke-dasharray': '2 2' }),
    known(each.low) ? s('path', { d: `M${x(each.low)},10H${x(each.high)}M${x(each.low)},6V14M${x(each.high)},6V14`, stroke: 'var(--text)', 'stroke-width': 1.4 }) : null, glyph('keep', x(each.difference), 10, 4.5));
}

function drawCurves(arms, over, width) {
  const narrow = width < 560, height = narrow ? 300 : 420, box = { left: 60, right: width - 18, top: 34, bottom: height - 44 };
  const [, title, text] = AXES.find(([name]) => name === over);
  const curves = arms.map((arm) => (arm.best_so_far && arm.best_so_far[over]) || []), points = curves.flat();
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': `Best val_bpb so far of ${arms.map((arm) => arm.name).join(', ')} over ${title}; the last values are ${arms.map((arm, index) => (curves[index].length ? bpb(curves[index][curves[index].length - 1].mean) : 'none')).join(', ')}.` });
  if (!points.length) { svg.append(s('text', { x: width / 2, y: height / 2, 'text-anchor': 'middle' }, 'No repeat is complete yet.')); return svg; }
  const low = Math.min(...points.map((point) => point.low)), high = Math.max(...points.map((point) => point.high)), pad = (high - low || 0.01) * 0.05;
  const last = Math.max(...points.map((point) => point[over])), first = Math.min(...points.map((point) => point[over]));
  const x = scale(first, last > first ? last : first + 1, box.left + 4, box.right), y = scale(low - pad, high + pad, box.bottom, box.top);
  svg.append(axes({ x, y, box, xMarks: ticks(first, last, narrow ? 3 : 7).filter((mark) => over !== 'experiments' || Number.isInteger(mark)), yMarks: ticks(low - pad, high + pad, 6), xText: text, xTitle: title, yTitle: 'best val_bpb so far (lower is better)' }));
  const step = (curve, name, back) => { // each value holds until the next place
    const path = curve.map((point, at) => `${at ? `H${x(point[over])}V` : `${back || 'M'}${x(point[over])},`}${y(point[name])}`);
    return path.join('');
  };
  curves.forEach((curve, index) => {
    if (curve.length < 2) return;
    const under = [...curve].reverse().map((point, at, all) => (at ? `V${y(point.low)}H${x(point[over])}` : `L${x(point[over])},${y(all[Math.min(1, all.length - 1)].low)}`)).join('');
    svg.append(s('path', { d: `${step(curve, 'high')}${under}Z`, fill: `var(--c${index % 7})`, opacity: 0.14 }));
  });
  curves.forEach((curve, index) => {
    if (!curve.length) return;
    svg.append(s('path', { d: curve.length > 1 ? step(curve, 'mean') : `M${x(first)},${y(curve[0].mean)}H${box.right}`, fill: 'none', stroke: `var(--c${index % 7})`, 'stroke-width': 2, 'stroke-dasharray': DASHES[index % 7] }));
  });
  return svg;
}
