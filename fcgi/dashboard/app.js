// The dashboard. What comes from the server enters the document through el(), as text and
// attributes, never as markup. Each address #/... is a view; see `routes`, at the end.

const main = document.getElementById('main');
const environments = ['dev', 'staging', 'prod', 'ci'];
const permissions = ['gateway:read', 'gateway:write', 'logs:read', 'analytics:read'];

let session = null;							// {role, admin}
let left = new AbortController();			// aborted when the view shown is left
const projects = new Map();					// by id, for their names

/* Elements */
function maker(namespace)
{
	return (tag, attributes, ...children) => {
		const element = document.createElementNS(namespace, tag);

		for (const [name, value] of Object.entries(attributes ?? {}))
		{
			if (name.startsWith('on'))
				element.addEventListener(name.slice(2), value);
			else if (value !== undefined && value !== null && value !== false)
				element.setAttribute(name, value === true ? '' : value);
		}
		element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
		return element;
	};
}

const el = maker('http://www.w3.org/1999/xhtml');
const svg = maker('http://www.w3.org/2000/svg');

function link(address, ...children)
{
	return el('a', { href: `#${address}` }, ...children);
}

// A link with a name that may be cut short.
function named(address, name)
{
	return el('a', { href: `#${address}`, title: name }, name);
}

function button(label, onclick, attributes)
{
	return el('button', { type: 'button', onclick, ...attributes }, label);
}

let lastId = 0;

function newId()
{
	return `id-${++lastId}`;
}

// The address of a view, with the parameters that are not empty.
function address(path, query = {})
{
	const wanted = new URLSearchParams(Object.entries(query).filter(([, value]) => value));

	return String(wanted) ? `${path}?${wanted}` : path;
}

/* Values as text */
const number = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });
const percentage = new Intl.NumberFormat(undefined, { style: 'percent', maximumFractionDigits: 2 });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto' });
const dateFormats = {
	day: new Intl.DateTimeFormat(undefined, { dateStyle: 'medium' }),
	minute: new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' }),
	second: new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' }),
};
const units = [['year', 31536000], ['month', 2592000], ['day', 86400], ['hour', 3600], ['minute', 60]];
const none = '–';

function percent(value)
{
	return percentage.format((value ?? 0) / 100);
}

function milliseconds(value)
{
	if (value === null || value === undefined)
		return none;
	return value < 1000 ? `${number.format(Math.round(value))} ms` : `${number.format(Number((value / 1000).toPrecision(3)))} s`;
}

function plural(count, one, many = `${one}s`)
{
	return `${number.format(count)} ${count === 1 ? one : many}`;
}

function perMinute(limit)
{
	return limit === null || limit === undefined ? 'No limit' : `${number.format(limit)} a minute`;
}

function ago(iso)
{
	const seconds = (new Date(iso) - Date.now()) / 1000;
	const [unit, length] = units.find(([, length]) => Math.abs(seconds) >= length) ?? ['second', 1];

	return unit === 'second' ? (Math.abs(seconds) < 5 ? 'just now' : relative.format(Math.round(seconds), unit))
		: relative.format(Math.trunc(seconds / length), unit);
}

function time(iso, how, otherwise = none)
{
	if (!iso)
		return otherwise;
	if (Number.isNaN(Date.parse(iso)))		// "infinity"
		return iso;
	return el('time', { datetime: iso, title: iso }, how === 'ago' ? ago(iso) : dateFormats[how].format(new Date(iso)));
}

// SQL's message, detail and hint as sentences.
function explain(error)
{
	return [error.message, error.detail, error.hint].filter(Boolean)
		.map((text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? '' : '.')).join(' ');
}

/* The server */
class ApiError extends Error
{
	constructor(status, body, retryAfter)
	{
		super(body?.error ?? (status ? `The server answered with status ${status}` : 'The server cannot be reached'));
		Object.assign(this, { status, code: body?.code, detail: body?.detail, hint: body?.hint, retryAfter });
	}
}

async function api(method, path, { body, signal } = {})
{
	let response;

	try
	{
		response = await fetch(`api/${path}`, {
			method,
			signal,
			headers: { 'X-RegPilot-Dashboard': '1', ...body && { 'Content-Type': 'application/json' } },
			body: body && JSON.stringify(body),
		});
	}
	catch (error)
	{
		throw signal?.aborted ? error : new ApiError(0);
	}

	const answer = await response.json().catch(() => null);

	if (response.ok)
		return answer;
	if (response.status === 401 && answer?.code === 'NOT_SIGNED_IN')
		signInAgain();
	throw new ApiError(response.status, answer, response.headers.get('Retry-After'));
}

function signInAgain()
{
	const [path] = here();

	session = null;
	projects.clear();
	left.abort();
	if (path !== '/sign-in')
		location.replace(`#${address('/sign-in', { to: location.hash.slice(1) })}`);
}

async function projectOf(id, signal)
{
	if (!projects.has(id))
		projects.set(id, await api('GET', `projects/${id}`, { signal }));
	return projects.get(id);
}

// Calls refresh() time and again while the page can be seen, and as soon as it can again.
function poll(signal, refresh, interval = 10000)
{
	let timer;
	const run = async () => {
		clearTimeout(timer);
		if (signal.aborted || document.visibilityState !== 'visible')
			return;
		await refresh();
		clearTimeout(timer);
		timer = setTimeout(run, interval);
	};

	timer = setTimeout(run, interval);
	signal.addEventListener('abort', () => clearTimeout(timer));
	document.addEventListener('visibilitychange', run, { signal });
}

/* Parts of a view */
function toast(text)
{
	const box = document.getElementById('toast');

	box.textContent = text;
	clearTimeout(toast.timer);
	toast.timer = setTimeout(() => { box.textContent = ''; }, 6000);
}

function banner(content, kind = 'error')
{
	return el('p', { class: `banner ${kind}`, role: kind === 'error' ? 'alert' : null }, content);
}

function heading(title, ...actions)
{
	return el('div', { class: 'heading' }, el('h1', { tabindex: -1 }, title), el('div', { class: 'actions' }, actions));
}

function chip(text)
{
	return text ? el('span', { class: 'chip' }, text) : none;
}

function chips(texts)
{
	return texts?.length ? el('span', { class: 'chips' }, texts.map(chip)) : none;
}

function statusOf(key)
{
	return el('span', { class: `status ${key.status}` }, key.status);
}

function hint(text)
{
	return el('code', {}, text);
}

// A key that is revoked needs no review any more.
function isFlagged(key)
{
	return key.flagged_at && key.status !== 'revoked';
}

function flags(key)
{
	const soon = key.status === 'active' && key.expires_at && new Date(key.expires_at) - Date.now() < 7 * 86400000;

	return [
		isFlagged(key) && el('span', { class: 'chip warn', title: `flagged ${key.flagged_at}` }, 'Unused'),
		key.rotation_due && el('span', { class: 'chip warn' }, 'Rotation due'),
		soon && el('span', { class: 'chip warn', title: key.expires_at }, 'Expires soon'),
	].filter(Boolean);
}

