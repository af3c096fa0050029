// The list: search, filter, sort; each line opens to hypothesis, diff, runs, audits and verdict.
function experimentList(state) {
  const items = new Map(), hiddenVerdicts = new Set();
  const list = h('div', { class: 'rows' }), count = h('span', { class: 'note', 'aria-live': 'polite' });
  const search = h('input', { type: 'search', id: 'search', placeholder: state.live ? 'Search hypotheses, reasons, settings' : 'Search hypotheses, diffs, reasons, settings',
    'aria-label': 'Search experiments', oninput: () => filter() });
  const order = h('select', { 'aria-label': 'Order', onchange: () => sort() },
    [['oldest', 'oldest first'], ['newest', 'newest first'], ['best', 'best score first'], ['gain', 'largest gain first'], ['cost', 'most costly first']]
      .map(([value, text]) => h('option', { value }, text)));
  if (state.live) order.value = 'newest';
  const toggles = h('span', { class: 'controls', role: 'group', 'aria-label': 'Verdicts shown' });
  const all = (open) => () => { for (const [number, item] of items) if (!item.element.hidden) item.element.open = open && items.has(number); };

  function toggle(verdict, total) {
    return h('button', { type: 'button', 'aria-pressed': String(!hiddenVerdicts.has(verdict)), 'data-verdict': verdict, onclick: (event) => {
      if (!hiddenVerdicts.delete(verdict)) hiddenVerdicts.add(verdict);
      event.currentTarget.setAttribute('aria-pressed', String(!hiddenVerdicts.has(verdict)));
      filter();
    } }, h('span', { class: 'chip', style: { color: colour(verdict) } }, icon(verdict), verdict), ` ${total}`);
  }
  function haystack(row) {
    const detail = state.live ? null : state.details.get(row.number);
    const more = detail ? [detail.hypothesis, detail.expected_effect, detail.reason, detail.failure, detail.diff.replace(/^index .*$/gm, ''), settingsOf(detail)] : [row.find];
    return [nameOf(row), row.title, row.tag, ...more].join('\n').toLowerCase();
  }
  function filter() {
    const words = (search.value.toLowerCase().match(/"[^"]*"?|\S+/g) || []).map((word) => word.replace(/"/g, '')).filter(Boolean);
    let shown = 0;
    for (const item of items.values()) {
      item.text = item.text || haystack(item.row);
      const visible = !hiddenVerdicts.has(verdictOf(item.row)) && words.every((word) => (/^#\d+$/.test(word) ? word === `#${item.row.number}` : item.text.includes(word)));
      item.element.hidden = !visible;
      shown += visible;
    }
    count.textContent = `${shown} of ${items.size} shown`;
  }
  const keys = {
    oldest: (row) => row.number, newest: (row) => -row.number,
    best: (row) => (known(row.val_bpb) && row.verdict !== 'invalid' ? row.val_bpb : Infinity),
    gain: (row) => (known(row.difference) ? row.difference : Infinity),
    cost: (row) => -(row.accelerator_seconds || 0),
  };
  function sort() {
    const key = keys[order.value];
    const sorted = [...items.values()].sort((a, b) => key(a.row) - key(b.row) || a.row.number - b.row.number);
    const focused = document.activeElement;
    arrange(list, sorted.map((item) => item.element));
    if (focused && list.contains(focused)) focused.focus({ preventScroll: true });
  }
  function update(numbers) {
    for (const number of numbers || state.rows.map((row) => row.number)) {
      const row = state.rows[number];
      const item = items.get(number) || { element: h('details', { class: 'exp', id: `e${number}` }) };
      const fresh = !items.has(number);
      items.set(number, item);
      item.row = row; item.text = '';
      item.element.classList.toggle('kept', row.verdict === 'keep');
      const summary = summaryOf(row);
      if (fresh) {
        item.element.append(summary, h('div', { class: 'body' }));
        item.element.addEventListener('toggle', () => { if (item.element.open) showBody(state, item); });
      } else {
        const focused = document.activeElement === item.element.firstChild;
        item.element.firstChild.replaceWith(summary);
        if (focused) summary.focus({ preventScroll: true });
        item.shown = null;
        if (item.element.open) showBody(state, item);
      }
    }
    const totals = {};
    for (const { row } of items.values()) totals[verdictOf(row)] = (totals[verdictOf(row)] || 0) + 1;
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.verdict : null;
    toggles.replaceChildren(...VERDICTS.filter((verdict) => totals[verdict]).map((verdict) => toggle(verdict, totals[verdict])));
    if (focused) { const again = toggles.querySelector(`[data-verdict="${focused}"]`); if (again) again.focus({ preventScroll: true }); }
    sort();
    filter();
  }
  function reveal(number) {
    const item = items.get(number);
    if (!item) return;
    if (item.element.hidden) { search.value = ''; hiddenVerdicts.clear(); update([]); filter(); }
    item.element.open = true;
    item.element.scrollIntoView({ block: 'start' });
    item.element.querySelector('summary').focus({ preventScroll: true });
  }
  document.addEventListener('keydown', (event) => {
    if (event.key === '/' && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) { search.focus(); event.preventDefault(); }
  });
  const element = h('div', null,
    h('div', { class: 'controls' }, search, order), h('div', { class: 'controls' }, toggles),
    h('div', { class: 'controls' }, count, h('button', { type: 'button', onclick: all(false) }, 'close all'),
      state.live ? null : h('button', { type: 'button', onclick: all(true) }, 'open all shown'), h('span', { class: 'note' }, '“/” goes to the search; #12 is one experiment, "two words" a phrase')),
    h('div', { class: 'list' }, h('div', { class: 'head', 'aria-hidden': 'true' }, h('span', null, '#'), h('span', null, 'verdict'),
      h('span', { class: 'num' }, 'val_bpb'), h('span', { class: 'num' }, 'change'), h('span', null, 'what was tried')), list));
  update();
  return { element, update, reveal };
}

const settingsOf = (detail) => Object.entries(detail.config || {}).map(([name, value]) => `${name} = ${value}`).join(', ');

function summaryOf(row) {
  return h('summary', null, h('span', { class: 'no' }, row.number), chip(row),
    h('span', { class: 'num score' }, bpb(row.val_bpb), known(row.sem) ? h('span', { class: 'muted' }, ` ± ${bpb(row.sem)}`) : null),
    h('span', { class: 'num change' }, row.number ? signed(row.difference) : ''), h('span', { class: 'what' }, row.title));
}

async function showBody(state, item) {
  const row = item.row, body = item.element.lastChild;
  if (item.shown === row) return;
  item.shown = row;
  if (!state.details.has(row.number)) body.replaceChildren(h('p', { class: 'note' }, 'Loading…'));
  const detail = await state.detail(row.number);
  if (item.shown !== row) return;
  body.replaceChildren(...(detail ? bodyOf(state, row, detail) : [h('p', { class: 'bad' }, 'The server did not answer; close and open to try again.')]));
  if (!detail) item.shown = null;
}

function bodyOf(state, row, detail) {
  const settings = settingsOf(detail);
  const interval = known(row.difference_low) ? `, 95 % interval ${signed(row.difference_low)} to ${signed(row.difference_high)}` : '';
  const rival = known(detail.compared_with) ? [' against ', link(detail.compared_with)] : '';
  const compare = h('button', { type: 'button', class: 'no-print', onclick: () => { state.compare.add(row.number); state.onCompare(); document.getElementById('loss').scrollIntoView(); } }, 'compare its loss curve');
  return [
    detail.hypothesis && detail.hypothesis.trim() !== row.title ? h('p', { style: { whiteSpace: 'pre-wrap', overflowWrap: 'anywhere' } }, detail.hypothesis) : null,
    facts([
      ['because', detail.reason], ['why no program', detail.failure !== detail.reason ? detail.failure : ''],
      ['effect', row.number && known(row.difference) ? [`${signed(row.difference)} bpb`, interval, known(row.p_value) ? `, p ${probability(row.p_value)}` : '', rival] : ''],
      ['builds upon', known(row.parent) ? link(row.parent) : ''], ['same as', known(row.same_as) ? link(row.same_as) : ''],
      ['quarantine', detail.quarantine ? h('span', { class: 'bad' }, `${detail.quarantine}; it ran again on fresh seeds`) : ''],
      ['expected', [(detail.expected_effect || '').trim().replace(/\.$/, ''), known(detail.predicted_bpb) ? `${signed(detail.predicted_bpb)} bpb` : '', known(detail.confidence) ? `a chance of ${percent(detail.confidence)} to be kept` : ''].filter(Boolean).join('; ')],
      ['sets', settings], ['idea', row.tag], ['second try of', known(row.repairs) ? link(row.repairs) : ''], ['asked', detail.llm],
      ['took', `${duration(row.accelerator_seconds)} of accelerator` + (detail.llm_calls ? `; ${plural(detail.llm_calls, 'model request')}, ${whole(detail.llm_tokens)} tokens, ${usd(row.llm_cost_usd)}` : '')],
      ['running', known(row.running_seed) ? `seed ${row.running_seed}` : ''],
      ['commit', detail.commit ? h('code', null, detail.commit.slice(0, 12)) : ''], ['program', detail.program ? h('code', null, detail.program) : ''],
    ]),
    detail.runs.length ? [h('h3', null, 'Runs'), runTable(detail.runs), h('div', { class: 'controls' }, compare)] : null,
    auditList(detail.runs),
    detail.diff ? [h('h3', null, 'Diff'), diffView(detail.diff)] : null,
    [detail.traceback, ...detail.runs.map((run) => run.traceback)].filter(Boolean).map((text) => [h('h3', null, 'Traceback'), h('pre', { tabindex: '0' }, text)]),
    h('h3', null, 'Run it again'), h('code', { class: 'command' }, detail.command),
  ].flat(Infinity).filter(Boolean);
}

function runTable(runs) {
  return table(runs, [
    ['seed', (run) => run.seed, 'n'], ['val_bpb', (run) => (run.status === 'completed' ? (run.val_bpb === undefined ? '–' : run.val_bpb.toFixed(5)) : h('span', { class: 'bad' }, run.verdict)), 'n'],
    ['steps', (run) => (known(run.steps) ? whole(run.steps) : known(run.step) ? `stopped at ${run.step}` : '–'), 'n'], ['tokens', (run) => (known(run.tokens) ? whole(run.tokens) : '–'), 'n'],
    ['training', (run) => duration(run.train_seconds), 'n'], ['tokens/s', (run) => (known(run.tokens_per_second) ? whole(run.tokens_per_second) : '–'), 'n'],
    ['memory', (run) => bytes(run.peak_memory_bytes), 'n'], ['device', (run) => (run.device ? `${run.devices > 1 ? `${run.devices} × ` : ''}${run.device}` : '–')],
    ['notes', runNotes],
  ], 'Runs');
}

function runNotes(run) {
  const notes = [run.reason, (run.flags || []).join(', '), known(run.shared_from) ? ['shared with ', link(run.shared_from)] : null,
    known(run.mfu) ? `MFU ${percent(run.mfu)}` : null, run.attention ? `attention: ${run.attention}` : null, run.worker ? `worker: ${run.worker}` : null,
    ...(run.resumed || []).map((each) => `taken up at ${percent(each.progress)}${each.alike ? '' : ' on another kind of machine'}`),
    run.checkpoint ? `final state kept, ${run.checkpoint}` : null, run.checkpoint_note].filter(Boolean);
  return notes.map((note) => h('div', null, note));
}

function auditList(runs) {
  const audits = runs.flatMap((run) => (run.audits || []).map((audit) => ({ ...audit, seed: run.seed })));
  if (!audits.length) return null;
  const failed = audits.filter((audit) => !audit.passed).length;
  const rows = () => table(audits, [['seed', (a) => a.seed, 'n'], ['audit', (a) => a.name], ['result', (a) => (a.passed ? h('span', { class: 'good' }, 'passed') : h('span', { class: 'bad' }, 'FAILED'))],
    ['probes', (a) => whole(a.probes), 'n'], ['largest deviation', (a) => (known(a.max_deviation) ? String(a.max_deviation) : 'not finite'), 'n'], ['detail', (a) => a.detail]], 'Audits');
  return h('details', { open: failed > 0 }, h('summary', null, `${plural(audits.length, 'audit')}: `, failed ? h('span', { class: 'bad' }, `${failed} failed`) : 'all passed'), rows());
}

function diffView(text) {
  let header = true;
  const lines = text.replace(/\n$/, '').split('\n').map((line) => {
    if (line.startsWith('diff --git')) header = true;
    else if (line.startsWith('@@')) header = false;
    const kind = header ? 'file' : line.startsWith('@@') ? 'hunk' : line.startsWith('+') ? 'add' : line.startsWith('-') ? 'del' : '';
    return h('span', kind ? { class: kind } : null, line);
  });
  return h('pre', { class: 'diff', tabindex: '0', 'aria-label': 'Diff against its parent' }, lines);
}
