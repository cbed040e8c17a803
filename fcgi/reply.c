/*
 * reply.c
 *	  The parts of an answer: CGI response head and the fixed bodies.
 */
#include "reply.h"

#include <string.h>

static const struct
{
	int status;
	const char *text; /* the message, or where there is no code the whole body, byte for byte */
	const char *code;
} refusals[] = {
	[REFUSAL_INVALID_JSON] = {400, "The body must be a JSON object", "INVALID_JSON"},
	[REFUSAL_MISSING_MESSAGES] = {400, "Messages array is required", "MISSING_MESSAGES"},
	[REFUSAL_INVALID_MESSAGE_FORMAT] =
		{400, "Invalid message format. Each message must have 'role' and 'content'",
		 "INVALID_MESSAGE_FORMAT"},
	[REFUSAL_MISSING_INPUT] = {400, "Input is required: a string or an array", "MISSING_INPUT"},
	[REFUSAL_INVALID_INPUT] = {400,
							   "Invalid input. Each element must be a string or an array of tokens",
							   "INVALID_INPUT"},
	[REFUSAL_INVALID_QUALITY] = {400, "Invalid quality tier. Must be: cheap, balanced, or frontier",
								 "INVALID_QUALITY"},
	[REFUSAL_INVALID_TEMPERATURE] = {400, "Invalid temperature. Must be a number from 0 to 2",
									 "INVALID_TEMPERATURE"},
	[REFUSAL_INVALID_MODEL] = {400, "Invalid model. Must be a name of 1 to 200 characters",
							   "INVALID_MODEL"},
	[REFUSAL_INVALID_STREAM] = {400, "Invalid stream. Must be true or false", "INVALID_STREAM"},
	[REFUSAL_INVALID_STREAM_OPTIONS] =
		{400, "Invalid stream_options. Must be an object, its include_usage true or false",
		 "INVALID_STREAM_OPTIONS"},
	[REFUSAL_INVALID_PERMISSION] = {400,
									"Invalid permission. Must be gateway:read, gateway:write, "
									"logs:read or analytics:read",
									"INVALID_PERMISSION"},
	[REFUSAL_INVALID_QUERY] = {400, "The query string cannot be read", "INVALID_PARAMETER"},
	[REFUSAL_MISSING_KEY] =
		{401,
		 "{\"error\":\"Missing API key. Use one of: X-API-Key: YOUR_KEY, X-RegPilot-Key: YOUR_KEY,"
		 " or Authorization: Bearer YOUR_KEY\",\"headers_checked\":[\"x-api-key\","
		 "\"x-regpilot-key\",\"api-key\",\"authorization\",\"x-authorization\","
		 "\"proxy-authorization\"]}",
		 NULL},
	[REFUSAL_INVALID_KEY] = {401, "{\"error\":\"Invalid or inactive API key\"}", NULL},
	[REFUSAL_REVOKED_KEY] = {401, "{\"error\":\"API key has been revoked\"}", NULL},
	[REFUSAL_NOT_SIGNED_IN] = {401, "You are not signed in", "NOT_SIGNED_IN"},
	[REFUSAL_SIGN_IN_FAILED] = {401, "Wrong role or password", "SIGN_IN_FAILED"},
	[REFUSAL_FORBIDDEN] = {403, "{\"error\":\"Insufficient permissions for this operation\"}",
						   NULL},
	[REFUSAL_NOT_FOR_KEYS] = {403, "No API key opens this address", "FORBIDDEN"},
	[REFUSAL_CROSS_SITE] = {403, "This is for the dashboard's own page", "CROSS_SITE"},
	[REFUSAL_NOT_FOUND] = {404, "There is nothing at this address", "NOT_FOUND"},
	[REFUSAL_MODEL_NOT_FOUND] = {404, "No upstream serves this model or quality tier",
								 "MODEL_NOT_FOUND"},
	[REFUSAL_METHOD_NOT_ALLOWED] = {405, "This address does not take this method",
									"METHOD_NOT_ALLOWED"},
	[REFUSAL_BODY_TOO_LARGE] = {413, "The body is too large", "BODY_TOO_LARGE"},
	[REFUSAL_UNSUPPORTED_MEDIA_TYPE] = {415, "Content-Type must be application/json",
										"UNSUPPORTED_MEDIA_TYPE"},
	[REFUSAL_RATE_LIMITED] = {429, NULL, NULL}, /* made in refusal_body() */
	[REFUSAL_SIGN_IN_THROTTLED] = {429, "Too many failed attempts to sign in", "SIGN_IN_THROTTLED"},
	[REFUSAL_HEADERS_TOO_LARGE] = {431, "The headers are too large", "HEADERS_TOO_LARGE"},
	[REFUSAL_INTERNAL_ERROR] = {500, "The gateway could not make an answer", "INTERNAL_ERROR"},
	[REFUSAL_UPSTREAM_FAILED] = {502, "The upstream failed", "UPSTREAM_FAILED"},
	[REFUSAL_DATABASE_UNAVAILABLE] = {503, "API keys cannot be checked at the moment",
									  "DATABASE_UNAVAILABLE"},
	[REFUSAL_TOO_MANY_STREAMS] = {503, "Too many answers are being relayed at the moment",
								  "TOO_MANY_STREAMS"},
	[REFUSAL_UNREACHABLE] = {503, "The database cannot be reached at the moment",
							 "DATABASE_UNAVAILABLE"},
	[REFUSAL_TOO_MANY_SESSIONS] = {503, "Too many sessions are open at the moment",
								   "TOO_MANY_SESSIONS"},
	[REFUSAL_QUERY_TIMEOUT] = {503, "The database took too long", "QUERY_TIMEOUT"},
	[REFUSAL_UPSTREAM_TIMEOUT] = {504, "The upstream did not answer in time", "UPSTREAM_TIMEOUT"},
};