// columns: [label, cell(row), class]. The roles hold where the style makes cards of rows.
function table(caption, columns, rows, { cards = false, empty = 'None yet.', share } = {})
{
	if (!rows.length)
		return el('p', { class: 'empty' }, empty);
	return el('div', { class: cards ? 'box' : 'box scroll', ...!cards && { tabindex: 0, role: 'region', 'aria-label': caption } },
		el('table', { class: cards ? 'cards' : null, role: 'table' },
			el('caption', { class: 'unseen' }, caption),
			el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' },
				columns.map(([label, , kind]) => el('th', { scope: 'col', role: 'columnheader', class: kind }, label)))),
			el('tbody', { role: 'rowgroup' }, rows.map((row) => {
				const line = el('tr', { role: 'row' }, columns.map(([label, cell, kind], i) => i
					? el('td', { role: 'cell', class: kind, 'data-label': cards && label }, el('div', {}, cell(row)))
					: el('th', { scope: 'row', role: 'rowheader', class: kind }, cell(row))));

				if (share)
					line.style.setProperty('--share', `${100 * share(row)}%`);
				return line;
			}))));
}

function facts(list)
{
	return el('dl', { class: 'facts' }, list.filter(Boolean).map(([name, ...value]) =>
		el('div', {}, el('dt', {}, name), el('dd', {}, ...value))));
}

function section(title, controls, ...children)
{
	const id = newId();

	return el('section', { 'aria-labelledby': id }, el('div', { class: 'heading' }, el('h2', { id }, title), controls), ...children);
}

/* Forms */
function field(label, control, help)
{
	control.id ||= newId();
	if (help)
		control.setAttribute('aria-describedby', `${control.id}-help`);
	return el('div', { class: 'field' },
		el('label', { for: control.id }, label), control,
		help && el('p', { class: 'help', id: `${control.id}-help` }, help));
}

function input(name, attributes)
{
	return el('input', { name, autocomplete: 'off', ...attributes });
}

// options: [value, label]
function select(name, options, chosen = '', attributes)
{
	return el('select', { name, ...attributes },
		options.map(([value, label = value]) => el('option', { value, selected: value === chosen }, label)));
}

function localTime(iso)
{
	if (!iso || Number.isNaN(Date.parse(iso)))
		return '';

	const at = new Date(iso);

	return new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
}

function valueOf(control)
{
	if (control.type === 'datetime-local')
		return control.value && new Date(control.value).toISOString();
	return control.value.trim();
}

// Which field a message of the server is about.
const subjects = [
	['name', /\bname of|already exists/], ['plan', /^plan /], ['environment', /environment/], ['permissions', /permission/],
	['expires_at', /expir/], ['requests_per_minute', /limit/], ['overlap', /overlap/], ['reason', /reason/],
];

function clearErrors(form)
{
	for (const old of form.querySelectorAll('.problem'))
		old.remove();
	for (const control of form.querySelectorAll('[aria-invalid]'))
	{
		control.removeAttribute('aria-invalid');
		control.removeAttribute('aria-errormessage');
	}
}

function showError(form, error)
{
	const name = error.code === 'INVALID_INPUT' && subjects.find(([, pattern]) => pattern.test(error.message))?.[0];
	const control = name && form.querySelector(`[name="${name}"]`);
	const id = newId();

	if (control)
	{
		const place = control.closest('.field');

		place.append(el('p', { class: 'problem', id, role: 'alert' }, explain(error)));
		control.setAttribute('aria-invalid', 'true');
		control.setAttribute('aria-errormessage', id);
		control.focus();
	}
	else
		form.querySelector('.buttons').before(el('p', { class: 'problem banner error', role: 'alert' }, explain(error)));
}

// A form that tells its errors; submit() gets it and its button is out of use meanwhile.
function formOf(fields, buttons, submit, attributes)
{
	let busy = false;

	return el('form', {
		...attributes,
		onsubmit: async (event) => {
			const form = event.currentTarget;

			event.preventDefault();
			if (busy)
				return;
			busy = true;
			form.setAttribute('aria-busy', 'true');
			clearErrors(form);
			try
			{
				await submit(form.elements, form);
			}
			catch (error)
			{
				if (form.isConnected)
					showError(form, error);
			}
			busy = false;
			form.removeAttribute('aria-busy');
		},
	}, ...fields, el('div', { class: 'buttons' }, buttons));
}

/* Dialogs. The browser keeps the focus inside and gives it back. */
function openDialog(title, ...children)
{
	const id = newId();
	const opener = document.activeElement;
	const dialog = el('dialog', {
		'aria-labelledby': id,
		onclose: () => {
			dialog.remove();
			if (document.activeElement === document.body || !document.activeElement)
				(document.getElementById(opener.id) ?? main.querySelector('h1'))?.focus();
		},
	}, el('h2', { id }, title), ...children);

	document.body.append(dialog);
	dialog.showModal();
	return dialog;
}

// submit() gets the form's elements; the dialog closes when it has succeeded, before done() with its result.
function askFor(title, { text = [], fields = [], action, danger, submit, done })
{
	const dialog = openDialog(title, ...text, formOf(fields, [
		button('Cancel', () => dialog.close()),
		el('button', { class: danger ? 'danger' : 'primary' }, action),
	], async (elements) => {
		const result = await submit(elements);

		dialog.close();
		await done(result);
	}));

	return dialog;
}

async function copyText(text, from)
{
	try
	{
		await navigator.clipboard.writeText(text);
		return true;
	}
	catch
	{
		// No clipboard without TLS, but on the machine itself.
		getSelection().selectAllChildren(from);
		return document.execCommand('copy');
	}
}

// The only sight of a key: it is in this dialog, and nowhere once that is closed.
function showKey(title, { key }, closed)
{
	const shown = el('code', { class: 'secret', 'data-testid': 'new-key', tabindex: 0 }, key);
	const said = el('p', { class: 'help', role: 'status' });
	let safe = false;
	const dialog = openDialog(title,
		el('p', { class: 'banner warn' }, el('strong', {}, 'Copy this key now. '),
			'It is shown this once and cannot be shown again: only its digest is kept.'),
		el('div', { class: 'copy' }, shown, button('Copy', async () => {
			safe = await copyText(key, shown);
			said.textContent = safe ? 'Copied to the clipboard.' : 'Could not copy: select the key and copy it yourself.';
		}, { class: 'primary', id: 'copy-key' })),
		said,
		el('div', { class: 'buttons' }, button('Done', () => dialog.close(), { 'aria-label': 'Done, I have stored the key' })));

	dialog.addEventListener('cancel', (event) => {
		if (safe)
			return;
		event.preventDefault();
		safe = true;
		said.textContent = 'The key has not been copied. Press Escape again to close all the same.';
	});
	dialog.addEventListener('close', () => closed());
	document.getElementById('copy-key').focus();
}

