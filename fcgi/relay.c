/*
 * relay.c
 *	  Calls to upstreams over HTTP. The only user of libcurl.
 *
 * A call runs in the multi interface with one easy handle, because that lets
 * one poll() wait for the upstream, for the client to go away and for the end
 * of our patience. libcurl's callbacks only ever return codes.
 */
#include "relay.h"
#include "clock.h"
#include "config.h"
#include "log.h"
#include "sse.h"

#include <curl/curl.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Bytes that one event of a stream may have. */
#define EVENT_MAX (1024 * 1024)
/* Characters from which on a secret is one, and not "none" or "test", which an answer may well say. */
#define SECRET_SHORTEST 12
/* ms that an upstream may take to end its answer after it has said [DONE] */
#define DONE_GRACE 1000
/* Bytes received at once: of a stream, whose memory that is for long, and of another answer. */
#define STREAM_BUFFER 2048L
#define ANSWER_BUFFER 16384L

struct Relay
{
	CURLM *multi; /* owns the connections */
	CURL *easy;
};

/* What the body of the answer is. */
typedef enum BodyKind
{
	BODY_UNSEEN, /* nothing has come yet */
	BODY_PLAIN,	 /* to be collected */
	BODY_EVENTS	 /* to be forwarded event by event */
} BodyKind;

/* Why we end a transfer that libcurl would go on with. */
typedef enum Stop
{
	STOP_NOT,
	STOP_GARBAGE, /* the answer is none, or too large, or gives the secret away */
	STOP_SILENCE,
	STOP_LIMIT, /* it has taken too long in all */
	STOP_CLIENT_GONE
} Stop;

typedef struct Transfer
{
	UpstreamCall *call;
	CURL *easy;
	BodyKind kind;
	Stop stop;
	SseParser events;
	Buffer chunk; /* an event's data and the event, without usage */
	Buffer stripped;
	bool forwarded;	 /* an event has reached the client */
	bool done;		 /* [DONE] has */
	int64_t started; /* clock_us() */
	int64_t done_at;
	int64_t forwarded_at; /* the last event was, or a ping was sent */
	int64_t heard_at;	  /* the upstream got on with it: bytes moved, of a stream whole events */
} Transfer;

/*
 * The CAs that we trust. libcurl would read them for each connection, which takes some
 * 30 ms, and keep them for each thread, which takes a megabyte.
 */
static X509_STORE *authorities;

static bool
read_authorities(void)
{
	authorities = X509_STORE_new();

	/* libcurl's flags: any certificate among them is trusted, not only a root */
	return authorities != NULL &&
		   X509_STORE_set_flags(authorities,
								X509_V_FLAG_TRUSTED_FIRST | X509_V_FLAG_PARTIAL_CHAIN) == 1 &&
		   (config.ca_file != NULL ? X509_STORE_load_locations(authorities, config.ca_file, NULL)
								   : X509_STORE_set_default_paths(authorities)) == 1;
}

/* libcurl's callback for a TLS connection that it is about to make. */
static CURLcode
trust_authorities(CURL *easy, void *context, void *argument)
{
	(void) easy;
	(void) argument;
	SSL_CTX_set1_cert_store(context, authorities);
	SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS); /* an idle connection needs none */
	return CURLE_OK;
}

bool
relay_init(void)
{
	if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK && read_authorities())
		return true;
	log_line("could not initialise libcurl, or read the certificates of CAs");
	return false;
}

Relay *
relay_create(void)
{
	Relay *relay = malloc(sizeof(Relay));

	if (relay == NULL)
		return NULL;
	relay->multi = curl_multi_init();
	relay->easy = curl_easy_init();
	if (relay->multi == NULL || relay->easy == NULL)
	{
		relay_free(relay);
		return NULL;
	}
	curl_multi_setopt(relay->multi, CURLMOPT_MAXCONNECTS, (long) RELAY_CONNECTIONS);
	return relay;
}

void
relay_free(Relay *relay)
{
	if (relay == NULL)
		return;
	curl_easy_cleanup(relay->easy);
	curl_multi_cleanup(relay->multi);
	free(relay);
}

static bool
contains_secret(const UpstreamCall *call, const char *text, size_t length)
{
	return call->secret != NULL && length > 0 && strlen(call->secret) >= SECRET_SHORTEST &&
		   memmem(text, length, call->secret, strlen(call->secret)) != NULL;
}

