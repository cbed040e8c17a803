// The openai package, as it is published, against /v1.
import OpenAI from 'openai';
import { setTimeout as sleep } from 'node:timers/promises';
import { check, lastRequest, part, refused, report, requestsFor, seenToGo, site } from './site.mjs';

function newClient(key, options = {})
{
	return new OpenAI({ apiKey: key, baseURL: `${site.url}/v1`, maxRetries: 0, ...options });
}

const client = newClient(site.key.whole);
const messages = [{ role: 'user', content: 'test' }];

const usage = { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 };
const text = 'one two three four five';

// A client whose attempts are noted: when each began, and how it was answered.
function watchedClient(key, options)
{
	const attempts = [];
	const watched = newClient(key, {
		...options,
		fetch: async (...call) => {
			const attempt = { at: performance.now() };
			attempts.push(attempt);
			const answer = await fetch(...call);
			attempt.status = answer.status;
			attempt.retryAfter = Number(answer.headers.get('retry-after'));
			attempt.answered = performance.now();
			options.onAnswer?.(attempt);
			return answer;
		},
	});
	return { watched, attempts };
}

// Seconds between the answer to an attempt and the next attempt.
function pauses(attempts)
{
	return attempts.slice(1).map((attempt, i) => (attempt.at - attempts[i].answered) / 1000);
}

async function collect(stream)
{
	const chunks = [];
	const times = [];

	for await (const chunk of stream)
	{
		chunks.push(chunk);
		times.push(performance.now());
	}
	return { chunks, times, text: textOf(chunks) };
}

function textOf(chunks)
{
	return chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
}

// --- chat

async function chat()
{
	const sent = {
		model: 'chat',
		messages: [
			{ role: 'developer', content: 'Be brief.' },
			{ role: 'user', content: 'Gr\u00fc\u00dfe \u{1F600} "quoted" \\ \u0000 \n', name: 'someone' },
		],
		temperature: 0.3,
		top_p: 1e-7,
		seed: Number.MAX_SAFE_INTEGER,
		n: 1,
		stop: ['\n', 'END'],
		logit_bias: { 50256: -100 },
		metadata: { purpose: 'test' },
		response_format: { type: 'json_schema', json_schema: { name: 'answer', schema: { type: 'object', properties: {} } } },
		unknown_member: { nested: [1, -2.5, 1e21, 0.1, null, true, false, '', [], {}] },
	};
	const answer = await client.chat.completions.create(sent);

	check('chat: the answer', answer.choices[0].message.content, text);
	check('chat: finish_reason', answer.choices[0].finish_reason, 'stop');
	check('chat: usage', answer.usage, usage);
	check('chat: request id', /^[0-9a-f]{32}$/.test(answer._request_id));
	check('chat: all members reach the upstream as they were sent, but for the model', lastRequest('ok').body,
		{ ...sent, model: 'ok', stream: false });

	const { response } = await client.chat.completions.create({ model: 'chat', messages }).withResponse();
	check('chat: x-regpilot-model', response.headers.get('x-regpilot-model'), 'good/ok');

	const byHeader = newClient('unused', { defaultHeaders: { 'X-API-Key': site.key.whole } });
	check('chat: X-API-Key goes before the apiKey',
		(await byHeader.chat.completions.create({ model: 'chat', messages })).choices[0].message.content, text);
	check('chat: builtin:echo',
		(await client.chat.completions.create({ model: 'echo', messages })).choices[0].message.content, 'test');
}

async function images()
{
	const picture = Buffer.from(Uint8Array.from({ length: 300000 }, (_, i) => (i * 7919) % 256)).toString('base64');
	const sent = [{
		role: 'user',
		content: [
			{ type: 'text', text: 'What are these?' },
			{ type: 'image_url', image_url: { url: `data:image/png;base64,${picture}`, detail: 'high' } },
			{ type: 'image_url', image_url: { url: 'https://example.com/a.png' } },
			{ type: 'input_audio', input_audio: { data: 'UklGRg==', format: 'wav' } },
			{ type: 'file', file: { filename: 'a.pdf', file_data: 'data:application/pdf;base64,JVBERi0=' } },
		],
	}];

	await client.chat.completions.create({ model: 'chat', messages: sent });
	check('images, sound and files reach the upstream as they were sent', lastRequest('ok').body.messages, sent);
}

