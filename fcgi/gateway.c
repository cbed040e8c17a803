/*
 * gateway.c
 *	  The endpoints that pass requests on to upstreams.
 */
#include "gateway.h"
#include "chat.h"
#include "clock.h"
#include "config.h"
#include "echo.h"
#include "health.h"
#include "log.h"
#include "relay.h"
#include "routes.h"
#include "task.h"
#include "traffic.h"
#include "url.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVENT_MAX (64 * 1024)
/* Bytes of a key from which on it is looked for in names: a shorter one may be in any. */
#define KEY_NAMED_MIN 12

/* One try of an upstream. */
typedef struct Try
{
	Exchange *exchange;
	const Route *route;
	bool probe; /* it was passed over until now */
	UpstreamCall call;
} Try;

static void
report(const Try *try, HealthNews news)
{
	health_report(try->route->upstream, try->route->base_url, try->probe, news,
				  try->call.retry_after);
}

/* Passes an event of the stream on; the first one sends the head before it. */
static bool
forward_event(void *context, const char *event, size_t length)
{
	Try *try = context;

	if (!try->exchange->streaming)
	{
		exchange_begin_stream(try->exchange);
		report(try, HEALTH_UNKNOWN); /* so far so good: others need not wait until it ends */
	}
	return exchange_send(try->exchange, event, length);
}

/* Notes which model is asked of which upstream; false when out of memory. */
static bool
choose_model(Exchange *exchange, const Route *route, const Chat *chat)
{
	free(exchange->model);
	free(exchange->model_path);
	exchange->model_path = NULL;
	exchange->model = strdup(route->model != NULL ? route->model : chat->model);
	return exchange->model != NULL &&
		   asprintf(&exchange->model_path, "%s/%s", route->upstream, exchange->model) >= 0;
}

/* Sends the request to an upstream. */
static UpstreamResult
ask(Exchange *exchange, const Chat *chat, bool ask_usage, UpstreamCall *call)
{
	UpstreamResult result = UPSTREAM_FAILED;
	Buffer body;

	buffer_init(&body, SIZE_MAX / 2);
	if (chat_upstream_body(chat, exchange->model, ask_usage, &body))
	{
		call->body = body.data;
		call->body_length = body.length;
		result = relay_call(call);
	}
	buffer_free(&body);
	return result;
}

/* Whether an upstream has refused a request for what we have added to it. */
static bool
refuses_options(const Chat *chat, const UpstreamCall *call)
{
	static const char name[] = "stream_options";

	return chat->stream && !chat->wants_usage && (call->status == 400 || call->status == 422) &&
		   memmem(call->answer.data, call->answer.length, name, sizeof(name) - 1) != NULL;
}

/* Asks one upstream. */
static UpstreamResult
call_upstream(Exchange *exchange, const Route *route, const Chat *chat, UpstreamCall *call)
{
	char *secret = NULL;
	UpstreamResult result;

	if (strcmp(route->base_url, "builtin:echo") == 0)
		return echo_call(call, chat, exchange->model, exchange->id);

	call->base_url = route->base_url;
	call->path = chat->embeds ? "/embeddings" : "/chat/completions";
	call->connect_timeout =
		route->connect_timeout > 0 ? route->connect_timeout : config.connect_timeout;
	call->timeout = route->timeout > 0 ? route->timeout : config.upstream_timeout;
	if (route->secret_name != NULL)
	{
		secret = config_secret(route->secret_name);
		if (secret == NULL)
		{
			snprintf(call->problem, sizeof(call->problem), "there is no secret to call it with");
			return UPSTREAM_FAILED;
		}
	}
	call->secret = secret;
	result = ask(exchange, chat, true, call);
	if (result == UPSTREAM_ANSWERED && refuses_options(chat, call))
	{
		/* Better an answer whose tokens are not known than none. */
		buffer_free(&call->answer);
		call->status = 0;
		result = ask(exchange, chat, false, call);
	}
	config_forget_secret(secret);
	return result;
}

static void
answer_upstream(Exchange *exchange, const UpstreamCall *call)
{
	Buffer head;

	exchange->status = call->status;
	exchange_begin_head(exchange, exchange->status, &head);
	reply_header(&head, "x-regpilot-model", exchange->model_path);
	exchange_answer(exchange, &head, "application/json", &call->answer);
}

/* Ends a stream that has broken off: with an error, and without [DONE]. */
static void
break_stream(Exchange *exchange, Refusal refusal)
{
	Buffer event;

	buffer_init(&event, EVENT_MAX);
	refusal_event(refusal, exchange->id, &event);
	exchange_send(exchange, event.data, event.length);
	buffer_free(&event);
	exchange->status = refusal_status(refusal); /* for the outcome; the client has seen 200 */
}