static bool
stop(Transfer *transfer, Stop why, const char *problem)
{
	transfer->stop = why;
	snprintf(transfer->call->problem, sizeof(transfer->call->problem), "%s", problem);
	return false;
}

/* Makes an event without its usage, in transfer->stripped. */
static bool
strip_usage(Transfer *transfer, const SseEvent *event)
{
	buffer_consume(&transfer->chunk, transfer->chunk.length);
	buffer_consume(&transfer->stripped, transfer->stripped.length);
	return chat_strip_usage(event->data, event->data_length, &transfer->chunk) &&
		   sse_replace_data(event, &transfer->chunk, &transfer->stripped);
}

/* Judges and forwards one event; false when the transfer is to end. */
static bool
on_event(Transfer *transfer, const SseEvent *event)
{
	UpstreamCall *call = transfer->call;
	ChatKind kind = CHAT_WITHOUT_USAGE;
	const char *text = event->text;
	size_t length = event->length;

	if (transfer->done)
		return true;

	if (event->data_length == 0)
	{
		/* A comment or a ping: keeps the client's connection busy, but is no answer yet. */
		if (!transfer->forwarded)
			return true;
	}
	else if (strcmp(event->data, "[DONE]") == 0)
	{
		transfer->done = true;
		transfer->done_at = clock_ms();
	}
	else if (!chat_read_usage(event->data, event->data_length, &call->usage, &kind))
		return stop(transfer, STOP_GARBAGE, "an event was not a JSON object");

	if (contains_secret(call, event->text, event->length))
		return stop(transfer, STOP_GARBAGE, "the answer contained the secret");
	if (call->hides_usage)
	{
		if (kind == CHAT_ALL_USAGE)
			return true;
		if (kind == CHAT_WITH_USAGE)
		{
			if (!strip_usage(transfer, event))
				return stop(transfer, STOP_GARBAGE, "an event was too large");
			text = transfer->stripped.data;
			length = transfer->stripped.length;
		}
	}
	if (!call->forward(call->context, text, length))
		return stop(transfer, STOP_CLIENT_GONE, "the client has gone");
	transfer->forwarded = true;
	transfer->forwarded_at = clock_ms();
	return true;
}

/* Sends a comment to a client that has waited long enough for the next event: is it still there? */
static bool
ping(Transfer *transfer)
{
	static const char comment[] = ": ping\n\n";
	UpstreamCall *call = transfer->call;

	if (!call->forward(call->context, comment, sizeof(comment) - 1))
		return stop(transfer, STOP_CLIENT_GONE, "the client has gone");
	transfer->forwarded_at = clock_ms();
	return true;
}

/* Whether the answer that begins is a stream as asked for. */
static bool
is_event_stream(const Transfer *transfer)
{
	static const char expected[] = "text/event-stream";
	const char *type = NULL;
	long status = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_TYPE, &type);
	return transfer->call->stream && status == 200 && type != NULL &&
		   strncasecmp(type, expected, sizeof(expected) - 1) == 0;
}

/* libcurl's write callback: anything but length ends the transfer. */
static size_t
on_body(char *bytes, size_t size, size_t length, void *argument)
{
	Transfer *transfer = argument;
	SseEvent event;

	(void) size; /* always 1 */
	if (transfer->kind == BODY_UNSEEN)
	{
		transfer->kind = is_event_stream(transfer) ? BODY_EVENTS : BODY_PLAIN;
		transfer->call->latency = clock_us() - transfer->started;
		transfer->heard_at = clock_ms();
	}

	if (transfer->kind == BODY_PLAIN)
	{
		if (!buffer_append(&transfer->call->answer, bytes, length))
		{
			stop(transfer, STOP_GARBAGE, "the answer was too large");
			return 0;
		}
		return length;
	}

	if (!sse_feed(&transfer->events, bytes, length))
	{
		stop(transfer, STOP_GARBAGE, "an event was too large");
		return 0;
	}
	while (sse_next(&transfer->events, &event))
	{
		transfer->heard_at = clock_ms();
		if (!on_event(transfer, &event))
			return 0;
	}
	return length;
}

/* Adds to the list; frees it and gives NULL when out of memory. */
static struct curl_slist *
add_header(struct curl_slist *headers, const char *name, const char *value)
{
	Buffer line;
	struct curl_slist *longer = NULL;

	buffer_init(&line, SECRET_SIZE + 64);
	if (buffer_printf(&line, "%s%s", name, value))
		longer = curl_slist_append(headers, line.data);
	if (line.data != NULL)
		explicit_bzero(line.data, line.size);
	buffer_free(&line);
	if (longer == NULL)
		curl_slist_free_all(headers);
	return longer;
}