/* Charts: bars that stand on each other, or lines. What they show is in a table as well. */
function niceMaximum(value)
{
	const power = 10 ** Math.floor(Math.log10(value));

	return [1, 2, 4, 5, 10].find((step) => step * power >= value) * power;
}

function pointTime(iso, period)
{
	const days = { day: 'numeric', month: 'short' };
	const hours = { hour: '2-digit', minute: '2-digit' };

	return new Date(iso).toLocaleString(undefined, period === 'day' ? hours : period === 'week' ? { ...days, ...hours } : days);
}

// Draws into `box`, at its width, and returns the index of the point under an x.
function draw(box, { lines, points, series, format, period, summary })
{
	const width = box.clientWidth;
	const height = 168;
	const [top, right, bottom, start] = [8, 4, 22, 46];
	const values = points.map((point) => series.map(({ value }) => value(point)));
	const heights = values.map((row) => (lines ? Math.max(...row) : row.reduce((sum, value) => sum + value, 0)));
	const most = niceMaximum(Math.max(...heights, 2));
	const step = (width - start - right) / points.length;
	const x = (i) => start + i * step;
	const y = (value) => height - bottom - value / most * (height - top - bottom);
	const every = Math.max(1, Math.ceil(points.length / Math.max(2, Math.floor(width / 80))));
	const marker = svg('rect', { class: 'marker', y: top, width: step, height: height - top - bottom, visibility: 'hidden' });
	const shapes = lines ? series.map((_, k) => {
		const known = (i) => (values[i]?.[k] ?? null) !== null;
		// a point between two that are not known is a dash
		const path = values.map((row, i) => (!known(i) ? ''
			: known(i - 1) ? `L${x(i) + step / 2} ${y(row[k])}`
				: known(i + 1) ? `M${x(i) + step / 2} ${y(row[k])}` : `M${x(i) + step / 2 - 3} ${y(row[k])}h6`)).join('');

		return svg('path', { class: `line c${k + 1}`, d: path || 'M0 0' });
	}) : values.map((row, i) => {
		let below = 0;

		return row.map((value, k) => {
			const size = value && Math.max(1.5, y(0) - y(value));

			below += size;
			return svg('rect', { class: `bar c${k + 1}`, x: x(i) + step * 0.14, width: step * 0.72, y: y(0) - below, height: size });
		});
	}).flat();

	box.replaceChildren(svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': summary },
		[0, 0.5, 1].map((part) => [
			svg('line', { class: 'grid', x1: start, x2: width - right, y1: y(part * most), y2: y(part * most) }),
			svg('text', { x: start - 6, y: y(part * most) + 4, 'text-anchor': 'end' }, format(part * most)),
		]).flat(),
		points.map((point, i) => i % every === 0 && x(i) + 40 < width
			&& svg('text', { x: x(i), y: height - 6 }, pointTime(point.at, period === 'day' ? 'day' : 'month'))),
		marker, shapes));

	return (clientX) => {
		const i = Math.floor((clientX - box.getBoundingClientRect().left - start) / step);
		const found = points[i] ? i : -1;

		marker.setAttribute('visibility', found < 0 ? 'hidden' : 'visible');
		marker.setAttribute('x', x(Math.max(found, 0)));
		return found;
	};
}

// series: [{name, value(point), whole(data)}]; whole is what the legend shows while no point is chosen.
function chart(title, series, { lines = false, format = compact.format, exact = number.format } = {})
{
	const id = newId();
	const box = el('div', { class: 'plot' });
	const when = el('span', { class: 'when' });
	const legend = series.map((one, k) => ({ ...one, text: el('b', {}), swatch: el('i', { class: `swatch c${k + 1}` }) }));
	let data = null;
	let find = () => -1;

	const tell = (i) => {
		when.textContent = i < 0 ? '' : pointTime(data.series[i].at, data.period);
		for (const { value, whole, text } of legend)
			text.textContent = i < 0 ? whole(data) : exact(value(data.series[i]));
	};
	const render = () => {
		if (!data || !box.clientWidth)
			return;
		find = draw(box, {
			lines, series, format, points: data.series, period: data.period,
			summary: `${title}: ${legend.map(({ name, whole }) => `${name} ${whole(data)}`).join(', ')}. The numbers are in the table below.`,
		});
		tell(-1);
	};

	box.addEventListener('pointermove', (event) => data && tell(find(event.clientX)));
	box.addEventListener('pointerleave', () => data && tell(find(-1)));
	new ResizeObserver(render).observe(box);
	return {
		node: el('figure', { class: 'card', 'aria-labelledby': id },
			el('figcaption', {}, el('h3', { id }, title), when,
				el('ul', { class: 'legend' }, legend.map(({ name, text, swatch }) => el('li', {}, swatch, `${name} `, text)))),
			box),
		update: (newData) => {
			data = newData;
			render();
		},
	};
}

function tokensOf(row)
{
	return row.prompt_tokens + row.completion_tokens;
}

function errorRate(row)
{
	return row.requests ? 100 * row.failed_requests / row.requests : 0;
}

function analyticsCharts()
{
	return [
		chart('Requests', [
			{ name: 'Succeeded', value: (p) => p.requests - p.failed_requests, whole: ({ totals: t }) => number.format(t.requests - t.failed_requests) },
			{ name: 'Failed', value: (p) => p.failed_requests, whole: ({ totals: t }) => number.format(t.failed_requests) },
		]),
		chart('Error rate', [
			{ name: 'Failed', value: (p) => (p.requests ? errorRate(p) : null), whole: ({ totals: t }) => percent(t.error_rate) },
		], { lines: true, format: percent, exact: (value) => (value === null ? none : percent(value)) }),
		chart('Tokens', [
			{ name: 'Prompt', value: (p) => p.prompt_tokens, whole: ({ totals: t }) => number.format(t.prompt_tokens) },
			{ name: 'Completion', value: (p) => p.completion_tokens, whole: ({ totals: t }) => number.format(t.completion_tokens) },
		]),
		chart('Latency', ['p50', 'p95', 'p99'].map((name) => (
			{ name, value: (p) => p.latency_ms?.[name] ?? null, whole: ({ totals: t }) => milliseconds(t.latency_ms?.[name]) }
		)), { lines: true, format: milliseconds, exact: milliseconds }),
	];
}

function tile(label, value, ...more)
{
	return el('div', { class: 'tile' }, el('dt', {}, label), el('dd', {}, el('b', {}, value), ...more.map((text) => el('span', {}, text))));
}

