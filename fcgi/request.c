/*
 * request.c
 *	  One request, from its parameters to the end of its answer.
 */
#include "request.h"
#include "authorizer.h"
#include "clock.h"
#include "config.h"
#include "credentials.h"
#include "echo.h"
#include "log.h"
#include "recorder.h"
#include "reply.h"
#include "routes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#define HEAD_MAX (64 * 1024)
/* Bytes of a body nobody asked for that are read, to keep the connection. */
#define DRAIN_MAX (64 * 1024)
/* Seconds after which a client may ask again when the database is out of reach. */
#define DATABASE_RETRY_AFTER 1

/* Status of an outcome whose client went away before the answer was complete (nginx's number). */
#define STATUS_CLIENT_GONE 499

typedef struct Endpoint Endpoint;

/* All that one request has; lives on its thread's stack. Strings of params live as long. */
typedef struct Request
{
	FCGX_Request *fcgi;
	Relay *relay;
	int client;
	int64_t started;
	char id[33];
	const Endpoint *endpoint;
	Authorization authorization; /* valid once authorized or rate limited */
	bool judged;				 /* authorization is valid */
	int status;					 /* for the outcome */
	Usage usage;
	char *model;	  /* asked of the upstream; owned; NULL: none */
	char *model_path; /* upstream/model, for the head; owned */
	bool streaming;	  /* the head of a stream has been sent */
} Request;

struct Endpoint
{
	const char *path;
	const char *method;
	bool open;				/* needs no key */
	const char *permission; /* NULL: any valid key */
	void (*serve)(Request *request);
	bool stream_default;
};

static void serve_health(Request *request);
static void serve_verify(Request *request);
static void serve_chat(Request *request);

static const Endpoint endpoints[] = {
	{.path = "/healthz", .method = "GET", .open = true, .serve = serve_health},
	{.path = "/api/auth/verify", .method = "GET", .serve = serve_verify},
	{.path = "/api/ai/chat",
	 .method = "POST",
	 .permission = "gateway:write",
	 .serve = serve_chat,
	 .stream_default = true},
	{.path = "/v1/chat/completions",
	 .method = "POST",
	 .permission = "gateway:write",
	 .serve = serve_chat},
};

static const char *
param(const Request *request, const char *name)
{
	return FCGX_GetParam(name, request->fcgi->envp);
}

/* ---- answers ---- */

/* Begins a head with what every answer has. */
static void
begin_head(const Request *request, int status, Buffer *head)
{
	const Authorization *authorization = &request->authorization;

	buffer_init(head, HEAD_MAX);
	reply_status(head, status);
	reply_header(head, "x-request-id", request->id);
	if (request->judged && authorization->has_limit)
	{
		reply_number(head, "x-ratelimit-limit", authorization->requests_per_minute);
		if (authorization->has_remaining)
			reply_number(head, "x-ratelimit-remaining", authorization->remaining);
		if (authorization->has_reset)
			reply_number(head, "x-ratelimit-reset", authorization->reset);
	}
}

/* Ends the head and sends it, with a JSON body. */
static void
send_json(Request *request, Buffer *head, const Buffer *body)
{
	reply_header(head, "Content-Type", "application/json");
	reply_number(head, "Content-Length", (int64_t) body->length);
	buffer_append_string(head, "\r\n");
	if (!head->failed && !body->failed)
	{
		FCGX_PutStr(head->data, (int) head->length, request->fcgi->out);
		FCGX_PutStr(body->data, (int) body->length, request->fcgi->out);
	}
	buffer_free(head);
}

static void
refuse(Request *request, Refusal refusal)
{
	RefusalDetail detail = {
		.request_id = request->id,
		.retry_after = request->authorization.retry_after,
		.requests_per_minute = request->authorization.requests_per_minute,
	};
	Buffer head;
	Buffer body;

	request->status = refusal_status(refusal);
	begin_head(request, request->status, &head);
	if (request->status == 401)
		reply_header(&head, "WWW-Authenticate", "Bearer"); /* RFC 9110, 15.5.2 */
	else if (request->status == 405)
		reply_header(&head, "Allow", request->endpoint->method);
	else if (request->status == 429)
		reply_number(&head, "Retry-After", detail.retry_after);
	else if (request->status == 503)
		reply_number(&head, "Retry-After", DATABASE_RETRY_AFTER);

	buffer_init(&body, HEAD_MAX);
	refusal_body(refusal, &detail, &body);
	send_json(request, &head, &body);
	buffer_free(&body);
}