static struct curl_slist *
make_headers(const UpstreamCall *call)
{
	const char *accept = call->stream ? "text/event-stream, application/json" : "application/json";
	struct curl_slist *headers = add_header(NULL, "Content-Type: ", "application/json");

	if (headers != NULL)
		headers = add_header(headers, "Accept: ", accept);
	/* No "Expect: 100-continue": it would cost a round trip. */
	if (headers != NULL)
		headers = add_header(headers, "Expect:", "");
	if (headers != NULL && call->secret != NULL)
		headers = add_header(headers, "Authorization: Bearer ", call->secret);
	return headers;
}

/* False: libcurl cannot do what it must. */
static bool
set_options(Transfer *transfer, const char *url, struct curl_slist *headers)
{
	const UpstreamCall *call = transfer->call;
	CURL *easy = transfer->easy;

	curl_easy_reset(easy); /* keeps the connections */
	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_POST, 1L);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDS, call->body);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) call->body_length);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) call->connect_timeout);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "regpilot/" REGPILOT_VERSION);
	curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 16384L);
	curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, call->stream ? STREAM_BUFFER : ANSWER_BUFFER);
	/* A connection has one call at a time: HTTP/2 would only take memory. */
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);

	/* No one but the upstream in the table: no proxy of the environment, no redirect. */
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_CAINFO, NULL);
	curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	return curl_easy_setopt(easy, CURLOPT_SSL_CTX_FUNCTION, trust_authorities) == CURLE_OK;
}

/* Bytes sent and received so far. */
static curl_off_t
bytes_moved(CURL *easy)
{
	curl_off_t sent = 0;
	curl_off_t received = 0;
	long head = 0;

	curl_easy_getinfo(easy, CURLINFO_SIZE_UPLOAD_T, &sent);
	curl_easy_getinfo(easy, CURLINFO_SIZE_DOWNLOAD_T, &received);
	curl_easy_getinfo(easy, CURLINFO_HEADER_SIZE, &head);
	return sent + received + head;
}

/* When something is to be done though nothing comes. */
static int64_t
next_deadline(const Transfer *transfer)
{
	int64_t deadline = transfer->heard_at + transfer->call->timeout;
	int64_t next_ping = transfer->forwarded_at + config.ping_interval;

	if (transfer->done)
		return transfer->done_at + DONE_GRACE;
	if (deadline > transfer->call->deadline)
		deadline = transfer->call->deadline;
	return transfer->forwarded && next_ping < deadline ? next_ping : deadline;
}

/* Does it; false when the transfer is to end. */
static bool
at_deadline(Transfer *transfer)
{
	if (transfer->done)
		return false;
	if (clock_remaining(transfer->call->deadline) == 0)
		return stop(transfer, STOP_LIMIT, "it took longer than REGPILOT_MAX_DURATION");
	if (clock_remaining(transfer->heard_at + transfer->call->timeout) == 0)
		return stop(transfer, STOP_SILENCE, "no answer in time");
	return ping(transfer);
}

/* Runs the transfer to its end or until we stop it. */
static CURLcode
run(CURLM *multi, Transfer *transfer)
{
	struct curl_waitfd client = {.fd = transfer->call->client, .events = CURL_WAIT_POLLIN};
	unsigned int watched = transfer->call->client >= 0;
	curl_off_t moved = 0;
	int running;

	transfer->heard_at = clock_ms();
	for (;;)
	{
		curl_off_t now_moved;
		int64_t deadline;
		CURLMsg *message;
		int left;

		if (curl_multi_perform(multi, &running) != CURLM_OK)
			return CURLE_FAILED_INIT;
		if (running == 0)
		{
			message = curl_multi_info_read(multi, &left);
			return message != NULL ? message->data.result : CURLE_FAILED_INIT;
		}

		now_moved = bytes_moved(transfer->easy);
		if (now_moved != moved)
		{
			moved = now_moved;
			/* Of a stream, bytes alone may go on for ever and come to nothing. */
			if (transfer->kind != BODY_EVENTS)
				transfer->heard_at = clock_ms();
		}
		deadline = next_deadline(transfer);
		if (clock_remaining(deadline) == 0)
		{
			if (!at_deadline(transfer))
				return CURLE_OK;
			continue;
		}

		client.revents = 0;
		if (curl_multi_poll(multi, &client, watched, clock_remaining(deadline), NULL) != CURLM_OK)
			return CURLE_FAILED_INIT;

		/*
		 * The request has been read to its end, so what makes its connection
		 * readable now is the web server closing it, or FCGI_ABORT_REQUEST.
		 */
		if (client.revents != 0)
		{
			stop(transfer, STOP_CLIENT_GONE, "the client has gone");
			return CURLE_OK;
		}
	}
}

