/*
 * dashboard.c
 *	  The dashboard: its page, and the API for that; and what a key may read of its project.
 *
 * Each call of the API is a statement that makes the answer's JSON. It runs as the role
 * that signed in, so its privileges and row-level security say who may see and do what.
 * A statement has one parameter, a JSON object of the fields of the query or of the
 * body, and as "id" what stands for "*" in the path.
 */
#include "dashboard.h"
#include "asset.h"
#include "config.h"
#include "log.h"
#include "reader.h"
#include "session.h"
#include "url.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PAGE "/dashboard/"
#define API PAGE "api/"
#define COOKIE "regpilot_session"
/* Bytes of a call's body. JSON takes a hundred times as much memory, and who sends it may be anybody. */
#define BODY_MAX (64 * 1024)

/* ---- answers ---- */

static void
answer_text(Exchange *exchange, int status, const char *text)
{
	Buffer head;
	Buffer body = {.data = (char *) text, .length = strlen(text)};

	exchange->status = status;
	exchange_begin_head(exchange, status, &head);
	exchange_answer(exchange, &head, "application/json", &body);
}

/* Takes the value over. */
static void
answer_json(Exchange *exchange, int status, json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT);

	json_decref(value);
	if (text != NULL)
		answer_text(exchange, status, text);
	else
		exchange_refuse(exchange, REFUSAL_INTERNAL_ERROR);
	free(text);
}

/* What the server had against a statement; code stands for what the client got wrong. */
static void
answer_complaint(Exchange *exchange, int status, const char *code, const QueryResult *result)
{
	answer_json(exchange, status,
				json_pack("{s:s,s:s,s:s*,s:s*}", "error", result->message, "code", code, "detail",
						  result->detail, "hint", result->hint));
}

static bool
is_class(const QueryResult *result, const char *class)
{
	return strncmp(result->sqlstate, class, strlen(class)) == 0;
}

/* Appendix A of PostgreSQL's manual. by_id: the statement was about what an id names. */
static void
answer_refusal(Exchange *exchange, const QueryResult *result, bool by_id)
{
	if (is_class(result, "42501")) /* insufficient_privilege */
		answer_complaint(exchange, 403, "FORBIDDEN", result);
	else if (is_class(result, "42704") && by_id) /* undefined_object */
		exchange_refuse(exchange, REFUSAL_NOT_FOUND);
	else if (is_class(result, "22") || is_class(result, "23") || is_class(result, "42704") ||
			 is_class(result, "55000")) /* object_not_in_prerequisite_state */
		answer_complaint(exchange, 422, "INVALID_INPUT", result);
	else if (is_class(result, "57014") || is_class(result, "55P03")) /* it took too long */
		exchange_refuse(exchange, REFUSAL_QUERY_TIMEOUT);
	else
	{
		log_line("request %s: %s (SQLSTATE %s)", exchange->id, result->message, result->sqlstate);
		exchange_refuse(exchange, REFUSAL_INTERNAL_ERROR);
	}
}

/* ---- the page ---- */

static const char policy[] =
	"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

void
dashboard_asset(Exchange *exchange)
{
	const char *uri = exchange_param(exchange, "REQUEST_URI");
	const Asset *asset = asset_find(uri, strcspn(uri, "?"));
	Buffer head;
	Buffer body;

	if (asset == NULL)
	{
		exchange_refuse(exchange, REFUSAL_NOT_FOUND);
		return;
	}
	body = (Buffer){.data = (char *) asset->begin, .length = (size_t) (asset->end - asset->begin)};
	exchange->status = 200;
	exchange_begin_head(exchange, exchange->status, &head);
	if (strncmp(asset->path, PAGE, sizeof(PAGE) - 1) == 0)
	{
		reply_header(&head, "Content-Security-Policy", policy);
		reply_header(&head, "X-Content-Type-Options", "nosniff");
		reply_header(&head, "Referrer-Policy", "no-referrer");
		reply_header(&head, "Cache-Control", "no-cache");
	}
	exchange_answer(exchange, &head, asset->type, &body);
}