async function tools()
{
	const weather = {
		type: 'function',
		function: {
			name: 'weather',
			description: 'The weather in a city',
			parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false },
			strict: true,
		},
	};
	const call = { id: 'call_1', type: 'function', function: { name: 'weather', arguments: '{"city": "K\u00f6ln"}' } };
	const answer = await client.chat.completions.create({ model: 'tools', messages, tools: [weather], tool_choice: 'auto' });

	check('tools: the call', answer.choices[0].message.tool_calls, [call]);
	check('tools: no content', answer.choices[0].message.content, null);
	check('tools: finish_reason', answer.choices[0].finish_reason, 'tool_calls');
	check('tools: reach the upstream as they were sent', lastRequest('tools').body.tools, [weather]);

	const called = [...messages, answer.choices[0].message, { role: 'tool', tool_call_id: 'call_1', content: 'It rains.' }];
	const last = await client.chat.completions.create({ model: 'tools', messages: called, tools: [weather] });
	check('tools: the call and its result reach the upstream as they were sent', lastRequest('tools').body.messages, called);
	check('tools: what comes of it', last.choices[0].message.content, 'It rains.');

	// the package's own loop, streamed
	const cities = [];
	const runner = client.chat.completions.runTools({
		model: 'tools',
		messages,
		stream: true,
		tools: [{
			type: 'function',
			function: {
				...weather.function,
				parse: JSON.parse,
				function: ({ city }) => {
					cities.push(city);
					return `In ${city} it rains.`;
				},
			},
		}],
	});
	check('tools, streamed: what comes of it', await runner.finalContent(), 'In K\u00f6ln it rains. ');
	check('tools, streamed: the arguments, put together', cities, ['K\u00f6ln']);
}

// --- streams

async function streams()
{
	const plain = await collect(await client.chat.completions.create({ model: 'chat', messages, stream: true }));
	const words = plain.times.filter((_, i) => plain.chunks[i].choices[0]?.delta.content);

	check('stream: the text', plain.text, `${text} `);
	check('stream: chunks', plain.chunks.every((chunk) => chunk.object === 'chat.completion.chunk'));
	check('stream: finish_reason', plain.chunks.at(-1).choices[0]?.finish_reason, 'stop');
	check('stream: as it came from the upstream, not at its end', words.at(-1) - words[0] > 600);
	check('stream: no usage unless asked for', plain.chunks.filter((chunk) => 'usage' in chunk || !chunk.choices.length), []);
	check('stream: but the upstream is asked for it', lastRequest('ok').body,
		{ model: 'ok', messages, stream: true, stream_options: { include_usage: true } });

	const declined = await collect(await client.chat.completions.create({
		model: 'at-once', messages, stream: true, stream_options: { include_usage: false, include_obfuscation: false },
	}));
	check('stream without usage: the text', declined.text, `${text} `);
	check('stream without usage: none', declined.chunks.filter((chunk) => 'usage' in chunk || !chunk.choices.length), []);
	check('stream without usage: the other options stay', lastRequest('at-once').body.stream_options,
		{ include_usage: true, include_obfuscation: false });

	for (const model of ['at-once', 'echo'])
	{
		const counted = await collect(await client.chat.completions.create({
			model, messages, stream: true, stream_options: { include_usage: true },
		}));
		const last = counted.chunks.pop();
		check(`stream with usage, ${model}: comes last`, [last.choices, last.usage],
			[[], model === 'at-once' ? usage : { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 }]);
		check(`stream with usage, ${model}: null before`, counted.chunks.every((chunk) => chunk.usage === null));
		check(`stream with usage, ${model}: the text`, counted.text, model === 'at-once' ? `${text} ` : 'test');
	}
	const echo = await collect(await client.chat.completions.create({ model: 'echo', messages, stream: true }));
	check('stream of the echo: the text', echo.text, 'test');
	check('stream of the echo: no usage unless asked for', echo.chunks.filter((chunk) => 'usage' in chunk || !chunk.choices.length), []);

	const helper = client.chat.completions.stream({ model: 'at-once', messages, stream_options: { include_usage: true } });
	check('stream helper: the text', await helper.finalContent(), `${text} `);
	check('stream helper: usage', (await helper.totalUsage()).total_tokens, 12);
}