function tiles({ totals: t })
{
	return [
		tile('Requests', number.format(t.requests), `${number.format(t.failed_requests)} failed`),
		tile('Error rate', percent(t.error_rate)),
		tile('Tokens', compact.format(tokensOf(t)), `${compact.format(t.prompt_tokens)} prompt, ${compact.format(t.completion_tokens)} completion`),
		tile('Latency, p95', milliseconds(t.latency_ms?.p95), `p50 ${milliseconds(t.latency_ms?.p50)}, p99 ${milliseconds(t.latency_ms?.p99)}`),
		tile('First byte, p95', milliseconds(t.first_byte_ms?.p95), `p50 ${milliseconds(t.first_byte_ms?.p50)}`),
	];
}

function seriesTable({ series, period })
{
	return table('Numbers of the charts', [
		['Time', (p) => time(p.at, period === 'month' ? 'day' : 'minute')],
		['Requests', (p) => number.format(p.requests), 'number'],
		['Failed', (p) => number.format(p.failed_requests), 'number'],
		['Error rate', (p) => percent(errorRate(p)), 'number'],
		['Prompt tokens', (p) => number.format(p.prompt_tokens), 'number'],
		['Completion tokens', (p) => number.format(p.completion_tokens), 'number'],
		...['p50', 'p95', 'p99'].map((q) => [`Latency ${q}`, (p) => milliseconds(p.latency_ms?.[q]), 'number']),
	], series);
}

function topTable(caption, rows, name, label)
{
	const all = rows.reduce((sum, row) => sum + row.requests, 0);

	return table(caption, [
		[label, name, 'name'],
		['Requests', (row) => compact.format(row.requests), 'number'],
		['Error rate', (row) => percent(errorRate(row)), 'number'],
		['Tokens', (row) => compact.format(tokensOf(row)), 'number'],
	], rows.slice(0, 10), { empty: 'No requests in this period.', share: (row) => row.requests / (all || 1) });
}

function keyLink(project, id, name)
{
	return named(`/projects/${project}/keys/${id}`, name ?? id);
}

function topTables(project, { models, environments, keys }, ofKey)
{
	return [
		el('div', {}, el('h3', {}, 'Top models'), topTable('Top models', models, (row) => row.model ?? none, 'Model')),
		el('div', {}, el('h3', {}, 'Environments'), topTable('Environments', environments, (row) => row.environment ?? none, 'Environment')),
		!ofKey && el('div', {}, el('h3', {}, 'Top keys'), topTable('Top keys', keys,
			(row) => [keyLink(project, row.key_id, row.name), ' ', hint(row.hint)], 'Key')),
	].filter(Boolean);
}

// Charts and tables of a project, or of one of its keys; refresh() brings them up to date.
function analyticsPanel({ signal, query, path }, project, keyId)
{
	const charts = analyticsCharts();
	const tileList = el('dl', { class: 'tiles' });
	const numbers = el('div', {});
	const tops = el('div', { class: 'tops' });
	const trouble = el('div', {});
	let last = '';

	const refresh = async () => {
		const period = query.get('period') ?? 'day';

		try
		{
			const data = await api('GET', address(`projects/${project}/analytics`, { period, key_id: keyId }), { signal });

			trouble.replaceChildren();
			if (signal.aborted || period !== (query.get('period') ?? 'day') || last === JSON.stringify(data))
				return;
			last = JSON.stringify(data);
			tileList.replaceChildren(...tiles(data));
			charts.forEach(({ update }) => update(data));
			numbers.replaceChildren(seriesTable(data));
			tops.replaceChildren(...topTables(project, data, keyId));
		}
		catch (error)
		{
			if (!signal.aborted)
				trouble.replaceChildren(banner(`Not up to date. ${explain(error)}`));
		}
	};
	const choose = (event) => {
		query.set('period', event.target.value);
		history.replaceState(null, '', `#${address(path, Object.fromEntries(query))}`);
		refresh();
	};
	const chosen = query.get('period') ?? 'day';
	const switcher = el('fieldset', { class: 'segments', onchange: choose }, el('legend', { class: 'unseen' }, 'Period'),
		[['day', 'Day'], ['week', 'Week'], ['month', 'Month']].map(([value, label]) =>
			el('label', {}, el('input', { type: 'radio', name: 'period', value, checked: value === chosen }), el('span', {}, label))));

	return {
		refresh,
		node: section('Usage', switcher, trouble, tileList, el('div', { class: 'charts' }, charts.map(({ node }) => node)),
			el('details', { class: 'card' }, el('summary', {}, 'Numbers of the charts as a table'), numbers), tops),
	};
}

/*
 * Lists with filters: the form stays while what it asks for is fetched and shown below it.
 * load(refresh) gives {said, nodes}.
 */
async function listing({ signal, query, path }, label, controls, load)
{
	const results = el('div', {});
	const count = el('p', { class: 'count', role: 'status', 'data-testid': 'count' });
	const form = el('form', { class: 'filters', role: 'search', 'aria-label': label, onsubmit: (event) => event.preventDefault() },
		controls, count);
	let asked = 0;
	let timer;

	const refresh = async () => {
		const mine = ++asked;
		const current = () => mine === asked && !signal.aborted;

		results.setAttribute('aria-busy', 'true');
		try
		{
			const { said, nodes } = await load(refresh);

			if (!current())
				return;

			const held = results.contains(document.activeElement);

			count.textContent = said;
			results.replaceChildren(...nodes);
			if (held)
				main.querySelector('h1')?.focus();
		}
		catch (error)
		{
			if (!current())
				return;
			count.textContent = '';
			results.replaceChildren(banner(explain(error)));
		}
		results.removeAttribute('aria-busy');
	};

	form.addEventListener('input', () => {
		clearTimeout(timer);
		timer = setTimeout(() => {
			for (const control of form.elements)
				query.set(control.name, valueOf(control));
			query.delete('cursor');
			history.replaceState(null, '', `#${address(path, Object.fromEntries(query))}`);
			refresh();
		}, 250);
	});
	await refresh();
	return { nodes: [form, results], refresh };
}

function pager({ query, path }, next, first, further)
{
	const { cursor, ...rest } = Object.fromEntries(query);

	return cursor || next ? el('nav', { class: 'pager', 'aria-label': 'Pages' },
		cursor && link(address(path, rest), first),
		next && link(address(path, { ...rest, cursor: next }), further)) : '';
}

/* Sign in */
async function signInView({ query })
{
	const to = query.get('to') ?? '';
	const form = formOf([
		field('Role', input('role', { required: true, autocomplete: 'username', autocapitalize: 'none', spellcheck: 'false' })),
		field('Password', input('password', { type: 'password', required: true, autocomplete: 'current-password' })),
	], el('button', { class: 'primary' }, 'Sign in'), async ({ role, password }) => {
		try
		{
			session = await api('POST', 'session', { body: { role: role.value, password: password.value } });
		}
		catch (error)
		{
			if (error.retryAfter)
				error.hint = `Try again in ${plural(Number(error.retryAfter), 'second')}`;
			throw error;
		}
		location.replace(`#${to.startsWith('/') ? to : '/projects'}`);
	});

	return {
		title: 'Sign in',
		nodes: [el('div', { class: 'card sign-in' }, el('h1', { tabindex: -1 }, 'Sign in'),
			el('p', { class: 'help' }, 'With a PostgreSQL role. You see what it may see.'), form)],
		focus: form.elements.role,
	};
}