void
dashboard_redirect(Exchange *exchange)
{
	Buffer head;

	exchange->status = 308;
	exchange_begin_head(exchange, exchange->status, &head);
	reply_header(&head, "Location", "/dashboard/");
	exchange_answer(exchange, &head, NULL, NULL);
}

/* ---- sessions ---- */

/* Whether the client speaks to the web server over TLS, as far as that tells. */
static bool
is_secure(const Exchange *exchange)
{
	const char *https = exchange_param(exchange, "HTTPS");

	return https != NULL && https[0] != '\0' && strcasecmp(https, "off") != 0;
}

/* Adds the header that sets the cookie, or has the client forget it. */
static void
set_cookie(const Exchange *exchange, const char *token, Buffer *head)
{
	buffer_append_string(head, "Set-Cookie: " COOKIE "=");
	buffer_append_string(head, token);
	buffer_append_string(head, "; Path=/dashboard; HttpOnly; SameSite=Strict");
	if (is_secure(exchange))
		buffer_append_string(head, "; Secure");
	if (token[0] == '\0')
		buffer_append_string(head, "; Max-Age=0");
	buffer_append_string(head, "\r\n");
}

/* The session that the request's cookie names (RFC 6265, 4.2), to be released; NULL: none. */
static Session *
find_session(const Exchange *exchange)
{
	static const char name[] = COOKIE "=";
	const char *cookies = exchange_param(exchange, "HTTP_COOKIE");
	Session *session = NULL;

	while (cookies != NULL && session == NULL)
	{
		cookies += strspn(cookies, "; ");
		if (strncmp(cookies, name, sizeof(name) - 1) == 0)
			session =
				session_find(cookies + sizeof(name) - 1, strcspn(cookies + sizeof(name) - 1, "; "));
		cookies = strchr(cookies, ';');
	}
	return session;
}

static json_t *
describe_session(const Session *session)
{
	return json_pack("{s:s,s:b}", "role", session_role(session), "admin",
					 session_is_admin(session));
}

static void
show_session(Exchange *exchange, Session *session)
{
	answer_json(exchange, 200, describe_session(session));
}

static void
end_session(Exchange *exchange, Session *session)
{
	Buffer head;

	session_close(session);
	exchange->status = 204;
	exchange_begin_head(exchange, exchange->status, &head);
	set_cookie(exchange, "", &head);
	exchange_answer(exchange, &head, NULL, NULL);
}

static void
answer_signed_in(Exchange *exchange, const Session *session)
{
	json_t *description = describe_session(session);
	char *text = json_dumps(description, JSON_COMPACT);
	Buffer body = {.data = text, .length = text != NULL ? strlen(text) : 0};
	Buffer head;

	json_decref(description);
	exchange->status = 200;
	exchange_begin_head(exchange, exchange->status, &head);
	set_cookie(exchange, session_token(session), &head);
	exchange_answer(exchange, &head, "application/json", &body);
	free(text);
}

/* former: the client's session as yet, or NULL. */
static void
sign_in(Exchange *exchange, Session *former, const json_t *fields)
{
	const char *role = json_string_value(json_object_get(fields, "role"));
	const char *password = json_string_value(json_object_get(fields, "password"));
	const char *address = exchange_param(exchange, "REMOTE_ADDR");
	Session *session;

	if (role == NULL || password == NULL)
	{
		exchange_refuse(exchange, REFUSAL_SIGN_IN_FAILED);
		return;
	}
	switch (session_open(role, password, address != NULL ? address : "", &session,
						 &exchange->authorization.retry_after))
	{
		case SIGN_IN_DONE:
			/* The client forgets its token, so nobody could end it any more. */
			if (former != NULL)
				session_close(former);
			answer_signed_in(exchange, session);
			session_release(session);
			break;
		case SIGN_IN_FAILED:
			exchange_refuse(exchange, REFUSAL_SIGN_IN_FAILED);
			break;
		case SIGN_IN_THROTTLED:
			exchange_refuse(exchange, REFUSAL_SIGN_IN_THROTTLED);
			break;
		case SIGN_IN_FULL:
			exchange_refuse(exchange, REFUSAL_TOO_MANY_SESSIONS);
			break;
		case SIGN_IN_UNAVAILABLE:
			exchange_refuse(exchange, REFUSAL_UNREACHABLE);
			break;
	}
}

