// The sections around the charts: conclusion, kept changes, time and money, integrity, how to reproduce.
function conclusion(state) {
  const { study, rows } = state, best = rows[study.incumbent], base = rows[study.baseline];
  if (!known(base.val_bpb)) return ['The baseline is not scored yet; nothing can be said.'];
  if (study.incumbent === study.baseline) return ['Nothing that was tried is better than the baseline beyond the noise.'];
  const interval = known(study.gain_low) ? ` (95 % interval ${bpb(study.gain_low)} to ${bpb(study.gain_high)})` : '';
  return ['Best is ', link(best.number, `experiment ${best.number}`), `, ${bpb(study.gain)} bits per byte below the baseline${interval}, `,
    study.noise && study.noise.sd_bpb ? `${(study.gain / study.noise.sd_bpb).toFixed(1)} times the noise between seeds.` : 'with the noise unknown.'];
}

// The kept changes that make up the best experiment, oldest first.
function madeOf(state) {
  const { study, rows } = state, steps = [];
  for (let row = rows[study.incumbent]; row && row.number; row = rows[row.parent]) steps.unshift(row);
  return steps.length ? h('ol', { class: 'steps' }, steps.map((row) => h('li', null, link(row.number), ` ${shorten(row.title, 160)}`,
    known(row.difference) ? ` (${signed(row.difference)})` : ''))) : null;
}

function overview(state) {
  const { study, rows } = state, best = rows[study.incumbent], base = rows[study.baseline];
  const tile = (name, big, small) => h('div', { class: 'tile' }, h('dt', null, name), h('dd', null, h('div', { class: 'big' }, big), h('div', { class: 'small' }, small)));
  const done = rows.filter((row) => row.number && row.verdict).length, running = rows.find((row) => !row.verdict);
  return [
    h('p', { class: 'verdict-line' }, conclusion(state)),
    madeOf(state),
    h('dl', { class: 'tiles' },
      tile('best val_bpb', bpb(best.val_bpb), known(best.sem) ? `± ${bpb(best.sem)} over ${plural(best.runs, 'seed')}` : plural(best.runs, 'run')),
      tile('baseline', bpb(base.val_bpb), known(base.sem) ? `± ${bpb(base.sem)} over ${plural(base.runs, 'seed')}` : plural(base.runs, 'run')),
      tile('noise between seeds', study.noise ? bpb(study.noise.sd_bpb) : '–', study.noise ? `sd; 95 %: ${bpb(study.noise.low_bpb)} to ${bpb(study.noise.high_bpb)}` : 'needs two seeds'),
      tile('experiments', `${done} of ${study.planned_experiments}`, `${study.verdicts.keep} kept, ${done - study.verdicts.keep} not` + (running ? `; #${running.number} is open` : '')),
      tile('time', duration(study.wall_seconds), study.wall_seconds ? `${percent(study.train_seconds / study.wall_seconds)} of it training` : ''),
      tile('language model', usd(study.llm_cost_usd), `${plural(study.llm_calls, 'request')}, ${whole(study.llm_tokens)} tokens` + (known(study.max_cost) ? `; the cap is ${usd(study.max_cost)}` : ''))),
    study.confirmation ? h('p', null, h('strong', null, 'Sealed test: '), study.confirmation)
      : h('p', { class: 'note' }, 'Scores are of the validation split, which also chose the winner, so they flatter it a little',
        known(study.gain_corrected) ? `: corrected for that choice the gain is ${bpb(study.gain_corrected)}` : '', '; the sealed test (', h('code', null, 'jaxresearch confirm'), ') decides at the end.'),
    lookAt(state),
  ].filter(Boolean);
}

// What a person should look at before believing the rest.
function lookAt(state) {
  const { study, rows } = state, held = rows.filter((row) => row.quarantined), incidents = incidentCount(study);
  const points = [
    study.integrity.anchored === false ? ['The ledger disagrees with the workspace: it was cut or rewritten.'] : null,
    held.length ? [plural(held.length, 'implausible gain'), ' had to hold on fresh seeds: ', held.map((row) => [link(row.number), ` (${nameOf(row)}) `])] : null,
    incidents ? [h('a', { href: '#integrity' }, plural(incidents, 'incident')), ': ', Object.entries(study.incident_kinds).map(([kind, count]) => `${count} ${kind}`).join(', '), '.'] : null,
    Object.keys(study.integrity.sandboxes).some((name) => name === 'subprocess') ? ['Candidates were traced in a tier that stops no attacker.'] : null,
    study.machine_warning ? [`The machine was not steady: ${study.machine_warning}.`] : null,
  ].filter(Boolean);
  return points.length ? h('div', { class: 'look', id: 'look' }, h('strong', null, 'Look at'), h('ul', null, points.map((point) => h('li', null, point)))) : null;
}

const incidentCount = (study) => Object.values(study.incident_kinds).reduce((sum, count) => sum + count, 0);
const runsOf = (object) => Object.entries(object || {}).map(([name, count]) => `${name} (${plural(count, 'run')})`).join(', ');