async function signOut()
{
	try
	{
		await api('DELETE', 'session');
		session = null;
		projects.clear();
		location.hash = '/sign-in';
	}
	catch (error)
	{
		if (session)
			toast(explain(error));
	}
}

/* Projects */
async function projectsView({ signal })
{
	const { data } = await api('GET', 'projects', { signal });

	return {
		title: 'Projects',
		nodes: [
			heading('Projects', session.admin && button('Create project', createProject, { class: 'primary', id: 'create-project' })),
			table('Projects', [
				['Name', (p) => named(`/projects/${p.project_id}`, p.name), 'name'],
				['Plan', (p) => chip(p.plan)],
				['Limit of a key', (p) => perMinute(p.requests_per_minute)],
				['Active keys', (p) => `${number.format(p.active_keys)} of ${number.format(p.total_keys)}`, 'number'],
				['Requests', (p) => number.format(p.total_requests), 'number'],
				['Error rate', (p) => percent(p.error_rate), 'number'],
				['Tokens', (p) => compact.format(tokensOf(p)), 'number'],
				['Last used', (p) => time(p.last_used_at, 'ago', 'never')],
			], data, { cards: true, empty: session.admin ? 'No project yet.' : 'You are not a member of any project.' }),
		],
	};
}

async function createProject()
{
	try
	{
		const { data: plans } = await api('GET', 'plans');

		askFor('Create project', {
			fields: [
				field('Name', input('name', { required: true, maxlength: 200 })),
				field('Plan', select('plan', plans.map((p) => [p.name, `${p.name}: ${perMinute(p.requests_per_minute).toLowerCase()}`])),
					'The limit holds for each key that has none of its own.'),
			],
			action: 'Create project',
			submit: ({ name, plan }) => api('POST', 'projects', { body: { name: name.value, plan: plan.value } }),
			done: ({ project_id: id }) => {
				toast('Project created.');
				location.hash = `/projects/${id}`;
			},
		});
	}
	catch (error)
	{
		toast(explain(error));
	}
}

function projectFacts(p)
{
	return facts([
		['Plan', chip(p.plan)],
		['Limit of a key', perMinute(p.requests_per_minute)],
		['Active keys', `${number.format(p.active_keys)} of ${number.format(p.total_keys)}`],
		['All requests', `${number.format(p.total_requests)}, ${percent(p.error_rate)} failed`],
		['All tokens', `${compact.format(p.prompt_tokens)} prompt, ${compact.format(p.completion_tokens)} completion`],
		['Last used', time(p.last_used_at, 'ago', 'never')],
		['Members', p.members?.length ? p.members.join(', ') : 'none'],
	]);
}

async function overviewView(context)
{
	const { signal, ids: [id] } = context;
	const fetchProject = () => api('GET', `projects/${id}`, { signal });
	const project = await fetchProject();
	const summary = el('div', {}, projectFacts(project));
	const panel = analyticsPanel(context, id);

	projects.set(id, project);
	await panel.refresh();
	poll(signal, panel.refresh);
	// The totals are those of all keys, of which there may be many.
	poll(signal, () => fetchProject().then((p) => summary.replaceChildren(projectFacts(p))).catch(() => {}), 60000);
	return {
		title: project.name,
		project,
		nodes: [heading(project.name), section('Plan and totals', null, summary), panel.node],
	};
}

/* Keys */
async function keysView(context)
{
	const { signal, query, ids: [id] } = context;
	const project = await projectOf(id, signal);
	const page = (filter) => api('GET', address(`projects/${id}/keys`, filter), { signal });
	const flagged = el('div', {});
	const list = await listing(context, 'Keys', [
		field('Search', input('search', { type: 'search', id: 'search', value: query.get('search') ?? '', placeholder: 'Name or hint' })),
		field('Status', select('status', [
			['', 'All'], ...['active', 'inactive', 'expired', 'revoked', 'flagged', 'rotation_due'].map((status) => [status, status.replace('_', ' ')]),
		], query.get('status') ?? '', { id: 'status' })),
	], async (refresh) => {
		const [{ data, total, next_cursor: next }, unused] = await Promise.all([
			page({ limit: 50, ...Object.fromEntries(query) }), page({ status: 'flagged', limit: 1 }),
		]);

		flagged.replaceChildren(unused.total && query.get('status') !== 'flagged'
			? banner([`${plural(unused.total, 'key has', 'keys have')} been unused for long. `,
				link(address(`/projects/${id}/keys`, { status: 'flagged' }), 'Review flagged keys')], 'warn') : '');
		return {
			said: plural(total, 'key'),
			nodes: [keyTable(data, refresh, query.get('search') || query.get('status') ? 'No key matches.' : 'No key yet.'), pager(context, next, 'First page', 'Next page')],
		};
	});

	return {
		title: 'Manage API Keys',
		project,
		tab: 'keys',
		nodes: [
			heading('Manage API Keys', session.admin && button('Create key', () => createKey(project, list.refresh),
				{ class: 'primary', id: 'create-key' })),
			flagged, ...list.nodes,
		],
	};
}

function keyTable(keys, refresh, empty)
{
	return table('API keys', [
		['Name', (k) => keyLink(k.project_id, k.key_id, k.name), 'name'],
		['Hint', (k) => hint(k.hint)],
		['Environment', (k) => chip(k.environment)],
		['Status', statusOf],
		['Created', (k) => time(k.created_at, 'day')],
		['Last used', (k) => time(k.last_used_at, 'ago', 'never')],
		['Total requests', (k) => number.format(k.total_requests), 'number'],
		['Active environments', (k) => chips(k.active_environments)],
		['Error rate', (k) => percent(k.error_rate), 'number'],
		['Flags', (k) => {
			const all = flags(k);

			if (isFlagged(k) && session.admin)
				all.push(button('Review', () => reviewKey(k, refresh), { class: 'small', id: `review-${k.key_id}`, 'aria-label': `Review ${k.name}` }));
			return all.length ? el('span', { class: 'chips' }, all) : none;
		}],
	], keys, { cards: true, empty });
}