/* ---- the API ---- */

#define INPUT "WITH input AS (SELECT $1::jsonb AS f) "
/* a page of what the function makes of a project that the role can see, by the fields */
#define LIST(function)                                                                             \
	INPUT "SELECT regpilot." function "(p.id, f - 'id')"                                           \
		  " FROM input JOIN regpilot.project p ON p.id = (f->>'id')::uuid"
/* what the function, which gives nothing, does with a key */
#define DO(call) INPUT "SELECT '{}' FROM input, LATERAL regpilot." call

typedef struct Operation
{
	const char *method;
	const char *path; /* behind API; "*" is an id */
	const char *sql;  /* NULL: something else */
	void (*serve)(Exchange *exchange, Session *session);
} Operation;

static const Operation operations[] = {
	{.method = "POST", .path = "session"}, /* sign_in() */
	{.method = "GET", .path = "session", .serve = show_session},
	{.method = "DELETE", .path = "session", .serve = end_session},
	{.method = "GET",
	 .path = "plans",
	 .sql = "SELECT jsonb_build_object('data', coalesce(jsonb_agg(to_jsonb(p)"
			" ORDER BY p.requests_per_minute, p.name), '[]')) FROM regpilot.plan p"},
	{.method = "GET",
	 .path = "projects",
	 .sql =
		 "SELECT jsonb_build_object('data', coalesce(jsonb_agg(to_jsonb(p) ORDER BY p.name), '[]'))"
		 " FROM regpilot.project_overview p"},
	{.method = "POST",
	 .path = "projects",
	 .sql = INPUT "SELECT jsonb_build_object('project_id',"
				  " regpilot.create_project(f->>'name', coalesce(f->>'plan', 'free'))) FROM input"},
	{.method = "GET",
	 .path = "projects/*",
	 .sql = INPUT "SELECT to_jsonb(p) FROM input"
				  " JOIN regpilot.project_overview p ON p.project_id = (f->>'id')::uuid"},
	{.method = "GET", .path = "projects/*/keys", .sql = LIST("key_page")},
	{.method = "POST",
	 .path = "projects/*/keys",
	 .sql = INPUT "SELECT to_jsonb(k) FROM input, LATERAL regpilot.create_key((f->>'id')::uuid,"
				  " f->>'name', f->>'environment', CASE WHEN f ? 'permissions' THEN"
				  " ARRAY(SELECT jsonb_array_elements_text(f->'permissions')) ELSE"
				  " '{gateway:read,gateway:write,logs:read,analytics:read}' END,"
				  " (f->>'expires_at')::timestamptz, (f->>'requests_per_minute')::int) k"},
	{.method = "GET", .path = "projects/*/analytics", .sql = LIST("analytics")},
	{.method = "GET", .path = "projects/*/logs", .sql = LIST("log_page")},
	{.method = "GET", .path = "projects/*/audit", .sql = LIST("audit_page")},
	{.method = "GET",
	 .path = "keys/*",
	 .sql = INPUT "SELECT to_jsonb(k) || jsonb_build_object('rotated_to', (SELECT s.id"
				  " FROM regpilot.api_key s WHERE s.rotated_from = k.key_id"
				  " ORDER BY s.created_at DESC LIMIT 1))"
				  " FROM input JOIN regpilot.key_overview k ON k.key_id = (f->>'id')::uuid"},
	{.method = "POST",
	 .path = "keys/*/rotate",
	 .sql = INPUT "SELECT to_jsonb(k) FROM input, LATERAL regpilot.rotate_key((f->>'id')::uuid,"
				  " coalesce(f->>'overlap', '7 days')::interval) k"},
	{.method = "POST", .path = "keys/*/disable", .sql = DO("disable_key((f->>'id')::uuid)")},
	{.method = "POST", .path = "keys/*/enable", .sql = DO("enable_key((f->>'id')::uuid)")},
	{.method = "POST", .path = "keys/*/review", .sql = DO("review_key((f->>'id')::uuid)")},
	{.method = "POST",
	 .path = "keys/*/revoke",
	 .sql = DO("revoke_key((f->>'id')::uuid, f->>'reason')")},
};

