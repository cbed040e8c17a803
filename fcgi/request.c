/*
 * request.c
 *	  One request, from its parameters to the end of its answer.
 */
#include "request.h"
#include "clock.h"
#include "config.h"
#include "dashboard.h"
#include "exchange.h"
#include "gateway.h"
#include "health.h"
#include "hex.h"
#include "log.h"
#include "metrics.h"
#include "recorder.h"
#include "server.h"
#include "session.h"
#include "traffic.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* Bytes of a body that is made here. */
#define BODY_MAX (1024 * 1024)

typedef struct Endpoint
{
	const char *path;		/* one that ends in "/" stands for all that is below it */
	const char *method;		/* NULL: any */
	bool open;				/* needs no key */
	bool probe;				/* asked every few seconds: no line of log while all is well */
	bool guard;				/* /auth: the key is for something else than us */
	const char *permission; /* NULL: any valid key */
	void (*serve)(Exchange *exchange);
} Endpoint;

/* ---- the endpoints ---- */

static void
serve_health(Exchange *exchange)
{
	exchange_answer_json(exchange, json_pack("{s:s}", "status", "ok"));
}

static void
serve_ready(Exchange *exchange)
{
	if (authorizer_works())
		exchange_answer_json(exchange, json_pack("{s:s}", "status", "ready"));
	else
		exchange_refuse(exchange, REFUSAL_DATABASE_UNAVAILABLE);
}

static void request_metrics(Buffer *out);

static void
serve_metrics(Exchange *exchange)
{
	Buffer body;

	buffer_init(&body, BODY_MAX);
	request_metrics(&body);
	authorizer_metrics(&body);
	recorder_metrics(&body);
	traffic_metrics(&body);
	health_metrics(&body);
	session_metrics(&body);
	server_metrics(&body);
	metrics_single(&body, "regpilot_log_lines_lost_total", "counter",
				   "Lines of log that could not be written.", log_lost());
	exchange_answer_text(exchange, "text/plain; version=0.0.4; charset=utf-8", &body);
	buffer_free(&body);
}

static void
append_string(Buffer *body, const char *name, const char *value)
{
	buffer_append(body, ",\"", 2);
	buffer_append_string(body, name);
	buffer_append(body, "\":", 2);
	buffer_append_json(body, value);
}

static void
append_limit(Buffer *body, const char *name, bool has, int64_t value)
{
	buffer_append(body, "\"", 1);
	buffer_append_string(body, name);
	buffer_append(body, "\":", 2);
	if (has)
		buffer_append_integer(body, value);
	else
		buffer_append_string(body, "null");
}

/* (Written by hand: building and printing JSON values took half the time of all that we do here.) */
static void
serve_verify(Exchange *exchange)
{
	const Authorization *a = &exchange->authorization;
	Buffer body;

	buffer_init(&body, BODY_MAX);
	buffer_append_string(&body, "{\"valid\":true");
	append_string(&body, "project_id", a->project_id);
	append_string(&body, "project", a->project);
	append_string(&body, "plan", a->plan);
	append_string(&body, "key_id", a->key_id);
	append_string(&body, "name", a->name);
	append_string(&body, "hint", a->hint);
	if (a->environment[0] != '\0')
		append_string(&body, "environment", a->environment);
	else
		buffer_append_string(&body, ",\"environment\":null");
	buffer_append_string(&body, ",\"permissions\":");
	buffer_append_string(&body, a->permissions);
	buffer_append_string(&body, ",\"limits\":{");
	append_limit(&body, "requests_per_minute", a->has_limit, a->requests_per_minute);
	buffer_append_string(&body, ",");
	append_limit(&body, "remaining", a->has_limit && a->has_remaining, a->remaining);
	buffer_append_string(&body, ",");
	append_limit(&body, "reset", a->has_limit && a->has_reset, a->reset);
	buffer_append_string(&body, "}}");
	exchange_answer_text(exchange, "application/json", &body);
	buffer_free(&body);
}