function createKey(project, refresh)
{
	askFor('Create key', {
		fields: [
			field('Name', input('name', { required: true, maxlength: 200 }), 'What will use the key, for example: billing service.'),
			field('Environment', select('environment', [['', 'None'], ...environments.map((name) => [name])]),
				'Its requests count there unless they name another.'),
			el('fieldset', { class: 'field' }, el('legend', {}, 'Permissions'), permissions.map((name) =>
				el('label', { class: 'check' }, el('input', { type: 'checkbox', name: 'permissions', value: name, checked: true }), name))),
			field('Requests a minute', input('requests_per_minute', { type: 'number', min: 1, max: 2147483647, inputmode: 'numeric' }),
				`Empty: the plan's limit (${perMinute(project.requests_per_minute).toLowerCase()}).`),
			field('Expires', input('expires_at', { type: 'datetime-local' }), 'Empty: never.'),
		],
		action: 'Create key',
		submit: (fields) => api('POST', `projects/${project.project_id}/keys`, {
			body: {
				name: fields.name.value,
				environment: fields.environment.value || null,
				permissions: [...fields.permissions].filter((box) => box.checked).map((box) => box.value),
				requests_per_minute: fields.requests_per_minute.value ? Number(fields.requests_per_minute.value) : null,
				expires_at: valueOf(fields.expires_at) || null,
			},
		}),
		done: (key) => showKey('Key created', key, refresh),
	});
}

// What will stop when a key stops, for the dialogs that make it stop.
async function impactOf(key)
{
	const { totals } = await api('GET', address(`projects/${key.project_id}/analytics`, { period: 'day', key_id: key.key_id }));

	return facts([
		['Key', key.name, ' ', hint(key.hint)],
		['Requests in the last 24 hours', el('b', { 'data-testid': 'impact-requests' }, number.format(totals.requests))],
		['Environments, last 30 days', chips(key.active_environments)],
		['Last used', time(key.last_used_at, 'ago', 'never')],
	]);
}

async function askToStop(key, refresh, { title, text, action, path, said, fields = [], body = () => ({}) })
{
	try
	{
		const impact = await impactOf(key);

		askFor(title, {
			text: [el('p', {}, text), impact],
			fields,
			action,
			danger: true,
			submit: (elements) => api('POST', `keys/${key.key_id}/${path}`, { body: body(elements) }),
			done: () => {
				toast(said);
				return refresh();
			},
		});
	}
	catch (error)
	{
		toast(explain(error));
	}
}

function revokeKey(key, refresh)
{
	return askToStop(key, refresh, {
		title: 'Revoke key?',
		text: 'Whatever still uses this key gets 401 from its next request on. This is for good: a revoked key cannot be enabled again.',
		action: 'Revoke key',
		path: 'revoke',
		said: 'Key revoked.',
		fields: [field('Reason', input('reason', { maxlength: 1000 }), 'Optional; it is kept with the key and in the audit trail.')],
		body: ({ reason }) => ({ reason: reason.value.trim() || null }),
	});
}

function disableKey(key, refresh)
{
	return askToStop(key, refresh, {
		title: 'Disable key?',
		text: 'Whatever uses this key gets 401 until the key is enabled again.',
		action: 'Disable key',
		path: 'disable',
		said: 'Key disabled.',
	});
}

// A change that needs no question.
async function change(key, path, said, refresh)
{
	try
	{
		await api('POST', `keys/${key.key_id}/${path}`, { body: {} });
		toast(said);
		await refresh();
	}
	catch (error)
	{
		toast(explain(error));
	}
}

function reviewKey(key, refresh)
{
	const dialog = askFor('Review flagged key', {
		text: [
			el('p', {}, 'Nobody has used this key for long. Keep it, and the time begins anew, or end it: a key that nobody needs can only be stolen.'),
			facts([
				['Key', key.name, ' ', hint(key.hint)],
				['Created', time(key.created_at, 'day')],
				['Last used', time(key.last_used_at, 'ago', 'never')],
				['Flagged', time(key.flagged_at, 'minute')],
				['Total requests', number.format(key.total_requests)],
			]),
		],
		action: 'Keep key',
		submit: () => api('POST', `keys/${key.key_id}/review`, { body: {} }),
		done: () => {
			toast('Key reviewed: the flag is off.');
			return refresh();
		},
	});

	dialog.querySelector('.buttons').lastChild.before(button('Revoke key…', () => {
		dialog.close();
		revokeKey(key, refresh);
	}, { class: 'danger' }));
}

function rotateKey(key, refresh)
{
	askFor('Rotate key', {
		text: [el('p', {}, 'A new key takes over name, environment, permissions, limit and expiry. Both work until the overlap is over; then the old one has expired.')],
		fields: [field('Overlap', select('overlap', [
			['0', 'None: the old key stops at once'], ['1 hour'], ['1 day'], ['7 days'], ['30 days'],
		], '7 days'), 'How long the old key goes on working.')],
		action: 'Rotate key',
		submit: ({ overlap }) => api('POST', `keys/${key.key_id}/rotate`, { body: { overlap: overlap.value } }),
		done: (successor) => showKey('New key created', successor, refresh),
	});
}

function keyActions(key, refresh)
{
	if (!session.admin || key.status === 'revoked')
		return [];
	return [
		key.flagged_at && button('Review', () => reviewKey(key, refresh), { id: 'review' }),
		key.status === 'active' && !key.rotated_to && button('Rotate', () => rotateKey(key, refresh), { id: 'rotate' }),
		key.status === 'inactive'
			? button('Enable', () => change(key, 'enable', 'Key enabled.', refresh), { id: 'disable' })
			: button('Disable', () => disableKey(key, refresh), { id: 'disable' }),
		button('Revoke', () => revokeKey(key, refresh), { class: 'danger', id: 'revoke' }),
	].filter(Boolean);
}

function keyFacts(k)
{
	return facts([
		['Status', statusOf(k), ...flags(k).map((flag) => [' ', flag]).flat()],
		['Hint', hint(k.hint)],
		['Environment', chip(k.environment)],
		['Limit', perMinute(k.requests_per_minute)],
		['Permissions', chips(k.permissions)],
		['Created', time(k.created_at, 'minute')],
		['Expires', time(k.expires_at, 'minute', 'never')],
		['Last used', time(k.last_used_at, 'ago', 'never')],
		['Total requests', el('span', { 'data-testid': 'total-requests' }, number.format(k.total_requests))],
		['Error rate', percent(k.error_rate)],
		['Active environments', chips(k.active_environments)],
		k.flagged_at && ['Flagged', time(k.flagged_at, 'minute')],
		['Key id', el('code', {}, k.key_id)],
	]);
}

// How far a rotation has got, in words: whether the old key can go.
function rotationState(older)
{
	if (older.status !== 'active')
		return ['done', `The old key is ${older.status}: only the new one works.`];
	if (!older.last_used_at)
		return ['done', 'The old key has never been used. It can be revoked.'];
	if (Date.now() - new Date(older.last_used_at) < 86400000)
		return ['warn', 'The old key is still in use: it had requests in the last 24 hours. Move what uses it to the new key.'];
	return ['done', 'The old key is quiet: it had no request in the last 24 hours. It can be revoked.'];
}

