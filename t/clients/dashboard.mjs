// The dashboard, as people use it: with a pointer, and with the keyboard alone.
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';
import { check, part, site } from './site.mjs';

const wide = { width: 1280, height: 800 };
const phone = { width: 360, height: 740 };
const patience = 30000;
const keyPattern = /^sk_prod_[0-9a-z]{32}$/;
const { image, script } = site.hostile;

const browser = await chromium.launch({
	executablePath: '/usr/bin/chromium',
	// Its sandbox needs rights that the tests may not have; all that it gets to see is ours.
	chromiumSandbox: false,
	env: { ...process.env, HOME: site.home, LANG: 'C.UTF-8' },
	args: ['--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1'],
});

// What happens in any page and never should.
const trouble = [];

// Somebody at a browser of their own.
async function newUser(options = {})
{
	const context = await browser.newContext({
		viewport: wide,
		reducedMotion: 'reduce',
		locale: 'en-GB',
		timezoneId: 'Europe/Berlin',
		permissions: ['clipboard-read', 'clipboard-write'],
		...options,
	});
	const answers = [];			// bodies, each a promise

	context.setDefaultTimeout(patience);
	await context.addInitScript(() => addEventListener('securitypolicyviolation', (event) =>
		console.error(`violation: ${event.effectiveDirective} ${event.blockedURI}`)));
	await context.addInitScript({ path: createRequire(import.meta.url).resolve('axe-core/axe.min.js') });

	const page = await context.newPage();
	const errors = [];

	page.on('dialog', (dialog) => {
		errors.push(`dialog: ${dialog.message()}`);
		dialog.dismiss();
	});
	page.on('pageerror', (error) => errors.push(String(error)));
	page.on('console', (message) => {
		// the browser tells each answer that is no success
		if (['error', 'warning'].includes(message.type()) && !/^Failed to load resource: .* status of 4/.test(message.text()))
			errors.push(message.text());
	});
	page.on('request', (request) => request.url().startsWith(`${site.url}/`) || errors.push(`request: ${request.url()}`));
	page.on('response', (response) => answers.push(response.text().catch(() => '')));
	trouble.push(errors);
	return { context, page, answers, errors, ...pointer() };
}

// --- how to use a page

function pointer()
{
	return {
		press: (target) => target.click(),
		type: (target, text) => target.fill(text),
		typeTime: (target) => target.fill('2031-12-12T11:30'),
		choose: (target, value) => target.selectOption(value),
		toggle: (target) => target.click(),
		close: (dialog) => dialog.getByRole('button', { name: 'Done' }).click(),
	};
}

// Where the focus was and could not be seen.
const unseen = [];

function keyboard(page)
{
	const { keyboard: keys } = page;

	async function tabTo(target)
	{
		await target.waitFor();
		for (let i = 0; i < 200; i++)
		{
			if (await target.evaluate((element) => element === document.activeElement))
				return;
			await keys.press('Tab');

			const hidden = await page.evaluate(hiddenFocus);

			if (hidden)
				unseen.push(hidden);
		}
		throw new Error(`Tab does not reach ${target}`);
	}

	const pressed = (key) => async (target) => {
		await tabTo(target);
		await keys.press(key);
	};

	return {
		press: pressed('Enter'),
		toggle: pressed('Space'),
		type: async (target, text) => {
			await tabTo(target);
			await keys.press('Control+A');
			await keys.type(text);
		},
		// the parts of a date and a time, with or without AM
		typeTime: async (target) => {
			await tabTo(target);
			await keys.type('12122031');
			await keys.press('ArrowRight');
			await keys.type('1130A');
		},
		choose: async (target, value) => {
			await tabTo(target);
			await keys.press('Home');
			for (let i = 0; i < 50 && await target.inputValue() !== value; i++)
				await keys.press('ArrowDown');
		},
		// without a copy made it would ask
		close: () => keys.press('Escape'),
	};
}