/* Sends a JSON value as the answer; takes it over. */
static void
answer_json(Request *request, json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT);
	Buffer head;
	Buffer body;

	json_decref(value);
	if (text == NULL)
	{
		refuse(request, REFUSAL_INTERNAL_ERROR);
		return;
	}
	request->status = 200;
	begin_head(request, request->status, &head);
	buffer_init(&body, HEAD_MAX);
	buffer_append_string(&body, text);
	send_json(request, &head, &body);
	buffer_free(&body);
	free(text);
}

/* ---- reading the body ---- */

/* Reads on, up to DRAIN_MAX bytes; whether that was to the end, and the connection can be kept. */
static bool
drain(FCGX_Stream *in)
{
	char trash[4096];

	for (int left = DRAIN_MAX; left > 0; left -= (int) sizeof(trash))
	{
		if (FCGX_GetStr(trash, sizeof(trash), in) < (int) sizeof(trash))
			return FCGX_GetError(in) == 0;
	}
	return false;
}

/* Whether the request says that its body is JSON. */
static bool
is_json_request(const Request *request)
{
	static const char expected[] = "application/json";
	const char *type = param(request, "CONTENT_TYPE");

	return type != NULL && strncasecmp(type, expected, sizeof(expected) - 1) == 0 &&
		   strchr("; \t", type[sizeof(expected) - 1]) != NULL; /* or the end: strchr finds NUL */
}

/* Reads the body to its end, as long as that is within bounds. */
static Refusal
read_body(const Request *request, Buffer *body)
{
	FCGX_Stream *in = request->fcgi->in;
	const char *announced = param(request, "CONTENT_LENGTH");
	long long expected = announced != NULL ? strtoll(announced, NULL, 10) : 0;
	size_t step = 8192;

	if (expected > config.max_body)
		return REFUSAL_BODY_TOO_LARGE;

	for (;;)
	{
		size_t room = (size_t) config.max_body - body->length;
		char *end;
		int length;

		if (room == 0)
			return FCGX_GetChar(in) == EOF ? REFUSAL_NONE : REFUSAL_BODY_TOO_LARGE;
		if (step > room)
			step = room;
		end = buffer_reserve(body, step);
		if (end == NULL)
			return REFUSAL_INTERNAL_ERROR;
		length = FCGX_GetStr(end, (int) step, in);
		body->length += (size_t) length;
		if ((size_t) length < step)
			break;
		step = body->length; /* memory follows what has really come */
	}

	/* A body that was cut off on its way is not one that the client sent. */
	if (FCGX_GetError(in) != 0 || (long long) body->length < expected)
		return REFUSAL_INVALID_JSON;
	return REFUSAL_NONE;
}

/* ---- the endpoints ---- */

static void
serve_health(Request *request)
{
	answer_json(request, json_pack("{s:s}", "status", "ok"));
}

static json_t *
integer_or_null(bool has, int64_t value)
{
	return has ? json_integer(value) : json_null();
}

static void
serve_verify(Request *request)
{
	const Authorization *a = &request->authorization;
	const char *environment = a->environment[0] != '\0' ? a->environment : NULL;
	json_t *limits = json_object();
	json_t *answer;

	json_object_set_new(limits, "requests_per_minute",
						integer_or_null(a->has_limit, a->requests_per_minute));
	json_object_set_new(limits, "remaining",
						integer_or_null(a->has_limit && a->has_remaining, a->remaining));
	json_object_set_new(limits, "reset", integer_or_null(a->has_limit && a->has_reset, a->reset));

	answer = json_pack("{s:b,s:s,s:s,s:s,s:s,s:s,s:s,s:s?}", "valid", 1, "project_id",
					   a->project_id, "project", a->project, "plan", a->plan, "key_id", a->key_id,
					   "name", a->name, "hint", a->hint, "environment", environment);
	json_object_set_new(answer, "permissions", json_loads(a->permissions, 0, NULL));
	json_object_set_new(answer, "limits", limits);
	answer_json(request, answer);
}

/* Passes an event of the stream on; the first one sends the head before it. */
static bool
forward_event(void *context, const char *event, size_t length)
{
	Request *request = context;
	FCGX_Stream *out = request->fcgi->out;

	if (!request->streaming)
	{
		Buffer head;

		request->streaming = true;
		request->status = 200;
		begin_head(request, request->status, &head);
		reply_header(&head, "x-regpilot-model", request->model_path);
		reply_header(&head, "Content-Type", "text/event-stream");
		reply_header(&head, "Cache-Control", "no-cache");
		reply_header(&head, "X-Accel-Buffering", "no"); /* nginx would wait for more */
		buffer_append_string(&head, "\r\n");
		if (!head.failed)
			FCGX_PutStr(head.data, (int) head.length, out);
		buffer_free(&head);
	}
	FCGX_PutStr(event, (int) length, out);
	FCGX_FFlush(out);
	return FCGX_GetError(out) == 0;
}