/* What a result says of the upstream. */
static HealthNews
news(UpstreamResult result, const UpstreamCall *call)
{
	switch (result)
	{
		case UPSTREAM_ANSWERED:
			/* (A stream has no status.) */
			return call->status == 0 || call->status == 200 ? HEALTH_ANSWERED : HEALTH_UNKNOWN;
		case UPSTREAM_FAILED:
		case UPSTREAM_TIMED_OUT:
		case UPSTREAM_BROKEN_OFF:
		case UPSTREAM_FELL_SILENT:
			return call->at_fault ? HEALTH_FAILED : HEALTH_UNKNOWN;
		case UPSTREAM_CLIENT_GONE:
			break;
	}
	return HEALTH_UNKNOWN;
}

static UpstreamResult
try_route(Exchange *exchange, const Route *route, const Chat *chat, bool probe)
{
	Try try = {.exchange = exchange, .route = route, .probe = probe};
	UpstreamCall *call = &try.call;
	UpstreamResult result = UPSTREAM_FAILED;
	int64_t started = clock_us();

	call->stream = chat->stream;
	call->hides_usage = !chat->wants_usage;
	call->deadline = exchange->started + config.max_duration;
	call->client = exchange->client;
	call->forward = forward_event;
	call->context = &try;
	snprintf(call->problem, sizeof(call->problem), "could not be called");
	buffer_init(&call->answer, UPSTREAM_BODY_MAX);
	if (choose_model(exchange, route, chat))
		result = call_upstream(exchange, route, chat, call);
	call->duration = clock_us() - started;
	report(&try, news(result, call));
	traffic_count(route->upstream, result, call);

	exchange->usage = call->usage;
	if (result == UPSTREAM_ANSWERED && !exchange->streaming)
		answer_upstream(exchange, call);
	else if (result != UPSTREAM_ANSWERED && result != UPSTREAM_CLIENT_GONE)
		log_line("request %s: upstream \"%s\": %s", exchange->id, route->upstream, call->problem);
	buffer_free(&call->answer);
	return result;
}

/* Whether another upstream may be asked: none has answered, in no part, and there is time. */
static bool
may_go_on(const Exchange *exchange, UpstreamResult result)
{
	return (result == UPSTREAM_FAILED || result == UPSTREAM_TIMED_OUT) &&
		   clock_ms() < exchange->started + config.max_duration;
}

/* A number at random: of the request's id, which is. */
static uint64_t
chance(const Exchange *exchange)
{
	char digits[17] = "";

	memcpy(digits, exchange->id, sizeof(digits) - 1);
	return strtoull(digits, NULL, 16);
}

/*
 * Tries one upstream after the other and answers with what the first good one says.
 * Those that have failed lately come last.
 */
static void
relay_chat(Exchange *exchange, const Chat *chat, const Routes *routes)
{
	const Route *route[ROUTES_TRIED_MAX];
	const Route *passed_over[ROUTES_TRIED_MAX];
	size_t count = routes_match(routes, chat->model, chat->quality, chance(exchange), route);
	size_t others = 0;
	UpstreamResult result = UPSTREAM_FAILED;

	if (count == 0)
	{
		exchange_refuse(exchange, REFUSAL_MODEL_NOT_FOUND);
		return;
	}
	for (size_t i = 0; i < count && may_go_on(exchange, result); i++)
	{
		bool probe;

		if (health_admits(route[i]->upstream, route[i]->base_url, &probe))
			result = try_route(exchange, route[i], chat, probe);
		else
			passed_over[others++] = route[i];
	}
	for (size_t i = 0; i < others && may_go_on(exchange, result); i++)
		result = try_route(exchange, passed_over[i], chat, false);

	switch (result)
	{
		case UPSTREAM_ANSWERED:
			break;
		case UPSTREAM_FAILED:
			exchange_refuse(exchange, REFUSAL_UPSTREAM_FAILED);
			break;
		case UPSTREAM_TIMED_OUT:
			exchange_refuse(exchange, REFUSAL_UPSTREAM_TIMEOUT);
			break;
		case UPSTREAM_BROKEN_OFF:
			break_stream(exchange, REFUSAL_UPSTREAM_FAILED);
			break;
		case UPSTREAM_FELL_SILENT:
			break_stream(exchange, REFUSAL_UPSTREAM_TIMEOUT);
			break;
		case UPSTREAM_CLIENT_GONE:
			exchange->status = STATUS_CLIENT_GONE;
			break;
	}
}