async function goingAway()
{
	await seenToGo('abort of a stream: the upstream sees it', 'long-stream', async () => {
		const stream = await client.chat.completions.create({ model: 'long-stream', messages, stream: true });
		let seen = '';
		for await (const chunk of stream)
		{
			seen += chunk.choices[0]?.delta.content ?? '';
			if (seen.includes('word1'))
				stream.controller.abort();
		}
		check('abort of a stream: ends it', seen, 'word0 word1 ');
	});
	await seenToGo('a loop that is left: the upstream sees it', 'silent-stream', async () => {
		for await (const chunk of await client.chat.completions.create({ model: 'silent-stream', messages, stream: true }))
		{
			if (chunk.choices[0]?.delta.content)
				break;
		}
	});
	await seenToGo('abort of a call: the upstream sees it', 'hang', async () => {
		const calls = requestsFor('hang');
		const abort = new AbortController();
		const timer = setInterval(() => requestsFor('hang') > calls && abort.abort(), 20);
		await refused('abort of a call', client.chat.completions.create({ model: 'hang', messages }, { signal: abort.signal }),
			OpenAI.APIUserAbortError);
		clearInterval(timer);
	});
	await seenToGo('timeout of the client: the upstream sees it', 'hang', () =>
		refused('timeout of the client', client.chat.completions.create({ model: 'hang', messages }, { timeout: 2000 }),
			OpenAI.APIConnectionTimeoutError));
}

// A stream that the upstream does not end is an error, never a short answer.
async function brokenStreams()
{
	for (const model of ['dies', 'no-done'])
	{
		const chunks = [];
		const read = async () => {
			for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
				chunks.push(chunk);
		};
		const error = await refused(`${model}: an error`, read(), OpenAI.APIError);
		check(`${model}: what came before it`, textOf(chunks), 'first ');
		check(`${model}: its message`, error.message, 'The upstream failed');
		check(`${model}: its code`, error.code, 'UPSTREAM_FAILED');
		check(`${model}: its request id`, /^[0-9a-f]{32}$/.test(error.requestID) && error.error?.request_id === error.requestID);

		await refused(`${model}, by the stream helper`,
			client.chat.completions.stream({ model, messages }).finalContent(), OpenAI.APIError);
	}
}

// --- embeddings and models