#define OPERATIONS (sizeof(operations) / sizeof(operations[0]))

/* Whether the path fits, and then where its id is. */
static bool
match_path(const char *pattern, const char *path, size_t length, const char **id, size_t *id_length)
{
	const char *end = path + length;

	*id = NULL;
	*id_length = 0;
	for (; *pattern != '\0'; pattern++)
	{
		if (*pattern == '*')
		{
			*id = path;
			while (path < end && *path != '/')
				path++;
			*id_length = (size_t) (path - *id);
			if (*id_length == 0)
				return false;
		}
		else if (path == end || *path++ != *pattern)
			return false;
	}
	return path == end;
}

/* The operation that is asked for, and its id; NULL, having answered: there is none. */
static const Operation *
find_operation(Exchange *exchange, const char **id, size_t *id_length)
{
	char allowed[64] = ""; /* RFC 9110, 10.2.1 */
	const char *path = exchange_param(exchange, "REQUEST_URI") + sizeof(API) - 1;
	const char *method = exchange_param(exchange, "REQUEST_METHOD");

	for (size_t i = 0; i < OPERATIONS; i++)
	{
		if (!match_path(operations[i].path, path, strcspn(path, "?"), id, id_length))
			continue;
		if (method != NULL && strcmp(method, operations[i].method) == 0)
			return &operations[i];
		snprintf(allowed + strlen(allowed), sizeof(allowed) - strlen(allowed), "%s%s",
				 allowed[0] != '\0' ? ", " : "", operations[i].method);
	}
	exchange->allow = allowed;
	exchange_refuse(exchange, allowed[0] != '\0' ? REFUSAL_METHOD_NOT_ALLOWED : REFUSAL_NOT_FOUND);
	return NULL;
}

/* The fields of the request's query, none where it has no query; NULL: they cannot be read. */
static json_t *
read_query(const Exchange *exchange)
{
	const char *query = strchr(exchange_param(exchange, "REQUEST_URI"), '?');

	return url_query(query != NULL ? query + 1 : "");
}

/* The name of a field of the wrong type; NULL: there is none. */
static const char *
find_wrong_type(json_t *fields)
{
	const char *name;
	json_t *value;

	json_object_foreach(fields, name, value)
	{
		bool right = json_is_string(value);

		if (strcmp(name, "permissions") == 0)
			right = json_is_array(value);
		else if (strcmp(name, "requests_per_minute") == 0)
			right = json_is_integer(value);
		if (!right && !json_is_null(value))
			return name;
	}
	return NULL;
}

/* The fields of the query, or of the body; NULL, having answered: they cannot be read. */
static json_t *
read_fields(Exchange *exchange, const Operation *operation)
{
	Refusal refusal = REFUSAL_INVALID_QUERY;
	json_t *fields = NULL;
	const char *wrong;
	Buffer body;

	buffer_init(&body, BODY_MAX < config.max_body ? BODY_MAX : (size_t) config.max_body);
	if (strcmp(operation->method, "POST") != 0)
		fields = read_query(exchange);
	else
	{
		refusal = exchange_read_json(exchange, &body);
		if (refusal == REFUSAL_NONE)
			fields = json_loadb(body.data, body.length, JSON_REJECT_DUPLICATES, NULL);
		if (refusal == REFUSAL_NONE)
			refusal = REFUSAL_INVALID_JSON;
	}
	if (body.data != NULL) /* it may have a password */
		explicit_bzero(body.data, body.length);
	buffer_free(&body);
	wrong = json_is_object(fields) ? find_wrong_type(fields) : NULL;
	if (json_is_object(fields) && wrong == NULL)
		return fields;
	if (wrong != NULL)
		answer_json(exchange, 422,
					json_pack("{s:o,s:s}", "error", json_sprintf("invalid type of \"%s\"", wrong),
							  "code", "INVALID_INPUT"));
	else
		exchange_refuse(exchange, refusal);
	json_decref(fields);
	return NULL;
}

