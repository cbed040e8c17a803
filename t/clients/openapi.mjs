// Whether fcgi/openapi.json is sound, and answers of the running responder are as it says.
import { readFileSync } from 'node:fs';
import { Validator } from '@seriousme/openapi-schema-validator';
import Ajv from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';
import { check, part, site } from './site.mjs';

const document = JSON.parse(readFileSync('fcgi/openapi.json', 'utf8'));
const methods = ['get', 'put', 'post', 'delete', 'options', 'head', 'patch', 'trace'];
const escaped = (name) => name.replaceAll('~', '~0').replaceAll('/', '~1');

// ---- where things are: a place is a JSON pointer into the document

function at(place)
{
	const names = place.split('/').slice(1).map((name) => name.replaceAll('~1', '/').replaceAll('~0', '~'));

	return names.reduce((node, name) => node?.[name], document);
}

// The place that is meant, after any references.
function follow(place)
{
	const reference = at(place)?.$ref;

	return reference ? follow(reference) : place;
}

const below = (place, ...names) => [place, ...names.map((name) => escaped(String(name)))].join('/');
const children = (place) => Object.keys(at(place) ?? {}).map((name) => [name, follow(below(place, name))]);

// Calls visit(place, node) for all in the document.
function walk(visit, place = '#', node = document)
{
	if (node === null || typeof node !== 'object')
		return;
	visit(place, node);
	for (const [name, child] of Object.entries(node))
		walk(visit, below(place, name), child);
}

const operations = Object.keys(document.paths).flatMap((path) => methods
	.filter((method) => document.paths[path][method])
	.map((method) => ({ name: `${method.toUpperCase()} ${path}`, path, method, place: below('#/paths', path, method) })));

// ---- values against schemas

// Whatever a schema has in it that is no keyword is an error.
const ajv = new Ajv({ strict: true, strictTypes: false, strictRequired: false, allErrors: true });

addFormats(ajv);
ajv.addKeyword('components');
ajv.addSchema({ components: document.components }, 'document');

const compiled = new Map();

// What is wrong with the value, by the schema at that place.
function objections(place, value)
{
	if (!compiled.has(place))
		compiled.set(place, ajv.compile(JSON.parse(JSON.stringify(at(place)).replaceAll('"$ref":"#/', '"$ref":"document#/'))));
	const valid = compiled.get(place);

	return valid(value) ? [] : valid.errors.map((error) => `${place}: ${error.instancePath} ${error.message}`);
}

// What came as text: a header or a parameter.
function textObjections(schema, text)
{
	const numeric = ['integer', 'number'].includes(at(schema).type) || typeof at(schema).const === 'number';

	return objections(schema, numeric && /^-?\d+$/.test(text) ? Number(text) : text);
}

function parse(text)
{
	try
	{
		return { value: JSON.parse(text) };
	}
	catch
	{
		return null;
	}
}

// A stream: events of the media type's x-event-schema, and [DONE] unless the last one is an error.
function streamObjections(media, text)
{
	const blocks = text.split('\n\n').filter((block) => block !== '' && !block.startsWith(':'));
	const events = blocks.map((block) => block.replace(/^data: /, ''));
	const last = events.pop();
	const found = events.flatMap((event) => objections(below(media, 'x-event-schema'), parse(event)?.value ?? event));

	if (last === '[DONE]')
		return found;
	return [...found, ...objections('#/components/schemas/StreamError', parse(last)?.value ?? last)];
}

function bodyObjections(media, type, body)
{
	const text = objections(below(media, 'schema'), body);

	return type === 'text/event-stream' ? [...text, ...streamObjections(media, body)] : text;
}

// ---- answers

// What web servers add, and what a media type says.
const ordinary = new Set(['server', 'date', 'connection', 'keep-alive', 'transfer-encoding', 'content-length', 'content-type']);

function headerObjections(response, headers)
{
	const known = children(below(response, 'headers'));
	const names = new Set(known.map(([name]) => name));
	const found = Object.keys(headers).filter((name) => !ordinary.has(name) && !names.has(name))
		.map((name) => `the header ${name} is not documented`);

	for (const [name, header] of known)
	{
		if (headers[name] !== undefined)
			found.push(...textObjections(follow(below(header, 'schema')), headers[name]).map((text) => `${name}: ${text}`));
		else if (at(header).required)
			found.push(`the header ${name} is missing`);
	}
	return found;
}