async function embeddings()
{
	const vector = (input) => [input.length, 0.25, -1.5, Math.fround(1e-3)];
	const one = await client.embeddings.create({ model: 'embed', input: 'test' });
	check('embeddings: asked for as base64, as the package does', lastRequest('embed').body,
		{ model: 'embed', input: 'test', encoding_format: 'base64' });
	check('embeddings: path', lastRequest('embed').path, '/v1/embeddings');
	check('embeddings: the vector', one.data.map((item) => Array.from(item.embedding)), [vector('test')]);
	check('embeddings: usage', one.usage, { prompt_tokens: 3, total_tokens: 3 });

	const sent = { model: 'embed', input: ['a', 'longer'], encoding_format: 'float', dimensions: 3, user: 'u', unknown: [1, { a: null }] };
	const many = await client.embeddings.create(sent);
	check('embeddings: all members reach the upstream as they were sent', lastRequest('embed').body, sent);
	check('embeddings: floats', many.data.map((item) => item.embedding), sent.input.map((input) => vector(input).slice(0, 3)));
	check('embeddings: indexes', many.data.map((item) => item.index), [0, 1]);

	const { data: packed } = await client.embeddings.create({ model: 'echo', input: ['one text', 'another'] });
	const { data: floats } = await client.embeddings.create({ model: 'echo', input: ['one text', 'another'], encoding_format: 'float' });
	const rounded = (data) => data.map((item) => Array.from(item.embedding, Math.fround));
	check('embeddings of the echo: base64 says what floats do', rounded(packed), rounded(floats));
	check('embeddings of the echo: one each, not the same',
		[packed.length, packed[0].embedding.length > 0, rounded(packed)[0].join() !== rounded(packed)[1].join()], [2, true, true]);

	const { response } = await client.embeddings.create({ model: 'vendor/embed 1', input: 'x' }).withResponse();
	check('embeddings: x-regpilot-model', response.headers.get('x-regpilot-model'), 'good/embed');
	await refused('embeddings without input', client.embeddings.create({ model: 'embed' }), OpenAI.BadRequestError);
	await refused('embeddings by a key that may only read',
		newClient(site.key.reads).embeddings.create({ model: 'embed', input: 'x' }), OpenAI.PermissionDeniedError);
}

async function models()
{
	const reader = newClient(site.key.reads);
	const list = [];
	for await (const model of reader.models.list())
		list.push(model);
	const ids = list.map((model) => model.id);

	check('models: those of the routes', ['chat', 'tools', 'embed', 'vendor/embed 1'].filter((id) => !ids.includes(id)), []);
	check('models: each once', new Set(ids).size, ids.length);
	check('models: what is said of each', list.filter((model) => model.object !== 'model' ||
		!Number.isInteger(model.created) || typeof model.owned_by !== 'string'), []);
	for (const id of ['chat', 'vendor/embed 1'])
	{
		const { _request_id, ...model } = await reader.models.retrieve(id);
		check(`models: ${id}`, model, list.find((listed) => listed.id === id));
	}
	await refused('models: one that there is not', reader.models.retrieve('nobody-knows'), OpenAI.NotFoundError);
	await refused('models: by a key that may not read', newClient(site.key.writes).models.list(), OpenAI.PermissionDeniedError);
}

// --- errors

async function errors()
{
	const ask = (key, members, options) => newClient(key, options).chat.completions.create({ model: 'chat', messages, ...members });

	for (const [what, key, words] of [
		['a wrong key', `${site.key.whole}x`, 'Invalid or inactive API key'],
		['a revoked key', site.key.revoked, 'API key has been revoked'],
		['an expired key', site.key.expired, 'Invalid or inactive API key'],
	])
	{
		const error = await refused(what, ask(key), OpenAI.AuthenticationError);
		check(`${what}: message`, error.message, `401 "${words}"`);
		check(`${what}: request id`, /^[0-9a-f]{32}$/.test(error.requestID));
	}
	const missing = await refused('no key', ask('unused', {}, { defaultHeaders: { Authorization: null } }),
		OpenAI.AuthenticationError);
	check('no key: message', /Missing API key\. Use one of: /.test(missing.message));

	const forbidden = await refused('a key that may only read', ask(site.key.reads), OpenAI.PermissionDeniedError);
	check('a key that may only read: message', forbidden.message, '403 "Insufficient permissions for this operation"');

	const malformed = await refused('no messages', ask(site.key.whole, { messages: [] }), OpenAI.BadRequestError);
	check('no messages: message', malformed.message, '400 "Messages array is required"');
	const upstream = await refused("the upstream's 400", ask(site.key.whole, { model: 'error-400' }), OpenAI.BadRequestError);
	check("the upstream's 400: its own message and type", [upstream.message, upstream.type],
		['400 this model takes no pictures', 'upstream_error']);
	const large = await refused('11 MB', ask(site.key.whole, { messages: [{ role: 'user', content: 'x'.repeat(11e6) }] }),
		OpenAI.APIError);
	check('11 MB: status and message', [large.status, large.message], [413, '413 "The body is too large"']);

	await refused('a model that nobody serves', ask(site.key.whole, { model: 'nobody-knows' }), OpenAI.NotFoundError);
	await refused('a part of the API that is not served', client.files.list(), OpenAI.NotFoundError);

	check('a key with a limit of one', (await ask(site.key.limited)).choices[0].message.content, text);
	const limited = await refused('and the second call', ask(site.key.limited), OpenAI.RateLimitError);
	check('the second call: message', limited.message, '429 "Rate limit exceeded"');
	check('the second call: headers', ['limit', 'remaining'].map((name) => limited.headers.get(`x-ratelimit-${name}`)), ['1', '0']);
	check('the second call: Retry-After', limited.headers.get('retry-after') > 30);
	await refused('and of a stream', ask(site.key.limited, { stream: true }), OpenAI.RateLimitError);

	const { watched, attempts } = watchedClient(site.key.whole, { maxRetries: 1 });
	const failed = await refused("the upstream's 500", watched.chat.completions.create({ model: 'error-500', messages }),
		OpenAI.InternalServerError);
	check("the upstream's 500: is a 502", failed.message, '502 "The upstream failed"');
	check("the upstream's 500: was tried again", attempts.map((attempt) => attempt.status), [502, 502]);
}