function keptTable(state) {
  const kept = state.rows.filter((row) => row.verdict === 'keep' && row.number && !row.simpler);
  const simpler = state.rows.filter((row) => row.simpler).map((row) => `#${row.number}`);
  if (!kept.length) return [h('p', null, 'No change was kept.')];
  const reach = Math.max(...kept.flatMap((row) => [row.difference, row.difference_low, row.difference_high].filter(known).map(Math.abs)), 1e-6);
  const x = scale(-reach, reach * 0.2, 6, 164);
  const forest = (row) => s('svg', { class: 'forest', viewBox: '0 0 170 20', role: 'img', 'aria-label': `${signed(row.difference)}, interval ${signed(row.difference_low)} to ${signed(row.difference_high)}` },
    s('path', { d: `M${x(0)},0V20`, stroke: 'var(--muted)', 'stroke-dasharray': '2 2' }),
    known(row.difference_low) ? s('path', { d: `M${x(row.difference_low)},10H${x(row.difference_high)}M${x(row.difference_low)},6V14M${x(row.difference_high)},6V14`, stroke: 'var(--text)', 'stroke-width': 1.4 }) : null,
    glyph('keep', x(row.difference), 10, 4.5));
  return [
    table(kept, [
      ['#', (row) => link(row.number), 'n'], ['what was changed', (row) => row.title, 'wide'], ['change', (row) => signed(row.difference), 'n'],
      ['95 % interval', (row) => (known(row.difference_low) ? `${signed(row.difference_low)} to ${signed(row.difference_high)}` : '–'), 'n roomy'],
      ['', forest], ['p', (row) => probability(row.p_value), 'n roomy'], ['val_bpb', (row) => bpb(row.val_bpb), 'n roomy'], ['runs', (row) => row.runs, 'n roomy'],
    ], 'Kept changes'),
    h('p', { class: 'note' }, 'Change: mean difference in val_bpb to the best before it, on the same seeds; below zero is better. Each is tested on its own, so of many kept changes a few may be chance.'),
    simpler.length ? h('p', { class: 'note' }, `Kept for being simpler, not better: ${simpler.join(', ')}.`) : null,
  ].filter(Boolean);
}

function spending(state) {
  const { study, rows } = state, total = study.phases.reduce((sum, phase) => sum + phase.seconds, 0) || 1;
  const longest = Math.max(...study.phases.map((phase) => phase.seconds), 1e-9);
  const byVerdict = VERDICTS.map((verdict) => {
    const mine = rows.filter((row) => row.number && verdictOf(row) === verdict);
    return { verdict, count: mine.length, seconds: mine.reduce((sum, row) => sum + (row.accelerator_seconds || 0), 0), cost: mine.reduce((sum, row) => sum + (row.llm_cost_usd || 0), 0) };
  }).filter((each) => each.count);
  return [h('div', { class: 'split' },
    h('div', null, h('h3', null, `Wall time, ${duration(study.wall_seconds)} in ${plural(study.sessions, 'session')}`),
      table(study.phases, [['', (phase) => phase.name], ['time', (phase) => duration(phase.seconds), 'n'], ['share', (phase) => percent(phase.seconds / total), 'n'],
        ['', (phase) => h('div', { class: 'meter' }, h('div', { style: { width: `${(phase.seconds / longest) * 100}%` } })), 'wide']], 'Wall time by phase')),
    h('div', null, h('h3', null, 'What it was spent on'),
      table(byVerdict, [['verdict', (each) => h('span', { class: 'chip', style: { color: colour(each.verdict) } }, icon(each.verdict), each.verdict)], ['experiments', (each) => whole(each.count), 'n'],
        ['accelerator', (each) => duration(each.seconds), 'n'], ['model', (each) => usd(each.cost), 'n']], 'Spending by verdict'),
      facts([['accelerator', duration(study.accelerator_seconds)],
        ['early stopping', study.cut_runs ? `${plural(study.cut_runs, 'run')} cut, about ${duration(study.train_seconds_saved)} of training saved` : 'no run cut'], ['model requests', `${whole(study.llm_calls)}, ${whole(study.llm_tokens)} tokens, ${usd(study.llm_cost_usd)}`],
        ['of no known price', study.llm_unpriced_tokens ? `${whole(study.llm_unpriced_tokens)} tokens, not in these dollars` : ''],
        ['never answered', study.llm_possible_cost_usd ? `requests that cost at most ${usd(study.llm_possible_cost_usd)} more` : ''],
        ['repairs', study.repairs && study.repairs.tried ? `${plural(study.repairs.tried, 'crashed idea')} tried again, ${whole(study.repairs.kept)} kept` : ''],
        ['predictions', calibration(study.calibration)],
        ...(study.trials || []).map((said) => ['beside the search', said]),
        ['failed proposals', study.failed_proposals ? `${study.failed_proposals}; the last: ${shorten(study.last_failure, 200)}` : '0'],
        ['per kept change', study.verdicts.keep ? `${duration(study.accelerator_seconds / study.verdicts.keep)} of accelerator, ${usd(study.llm_cost_usd / study.verdicts.keep)}` : '–']])))];
}