// In the page: what has the focus, unless it shows that, in sight and with nothing over it.
function hiddenFocus()
{
	const element = document.activeElement;

	// Tab goes from the last element to the browser's own.
	if (element === document.body)
		return '';

	const box = element.getBoundingClientRect();
	const x = box.left + Math.min(box.width / 2, 20);
	const y = box.top + Math.min(box.height / 2, 20);
	const top = document.elementFromPoint(x, y);
	const rings = [element, ...element.labels ?? []].flatMap((one) => [one, ...one.children])
		.filter((one) => getComputedStyle(one).outlineStyle !== 'none' && parseFloat(getComputedStyle(one).outlineWidth) >= 2);
	const covered = !top || !(element.contains(top) || top.contains(element) || [...element.labels ?? []].some((label) => label.contains(top)));

	return rings.length && !covered ? '' : `${covered ? 'covered' : 'no ring'}: ${element.outerHTML.slice(0, 120)}`;
}

// Until the view is there, nothing is being fetched for it and the focus is somewhere.
async function settled({ page })
{
	await page.waitForFunction(() => !document.querySelector('[aria-busy]') && document.querySelector('h1'));
}

async function heading(user, text)
{
	await user.page.getByRole('heading', { level: 1, name: text, exact: true }).waitFor();
	await settled(user);
}

async function focusKept(user, what)
{
	await user.page.getByRole('dialog').waitFor({ state: 'detached' });
	await settled(user);
	await user.page.waitForFunction(() => document.activeElement !== document.body, null, { timeout: 5000 }).catch(() => {});
	check(`${what}: the focus is not lost`, await user.page.evaluate(() => document.activeElement !== document.body));
}

// A picture, and no more than the page's width.
async function look({ page, look: name }, what)
{
	await page.evaluate(async () => {
		await Promise.all(document.getAnimations().map((animation) => animation.finished));
		await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
	});
	check(`${name}: ${what}: fits the width`, await page.evaluate(() => {
		const reach = (element) => element.scrollWidth - element.clientWidth;
		const clips = [document.documentElement, document.body].map((element) => getComputedStyle(element).overflowX);

		return [reach(document.scrollingElement), ...[...document.querySelectorAll('dialog')].map(reach), ...clips];
	}).then((all) => all.every((one) => one === 0 || one === 'visible') || all));
	await page.screenshot({ path: `${site.screenshots}/${name}-${what.replaceAll(' ', '-')}.png`, fullPage: !await page.getByRole('dialog').count() });
}

async function signIn(user, { role, password }, name)
{
	await user.page.goto(`${site.url}/dashboard/`);
	await heading(user, 'Sign in');
	if (name)
		await look(user, 'sign in');
	await user.type(user.page.getByLabel('Role'), role);
	await user.type(user.page.getByLabel('Password'), password);
	await user.press(user.page.getByRole('button', { name: 'Sign in' }));
	await heading(user, 'Projects');
}

async function open(user, address)
{
	await user.page.goto(`${site.url}/dashboard/#${address}`);
	await user.page.waitForFunction((wanted) => location.hash === `#${wanted}` && document.title !== 'RegPilot', address);
	await settled(user);
}

// --- calls with a key

async function call(key, body = { messages: [{ role: 'user', content: 'test' }] }, model = undefined)
{
	const answer = await fetch(`${site.url}/api/ai/chat`, {
		method: 'POST',
		headers: { 'X-API-Key': key, 'Content-Type': 'application/json' },
		body: JSON.stringify({ ...body, model }),
	});

	return [answer.status, await answer.text()];
}

async function callsSucceed(what, key, times)
{
	const statuses = [];

	for (let i = 0; i < times; i++)
		statuses.push((await call(key))[0]);
	check(what, statuses, Array(times).fill(200));
}

// --- a key is seen once