/* An answer that counts against the upstream, not against the request. */
static bool
is_upstream_failure(long status)
{
	return status < 200 || (status > 200 && status < 400) || status == 401 || status == 403 ||
		   status == 408 || status == 429 || status >= 500;
}

static UpstreamResult
judge(Transfer *transfer, CURLcode code)
{
	UpstreamCall *call = transfer->call;
	UpstreamResult failed = transfer->forwarded ? UPSTREAM_BROKEN_OFF : UPSTREAM_FAILED;
	UpstreamResult too_late = transfer->forwarded ? UPSTREAM_FELL_SILENT : UPSTREAM_TIMED_OUT;
	ChatKind kind;
	long status = 0;

	switch (transfer->stop)
	{
		case STOP_CLIENT_GONE:
			return UPSTREAM_CLIENT_GONE;
		case STOP_LIMIT:
			/* It may have had a lot to say. */
			call->at_fault = !transfer->forwarded;
			return too_late;
		case STOP_SILENCE:
			return too_late;
		case STOP_GARBAGE:
			return failed;
		case STOP_NOT:
			break;
	}

	if (transfer->done)
		return UPSTREAM_ANSWERED;
	if (code != CURLE_OK)
	{
		snprintf(call->problem, sizeof(call->problem), "%s", curl_easy_strerror(code));
		return code == CURLE_OPERATION_TIMEDOUT ? too_late : failed;
	}

	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	if (is_upstream_failure(status))
	{
		curl_off_t seconds = 0;

		snprintf(call->problem, sizeof(call->problem), "status %ld", status);
		curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &seconds);
		call->retry_after = seconds > INT32_MAX ? INT32_MAX : (int) seconds;
	}
	else if (transfer->kind == BODY_EVENTS)
		snprintf(call->problem, sizeof(call->problem), "the stream ended before [DONE]");
	else if (status == 200 && call->stream)
		snprintf(call->problem, sizeof(call->problem), "the answer was not an event stream");
	else if (status == 200
				 ? !chat_read_usage(call->answer.data, call->answer.length, &call->usage, &kind)
				 : !chat_is_json(call->answer.data, call->answer.length))
		snprintf(call->problem, sizeof(call->problem), "the answer was not JSON, status %ld",
				 status);
	else if (contains_secret(call, call->answer.data, call->answer.length))
		snprintf(call->problem, sizeof(call->problem), "the answer contained the secret");
	else
	{
		call->status = (int) status;
		return UPSTREAM_ANSWERED;
	}
	return failed;
}

UpstreamResult
relay_call(Relay *relay, UpstreamCall *call)
{
	Transfer transfer = {.call = call, .easy = relay->easy, .started = clock_us()};
	struct curl_slist *headers = make_headers(call);
	UpstreamResult result = UPSTREAM_FAILED;
	Buffer url;

	buffer_init(&url, 8192);
	sse_init(&transfer.events, EVENT_MAX);
	buffer_init(&transfer.chunk, EVENT_MAX);
	buffer_init(&transfer.stripped, EVENT_MAX);

	buffer_append_string(&url, call->base_url);
	while (url.length > 0 && url.data[url.length - 1] == '/')
		url.length--;
	buffer_append_string(&url, call->path);

	if (headers != NULL && !url.failed)
	{
		CURLcode code = CURLE_FAILED_INIT;

		if (set_options(&transfer, url.data, headers) &&
			curl_multi_add_handle(relay->multi, relay->easy) == CURLM_OK)
		{
			call->at_fault = true;
			code = run(relay->multi, &transfer);
			result = judge(&transfer, code);
			curl_multi_remove_handle(relay->multi, relay->easy);
		}
	}

	for (struct curl_slist *header = headers; header != NULL; header = header->next)
		explicit_bzero(header->data, strlen(header->data));
	curl_slist_free_all(headers);
	sse_free(&transfer.events);
	buffer_free(&transfer.chunk);
	buffer_free(&transfer.stripped);
	buffer_free(&url);
	return result;
}