function calibration(found) {
  if (!found) return '';
  const miss = known(found.median_miss_bpb) ? `; changes off by ${found.median_miss_bpb.toFixed(4)} bpb in the median` : '';
  return `${percent(found.mean_confidence)} expected to be kept, ${percent(found.kept_share)} of ${whole(found.predictions)} were; Brier score ${found.brier.toFixed(3)}, of that share alone ${found.brier_of_share.toFixed(3)}${miss}`;
}

function integrity(state) {
  const { study } = state, { integrity: facts_, versions, fingerprints } = study;
  const counts = (object) => runsOf(object) || 'none yet';
  const anchored = facts_.anchored === null ? withCode('not compared on this page; `jaxresearch report` does') : facts_.anchored
    ? h('span', { class: 'good' }, `agrees with ${facts_.anchors === 1 ? 'the one hash' : `all ${facts_.anchors} hashes`} in the workspace's commits`)
    : h('span', { class: 'bad' }, 'DISAGREES with the workspace: the ledger was cut or rewritten');
  return [
    facts([['candidates traced in', counts(facts_.sandboxes)], ['programs run in', runsOf(facts_.workers)], ['trained on', counts(facts_.devices)], ['attention', runsOf(facts_.attention)],
      ['sealed test', study.confirmation || 'never opened'], ['keeps by chance', known(study.expected_false_keeps) ? `at most ${study.expected_false_keeps.toPrecision(2)} expected, if nothing that was tried had an effect` : ''],
      ['constraints', Object.entries(study.config.constraints || {}).filter(([, limit]) => known(limit)).map(([name, limit]) => `${name} at most ${limit.toLocaleString('en-US')}`).join(', ') || 'none'],
      ['checkpoints', [facts_.checkpoints ? `${plural(facts_.checkpoints, 'final state')} kept` : '', facts_.resumed ? `${plural(facts_.resumed, 'run')} cut and taken up again` : ''].filter(Boolean).join('; ')],
      ['ledger', `${whole(facts_.events)} events, hash chain whole`], ['ledger head', h('code', null, facts_.head)], ['outside anchors', anchored],
      ['scores refused', facts_.refused ? plural(facts_.refused, 'experiment') : 'none'],
      ['flags', Object.entries(facts_.flags).map(([name, count]) => `${name} (${count})`).join(', ') || 'none'],
      ['corpus', h('code', null, fingerprints.corpus)], ['tokenizer', h('code', null, fingerprints.tokenizer)], ['subject', h('code', null, fingerprints.subject)],
      ...(study.origin ? [['begins with', `experiment ${study.origin.experiment} of ${study.origin.study}` + (known(study.origin.val_bpb) ? ` (${bpb(study.origin.val_bpb)} there, ${budgetText(study.origin.budget)} a run)` : '') + `, ledger ${study.origin.head.slice(0, 12)}`]] : []),
      ['versions', Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(', ')]]),
    facts_.audits.length ? table(facts_.audits, [['audit', (a) => a.name], ['passed', (a) => whole(a.passed), 'n'], ['failed', (a) => (a.failed ? h('span', { class: 'bad' }, whole(a.failed)) : '0'), 'n'],
      ['probes', (a) => whole(a.probes), 'n'], ['largest deviation that passed', (a) => (known(a.max_deviation) ? String(a.max_deviation) : '–'), 'n']], 'Audits of the whole study') : h('p', { class: 'note' }, 'No audit has run yet.'),
    incidentCount(study) ? [h('h3', null, plural(incidentCount(study), 'incident') + (incidentCount(study) > study.incidents.length ? `; the last ${study.incidents.length}` : '')), table([...study.incidents].reverse(), [
      ['incident', (each) => h('span', { class: 'bad' }, each.kind), 'tight'], ['', (each) => each.pattern, 'tight'], ['experiment', (each) => (known(each.experiment) ? `#${each.experiment}` : 'proposing'), 'n'],
      ['by', (each) => shorten(`${each.strategy}, ${each.llm || 'no model'}`, 40), 'roomy tight'], ['what', (each) => shorten(each.detail, 160), 'wide']], 'Incidents, the newest first')] : null,
  ].flat().filter(Boolean);
}

function reproduce(state) {
  const { study } = state;
  return [study.reproduce.map(({ purpose, command }) => [h('h3', null, purpose), h('code', { class: 'command' }, command)]),
    study.instructions.trim() ? h('details', null, h('summary', null, 'Instructions given (program.md)'), h('pre', { tabindex: '0' }, study.instructions)) : null,
    h('details', null, h('summary', null, 'Configuration'), h('pre', { tabindex: '0' }, settingsText(study.config, '')))].flat(Infinity).filter(Boolean);
}

function settingsText(config, path) {
  return Object.entries(config).map(([name, value]) => (value !== null && typeof value === 'object' && !Array.isArray(value)
    ? settingsText(value, `${path}${name}.`) : `${path}${name}=${value === null ? 'null' : Array.isArray(value) ? JSON.stringify(value) : value}\n`)).join('');
}