async function traces({ page, context }, key)
{
	const found = await page.evaluate(async (wanted) => {
		const places = {
			document: document.documentElement.outerHTML,
			title: document.title,
			inputs: [...document.querySelectorAll('input, textarea, select')].map((control) => control.value).join('\n'),
			address: location.href,
			history: JSON.stringify(history.state),
			localStorage: JSON.stringify({ ...localStorage }),
			sessionStorage: JSON.stringify({ ...sessionStorage }),
			window: Object.values(window).filter((value) => typeof value === 'string').join('\n'),
			databases: JSON.stringify(await indexedDB.databases()),
			caches: JSON.stringify(await caches.keys()),
		};

		return Object.entries(places).filter(([, text]) => text.includes(wanted)).map(([name]) => name)
			.concat(places.databases === '[]' && places.caches === '[]' ? [] : ['stores']);
	}, key);
	const cookies = await context.cookies();

	return JSON.stringify(cookies).includes(key) ? [...found, 'cookies'] : found;
}

async function keyOnce(user, what)
{
	const dialog = user.page.getByRole('dialog');
	const key = await dialog.getByTestId('new-key').textContent();
	const says = (text, ...rest) => check(`${user.look}: ${what}: ${text}`, ...rest);

	says('the key is shown', keyPattern.test(key));
	says('with a warning', /cannot be shown again/.test(await dialog.textContent()));
	await look(user, what);
	await user.page.keyboard.press('Escape');
	await dialog.getByText('The key has not been copied').waitFor();
	await user.page.evaluate(() => navigator.clipboard.writeText('nothing'));
	await user.press(dialog.getByRole('button', { name: 'Copy', exact: true }));
	await dialog.getByText('Copied to the clipboard').waitFor();
	says('the key is in the clipboard', await user.page.evaluate(() => navigator.clipboard.readText()), key);
	await user.close(dialog);
	await focusKept(user, `${user.look}: ${what}`);
	says('the key is gone with the dialog', await traces(user, key), []);
	return key;
}

// --- the life of a key