int
refusal_status(Refusal refusal)
{
	return refusals[refusal].status;
}

void
refusal_body(Refusal refusal, const RefusalDetail *detail, Buffer *body)
{
	const char *code = refusals[refusal].code;
	const char *text = refusals[refusal].text;

	if (refusal == REFUSAL_RATE_LIMITED)
		buffer_printf(body,
					  "{\"error\":\"Rate limit exceeded\",\"retry_after\":%d,\"limit\":%d,"
					  "\"window\":\"1 minute\"}",
					  detail->retry_after, detail->requests_per_minute);
	else if (code == NULL)
		buffer_append_string(body, text);
	else if (refusal == REFUSAL_UPSTREAM_FAILED || refusal == REFUSAL_UPSTREAM_TIMEOUT)
		buffer_printf(body, "{\"error\":\"%s\",\"code\":\"%s\",\"request_id\":\"%s\"}", text, code,
					  detail->request_id);
	else
		buffer_printf(body, "{\"error\":\"%s\",\"code\":\"%s\"}", text, code);
}

void
refusal_event(Refusal refusal, const char *request_id, Buffer *event)
{
	buffer_printf(
		event, "data: {\"error\":{\"message\":\"%s\",\"code\":\"%s\",\"request_id\":\"%s\"}}\n\n",
		refusals[refusal].text, refusals[refusal].code, request_id);
}

/* Reason phrases (RFC 9110, 15) of the statuses made here; an upstream's others go without. */
static const char *
reason(int status)
{
	switch (status)
	{
		case 200:
			return "OK";
		case 204:
			return "No Content";
		case 400:
			return "Bad Request";
		case 308:
			return "Permanent Redirect";
		case 401:
			return "Unauthorized";
		case 403:
			return "Forbidden";
		case 404:
			return "Not Found";
		case 405:
			return "Method Not Allowed";
		case 413:
			return "Content Too Large";
		case 415:
			return "Unsupported Media Type";
		case 422:
			return "Unprocessable Content";
		case 429:
			return "Too Many Requests";
		case 431:
			return "Request Header Fields Too Large";
		case 500:
			return "Internal Server Error";
		case 502:
			return "Bad Gateway";
		case 503:
			return "Service Unavailable";
		case 504:
			return "Gateway Timeout";
	}
	return "";
}

void
reply_status(Buffer *head, int status)
{
	buffer_append_string(head, "Status: ");
	buffer_append_integer(head, status);
	buffer_append(head, " ", 1);
	buffer_append_string(head, reason(status));
	buffer_append(head, "\r\n", 2);
}

void
reply_number(Buffer *head, const char *name, int64_t value)
{
	buffer_append_string(head, name);
	buffer_append(head, ": ", 2);
	buffer_append_integer(head, value);
	buffer_append(head, "\r\n", 2);
}

void
reply_header(Buffer *head, const char *name, const char *value)
{
	size_t from;

	buffer_append_string(head, name);
	buffer_append(head, ": ", 2);
	from = head->length;
	if (!buffer_append_string(head, value))
		return;
	for (size_t i = from; i < head->length; i++)
	{
		if (head->data[i] < ' ' || head->data[i] > '~')
			head->data[i] = '?';
	}
	buffer_append(head, "\r\n", 2);
}
