/*
 * exchange.c
 *	  One request and its answer over FastCGI.
 */
#include "exchange.h"
#include "clock.h"
#include "fastcgi.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEAD_MAX (64 * 1024)
/* Bytes of a body nobody asked for that are read, to keep the connection. */
#define DRAIN_MAX (64 * 1024)
/* Seconds after which a client may ask again when we cannot serve it now. */
#define UNAVAILABLE_RETRY_AFTER 1

const char *
exchange_param(const Exchange *exchange, const char *name)
{
	return fastcgi_param(exchange->fastcgi, name);
}

bool
exchange_find_key(Exchange *exchange)
{
	const char *values[CREDENTIAL_HEADERS];

	for (int i = 0; i < CREDENTIAL_HEADERS; i++)
		values[i] = exchange_param(exchange, credential_params[i]);
	return credentials_find(values, &exchange->credential);
}

/* ---- the body ---- */

/* Whether the request says that its body is JSON. */
static bool
is_json(const Exchange *exchange)
{
	static const char expected[] = "application/json";
	const char *type = exchange_param(exchange, "CONTENT_TYPE");

	return type != NULL && strncasecmp(type, expected, sizeof(expected) - 1) == 0 &&
		   strchr("; \t", type[sizeof(expected) - 1]) != NULL; /* or the end: strchr finds NUL */
}

Refusal
exchange_read_json(const Exchange *exchange, Buffer *body)
{
	Fastcgi *fastcgi = exchange->fastcgi;
	const char *announced = exchange_param(exchange, "CONTENT_LENGTH");
	long long expected = announced != NULL ? strtoll(announced, NULL, 10) : 0;
	size_t step = 8192;

	if (!is_json(exchange))
		return REFUSAL_UNSUPPORTED_MEDIA_TYPE;
	if (expected > (long long) body->limit)
		return REFUSAL_BODY_TOO_LARGE;
	if (expected > 0 && expected < (long long) step)
		step = (size_t) expected + 1; /* one more than will come: so the first read is the last */

	for (;;)
	{
		size_t room = body->limit - body->length;
		char *end;
		char beyond;
		size_t length;

		if (room == 0)
		{
			if (fastcgi_read(fastcgi, &beyond, 1) > 0)
				return REFUSAL_BODY_TOO_LARGE;
			break;
		}
		if (step > room)
			step = room;
		end = buffer_reserve(body, step);
		if (end == NULL)
			return REFUSAL_INTERNAL_ERROR;
		length = fastcgi_read(fastcgi, end, step);
		body->length += length;
		if (length < step)
			break;
		step = body->length; /* memory follows what has really come */
	}

	/* A body that was cut off on its way is not one that the client sent. */
	if (!fastcgi->complete || (long long) body->length < expected)
		return REFUSAL_INVALID_JSON;
	return REFUSAL_NONE;
}

bool
exchange_drain(const Exchange *exchange)
{
	char trash[4096];

	for (int left = DRAIN_MAX; left > 0; left -= (int) sizeof(trash))
	{
		if (fastcgi_read(exchange->fastcgi, trash, sizeof(trash)) < sizeof(trash))
			break;
	}
	return exchange->fastcgi->complete;
}

/* ---- the answer ---- */

void
exchange_begin_head(const Exchange *exchange, int status, Buffer *head)
{
	const Authorization *authorization = &exchange->authorization;

	buffer_init(head, HEAD_MAX);
	if (exchange->guards)
	{
		/* Web servers take 2xx, 401 and 403 for an answer to this question, not 429. */
		reply_status(head, status == 429 ? 403 : status);
		reply_number(head, "x-regpilot-status", status);
	}
	else
		reply_status(head, status);
	reply_header(head, "x-request-id", exchange->id);
	if (exchange->confidential)
		reply_header(head, "Cache-Control", "no-store");
	if (exchange->judged && authorization->has_limit)
	{
		reply_number(head, "x-ratelimit-limit", authorization->requests_per_minute);
		if (authorization->has_remaining)
			reply_number(head, "x-ratelimit-remaining", authorization->remaining);
		if (authorization->has_reset)
			reply_number(head, "x-ratelimit-reset", authorization->reset);
	}
}