async function life(user)
{
	const { page, look: name } = user;
	const dialog = page.getByRole('dialog');
	const project = `Project of ${name}`;
	const says = (what, ...rest) => check(`${name}: ${what}`, ...rest);
	const tab = (label) => page.getByRole('navigation', { name: 'Project' }).getByRole('link', { name: label });
	const row = (text) => page.getByRole('row').filter({ hasText: text });

	await signIn(user, site.admin, name);
	says('who is signed in', await page.getByTestId('role').textContent(), `${site.admin.role} (admin)`);

	// a project
	await user.press(page.getByRole('button', { name: 'Create project' }));
	await user.type(dialog.getByLabel('Name'), project);
	await user.choose(dialog.getByLabel('Plan'), 'enterprise');
	await look(user, 'create project');
	await user.press(dialog.getByRole('button', { name: 'Create project' }));
	await heading(user, project);
	await focusKept(user, `${name}: project created`);
	await user.press(page.getByRole('link', { name: 'Projects', exact: true }));
	await heading(user, 'Projects');
	await look(user, 'projects');
	await user.press(page.getByRole('link', { name: project }));
	await heading(user, project);
	await look(user, 'overview without traffic');

	// a key
	await user.press(tab('API keys'));
	await heading(user, 'Manage API Keys');
	await user.press(page.getByRole('button', { name: 'Create key' }));
	await user.type(dialog.getByLabel('Name'), 'Billing service');
	await user.choose(dialog.getByLabel('Environment'), 'prod');
	await user.toggle(dialog.getByLabel('analytics:read'));
	await user.type(dialog.getByLabel('Requests a minute'), '1000');
	await user.typeTime(dialog.getByLabel('Expires'));
	await look(user, 'create key');
	await user.press(dialog.getByRole('button', { name: 'Create key' }));
	await page.getByTestId('new-key').waitFor();
	const key = await keyOnce(user, 'key created');
	const hint = key.slice(-4);
	says('the key is listed', (await row('Billing service').innerText()).replace(/\s+/g, ' ').includes(hint));
	await page.reload();
	await heading(user, 'Manage API Keys');
	says('not after a reload', await traces(user, key), []);
	await page.goBack();
	await heading(user, project);
	says('nor when going back', await traces(user, key), []);
	await page.goForward();
	await heading(user, 'Manage API Keys');
	says('nor forward', await traces(user, key), []);
	await look(user, 'keys');

	// its use
	await user.press(page.getByRole('link', { name: 'Billing service' }));
	await heading(user, 'Billing service');
	const facts = await page.locator('.facts').first().innerText();
	says('what was asked for', ['prod', '1,000 a minute', '12 Dec 2031, 11:30', 'gateway:write'].filter((text) => !facts.includes(text)), []);
	says('and not more', facts.includes('analytics:read'), false);
	const total = page.getByTestId('total-requests');
	says('no requests yet', await total.textContent(), '0');
	await callsSucceed(`${name}: calls with the key`, key, 3);
	await total.getByText('3', { exact: true }).waitFor();
	says('the page has them by itself', await total.textContent(), '3');
	await page.locator('.tile').filter({ hasText: 'Requests' }).getByText('3', { exact: true }).waitFor();
	await look(user, 'key');

	// rotation
	await user.press(page.getByRole('button', { name: 'Rotate' }));
	await user.choose(dialog.getByLabel('Overlap'), '1 day');
	await look(user, 'rotate');
	await user.press(dialog.getByRole('button', { name: 'Rotate key' }));
	await page.getByTestId('new-key').waitFor();
	const newKey = await keyOnce(user, 'key rotated');
	const newHint = newKey.slice(-4);
	const rotation = page.getByTestId('rotation');
	await rotation.waitFor();
	says('the old and the new key, side by side', await rotation.evaluate((element) => {
		const cells = [...element.querySelectorAll('tbody tr')[0].children].map((cell) => [cell.innerText, cell.getBoundingClientRect()]);

		return [cells[1][0].slice(-4), cells[2][0].slice(-4), cells[1][1].right <= cells[2][1].left + 1];
	}), [hint, newHint, true]);
	says('the old one is in use', /still in use/.test(await page.getByTestId('rotation-state').textContent()));
	await callsSucceed(`${name}: the old key works`, key, 1);
	await callsSucceed(`${name}: and the new one`, newKey, 2);
	const [refused] = await call(newKey, {});
	says('and a call without messages fails', refused, 400);
	await look(user, 'rotation');

	// revocation
	await user.press(page.getByRole('button', { name: 'Revoke old key' }));
	says('revoking asks first, and says what stops', /Revoke key\?.*401.*Billing service/s.test(await dialog.innerText()));
	await look(user, 'revoke');
	await user.press(dialog.getByRole('button', { name: 'Cancel' }));
	await focusKept(user, `${name}: revocation cancelled`);
	await callsSucceed(`${name}: the key works as long as it is not confirmed`, key, 1);
	await user.press(page.getByRole('button', { name: 'Revoke old key' }));
	await user.type(dialog.getByLabel('Reason'), 'Moved to its successor');
	await user.press(dialog.getByRole('button', { name: 'Revoke key' }));
	await page.getByTestId('rotation-state').getByText('The old key is revoked').waitFor();
	await focusKept(user, `${name}: revoked`);
	says('a call with it', await call(key), [401, '{"error":"API key has been revoked"}']);
	await callsSucceed(`${name}: the new key still works`, newKey, 1);
	await look(user, 'revoked');

	// audit trail
	await user.press(tab('Audit trail'));
	await heading(user, 'Audit trail');
	await look(user, 'audit');
	const trail = await page.locator('main tbody[role] > tr').evaluateAll((rows) => rows.map((one) => [...one.children].slice(1, 4).map((cell) => cell.innerText)));
	says('audit trail', trail.filter(([what]) => /^Key (created|revoked)/.test(what)), ['Key revoked', 'Key created by rotation', 'Key created']
		.map((what) => [what, site.admin.role, 'Billing service']));
	says('audit trail: the reason', (await page.locator('main').innerText()).includes('Moved to its successor'));
	says('audit trail: no key', await traces(user, newKey), []);

	// logs
	await user.press(tab('Logs'));
	await heading(user, 'Logs');
	const count = page.getByTestId('count');
	await count.getByText('9 requests', { exact: true }).waitFor();
	await look(user, 'logs');
	const ids = await page.getByLabel('Key', { exact: true }).locator('option').evaluateAll((options) => options.map(({ value, text }) => [text.slice(-5, -1), value]));
	await user.choose(page.getByLabel('Key', { exact: true }), ids.find(([text]) => text === hint)[1]);
	await count.getByText('5 requests', { exact: true }).waitFor();
	await user.choose(page.getByLabel('Key', { exact: true }), '');
	await count.getByText('9 requests', { exact: true }).waitFor();
	await user.choose(page.getByLabel('Status'), 'failed');
	await count.getByText('1 request', { exact: true }).waitFor();
	says('the failed one', /400/.test(await page.locator('tbody').innerText()));
	await user.type(page.getByLabel('Model'), 'none');
	await count.getByText('0 requests', { exact: true }).waitFor();
	await page.reload();
	await heading(user, 'Logs');
	says('filters outlive a reload', [await page.getByLabel('Model').inputValue(), await page.getByLabel('Status').inputValue(),
		await count.textContent()], ['none', 'failed', '0 requests']);
	await look(user, 'filtered logs');

	// the end
	await user.press(page.getByRole('button', { name: 'Sign out' }));
	await heading(user, 'Sign in');
	await page.goBack();
	await heading(user, 'Sign in');
	says('signed out: nothing is left', (await page.content()).includes(project), false);

	const bodies = await Promise.all(user.answers);
	for (const one of [key, newKey])
		says('the server said the key once', bodies.filter((text) => text.includes(one)).length, 1);
	await user.context.close();
}