/* Tells a web server that the request in question may pass, and whose it is. */
static void
serve_auth(Exchange *exchange)
{
	const Authorization *a = &exchange->authorization;
	Buffer head;

	exchange->status = 204;
	exchange_begin_head(exchange, exchange->status, &head);
	reply_header(&head, "x-regpilot-key-id", a->key_id);
	reply_header(&head, "x-regpilot-project-id", a->project_id);
	reply_header(&head, "x-regpilot-plan", a->plan);
	if (a->environment[0] != '\0')
		reply_header(&head, "x-regpilot-environment", a->environment);
	exchange_answer(exchange, &head, NULL, NULL);
}

static void
serve_chat(Exchange *exchange)
{
	gateway_chat(exchange, true);
}

static void
serve_chat_completions(Exchange *exchange)
{
	gateway_chat(exchange, false);
}

static const Endpoint endpoints[] = {
	{.path = "/healthz", .method = "GET", .open = true, .probe = true, .serve = serve_health},
	{.path = "/readyz", .method = "GET", .open = true, .probe = true, .serve = serve_ready},
	{.path = "/metrics", .method = "GET", .open = true, .probe = true, .serve = serve_metrics},
	{.path = "/auth", .guard = true, .serve = serve_auth},
	{.path = "/api/auth/verify", .method = "GET", .serve = serve_verify},
	{.path = "/api/ai/chat", .method = "POST", .permission = "gateway:write", .serve = serve_chat},
	{.path = "/v1/chat/completions",
	 .method = "POST",
	 .permission = "gateway:write",
	 .serve = serve_chat_completions},
	{.path = "/v1/embeddings",
	 .method = "POST",
	 .permission = "gateway:write",
	 .serve = gateway_embeddings},
	{.path = "/api/logs", .method = "GET", .permission = "logs:read", .serve = dashboard_key_logs},
	{.path = "/api/analytics",
	 .method = "GET",
	 .permission = "analytics:read",
	 .serve = dashboard_key_analytics},
	{.path = "/openapi.json", .method = "GET", .open = true, .serve = dashboard_asset},
	{.path = "/dashboard/api/", .open = true, .serve = dashboard_api},
	{.path = "/dashboard/", .method = "GET", .open = true, .serve = dashboard_asset},
	{.path = "/dashboard", .method = "GET", .open = true, .serve = dashboard_redirect},
	{.path = "/v1/models", .method = "GET", .permission = "gateway:read", .serve = gateway_models},
	{.path = "/v1/models/", .method = "GET", .permission = "gateway:read", .serve = gateway_model},
};

#define ENDPOINTS (sizeof(endpoints) / sizeof(endpoints[0]))

/* ---- what is counted ---- */

/* by endpoint, the last for addresses where there is none, and status */
static _Atomic int64_t answers[ENDPOINTS + 1][600];
static Histogram durations = LATENCY_HISTOGRAM;
static Histogram first_bytes = LATENCY_HISTOGRAM;

static void
request_metrics(Buffer *out)
{
	metrics_head(out, "regpilot_requests_total", "counter",
				 "Requests, by address and status; 499: the client went away.");
	for (size_t i = 0; i <= ENDPOINTS; i++)
	{
		for (int status = 0; status < 600; status++)
		{
			if (answers[i][status] > 0)
				buffer_printf(out, "regpilot_requests_total{path=\"%s\",status=\"%d\"} %lld\n",
							  i < ENDPOINTS ? endpoints[i].path : "other", status,
							  (long long) answers[i][status]);
		}
	}
	metrics_head(out, "regpilot_request_seconds", "histogram",
				 "From a request's parameters to the end of its answer.");
	metrics_histogram(out, "regpilot_request_seconds", "", &durations);
	metrics_head(out, "regpilot_first_byte_seconds", "histogram",
				 "From the parameters of a relayed request to the first byte of its answer.");
	metrics_histogram(out, "regpilot_first_byte_seconds", "", &first_bytes);
}

