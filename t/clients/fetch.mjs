// Node's own fetch.
import { check, lastRequest, requestsFor, seenToGo, site } from './site.mjs';

const messages = [{ role: 'user', content: 'test' }];
const text = 'one two three four five';

function call(path, body, { headers = { 'X-API-Key': site.key.whole }, ...options } = {})
{
	return fetch(site.url + path, {
		method: 'POST',
		headers: { 'Content-Type': 'application/json', ...headers },
		body: JSON.stringify(body),
		...options,
	});
}

// The data of a stream's events, each with the time of its arrival.
async function* events(response)
{
	let left = '';

	for await (const piece of response.body.pipeThrough(new TextDecoderStream()))
	{
		const lines = (left + piece).split('\n');
		left = lines.pop();
		for (const line of lines.filter((line) => line.startsWith('data: ')))
			yield { at: performance.now(), data: line.slice(6) };
	}
}

async function collect(response)
{
	const all = [];

	for await (const event of events(response))
		all.push(event);
	return all;
}

function textOf(all)
{
	return all.filter(({ data }) => data !== '[DONE]').map(({ data }) => JSON.parse(data).choices?.[0]?.delta.content ?? '').join('');
}

let answer = await call('/v1/chat/completions', { model: 'chat', messages });
check('fetch: status', answer.status, 200);
check('fetch: the answer', (await answer.json()).choices[0].message.content, text);

for (const [name, value] of Object.entries(site.credentials))
{
	answer = await call('/v1/chat/completions', { model: 'chat', messages }, { headers: { [name]: value } });
	check(`fetch: ${name}`, answer.status, 200);
	await answer.text();
}

// a body that is made while it is sent, and so has no length
const pieces = JSON.stringify({ model: 'chat', messages: [{ role: 'user', content: 'x'.repeat(100000) }] }).match(/.{1,9999}/g);
answer = await call('/v1/chat/completions', null, {
	duplex: 'half',
	body: new ReadableStream({ pull: (body) => pieces.length ? body.enqueue(new TextEncoder().encode(pieces.shift())) : body.close() }),
});
check('fetch: a body in chunks', answer.status, 200);
await answer.text();
check('fetch: a body in chunks is whole', lastRequest('ok').body.messages[0].content.length, 100000);

// --- streams

answer = await call('/api/ai/chat', { model: 'chat', messages });
check('fetch: a stream', answer.headers.get('content-type').startsWith('text/event-stream'));
const all = await collect(answer);
const words = all.filter(({ data }) => text.split(' ').some((word) => data.includes(word)));
check('fetch: the text of the stream', textOf(all), `${text} `);
check('fetch: ends in [DONE]', all.at(-1).data, '[DONE]');
check('fetch: as it came from the upstream, not at its end', words.at(-1).at - words[0].at > 600);

const broken = await collect(await call('/api/ai/chat', { model: 'dies', messages }));
check('fetch: a stream that breaks off: what came', textOf(broken.slice(0, -1)), 'first ');
check('fetch: a stream that breaks off: ends in an error', JSON.parse(broken.at(-1).data).error.code, 'UPSTREAM_FAILED');

await seenToGo('fetch: the upstream sees an abort', 'long-stream', async () => {
	const abort = new AbortController();
	const response = await call('/api/ai/chat', { model: 'long-stream', messages }, { signal: abort.signal });
	try
	{
		for await (const { data } of events(response))
		{
			if (data.includes('word1'))
				abort.abort();
		}
		check('fetch: an abort ends the loop', false);
	}
	catch (error)
	{
		check('fetch: an abort ends the loop', error.name, 'AbortError');
	}
});
await seenToGo('fetch: the upstream sees that a reader is cancelled', 'silent-stream', async () => {
	const response = await call('/api/ai/chat', { model: 'silent-stream', messages });
	const reader = response.body.getReader();
	await reader.read();
	await reader.cancel();
});
await seenToGo('fetch: the upstream sees the end of a call that waits', 'hang', async () => {
	const abort = new AbortController();
	const waiting = call('/api/ai/chat', { model: 'hang', messages, stream: false }, { signal: abort.signal });
	const timer = setInterval(() => requestsFor('hang') && abort.abort(), 20);
	check('fetch: a call that waits can be ended', await waiting.catch((error) => error.name), 'AbortError');
	clearInterval(timer);
});

// --- refusals

for (const [what, status, path, key, body, words] of [
	['a wrong key', 401, '/v1/chat/completions', 'nobody', { messages }, 'Invalid or inactive API key'],
	['a key that may only read', 403, '/v1/chat/completions', site.key.reads, { messages }, 'Insufficient permissions for this operation'],
	['no messages', 400, '/v1/chat/completions', site.key.whole, {}, 'Messages array is required'],
	['a wrong address', 404, '/v1/nothing', site.key.whole, {}, 'There is nothing at this address'],
])
{
	answer = await call(path, body, { headers: { Authorization: `Bearer ${key}` } });
	check(`fetch: ${what}`, [answer.status, (await answer.json()).error], [status, words]);
}