// --- each view and dialog, at both widths and in both colour schemes

// Pictures, and what axe-core finds that is serious: once at each width, once in each scheme.
async function inspect(user, what)
{
	const { page } = user;

	for (const [size, viewport] of Object.entries({ wide, phone }))
	{
		await page.setViewportSize(viewport);
		for (const colorScheme of ['light', 'dark'])
		{
			await page.emulateMedia({ colorScheme });
			await look({ page, look: `${size}-${colorScheme}` }, what);
			if ((size === 'wide') !== (colorScheme === 'light'))
				continue;

			const found = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'], preload: false }));

			check(`${size}-${colorScheme}: ${what}: accessible`, found.violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))
				.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html, any }) => `${html.slice(0, 150)} ${any[0]?.message ?? ''}`).join('\n')}`), []);
		}
	}
	await page.setViewportSize(wide);
}

async function forReadme({ page }, name)
{
	await page.emulateMedia({ colorScheme: 'light' });
	await page.screenshot({ path: `${site.screenshots}/${name}.png` });
}

async function views(user)
{
	const { page } = user;
	const { id, name, key, flagged, rotated } = site.shop;
	const dialog = page.getByRole('dialog');
	const close = async () => {
		await dialog.getByRole('button', { name: 'Cancel' }).click();
		await dialog.waitFor({ state: 'detached' });
	};

	await page.goto(`${site.url}/dashboard/`);
	await heading(user, 'Sign in');
	await inspect(user, 'sign in');
	await page.getByLabel('Role').fill(site.admin.role);
	await page.getByLabel('Password').fill('a guess');
	await page.getByRole('button', { name: 'Sign in' }).click();
	await page.getByRole('alert').waitFor();
	await inspect(user, 'sign in refused');
	await signIn(user, site.admin);
	await inspect(user, 'projects');
	await page.getByRole('button', { name: 'Create project' }).click();
	await dialog.getByLabel('Name').fill(name);
	await dialog.getByRole('button', { name: 'Create project' }).click();
	await dialog.getByRole('alert').waitFor();
	await inspect(user, 'project refused');
	await close();

	await open(user, `/projects/${id}`);
	await inspect(user, 'overview');
	await forReadme(user, 'overview');
	await page.getByText('Numbers of the charts as a table').click();
	await inspect(user, 'overview with numbers');
	await page.getByRole('radio', { name: 'Week' }).check();
	await page.waitForFunction(() => location.hash.endsWith('?period=week'));
	await inspect(user, 'week');

	await open(user, `/projects/${id}/keys`);
	await inspect(user, 'keys');
	await forReadme(user, 'dashboard');
	await page.getByRole('button', { name: 'Create key' }).click();
	await inspect(user, 'create key');
	await dialog.getByLabel('Name').fill('Picture captions');
	await dialog.getByRole('button', { name: 'Create key' }).click();
	await page.getByTestId('new-key').waitFor();
	await inspect(user, 'key created');
	await dialog.getByRole('button', { name: 'Done' }).click();
	await page.getByLabel('Search').fill('nothing of that name');
	await page.getByTestId('count').getByText('0 keys').waitFor();
	await inspect(user, 'no keys');

	await open(user, `/projects/${id}/keys/${key}`);
	await inspect(user, 'key');
	for (const [label, what] of [['Rotate', 'rotate'], ['Disable', 'disable'], ['Revoke', 'revoke']])
	{
		await page.getByRole('button', { name: label, exact: true }).click();
		await dialog.waitFor();
		await inspect(user, what);
		await close();
	}
	await open(user, `/projects/${id}/keys/${flagged}`);
	await inspect(user, 'flagged key');
	await page.getByRole('button', { name: 'Review' }).click();
	await inspect(user, 'review');
	await close();
	await open(user, `/projects/${id}/keys/${rotated}`);
	await inspect(user, 'rotated key');
	await open(user, `/projects/${id}/logs`);
	await inspect(user, 'logs');
	const newest = await page.locator('main tbody').innerText();
	await page.getByRole('link', { name: 'Older' }).click();
	await page.getByRole('link', { name: 'Newest' }).waitFor();
	await settled(user);
	check('logs: an older page', newest !== await page.locator('main tbody').innerText());
	await inspect(user, 'older logs');
	await open(user, `/projects/${id}/audit`);
	await inspect(user, 'audit');
	await open(user, '/nothing');
	await heading(user, 'Not found');
	await inspect(user, 'not found');

	// the other end of a review
	const banner = page.getByRole('link', { name: 'Review flagged keys' });

	await open(user, `/projects/${id}/keys`);
	await banner.click();
	await page.getByTestId('count').getByText('1 key', { exact: true }).waitFor();
	await page.getByRole('button', { name: 'Review' }).click();
	await dialog.getByRole('button', { name: 'Revoke key…' }).click();
	await page.getByRole('dialog', { name: 'Revoke key?' }).getByRole('button', { name: 'Revoke key' }).click();
	await page.getByTestId('count').getByText('0 keys').waitFor();
	await open(user, `/projects/${id}/keys`);
	check('a flagged key that was revoked is to be reviewed no more', [await banner.count(), await page.getByRole('button', { name: 'Review' }).count()], [0, 0]);
}

// --- one who may look at one project

async function member(user)
{
	const { page } = user;
	const { shop, other } = site;
	const looking = ['Sign out', 'Try again'];
	const see = async (address, what) => {
		await open(user, address);

		const text = `${await page.locator('body').innerText()} ${await page.content()}`.replaceAll(address, '');
		const buttons = await page.getByRole('button').allInnerTexts();

		check(`member: ${what}: no button that changes anything`, buttons.filter((label) => !looking.includes(label)), []);
		return text;
	};

	await signIn(user, site.member);
	check('member: who is signed in', await page.getByTestId('role').textContent(), site.member.role);
	check('member: its project and no other', await page.locator('main tbody').getByRole('rowheader').allInnerTexts(), [shop.name]);
	for (const [address, title] of [
		['', shop.name], ['/keys', 'Manage API Keys'], [`/keys/${shop.key}`, 'Checkout service'],
		[`/keys/${shop.flagged}`, 'Translation'], [`/keys/${shop.rotated}`, 'Support assistant'], ['/logs', 'Logs'], ['/audit', 'Audit trail'],
	])
	{
		await see(`/projects/${shop.id}${address}`, `its own, ${title}`);
		await heading(user, title);
	}
	await look({ page, look: 'member' }, 'audit');

	// what is not its own: whole views, and parts of its own ones
	for (const address of ['', '/keys', `/keys/${other.key}`, '/logs', '/audit', `/logs?key_id=${other.key}`])
	{
		const text = await see(`/projects/${other.id}${address}`, `another project${address.replaceAll(other.key, 'ID')}`);

		await heading(user, 'Not found');
		check(`member: another project${address.replaceAll(other.key, 'ID')}: nothing of it`,
			[other.name, other.keyName, other.hint].filter((wanted) => text.includes(wanted)), []);
	}
	for (const address of [`/keys/${other.key}`, `/logs?key_id=${other.key}`, `/audit?key_id=${other.key}`, `?key_id=${other.key}`, '/keys?search=Hidden'])
	{
		const text = await see(`/projects/${shop.id}${address}`, `its own project with another's key`);

		check(`member: ${address.replace(other.key, 'ID')}: nothing of another's key`,
			[other.name, other.keyName, other.hint].filter((wanted) => text.replaceAll('search=Hidden', '').includes(wanted)), []);
	}

	const bodies = await Promise.all(user.answers);

	check('member: no answer says anything of another project', bodies.filter((text) =>
		[other.name, other.keyName, other.hint].some((wanted) => text.includes(wanted))), []);
}