/* Notes which model is asked of which upstream; false when out of memory. */
static bool
choose_model(Request *request, const Route *route, const Chat *chat)
{
	free(request->model);
	free(request->model_path);
	request->model_path = NULL;
	request->model = strdup(route->model != NULL ? route->model : chat->model);
	return request->model != NULL &&
		   asprintf(&request->model_path, "%s/%s", route->upstream, request->model) >= 0;
}

/* Asks one upstream. */
static UpstreamResult
try_route(Request *request, const Route *route, const Chat *chat, UpstreamCall *call)
{
	char secret[SECRET_SIZE];
	char *body;
	UpstreamResult result = UPSTREAM_FAILED;

	if (strcmp(route->base_url, "builtin:echo") == 0)
		return echo_call(call, chat, request->model, request->id);

	call->base_url = route->base_url;
	if (route->secret_name != NULL)
	{
		if (!config_secret(route->secret_name, secret))
		{
			snprintf(call->problem, sizeof(call->problem), "there is no secret to call it with");
			return UPSTREAM_FAILED;
		}
		call->secret = secret;
	}
	body = chat_upstream_body(chat, request->model);
	if (body != NULL)
	{
		call->body = body;
		result = relay_call(request->relay, call);
		free(body);
	}
	explicit_bzero(secret, sizeof(secret));
	return result;
}

static void
answer_upstream(Request *request, const UpstreamCall *call)
{
	Buffer head;

	request->status = call->status;
	begin_head(request, request->status, &head);
	reply_header(&head, "x-regpilot-model", request->model_path);
	send_json(request, &head, &call->answer);
}

/* Ends a stream that has broken off: with an error, and without [DONE]. */
static void
break_stream(Request *request, Refusal refusal)
{
	Buffer event;

	buffer_init(&event, HEAD_MAX);
	refusal_event(refusal, request->id, &event);
	forward_event(request, event.data, event.length);
	buffer_free(&event);
	request->status = refusal_status(refusal); /* for the outcome; the client has seen 200 */
}

/* Tries one upstream after the other and answers with what the first good one says. */
static void
relay_chat(Request *request, const Chat *chat, const Routes *routes)
{
	const Route *route[ROUTES_TRIED_MAX];
	size_t count = routes_match(routes, chat->model, chat->quality, route);
	UpstreamResult result = UPSTREAM_FAILED;

	if (count == 0)
	{
		refuse(request, REFUSAL_MODEL_NOT_FOUND);
		return;
	}
	for (size_t i = 0; i < count; i++)
	{
		UpstreamCall call = {
			.stream = chat->stream,
			.client = request->client,
			.forward = forward_event,
			.context = request,
		};

		if (!choose_model(request, route[i], chat))
			break;
		buffer_init(&call.answer, UPSTREAM_BODY_MAX);
		result = try_route(request, route[i], chat, &call);
		request->usage = call.usage;
		if (result == UPSTREAM_ANSWERED && !request->streaming)
			answer_upstream(request, &call);
		buffer_free(&call.answer);

		if (result == UPSTREAM_ANSWERED || result == UPSTREAM_CLIENT_GONE)
			break;
		log_line("request %s: upstream \"%s\": %s", request->id, route[i]->upstream, call.problem);
		if (result == UPSTREAM_BROKEN_OFF || result == UPSTREAM_FELL_SILENT)
			break;
	}

	switch (result)
	{
		case UPSTREAM_ANSWERED:
			break;
		case UPSTREAM_FAILED:
			refuse(request, REFUSAL_UPSTREAM_FAILED);
			break;
		case UPSTREAM_TIMED_OUT:
			refuse(request, REFUSAL_UPSTREAM_TIMEOUT);
			break;
		case UPSTREAM_BROKEN_OFF:
			break_stream(request, REFUSAL_UPSTREAM_FAILED);
			break;
		case UPSTREAM_FELL_SILENT:
			break_stream(request, REFUSAL_UPSTREAM_TIMEOUT);
			break;
		case UPSTREAM_CLIENT_GONE:
			request->status = STATUS_CLIENT_GONE;
			break;
	}
}

static void
serve_chat(Request *request)
{
	Refusal refusal;
	Buffer body;
	Chat chat;
	Routes *routes;

	if (!is_json_request(request))
	{
		refuse(request, REFUSAL_UNSUPPORTED_MEDIA_TYPE);
		return;
	}
	buffer_init(&body, (size_t) config.max_body);
	refusal = read_body(request, &body);
	if (refusal == REFUSAL_NONE)
		refusal = chat_parse(body.data, body.length, request->endpoint->stream_default, &chat);
	buffer_free(&body);
	if (refusal != REFUSAL_NONE)
	{
		refuse(request, refusal);
		return;
	}

	/* The key was accepted over a connection that had read the routes before. */
	routes = routes_acquire();
	relay_chat(request, &chat, routes);
	routes_release(routes);
	chat_free(&chat);
}