/* None of it is what a client sent, but for the name of a model, which is no key (see gateway.c). */
static void
log_request(const Exchange *exchange, const Endpoint *endpoint)
{
	const Authorization *a = &exchange->authorization;
	Buffer line;

	log_begin(&line, exchange->status >= 500 ? "error" : "info");
	buffer_printf(&line, ",\"event\":\"request\",\"request_id\":\"%s\",\"path\":\"%s\"",
				  exchange->id, endpoint != NULL ? endpoint->path : "other");
	buffer_printf(&line, ",\"status\":%d,\"latency_ms\":%" PRId64, exchange->status,
				  clock_ms() - exchange->started);
	if (exchange->first_byte != 0)
		buffer_printf(&line, ",\"first_byte_ms\":%" PRId64,
					  exchange->first_byte - exchange->started);
	if (exchange->asked)
		buffer_printf(&line, ",\"verdict\":\"%s\"", verdict_name(a->verdict));
	if (exchange->judged)
		buffer_printf(&line, ",\"key_id\":\"%s\",\"project_id\":\"%s\",\"environment\":\"%s\"",
					  a->key_id, a->project_id, a->counted_as);
	if (exchange->model_path != NULL)
	{
		buffer_append_string(&line, ",\"model\":");
		buffer_append_json(&line, exchange->model_path);
		buffer_printf(&line,
					  ",\"stream\":%s,\"prompt_tokens\":%" PRId64 ",\"completion_tokens\":%" PRId64,
					  exchange->streaming ? "true" : "false", exchange->usage.prompt_tokens,
					  exchange->usage.completion_tokens);
	}
	log_end(&line);
}

/* ---- the way to an endpoint ---- */

/* The endpoint that the path in REQUEST_URI names, before any "?"; NULL: none. */
static const Endpoint *
find_endpoint(const Exchange *exchange)
{
	const char *uri = exchange_param(exchange, "REQUEST_URI");
	size_t length = uri != NULL ? strcspn(uri, "?") : 0;

	for (size_t i = 0; i < ENDPOINTS; i++)
	{
		const char *path = endpoints[i].path;
		size_t shared = strlen(path);

		if (length >= shared && strncmp(uri, path, shared) == 0 &&
			(length == shared || path[shared - 1] == '/'))
			return &endpoints[i];
	}
	return NULL;
}

/* One of the names that equals value; or NULL. */
static const char *
find_name(const char *const names[], size_t count, const char *value, size_t length)
{
	for (size_t i = 0; i < count; i++)
	{
		if (strlen(names[i]) == length && memcmp(names[i], value, length) == 0)
			return names[i];
	}
	return NULL;
}

/* The environment that the request says it comes from: a name that counts, or NULL. */
static const char *
find_environment(const Exchange *exchange)
{
	static const char *const names[] = {"dev", "staging", "prod", "ci"};
	const char *value = exchange_param(exchange, "HTTP_X_REGPILOT_ENVIRONMENT");
	const char *name;

	if (value == NULL || value[0] == '\0')
		return NULL;
	name = find_name(names, sizeof(names) / sizeof(names[0]), value, strlen(value));
	return name != NULL ? name : "other";
}

/*
 * The permission that /auth?permission=... asks for, NULL when none does. False: it
 * is none that a key can hold.
 */
static bool
find_permission(const Exchange *exchange, const char **permission)
{
	static const char *const names[] = {"gateway:read", "gateway:write", "logs:read",
										"analytics:read"};
	static const char field[] = "permission=";
	const char *query = strchr(exchange_param(exchange, "REQUEST_URI"), '?');

	*permission = NULL;
	while (query != NULL)
	{
		const char *value = ++query;

		if (strncmp(value, field, sizeof(field) - 1) == 0)
		{
			value += sizeof(field) - 1;
			*permission =
				find_name(names, sizeof(names) / sizeof(names[0]), value, strcspn(value, "&"));
			return *permission != NULL;
		}
		query = strchr(query, '&');
	}
	return true;
}