// --- names that are markup

async function hostile(user)
{
	const { page } = user;
	const { id, keys, person } = site.hostile;
	const dialog = page.getByRole('dialog');
	const inert = async (what, ...texts) => {
		const seen = await page.evaluate(() => ({
			text: document.body.innerText + [...document.querySelectorAll('input, option')].map((one) => `\n${one.value}`).join(''),
			made: [...document.querySelectorAll('img, script:not([src="app.js"]), iframe, object, embed, base, style, [onerror]')].map((one) => one.outerHTML),
			hacked: window.hacked ?? 'none',
		}));

		check(`markup: ${what}: is text`, [seen.made, seen.hacked], [[], 'none']);
		check(`markup: ${what}: all of it`, texts.filter((text) => !seen.text.includes(text)), []);
	};
	const see = async (what, address, ...texts) => {
		await open(user, address);
		await inert(what, ...texts);
		await look({ page, look: 'markup' }, what);
	};

	await signIn(user, person);
	await inert('projects', image, person.role);
	await see('overview', `/projects/${id}`, image, script);
	await see('overview of a month', `/projects/${id}?period=month`, image, script);
	await see('keys', `/projects/${id}/keys`, image, script);
	await see('key', `/projects/${id}/keys/${keys[0]}`, image, script);
	for (const label of ['Rotate', 'Disable', 'Revoke', 'Review'])
	{
		await page.getByRole('button', { name: label, exact: true }).click();
		await dialog.waitFor();
		await inert(`${label} dialog`, script);
		await dialog.getByRole('button', { name: 'Cancel' }).click();
		await dialog.waitFor({ state: 'detached' });
	}
	await see('revoked key', `/projects/${id}/keys/${keys[1]}`, image);
	await see('logs', `/projects/${id}/logs`, image, script);
	await see('audit', `/projects/${id}/audit`, image, script, person.role);

	// what the address says
	for (const [name, path, visible] of [
		['status', `/projects/${id}/keys?status=`, true], ['search', `/projects/${id}/keys?search=`, true],
		['model', `/projects/${id}/logs?model=`, true], ['environment', `/projects/${id}/logs?environment=`, true],
		['key', `/projects/${id}/logs?key_id=`, true], ['cursor', `/projects/${id}/logs?cursor=`], ['period', `/projects/${id}?period=`],
		['path', '/projects/'], ['way back', '/sign-in?to='],
	])
	{
		await open(user, path + encodeURIComponent(image));
		await inert(`address with a ${name}`, ...visible ? [image] : []);
	}

	// what the forms take
	await open(user, '/projects');
	await page.getByRole('button', { name: 'Create project' }).click();
	await dialog.getByLabel('Name').fill(image);
	await dialog.getByRole('button', { name: 'Create project' }).click();
	await dialog.getByRole('alert').waitFor();
	await inert('refused name', image);
	await dialog.getByLabel('Name').fill(script);
	await dialog.getByRole('button', { name: 'Create project' }).click();
	await heading(user, script);
	await page.getByRole('link', { name: 'API keys' }).click();
	await heading(user, 'Manage API Keys');
	await page.getByRole('button', { name: 'Create key' }).click();
	await dialog.getByLabel('Name').fill(image);
	await dialog.getByRole('button', { name: 'Create key' }).click();
	await page.getByTestId('new-key').waitFor();
	await inert('key created');
	const key = await page.getByTestId('new-key').textContent();
	await dialog.getByRole('button', { name: 'Done' }).click();
	await page.getByRole('link', { name: image }).click();
	await heading(user, image);
	await call(key, undefined, script);
	await page.getByRole('button', { name: 'Revoke' }).click();
	await dialog.getByLabel('Reason').fill(script);
	await dialog.getByRole('button', { name: 'Revoke key' }).click();
	await dialog.waitFor({ state: 'detached' });
	await page.getByRole('link', { name: 'Audit trail', exact: true }).click();
	await heading(user, 'Audit trail');
	await inert('reason', image, script);
	await page.getByRole('link', { name: 'Logs', exact: true }).click();
	await heading(user, 'Logs');
	await inert('model', image);
}