async function timeout()
{
	const error = await refused('an upstream that is silent', client.chat.completions.create({ model: 'stuck', messages }),
		OpenAI.InternalServerError);
	check('an upstream that is silent: is a 504', error.message, '504 "The upstream did not answer in time"');
}

async function surface()
{
	const late = timeout();

	for (const step of [chat, images, tools, streams, goingAway, brokenStreams, embeddings, models, errors])
		await step();
	await late;
}

// --- retries

// The key has one place a minute; the test lets most of a minute pass once it is taken.
async function retry()
{
	const headers = { 'X-API-Key': site.key.retried };
	let refusal;

	await newClient(site.key.retried).chat.completions.create({ model: 'chat', messages });
	report({ taken: true });
	do
	{
		await sleep(50);
		refusal = await fetch(`${site.url}/api/auth/verify`, { headers });
		await refusal.text();
	} while (refusal.headers.get('retry-after') > 30);

	const { watched, attempts } = watchedClient(site.key.retried, { maxRetries: 2 });
	const answer = await watched.chat.completions.create({ model: 'chat', messages });
	check('retry: the call is answered', answer.choices[0].message.content, text);
	check('retry: by the second attempt', attempts.map((attempt) => attempt.status), [429, 200]);
	check('retry: Retry-After is longer than the package waits by itself', attempts[0].retryAfter > 1);
	check('retry: it waited that long', pauses(attempts).every((pause) => pause > attempts[0].retryAfter - 0.1));
}

// The database is away, until we say that we have noticed.
async function outage()
{
	const error = await refused('database away', client.chat.completions.create({ model: 'chat', messages }),
		OpenAI.InternalServerError);
	check('database away: message', error.message, '503 "API keys cannot be checked at the moment"');
	check('database away: Retry-After', error.headers.get('retry-after'), '1');

	const { watched, attempts } = watchedClient(site.key.whole, { maxRetries: 60, onAnswer: (attempt) => report(attempt) });
	const answer = await watched.chat.completions.create({ model: 'chat', messages });
	const statuses = attempts.map((attempt) => attempt.status);
	check('database back: the call is answered', answer.choices[0].message.content, text);
	check('database back: after refusals with 503 and no other', statuses, [...statuses.slice(1).fill(503), 200]);
	check('database back: each attempt when Retry-After had said', pauses(attempts).every((pause) => pause > 0.9));
}

await { surface, retry, outage }[part]();