static void
answer_result(Exchange *exchange, QueryResult *result, const Operation *operation)
{
	switch (result->outcome)
	{
		case QUERY_ANSWERED:
			answer_text(exchange, 200, result->json);
			break;
		case QUERY_EMPTY:
			exchange_refuse(exchange, REFUSAL_NOT_FOUND);
			break;
		case QUERY_REFUSED:
			answer_refusal(exchange, result, strchr(operation->path, '*') != NULL);
			break;
		case QUERY_BUSY:
			exchange_refuse(exchange, REFUSAL_QUERY_TIMEOUT);
			break;
		case QUERY_LOST:
			exchange_refuse(exchange, REFUSAL_NOT_SIGNED_IN);
			break;
	}
	query_free(result);
}

static void
run_operation(Exchange *exchange, Session *session, const Operation *operation, json_t *fields)
{
	char *text = json_dumps(fields, JSON_COMPACT);
	const char *values[] = {text};
	QueryResult result;

	if (text == NULL)
	{
		exchange_refuse(exchange, REFUSAL_INTERNAL_ERROR);
		return;
	}
	session_run(session, operation->sql, strstr(operation->sql, "$1") != NULL, values, &result);
	answer_result(exchange, &result, operation);
	free(text);
}

void
dashboard_api(Exchange *exchange)
{
	const char *guard = exchange_param(exchange, "HTTP_X_REGPILOT_DASHBOARD");
	const char *id;
	size_t id_length;
	const Operation *operation;
	Session *session;
	json_t *fields;

	/* A cache knows nothing of cookies, nor of who may see what. */
	exchange->confidential = true;

	/* Another site's page cannot send such a header without being asked whether it may. */
	if (guard == NULL || strcmp(guard, "1") != 0)
	{
		exchange_refuse(exchange, REFUSAL_CROSS_SITE);
		return;
	}
	operation = find_operation(exchange, &id, &id_length);
	if (operation == NULL)
		return;

	session = find_session(exchange);
	if (session == NULL && (operation->sql != NULL || operation->serve != NULL))
	{
		exchange_refuse(exchange,
						exchange_find_key(exchange) ? REFUSAL_NOT_FOR_KEYS : REFUSAL_NOT_SIGNED_IN);
		return;
	}
	if (operation->serve != NULL)
		operation->serve(exchange, session);
	else
	{
		fields = read_fields(exchange, operation);
		if (fields != NULL && operation->sql == NULL)
			sign_in(exchange, session, fields);
		else if (fields != NULL && id != NULL &&
				 json_object_set_new(fields, "id", json_stringn(id, id_length)) != 0)
			exchange_refuse(exchange, REFUSAL_NOT_FOUND);
		else if (fields != NULL)
			run_operation(exchange, session, operation, fields);
		json_decref(fields);
	}
	if (session != NULL)
		session_release(session);
}

/* ---- for keys ---- */

static void
serve_key(Exchange *exchange, const char *sql)
{
	json_t *fields = read_query(exchange);
	char *text = json_dumps(fields, JSON_COMPACT);
	const char *values[] = {exchange->authorization.project_id, text};
	QueryResult result;

	exchange->confidential = true;
	json_decref(fields);
	if (text == NULL)
	{
		exchange_refuse(exchange, REFUSAL_INVALID_QUERY);
		return;
	}
	reader_run(sql, 2, values, &result);
	free(text);
	if (result.outcome == QUERY_ANSWERED)
	{
		Buffer body = {.data = (char *) result.json, .length = strlen(result.json)};

		exchange_answer_text(exchange, "application/json", &body);
	}
	else if (result.outcome == QUERY_LOST)
		exchange_refuse(exchange, REFUSAL_DATABASE_UNAVAILABLE);
	else if (result.outcome == QUERY_REFUSED && is_class(&result, "22"))
		answer_complaint(exchange, 400, "INVALID_PARAMETER", &result);
	else if (result.outcome == QUERY_REFUSED)
		answer_refusal(exchange, &result, false);
	else
		exchange_refuse(exchange, REFUSAL_INTERNAL_ERROR);
	query_free(&result);
}

void
dashboard_key_logs(Exchange *exchange)
{
	serve_key(exchange, "SELECT regpilot.key_log($1::uuid, $2::jsonb)");
}

void
dashboard_key_analytics(Exchange *exchange)
{
	serve_key(exchange, "SELECT regpilot.key_analytics($1::uuid, $2::jsonb)");
}