// The limit's headers come together, and only to those that it holds for.
function limitObjections(record)
{
	const missing = ['limit', 'remaining', 'reset'].filter((name) => record.headers[`x-ratelimit-${name}`] === undefined);

	if (missing.length === (record.limited ? 0 : 3))
		return [];
	return [`of x-ratelimit-*, ${missing.join(', ') || 'nothing'} is missing`];
}

// Headers that some answers of a response have, and others not.
function conditionalObjections(record, what, body)
{
	const { headers } = record;
	const wrong = {
		'of an upstream': headers['x-regpilot-model'] === undefined,
		'rate limit': headers['retry-after'] !== String(body?.retry_after),
		DATABASE_UNAVAILABLE: record.path === '/auth' && !(headers['x-regpilot-status'] && headers['x-regpilot-body']),
	};

	return wrong[what] ? [`a header of ${what} is missing, or not what the body says`] : [];
}

// An error without what differs from answer to answer, for comparison. PostgreSQL's texts do as well.
function withoutDetail(error, path)
{
	const varies = new Set(['request_id', 'retry_after', 'limit', 'detail', 'hint']);

	if (/^\/(dashboard|api\/(logs|analytics)$)/.test(path) && /^(INVALID_PARAMETER|INVALID_INPUT|FORBIDDEN)$/.test(error?.code))
		varies.add('error');
	return JSON.stringify(Object.entries(error ?? {}).filter(([name]) => !varies.has(name)));
}

// What an answer can show of a response: each of its errors, or media types, or that it is.
function showable(response, head)
{
	const media = Object.entries(at(below(response, 'content')) ?? {});

	if (media.length === 0 || head)
		return [''];
	return media.flatMap(([type, { examples }]) =>
		(type === 'application/json' && examples ? Object.keys(examples) : [type]));
}

function shown(record, media, type, value)
{
	const examples = at(below(media, 'examples'));
	const compared = (error) => withoutDetail(error, record.path);

	if (type !== 'application/json' || !examples)
		return type;
	return Object.keys(examples).find((name) => compared(examples[name].value) === compared(value));
}

// Checks an answer against the response at that place, and notes what it shows.
function checkAnswer(record, place, key, seen)
{
	const response = follow(place);
	const type = (record.headers['content-type'] ?? '').replace(/;.*/, '');
	const found = headerObjections(response, record.headers);
	let what = '';

	if (record.limited !== undefined)
		found.push(...limitObjections(record));
	if (at(below(response, 'content')) === undefined)
		found.push(...(record.body === '' ? [] : ['there is a body']));
	else if (record.method !== 'HEAD')
	{
		const media = below(response, 'content', type);
		const body = type === 'application/json' ? parse(record.body)?.value : record.body;

		if (at(media) === undefined)
			found.push(`${type} is not documented`);
		else if (body === undefined)
			found.push('the body is no JSON');
		else
		{
			found.push(...bodyObjections(media, type, body));
			what = shown(record, media, type, body);
			if (what === undefined)
				found.push('no example has such an error');
			found.push(...conditionalObjections(record, what, body));
		}
		if (record.headers['x-regpilot-body'] !== undefined && record.headers['x-regpilot-body'] !== record.body)
			found.push('x-regpilot-body is another body');
	}
	seen.add(`${key} ${what}`.trim());
	if (found.length > 0)
		found.push(`the body is ${record.body.slice(0, 500)}`);
	check(`${record.method} ${record.url}: ${record.status} ${what ?? ''}`, found, []);
}

// ---- requests

function queryObjections(operation, url)
{
	const known = [below('#/paths', operation.path, 'parameters'), below(operation.place, 'parameters')]
		.flatMap((place) => children(place)).map(([, place]) => place).filter((place) => at(place).in === 'query');

	return [...new URL(url, 'http://localhost').searchParams].flatMap(([name, value]) => {
		const parameter = known.find((place) => at(place).name === name);

		return parameter ? textObjections(follow(below(parameter, 'schema')), value) : [`${name} is not documented`];
	});
}

// What an operation takes has to be what the document says it takes, and nothing else. (A cursor
// is opaque, and a body that is no JSON is nothing that a schema could refuse.)
function checkRequest(record, operation)
{
	const body = parse(record.sent ?? '')?.value;
	const schema = below(operation.place, 'requestBody', 'content', 'application/json', 'schema');
	const found = queryObjections(operation, record.url);
	const code = parse(record.body)?.value?.code;
	const unspecified = record.url.includes('cursor=') || (record.sent !== undefined && body === undefined);
	const what = `${record.method} ${record.url} ${record.sent?.slice(0, 100) ?? ''}`;

	if (body !== undefined && at(schema) !== undefined)
		found.push(...objections(schema, body));
	if (record.status < 300)
		check(`${what}: taken, and as it should be`, found, []);
	else if (record.status === 400 && code !== undefined && !unspecified)
		check(`${what}: refused, and not as it should be`, found.length > 0);
}

