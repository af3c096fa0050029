// The page: builds itself from the data block; when live, follows the server's events.
const state = JSON.parse(document.getElementById('data').textContent);
const app = document.getElementById('app');
let openExperiment = () => {};

function studyPage() {
  state.details = new Map(Object.entries(state.details || {}).map(([number, detail]) => [Number(number), detail]));
  state.compare = new Set([state.study.baseline, state.study.incumbent]);
  state.onCompare = () => {};
  const pending = new Map();
  state.detail = (number) => {
    if (state.details.has(number) || !state.live) return Promise.resolve(state.details.get(number));
    if (!pending.has(number)) {
      pending.set(number, fetch(`${state.base}/experiments/${number}`, { credentials: 'same-origin' }).then((answer) => (answer.ok ? answer.json() : null)).catch(() => null).then((detail) => {
        pending.delete(number);
        if (detail) state.details.set(number, detail);
        return detail;
      }));
    }
    return pending.get(number);
  };
  const head = h('header', { class: 'top' }), tiles = h('div'), now = h('section', { id: 'now', 'aria-label': 'Running now', hidden: true });
  const showRunning = () => { const runs = state.running || []; now.hidden = !runs.length; now.replaceChildren(...(runs.length ? [h('h2', null, 'Running now'), ...runs.map((run) => runningCard(state, run))] : [])); };
  const parts = { kept: h('div'), cost: h('div'), integrity: h('div'), reproduce: h('div') };
  const progress = progressChart(state), tree = treeChart(state), loss = lossChart(state), list = experimentList(state);
  const connection = state.live ? h('span', { class: 'badge', role: 'status' }, 'connecting') : null;
  const section = (id, title, note, ...content) => h('section', { id, 'aria-labelledby': `${id}-title` }, h('h2', { id: `${id}-title` }, title), note ? h('p', { class: 'note' }, note) : null, content);
  const sections = [
    section('progress', 'Progress', null, progress.element),
    section('kept', 'Kept changes', null, parts.kept),
    section('tree', 'Tree of experiments', 'Each line holds what was tried on top of one parent, from left to right in time; green leads to the best.', tree.element),
    section('loss', 'Loss curves', null, loss.element),
    section('cost', 'Time and money', null, parts.cost),
    section('integrity', 'Integrity', null, parts.integrity),
    section('reproduce', 'Reproduce', null, parts.reproduce),
    section('experiments', 'Experiments', null, list.element),
  ];
  function refresh() {
    const { study } = state;
    const running = study.state === 'open' ? 'running, or was killed' : study.state;
    head.replaceChildren(...[state.live ? h('p', null, h('a', { href: state.home }, '← all studies')) : null, h('h1', { title: study.study }, folderName(study.study)),
      h('p', { class: 'muted' }, `${study.strategy} with ${study.llm} · ${budgetText(study.budget)} a run · begun ${when(study.created_at)} · ${running}${study.stopped ? `: ${shorten(study.stopped, 200)}` : ''} `, connection), tiles].filter(Boolean));
    tiles.replaceChildren(...overview(state));
    parts.kept.replaceChildren(...keptTable(state));
    parts.cost.replaceChildren(...spending(state));
    parts.integrity.replaceChildren(...integrity(state));
    if (!parts.reproduce.firstChild || state.incumbentShown !== study.incumbent) parts.reproduce.replaceChildren(...reproduce(state));
    state.incumbentShown = study.incumbent;
  }
  openExperiment = (number) => { if (location.hash === `#e${number}`) list.reveal(number); else location.hash = `#e${number}`; };
  const follow = () => { const found = /^#e(\d+)$/.exec(location.hash); if (found) list.reveal(Number(found[1])); };
  window.addEventListener('hashchange', follow);
  refresh();
  app.replaceChildren(head, h('nav', { class: 'sections', 'aria-label': 'Sections' }, h('div', null, sections.map((each) => h('a', { href: `#${each.id}` }, each.querySelector('h2').textContent)))),
    h('main', null, now, sections), h('footer', null, `Made by jaxresearch ${state.study.versions.jaxresearch} from ${whole(state.study.integrity.events)} ledger events; nothing on this page is fetched from elsewhere.`));
  follow();
  showRunning();
  if (!state.live) return;
  listen(`${state.base}/events?after=${state.study.integrity.events}&begun=${state.begun}`, connection, (news) => {
    const followedBest = state.compare.has(state.study.incumbent) && state.compare.size === new Set([0, state.study.incumbent]).size;
    const best = state.study.incumbent;
    state.study = news.study;
    for (const row of news.rows) { state.rows[row.number] = row; state.details.delete(row.number); }
    if (followedBest && best !== state.study.incumbent) state.compare = new Set([0, state.study.incumbent]);
    refresh();
    progress.update(); tree.update(); loss.update();
    list.update(news.rows.map((row) => row.number));
    showRunning();
  }, (news) => { state.running = news.running; showRunning(); });
}

function indexPage() {
  const cards = h('ul', { class: 'cards' }), items = new Map(), connection = h('span', { class: 'badge', role: 'status' }, 'connecting');
  const empty = h('p', null, 'No study here yet. Start one with ', h('code', null, 'jaxresearch run --study DIR'), ' and it appears.');
  function card(each) {
    if (each.unread) return h('li', { class: 'card' }, h('h2', null, h('a', { href: each.href }, each.name)), h('p', { class: 'note' }, 'being read …'));
    if (each.error) return h('li', { class: 'card' }, h('h2', null, each.name), h('p', { class: 'bad' }, each.error));
    const share = each.planned ? each.experiments / each.planned : 0;
    return h('li', { class: 'card' }, h('h2', null, h('a', { href: each.href }, each.name)), h('p', { class: 'note' }, `${shorten(each.strategy, 60)} with ${shorten(each.llm, 60)} · ${budgetText(each.budget)} a run · ${each.running ? 'running' : each.state === 'open' ? 'running, or was killed' : each.state}`),
      spark(each.best, each.experiments), facts([['best', known(each.val_bpb) ? `${bpb(each.val_bpb)}${known(each.gain) && each.gain > 0 ? `, ${bpb(each.gain)} below the baseline` : ''}` : '–'],
        ['experiments', `${each.experiments} of ${each.planned}, ${each.kept} kept`], ['time', duration(each.wall_seconds)], ['model', usd(each.llm_cost_usd)]]),
      h('div', { class: 'meter', role: 'progressbar', 'aria-valuenow': Math.round(share * 100), 'aria-label': 'experiments done' }, h('div', { style: { width: `${Math.min(100, share * 100)}%` } })));
  }
  function spark(best, experiments) {
    const svg = s('svg', { class: 'spark', viewBox: '0 0 200 44', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    if (best.length < 1) return svg;
    const values = best.map((each) => each[1]), last = Math.max(best[best.length - 1][0], experiments, 1), x = scale(0, last, 2, 198), y = scale(Math.min(...values), Math.max(...values) + 1e-9, 40, 5);
    svg.append(s('path', { d: best.map(([number, value], index) => `${index ? `H${x(number)}V` : `M${x(number)},`}${y(value)}`).join('') + `H${x(last)}`, fill: 'none', stroke: 'var(--keep)', 'stroke-width': 2, 'vector-effect': 'non-scaling-stroke' }));
    return svg;
  }
  // Only what changed is built anew, and moved only where the order changed: what is being read or focused stays.
  function show(order, changed) {
    const focused = document.activeElement ? document.activeElement.getAttribute('href') : null;
    for (const each of changed) {
      const before = items.get(each.href), element = card(each);
      items.set(each.href, element);
      if (before) before.replaceWith(element);
      if (focused === each.href) { const anchor = element.querySelector('a'); if (anchor) anchor.focus({ preventScroll: true }); }
    }
    const wanted = new Set(order);
    for (const [href, element] of items) if (!wanted.has(href)) { element.remove(); items.delete(href); }
    arrange(cards, order.map((href) => items.get(href)));
    empty.hidden = order.length > 0;
  }
  show(state.studies.map((each) => each.href), state.studies);
  app.replaceChildren(h('header', { class: 'top' }, h('h1', null, 'Studies'), h('p', { class: 'muted' }, `${state.folder} `, connection)), h('main', { id: 'experiments' }, cards, empty,
    state.tournaments.length ? [h('h2', null, 'Tournaments'), h('ul', { class: 'tournaments' }, state.tournaments.map((each) => h('li', null, h('a', { href: each.href }, each.name))))] : null));
  listen(`${state.home}events`, connection, (news) => show(news.order, news.changed));
}

function folderName(path) { return path.replace(/\/+$/, '').split('/').pop() || path; }

// A run on its way, as its driver tells it: what is tried, how far it is, and its loss so far.
function runningCard(state, run) {
  const row = state.rows[run.experiment], share = run.stage === 'train' ? run.progress : run.stage === 'score' ? 1 : 0;
  const stage = { train: `training, ${percent(run.progress)}, step ${whole(run.step)}`, score: 'scoring and auditing', compile: 'compiling' }[run.stage] || run.stage;
  const svg = s('svg', { class: 'spark', viewBox: '0 0 200 44', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  const losses = run.curve.map((point) => point[1]);
  if (losses.length > 1) {
    const x = scale(0, 1, 2, 198), y = scale(Math.min(...losses), Math.max(...losses) + 1e-9, 41, 3);
    svg.append(s('path', { d: run.curve.map(([at, loss], index) => `${index ? 'L' : 'M'}${x(at).toFixed(1)},${y(loss).toFixed(1)}`).join(''), fill: 'none', stroke: 'var(--c0)', 'stroke-width': 1.6, 'vector-effect': 'non-scaling-stroke' }));
  }
  return h('div', { class: 'card running' }, h('p', null, link(run.experiment, `Experiment ${run.experiment}`), `, seed ${run.seed}: ${stage}`, known(run.loss) ? [', loss ', h('strong', null, run.loss.toFixed(3))] : null),
    row ? h('p', { class: 'note' }, shorten(row.title, 160)) : null, svg,
    h('div', { class: 'meter', role: 'progressbar', 'aria-valuenow': Math.round(share * 100), 'aria-label': `experiment ${run.experiment}, seed ${run.seed}` }, h('div', { style: { width: `${Math.min(100, share * 100)}%` } })));
}

function listen(url, badge, onNews, onRunning) {
  const source = new EventSource(url);
  const say = (text, kind) => { badge.textContent = text; badge.className = `badge ${kind}`; };
  source.onopen = () => say('live', 'on');
  source.onerror = () => say(source.readyState === EventSource.CLOSED ? 'disconnected; reload the page' : 'connection lost; trying again', 'off');
  source.addEventListener('news', (event) => { say('live', 'on'); onNews(JSON.parse(event.data)); });
  if (onRunning) source.addEventListener('running', (event) => onRunning(JSON.parse(event.data)));
  source.addEventListener('another', () => location.reload());
  source.addEventListener('trouble', (event) => say(JSON.parse(event.data).error, 'off'));
}

if (state.kind === 'index') indexPage(); else if (state.kind === 'tournament') tournamentPage(); else studyPage();