// The old and the new key of a rotation side by side.
function rotationPanel({ signal }, olderId, newerId)
{
	const comparison = el('div', { class: 'compare', 'data-testid': 'rotation' });
	const state = el('p', { role: 'status', 'data-testid': 'rotation-state' });
	const actions = el('div', { class: 'actions' });
	const plot = chart('Requests in the last 24 hours', ['Old key', 'New key'].map((name, k) => ({
		name, value: (point) => point.requests[k], whole: ({ totals }) => number.format(totals[k]),
	})), { lines: true });

	const refresh = async () => {
		const keys = await Promise.all([olderId, newerId].map((id) => api('GET', `keys/${id}`, { signal })));
		const days = await Promise.all(keys.map((key) =>
			api('GET', address(`projects/${key.project_id}/analytics`, { period: 'day', key_id: key.key_id }), { signal })));
		const [kind, said] = rotationState(keys[0]);
		const rows = [
			['Key', (k) => [keyLink(k.project_id, k.key_id, k.name), ' ', hint(k.hint)]],
			['Status', statusOf],
			['Requests, last 24 hours', (k, day) => number.format(day.totals.requests)],
			['Total requests', (k) => number.format(k.total_requests)],
			['Last used', (k) => time(k.last_used_at, 'ago', 'never')],
			['Created', (k) => time(k.created_at, 'minute')],
			['Expires', (k) => time(k.expires_at, 'minute', 'never')],
		];

		if (state.textContent !== said)
			state.replaceChildren(said);
		state.className = `banner ${kind}`;
		if (!actions.contains(document.activeElement))
			actions.replaceChildren(session.admin && keys[0].status !== 'revoked'
				? button('Revoke old key', () => revokeKey(keys[0], show), { class: 'danger', id: 'revoke-old' }) : '');
		if (!comparison.contains(document.activeElement))
			comparison.replaceChildren(table('Old and new key', [
				[el('span', { class: 'unseen' }, 'Fact'), ([label]) => label],
				['Old key', ([, cell]) => cell(keys[0], days[0])],
				['New key', ([, cell]) => cell(keys[1], days[1])],
			], rows));
		plot.update({
			period: 'day',
			totals: days.map((day) => day.totals.requests),
			series: days[0].series.map(({ at, requests }, i) => ({ at, requests: [requests, days[1].series[i]?.requests ?? 0] })),
		});
	};

	return { refresh, node: section('Rotation', actions, state, el('div', { class: 'pair' }, comparison, plot.node)) };
}

async function keyView(context)
{
	const { signal, ids: [projectId, id] } = context;
	const project = await projectOf(projectId, signal);
	const fetchKey = () => api('GET', `keys/${id}`, { signal });
	const key = await fetchKey();
	const summary = el('div', {}, keyFacts(key));
	const panel = analyticsPanel(context, projectId, id);
	const rotation = key.rotated_to ? rotationPanel(context, id, key.rotated_to)
		: key.rotated_from ? rotationPanel(context, key.rotated_from, id) : null;

	await Promise.all([panel.refresh(), rotation?.refresh()]);
	poll(signal, async () => {
		await Promise.all([
			panel.refresh(), rotation?.refresh(), fetchKey().then((k) => summary.replaceChildren(keyFacts(k))),
		]).catch(() => {});
	});
	return {
		title: key.name,
		project,
		tab: 'keys',
		nodes: [
			heading(key.name, ...keyActions(key, show)),
			section('Key', null, summary, el('p', { class: 'links' },
				link(address(`/projects/${projectId}/logs`, { key_id: id }), 'Logs of this key'),
				link(address(`/projects/${projectId}/audit`, { key_id: id }), 'Audit trail of this key'))),
			rotation?.node, panel.node,
		].filter(Boolean),
	};
}

/* Logs */
const logStatuses = [['', 'All'], ['2xx', 'Succeeded (2xx)'], ['failed', 'Failed (400 and above)'], ['4xx', '4xx'], ['5xx', '5xx'],
	...['400', '404', '429', '499', '500', '502', '503', '504'].map((status) => [status])];

// The chosen value stays a choice where it is none of the list's.
function withChosen(options, chosen)
{
	return !chosen || options.some(([value]) => value === chosen) ? options : [...options, [chosen]];
}

async function logsView(context)
{
	const { signal, query, ids: [id] } = context;
	const get = (name) => query.get(name) ?? '';
	const [project, used] = await Promise.all([
		projectOf(id, signal), api('GET', `projects/${id}/analytics?period=month`, { signal }),
	]);
	const keys = used.keys.map((key) => [key.key_id, `${key.name} (${key.hint})`]);

	if (get('key_id') && !keys.some(([value]) => value === get('key_id')))
	{
		const key = await api('GET', `keys/${encodeURIComponent(get('key_id'))}`, { signal }).catch(() => null);

		if (key)
			keys.push([key.key_id, `${key.name} (${key.hint})`]);
	}

	const list = await listing(context, 'Logs', [
		field('From', input('from', { type: 'datetime-local', id: 'from', value: localTime(get('from')) })),
		field('To', input('to', { type: 'datetime-local', id: 'to', value: localTime(get('to')) })),
		field('Key', select('key_id', withChosen([['', 'All'], ...keys], get('key_id')), get('key_id'), { id: 'key' })),
		field('Environment', select('environment', withChosen([['', 'All'], ...[...environments, 'other'].map((name) => [name])],
			get('environment')), get('environment'), { id: 'environment' })),
		field('Model', input('model', { id: 'model', value: get('model'), list: 'models', placeholder: 'Exact name' })),
		field('Status', select('status', withChosen(logStatuses, get('status')), get('status'), { id: 'status' })),
	], async () => {
		const { data, next_cursor: next } = await api('GET', address(`projects/${id}/logs`, { limit: 50, ...Object.fromEntries(query) }), { signal });

		return {
			said: data.length || !next ? plural(data.length, 'request') + (next ? ', and older ones' : '') : 'None here; go on with older ones',
			nodes: [logTable(id, data), pager(context, next, 'Newest', 'Older')],
		};
	});

	return {
		title: 'Logs',
		project,
		tab: 'logs',
		nodes: [heading('Logs'), ...list.nodes,
			el('datalist', { id: 'models' }, used.models.map(({ model }) => model && el('option', { value: model })))],
	};
}

function logTable(project, rows)
{
	return table('Requests', [
		['Time', (r) => time(r.at, 'second')],
		['Key', (r) => [keyLink(project, r.key_id, r.key_name), ' ', r.key_hint && hint(r.key_hint)], 'name'],
		['Environment', (r) => chip(r.environment)],
		['Model', (r) => r.model ?? none, 'name'],
		['Status', (r) => el('span', { class: `status http-${Math.floor(r.status / 100)}xx` }, String(r.status))],
		['Latency', (r) => milliseconds(r.latency_ms), 'number'],
		['First byte', (r) => milliseconds(r.first_byte_ms), 'number'],
		['Prompt tokens', (r) => number.format(r.prompt_tokens ?? 0), 'number'],
		['Completion tokens', (r) => number.format(r.completion_tokens ?? 0), 'number'],
	], rows, { cards: true, empty: 'No requests.' });
}

