// What the scripts here share: where the site under test is, and how a check is
// told to the test that started the script, in a line of JSON.
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect, isDeepStrictEqual } from 'node:util';

// url, key (name to key), requests (the file that t/upstream.py writes)
export const site = JSON.parse(process.argv[3]);

export function report(line)
{
	console.log(JSON.stringify(line));
}

export function check(what, got, wanted = true)
{
	const show = (value) => inspect(value, { depth: 9, breakLength: 120 });

	report({ check: what, ok: isDeepStrictEqual(got, wanted), got: show(got), wanted: show(wanted) });
}

// The promise is refused with an error of that class, which is given back.
export async function refused(what, promise, Class)
{
	try
	{
		await promise;
		check(what, 'no error', Class.name);
	}
	catch (error)
	{
		check(what, error.constructor.name, Class.name);
		return error;
	}
	return {};
}

function upstreamEvents()
{
	return readFileSync(site.requests, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line));
}

// The last request for that model that an upstream got.
export function lastRequest(model)
{
	return upstreamEvents().findLast((entry) => entry.event === 'request' && entry.model === model);
}

export function requestsFor(model)
{
	return upstreamEvents().filter((entry) => entry.event === 'request' && entry.model === model).length;
}

// What the client does makes an upstream see it go, once more than before.
export async function seenToGo(what, model, act)
{
	const count = () => upstreamEvents().filter((entry) => entry.event === 'client gone' && entry.model === model).length;
	const before = count();
	const end = Date.now() + 20000;

	await act();
	while (count() === before && Date.now() < end)
		await sleep(50);
	check(what, count() - before, 1);
}

export const part = process.argv[2];