/* ---- the way to an endpoint ---- */

/* The endpoint that the path in REQUEST_URI names, before any "?"; NULL: none. */
static const Endpoint *
find_endpoint(const Request *request)
{
	const char *uri = param(request, "REQUEST_URI");
	size_t length = uri != NULL ? strcspn(uri, "?") : 0;

	for (size_t i = 0; i < sizeof(endpoints) / sizeof(endpoints[0]); i++)
	{
		if (length == strlen(endpoints[i].path) && strncmp(uri, endpoints[i].path, length) == 0)
			return &endpoints[i];
	}
	return NULL;
}

/* The environment that the request says it comes from: a name that counts, or NULL. */
static const char *
find_environment(const Request *request)
{
	static const char *const names[] = {"dev", "staging", "prod", "ci"};
	const char *value = param(request, "HTTP_X_REGPILOT_ENVIRONMENT");

	if (value == NULL || value[0] == '\0')
		return NULL;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		if (strcmp(value, names[i]) == 0)
			return names[i];
	}
	return "other";
}

/* Judges the key of the request. */
static Refusal
authorize(Request *request)
{
	const char *values[CREDENTIAL_HEADERS];
	Credential credential;

	for (int i = 0; i < CREDENTIAL_HEADERS; i++)
		values[i] = param(request, credential_params[i]);
	if (!credentials_find(values, &credential))
		return REFUSAL_MISSING_KEY;

	authorizer_ask(credential.key, credential.length, request->endpoint->permission,
				   find_environment(request), &request->authorization);
	switch (request->authorization.verdict)
	{
		case VERDICT_OK:
			request->judged = true;
			return REFUSAL_NONE;
		case VERDICT_INVALID:
		case VERDICT_INACTIVE:
		case VERDICT_EXPIRED:
			return REFUSAL_INVALID_KEY;
		case VERDICT_REVOKED:
			return REFUSAL_REVOKED_KEY;
		case VERDICT_FORBIDDEN:
			return REFUSAL_FORBIDDEN;
		case VERDICT_RATE_LIMITED:
			request->judged = true;
			return REFUSAL_RATE_LIMITED;
		case VERDICT_UNAVAILABLE:
			break;
	}
	return REFUSAL_DATABASE_UNAVAILABLE;
}

/* Reports what came of an authorised request. */
static void
record_outcome(Request *request)
{
	Outcome outcome = {
		.status = request->status,
		.latency = (int) (clock_ms() - request->started),
		.model = request->model,
		.prompt_tokens = request->usage.prompt_tokens,
		.completion_tokens = request->usage.completion_tokens,
	};

	request->model = NULL; /* the recorder's now */
	memcpy(outcome.key_id, request->authorization.key_id, sizeof(outcome.key_id));
	memcpy(outcome.environment, request->authorization.counted_as, sizeof(outcome.environment));
	recorder_add(&outcome);
}

static bool
make_id(char id[33])
{
	static const char digits[] = "0123456789abcdef";
	unsigned char bytes[16];
	ssize_t length;

	do
		length = getrandom(bytes, sizeof(bytes), 0);
	while (length < 0 && errno == EINTR);
	if (length != sizeof(bytes))
		return false;
	for (size_t i = 0; i < sizeof(bytes); i++)
	{
		id[2 * i] = digits[bytes[i] >> 4];
		id[2 * i + 1] = digits[bytes[i] & 15];
	}
	id[32] = '\0';
	return true;
}

static void
serve(Request *request)
{
	const char *method = param(request, "REQUEST_METHOD");
	Refusal refusal;

	request->endpoint = find_endpoint(request);
	if (request->endpoint == NULL)
		refusal = REFUSAL_NOT_FOUND;
	else if (method == NULL || strcmp(method, request->endpoint->method) != 0)
		refusal = REFUSAL_METHOD_NOT_ALLOWED;
	else if (request->endpoint->open)
		refusal = REFUSAL_NONE;
	else
		refusal = authorize(request);

	if (refusal == REFUSAL_NONE)
		request->endpoint->serve(request);
	else
		refuse(request, refusal);
}

bool
request_serve(FCGX_Request *fcgi, int client, Relay *relay)
{
	Request request = {.fcgi = fcgi, .relay = relay, .client = client, .started = clock_ms()};

	if (!make_id(request.id))
		log_line("getrandom: %s", strerror(errno));
	serve(&request);
	if (request.judged && request.authorization.verdict == VERDICT_OK)
		record_outcome(&request);
	free(request.model);
	free(request.model_path);

	return drain(fcgi->in);
}