/* Audit trail */
const happenings = { insert: 'created', update: 'changed', delete: 'deleted', truncate: 'emptied' };
const things = { api_key: 'Key', project_member: 'Member' };

function keyChange(old, now)
{
	if (now.revoked_at && !old.revoked_at)
		return 'revoked';
	if ('active' in now)
		return now.active ? 'enabled' : 'disabled';
	if (now.reviewed_at)
		return 'reviewed';
	if ('flagged_at' in now)
		return now.flagged_at ? 'flagged' : 'in use again';
	return 'changed';
}

function happening({ action, table_name: name, old, new: now })
{
	const isKey = name === 'api_key';
	const what = isKey && action === 'update' && old && now ? keyChange(old, now)
		: isKey && action === 'insert' && now?.rotated_from ? 'created by rotation' : happenings[action] ?? action;

	return `${things[name] ?? name[0].toUpperCase() + name.slice(1)} ${what}`;
}

// The names of keys by id: of an update the trail has what changed, which is seldom the name.
async function namesOf(rows, signal)
{
	const names = new Map(rows.filter((row) => row.key_id && (row.new?.name ?? row.old?.name))
		.map((row) => [row.key_id, row.new?.name ?? row.old.name]));
	const missing = new Set(rows.map((row) => row.key_id).filter((id) => id && !names.has(id)));

	await Promise.all([...missing].slice(0, 20).map((id) => api('GET', `keys/${id}`, { signal })
		.then((key) => names.set(id, key.name), () => {})));
	return names;
}

function asText(value)
{
	if (value === undefined || value === null)
		return none;
	return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

function beforeAndAfter({ old, new: now })
{
	const names = Object.keys({ ...old, ...now });

	if (!names.length)
		return none;

	const changes = el('table', { class: 'changes' },
		el('thead', {}, el('tr', {}, ['Value', 'Before', 'After'].map((name) => el('th', { scope: 'col' }, name)))),
		el('tbody', {}, names.map((name) => el('tr', {}, el('th', { scope: 'row' }, name),
			el('td', { class: 'before' }, asText(old?.[name])), el('td', { class: 'after' }, asText(now?.[name]))))));

	return names.length <= 4 ? changes : el('details', {}, el('summary', {}, plural(names.length, 'value')), changes);
}

async function auditView(context)
{
	const { signal, query, path, ids: [id] } = context;
	const project = await projectOf(id, signal);
	const keyId = query.get('key_id');
	const { data, next_cursor: next } = await api('GET', address(`projects/${id}/audit`, { limit: 50, ...Object.fromEntries(query) }), { signal });
	const names = await namesOf(data, signal);

	return {
		title: 'Audit trail',
		project,
		tab: 'audit',
		nodes: [
			heading('Audit trail'),
			keyId && el('p', { class: 'links' }, 'Only of the key ', keyLink(id, keyId, names.get(keyId)), link(path, 'Show all')),
			table('Changes', [
				['Time', (row) => time(row.at, 'second')],
				['What', happening],
				['Who', (row) => row.role],
				['Object', (row) => (row.key_id ? keyLink(id, row.key_id, names.get(row.key_id)) : row.object ?? none), 'name'],
				['Before and after', beforeAndAfter, 'wide'],
			], data, { cards: true, empty: 'No changes.' }),
			pager(context, next, 'Newest', 'Older'),
		].filter(Boolean),
	};
}

/* Addresses */
const routes = [
	['/sign-in', signInView],
	['/projects', projectsView],
	['/projects/ID', overviewView],
	['/projects/ID/keys', keysView],
	['/projects/ID/keys/ID', keyView],
	['/projects/ID/logs', logsView],
	['/projects/ID/audit', auditView],
].map(([path, view]) => [new RegExp(`^${path.replaceAll('ID', '([0-9a-f-]{36})')}$`), view]);

function here()
{
	const [path, query] = location.hash.slice(1).split(/\?(.*)/s);

	return [path, query ?? ''];
}

function showPlace({ project, tab = '' })
{
	const place = document.getElementById('place');
	const tabs = [['', 'Overview'], ['keys', 'API keys'], ['logs', 'Logs'], ['audit', 'Audit trail']];

	document.getElementById('account').hidden = !session;
	document.getElementById('role').textContent = session ? `${session.role}${session.admin ? ' (admin)' : ''}` : '';
	place.hidden = !project;
	place.replaceChildren();
	if (!project)
		return;

	const base = `/projects/${project.project_id}`;

	place.replaceChildren(el('p', { class: 'trail' }, link('/projects', 'Projects'), el('span', { 'aria-hidden': 'true' }, '/'),
		el('span', { class: 'project' }, project.name)),
	el('ul', {}, tabs.map(([name, label]) => el('li', {}, el('a', {
		href: `#${base}${name && `/${name}`}`, 'aria-current': name === tab ? 'page' : null,
	}, label)))));
}

function troublePage(error)
{
	const missing = error.status === 404;

	return {
		title: missing ? 'Not found' : 'Something went wrong',
		nodes: [
			heading(missing ? 'Not found' : 'Something went wrong'),
			banner(missing ? 'There is nothing here, or nothing that you may see.' : explain(error)),
			el('p', { class: 'links' }, button('Try again', show), link('/projects', 'Projects')),
		],
	};
}

// Fetches what the address asks for and shows it in place of what was there.
async function show(event)
{
	const [path, query] = here();
	const found = routes.map(([pattern, view]) => [path.match(pattern), view]).find(([match]) => match);
	let page;

	left.abort();
	left = new AbortController();

	const { signal } = left;

	if (path === '' || path === '/')
		return location.replace('#/projects');
	document.querySelectorAll('dialog').forEach((dialog) => dialog.close());
	main.setAttribute('aria-busy', 'true');
	try
	{
		if (!session && path !== '/sign-in')
			session = await api('GET', 'session', { signal });
		if (!found)
			throw new ApiError(404);
		page = await found[1]({ signal, path, query: new URLSearchParams(query), ids: found[0].slice(1) });
	}
	catch (error)
	{
		page = troublePage(error);
	}
	if (signal.aborted)
		return;

	const focused = document.activeElement?.id;

	showPlace(page);
	document.title = `${page.title} · RegPilot`;
	main.replaceChildren(...page.nodes);
	main.removeAttribute('aria-busy');
	if (event)
		scrollTo(0, 0);
	if (page.focus || event || focused)
	{
		const target = page.focus ?? (!event && document.getElementById(focused));

		(target || main.querySelector('h1')).focus({ preventScroll: true });
	}
}

document.getElementById('sign-out').addEventListener('click', signOut);
document.getElementById('skip').addEventListener('click', (event) => {
	event.preventDefault();
	main.focus();
});
addEventListener('hashchange', show);
show();