/* Whether the request's own key, which may look like anything, is in the name of the model as well. */
static bool
names_own_key(const Exchange *exchange, const Chat *chat)
{
	const Credential *own = &exchange->credential;

	return chat->model != NULL && own->length >= KEY_NAMED_MIN &&
		   memmem(chat->model, strlen(chat->model), own->key, own->length) != NULL;
}

/* A body to be parsed, and what came of it. */
typedef struct Parse
{
	const Buffer *body;
	bool embeds;
	bool stream_default;
	Chat chat;
	Refusal refusal;
} Parse;

static void
parse(void *argument)
{
	Parse *parse = argument;
	const Buffer *body = parse->body;

	parse->refusal =
		parse->embeds ? chat_parse_embeddings(body->data, body->length, &parse->chat)
					  : chat_parse(body->data, body->length, parse->stream_default, &parse->chat);
}

/* The same for its end: what reading has made of a body may take as long to free. */
static void
forget(void *argument)
{
	Parse *parse = argument;

	chat_free(&parse->chat);
}

static void
serve(Exchange *exchange, bool embeds, bool stream_default)
{
	Buffer body;
	Parse parsed = {.body = &body, .embeds = embeds, .stream_default = stream_default};
	const Chat *chat = &parsed.chat;

	buffer_init(&body, (size_t) config.max_body);
	parsed.refusal = exchange_read_json(exchange, &body);
	if (parsed.refusal == REFUSAL_NONE)
	{
		if (body.length >= CHAT_LARGE)
			task_call(parse, &parsed);
		else
			parse(&parsed);
	}
	if (parsed.refusal == REFUSAL_NONE)
	{
		if (names_own_key(exchange, chat))
			exchange_refuse(exchange, REFUSAL_INVALID_MODEL);
		else if (traffic_begin())
		{
			/* The key was accepted over a connection that had read the routes before. */
			Routes *routes = routes_acquire();

			relay_chat(exchange, chat, routes);
			routes_release(routes);
			traffic_end(exchange->streaming);
		}
		else
			exchange_refuse(exchange, REFUSAL_TOO_MANY_STREAMS);
		if (body.length >= CHAT_LARGE)
			task_call(forget, &parsed);
		else
			forget(&parsed);
	}
	else
		exchange_refuse(exchange, parsed.refusal);
	buffer_free(&body);
}

void
gateway_chat(Exchange *exchange, bool stream_default)
{
	serve(exchange, false, stream_default);
}

void
gateway_embeddings(Exchange *exchange)
{
	serve(exchange, true, false);
}

/* ---- the models ---- */

/* OpenAI's "model" object; created is not known of a route. */
static json_t *
model_json(const char *id, const Route *route)
{
	return json_pack("{s:s,s:s,s:i,s:s}", "id", id, "object", "model", "created", 0, "owned_by",
					 route->upstream);
}

void
gateway_models(Exchange *exchange)
{
	Routes *routes = routes_acquire();
	json_t *seen = json_object();
	json_t *data = json_array();

	for (size_t i = 0; i < routes->count; i++)
	{
		const Route *route = &routes->route[i];

		/* "*" stands for names; it is none. */
		if (route->alias == NULL || strcmp(route->alias, "*") == 0 ||
			json_object_get(seen, route->alias) != NULL)
			continue;
		json_object_set_new(seen, route->alias, json_true());
		json_array_append_new(data, model_json(route->alias, route));
	}
	routes_release(routes);
	json_decref(seen);
	exchange_answer_json(exchange, json_pack("{s:s,s:o}", "object", "list", "data", data));
}

/* The path's rest as a model's name; NULL: it is none. */
static json_t *
decode_name(const char *text, size_t length)
{
	Buffer name;
	json_t *value = NULL;

	buffer_init(&name, 4 * CHAT_MODEL_MAX);
	if (url_decode(text, length, &name) && name.length > 0)
		value = json_stringn(name.data, name.length); /* NULL: not UTF-8 */
	if (!chat_is_model_name(value))
	{
		json_decref(value);
		value = NULL;
	}
	buffer_free(&name);
	return value;
}

void
gateway_model(Exchange *exchange)
{
	static const char path[] = "/v1/models/";
	const char *id = exchange_param(exchange, "REQUEST_URI") + sizeof(path) - 1;
	json_t *name = decode_name(id, strcspn(id, "?"));
	const Route *route[ROUTES_TRIED_MAX];
	Routes *routes = routes_acquire();

	if (name != NULL && routes_match(routes, json_string_value(name), NULL, 0, route) > 0)
		exchange_answer_json(exchange, model_json(json_string_value(name), route[0]));
	else
		exchange_refuse(exchange, REFUSAL_MODEL_NOT_FOUND);
	routes_release(routes);
	json_decref(name);
}