/* Judges the key of the request. */
static Refusal
authorize(Exchange *exchange, const Endpoint *endpoint)
{
	const char *permission = endpoint->permission;
	const Credential *credential = &exchange->credential;

	if (endpoint->guard && !find_permission(exchange, &permission))
		return REFUSAL_INVALID_PERMISSION;
	if (!exchange_find_key(exchange))
		return REFUSAL_MISSING_KEY;

	exchange->asked = true;
	authorizer_ask(credential->key, credential->length, permission, find_environment(exchange),
				   &exchange->authorization);
	switch (exchange->authorization.verdict)
	{
		case VERDICT_OK:
			exchange->judged = true;
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
			exchange->judged = true;
			return REFUSAL_RATE_LIMITED;
		case VERDICT_UNAVAILABLE:
			break;
	}
	return REFUSAL_DATABASE_UNAVAILABLE;
}

/* Reports what came of an authorised request. */
static void
record_outcome(Exchange *exchange)
{
	Outcome outcome = {
		.status = exchange->status,
		.latency = (int) (clock_ms() - exchange->started),
		.first_byte = -1,
		.model = exchange->model,
		.prompt_tokens = exchange->usage.prompt_tokens,
		.completion_tokens = exchange->usage.completion_tokens,
	};

	if (exchange->first_byte != 0)
		outcome.first_byte = (int) (exchange->first_byte - exchange->started);
	exchange->model = NULL; /* the recorder's now */
	memcpy(outcome.key_id, exchange->authorization.key_id, sizeof(outcome.key_id));
	memcpy(outcome.environment, exchange->authorization.counted_as, sizeof(outcome.environment));
	recorder_add(&outcome);
}

/* An id is 16 bytes at random, of which a thread fetches some in advance. */
static bool
make_id(char id[33])
{
	static __thread unsigned char pool[256];
	static __thread size_t left;

	if (left == 0)
	{
		/* Calls for up to 256 bytes are not interrupted, others may be: getrandom(2). */
		if (getrandom(pool, sizeof(pool), 0) != sizeof(pool))
			return false;
		left = sizeof(pool);
	}
	left -= 16;
	hex_encode(pool + left, 16, id);
	return true;
}

static void
serve(Exchange *exchange, const Endpoint *endpoint)
{
	const char *method = exchange_param(exchange, "REQUEST_METHOD");
	Refusal refusal = REFUSAL_NONE;

	if (exchange->fastcgi->oversized)
		refusal = REFUSAL_HEADERS_TOO_LARGE;
	else if (endpoint == NULL)
		refusal = REFUSAL_NOT_FOUND;
	else if (endpoint->method != NULL && (method == NULL || strcmp(method, endpoint->method) != 0))
	{
		exchange->allow = endpoint->method;
		refusal = REFUSAL_METHOD_NOT_ALLOWED;
	}
	else if (!endpoint->open)
	{
		exchange->guards = endpoint->guard;
		refusal = authorize(exchange, endpoint);
	}

	if (endpoint != NULL && refusal == REFUSAL_NONE)
		endpoint->serve(exchange);
	else
		exchange_refuse(exchange, refusal);
}

bool
request_serve(Fastcgi *fastcgi, int client)
{
	int64_t begun = clock_us();
	Exchange exchange = {.fastcgi = fastcgi, .client = client, .started = begun / 1000};
	const Endpoint *endpoint = find_endpoint(&exchange);

	if (!make_id(exchange.id))
		log_line("getrandom: %s", strerror(errno));
	serve(&exchange, endpoint);

	histogram_observe(&durations, clock_us() - begun);
	if (exchange.model_path != NULL && exchange.first_byte != 0)
		histogram_observe(&first_bytes, (exchange.first_byte - exchange.started) * 1000);
	answers[endpoint != NULL ? endpoint - endpoints : (ptrdiff_t) ENDPOINTS][exchange.status]++;
	/* Successful probes, which come every few seconds, would only hide the rest. */
	if (config.log_requests && !(endpoint != NULL && endpoint->probe && exchange.status == 200))
		log_request(&exchange, endpoint);
	if (exchange.judged && exchange.authorization.verdict == VERDICT_OK)
		record_outcome(&exchange);
	free(exchange.model);
	free(exchange.model_path);

	return exchange_drain(&exchange);
}