// The policy is in force: what a page might be made to do if a name were markup after all.
async function policy(user)
{
	const { page, errors } = user;

	await signIn(user, site.admin);
	check('policy: nothing against it so far', errors, []);
	await page.evaluate(async () => {
		const add = (tag, properties) => document.body.append(Object.assign(document.createElement(tag), properties));

		add('script', { textContent: 'window.hacked = 1' });
		add('script', { src: 'data:text/javascript,window.hacked=2' });
		add('div', { innerHTML: '<img src=x onerror="window.hacked=3"><b style="color: red"></b>' });
		add('style', { textContent: 'body { display: none }' });
		add('iframe', { src: 'data:text/html,x' });
		add('img', { src: 'http://127.0.0.1:1/x' });
		await fetch('http://127.0.0.1:1/').catch(() => {});
		add('a', { href: 'javascript:window.hacked=4', id: 'hostile' });
		document.getElementById('hostile').click();
	});

	const blocked = () => [...new Set(errors.filter((text) => text.startsWith('violation: ')).map((text) => text.split(' ')[1]))].sort();
	const wanted = ['connect-src', 'frame-src', 'img-src', 'script-src-attr', 'script-src-elem', 'style-src-attr', 'style-src-elem'];
	const end = Date.now() + patience;

	while (blocked().length < wanted.length && Date.now() < end)
		await page.evaluate(() => new Promise(requestAnimationFrame));
	check('policy: what is blocked', blocked(), wanted);
	check('policy: no script has run', await page.evaluate(() => window.hacked ?? 'none'), 'none');
	errors.length = 0;
}

const parts = {
	life: async () => {
		await life({ ...await newUser({ colorScheme: 'light' }), look: 'wide-light' });
		await life({ ...await newUser({ colorScheme: 'dark', viewport: phone }), look: 'phone-dark' });
	},
	keyboard: async () => {
		const user = await newUser({ colorScheme: 'dark' });

		await life({ ...user, ...keyboard(user.page), look: 'keyboard' });
		check('keyboard: the focus can be seen wherever it is', [...new Set(unseen)], []);
	},
	views: async () => views(await newUser()),
	member: async () => member(await newUser()),
	markup: async () => {
		await hostile(await newUser());
		await policy(await newUser());
	},
};

await parts[part]();
check('no script error, dialog, request elsewhere or violation of the policy', trouble.flat(), []);
await browser.close();