/* Sends the head, which is complete, and frees it; false when it is not. */
static bool
send_head(Exchange *exchange, Buffer *head)
{
	bool sound = !head->failed;

	if (sound)
	{
		fastcgi_write(exchange->fastcgi, head->data, head->length);
		exchange->first_byte = clock_ms();
	}
	buffer_free(head);
	return sound;
}

void
exchange_answer(Exchange *exchange, Buffer *head, const char *type, const Buffer *body)
{
	if (type != NULL)
	{
		reply_header(head, "Content-Type", type);
		reply_number(head, "Content-Length", (int64_t) body->length);
	}
	buffer_append_string(head, "\r\n");
	if (body != NULL && body->failed)
		buffer_free(head);
	else if (send_head(exchange, head) && body != NULL)
		fastcgi_write(exchange->fastcgi, body->data, body->length);
}

void
exchange_answer_text(Exchange *exchange, const char *type, const Buffer *body)
{
	Buffer head;

	if (body->failed)
	{
		exchange_refuse(exchange, REFUSAL_INTERNAL_ERROR);
		return;
	}
	exchange->status = 200;
	exchange_begin_head(exchange, exchange->status, &head);
	exchange_answer(exchange, &head, type, body);
}

void
exchange_answer_json(Exchange *exchange, json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT);
	Buffer body;

	json_decref(value);
	buffer_init(&body, SIZE_MAX / 2);
	if (text != NULL)
		buffer_append_string(&body, text);
	else
		body.failed = true;
	free(text);
	exchange_answer_text(exchange, "application/json", &body);
	buffer_free(&body);
}

void
exchange_refuse(Exchange *exchange, Refusal refusal)
{
	RefusalDetail detail = {
		.request_id = exchange->id,
		.retry_after = exchange->authorization.retry_after,
		.requests_per_minute = exchange->authorization.requests_per_minute,
	};
	Buffer head;
	Buffer body;

	exchange->status = refusal_status(refusal);
	exchange_begin_head(exchange, exchange->status, &head);
	if (exchange->status == 401)
		reply_header(&head, "WWW-Authenticate", "Bearer"); /* RFC 9110, 15.5.2 */
	else if (exchange->status == 405)
		reply_header(&head, "Allow", exchange->allow);
	else if (exchange->status == 429)
		reply_number(&head, "Retry-After", detail.retry_after);
	else if (exchange->status == 503)
		reply_number(&head, "Retry-After", UNAVAILABLE_RETRY_AFTER);

	buffer_init(&body, HEAD_MAX);
	refusal_body(refusal, &detail, &body);
	/* A web server passes only headers of an answer to this question on. */
	if (exchange->guards && !body.failed)
		reply_header(&head, "x-regpilot-body", body.data);
	exchange_answer(exchange, &head, "application/json", &body);
	buffer_free(&body);
}

void
exchange_begin_stream(Exchange *exchange)
{
	Buffer head;

	exchange->streaming = true;
	exchange->status = 200;
	exchange_begin_head(exchange, exchange->status, &head);
	reply_header(&head, "x-regpilot-model", exchange->model_path);
	reply_header(&head, "Content-Type", "text/event-stream");
	reply_header(&head, "Cache-Control", "no-cache");
	reply_header(&head, "X-Accel-Buffering", "no"); /* nginx would wait for more */
	buffer_append_string(&head, "\r\n");
	send_head(exchange, &head);
}

bool
exchange_send(Exchange *exchange, const char *bytes, size_t length)
{
	return fastcgi_write(exchange->fastcgi, bytes, length) && fastcgi_flush(exchange->fastcgi);
}