// ---- the parts of the test

async function sound()
{
	check('it is valid OpenAPI 3.1', await new Validator().validate(structuredClone(document)), { valid: true });
	check('its version', document.openapi.startsWith('3.1.'));

	const ids = operations.map(({ place }) => at(place).operationId);
	const tags = document.tags.map(({ name }) => name);

	check('operations have names of their own', new Set(ids).size === ids.length && !ids.includes(undefined));
	check('operations have a tag of those that there are',
		operations.filter(({ place }) => !tags.includes(at(place).tags?.join())).map(({ name }) => name), []);
	check('operations have a summary', operations.filter(({ place }) => !at(place).summary).map(({ name }) => name), []);
	for (const { name, path, place } of operations)
	{
		const parameters = [below('#/paths', path, 'parameters'), below(place, 'parameters')]
			.flatMap((list) => children(list)).map(([, parameter]) => at(parameter));

		check(`${name}: what is in its path`,
			parameters.filter((parameter) => parameter.in === 'path').map((parameter) => parameter.name).sort(),
			[...path.matchAll(/\{(\w+)\}/g)].map(([, parameter]) => parameter).sort());
		check(`${name}: security schemes`, (at(place).security ?? document.security)
			.flatMap((scheme) => Object.keys(scheme)).filter((scheme) => !document.components.securitySchemes[scheme]), []);
	}

	const referred = new Set();

	walk((place, node) => typeof node.$ref === 'string' && referred.add(node.$ref));
	check('every reference leads somewhere', [...referred].filter((place) => at(place) === undefined), []);
	check('every part is referred to, but what holds for all addresses',
		Object.keys(document.components).filter((kind) => kind !== 'securitySchemes')
			.flatMap((kind) => children(below('#/components', kind)).map(([name]) => `#/components/${kind}/${name}`))
			.filter((place) => !referred.has(place)),
		['#/components/responses/NotFound', '#/components/responses/MethodNotAllowed']);

	walk((place, node) => {
		// A schema's own properties may have any name.
		if (node.schema === undefined || place.endsWith('/properties'))
			return;
		const values = Object.entries(node.examples ?? {}).map(([name, { value }]) => [name, value]);

		if (node.example !== undefined)
			values.push(['', node.example]);
		const type = place.endsWith('text~1event-stream') ? 'text/event-stream' : '';

		objections(below(place, 'schema'), null);    // compiles it, whether or not there are examples
		for (const [name, value] of values)
			check(`example: ${place} ${name}`, bodyObjections(place, type, value), []);
	});
}

async function answers()
{
	const seen = new Set();
	const expected = [];
	const records = readFileSync(site.answers, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line));

	for (const record of records)
	{
		if (record.response)
		{
			checkAnswer(record, record.response, record.response, seen);
			continue;
		}
		const operation = operations.find(({ name }) => name === `${record.method} ${record.path}`);
		const responses = below(operation?.place ?? '#/none', 'responses');
		const key = [record.status, `${String(record.status)[0]}XX`].find((status) => at(below(responses, status)));

		if (key === undefined)
		{
			check(`${record.method} ${record.url}: ${record.status}: is documented`, record.body, '');
			continue;
		}
		checkAnswer(record, below(responses, key), `${operation.name} ${key}`, seen);
		checkRequest(record, operation);
	}

	const isLater = (path) => site.later.some((part) => path === part || path.startsWith(`${part}/`));

	for (const operation of operations.filter(({ path }) => !isLater(path)))
	{
		for (const [status, response] of children(below(operation.place, 'responses')))
		{
			expected.push(...showable(response, operation.method === 'head')
				.map((what) => `${operation.name} ${status} ${what}`.trim()));
		}
	}
	const unseen = expected.filter((what) => !seen.has(what));
	const excused = site.unprovoked.map((pattern) => new RegExp(pattern));

	check('all that is documented was seen, but for what cannot be had',
		unseen.filter((what) => !excused.some((pattern) => pattern.test(what))), []);
	check('nothing is excused that was seen', excused.filter((pattern) => !unseen.some((what) => pattern.test(what))), []);
}

await { sound, answers }[part]();
